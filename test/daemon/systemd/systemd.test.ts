/** What the service manager is told, and the sockets it passes. The manager is a socket and a launcher of our own. */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import WebSocket from 'ws';
import { watchdogMs } from '../../../daemon/systemd/notify.ts';
import { passedSocket, takePassedSockets } from '../../../daemon/systemd/sockets.ts';
import { limitMs } from '../../patience.ts';
import { daemonProgram, makeScratchDir, reportOf, repositoryRoot } from '../../peers/daemons.ts';
import { QmpClient } from '../../peers/qmp-client.ts';
import { requirePeer } from '../../peers/requires.ts';

let dir = '';
const cleanups: (() => unknown)[] = [];
beforeEach(() => {
  dir = makeScratchDir();
});
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
  rmSync(dir, { recursive: true, force: true });
});

const PATIENCE = { timeout: limitMs(30_000) };

/** A manager's notification socket: every message becomes a line of a file. Node cannot receive these datagrams. */
async function fakeManager(address: string): Promise<() => string[]> {
  const log = path.join(dir, 'told');
  const program = `
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1].replace('@', '\\0', 1))
with open(sys.argv[2], 'w') as log:
    while True:
        print(repr(s.recv(4096).decode()), file=log, flush=True)
`;
  const child = spawn('python3', ['-c', program, address, log], { stdio: 'inherit' });
  cleanups.push(() => child.kill('SIGKILL'));
  await expect.poll(() => existsSync(log), PATIENCE).toBe(true);
  return () => readFileSync(log, 'utf8').trim().split('\n');
}

function start(args: readonly string[], env: Readonly<Record<string, string>>): ChildProcess {
  const child = spawn(daemonProgram('qblockd'), args, {
    cwd: dir,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  cleanups.push(() => child.kill('SIGKILL'));
  return child;
}

/** What the manager does: listens on sockets, which become descriptors 3, 4, ..., and turns into the daemon. */
const LAUNCHER = `
import json, os, socket, sys
names, args = json.loads(sys.argv[1]), sys.argv[2:]
made = []
for name, where in names:
    s = socket.socket(socket.AF_UNIX if where else socket.AF_INET)
    s.bind(where or ('127.0.0.1', 0))
    s.listen()
    if not where: print(s.getsockname()[1], flush=True)
    made.append(os.dup(s.fileno()) if s.fileno() < 20 else s.fileno())
high = [os.dup2(fd, 50 + i) for i, fd in enumerate(made)]
for i, fd in enumerate(high): os.dup2(fd, 3 + i)
os.closerange(3 + len(high), 100)
env = dict(os.environ, LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(names)), LISTEN_FDNAMES=':'.join(n for n, _ in names))
os.execve(args[0], args, env)
`;

/** `sockets`: names, with paths, or null for a TCP port, which is the first line of the output. */
function startWithSockets(
  sockets: readonly (readonly [string, string | null])[],
  args: readonly string[],
): ChildProcess {
  const words = ['-c', LAUNCHER, JSON.stringify(sockets), daemonProgram('qblockd'), ...args];
  const child = spawn('python3', words, { cwd: dir, stdio: ['ignore', 'pipe', 'pipe'] });
  cleanups.push(() => child.kill('SIGKILL'));
  return child;
}

describe('the manager is told', () => {
  test.for(['file', 'name'])('ready, alive and stopping, on a socket that is a %s', async (kind, context) => {
    requirePeer(context, 'python3');
    const address = kind === 'file' ? path.join(dir, 'notify') : `@qb-notify-${process.pid}`;
    const told = await fakeManager(address);
    const daemon = start(['--blockdev', 'driver=null-co,node-name=n'], {
      NOTIFY_SOCKET: address,
      WATCHDOG_USEC: '100000',
    });
    const report = reportOf(daemon);
    await expect.poll(told, PATIENCE).toContain("'WATCHDOG=1'");
    expect(told()[0]).toBe(`'READY=1\\nSTATUS=Serving\\nMAINPID=${daemon.pid}'`);
    daemon.kill('SIGTERM');
    expect(await report).toMatchObject({ status: 0, stderr: '' });
    await expect.poll(() => told().some((line) => line.startsWith("'STOPPING=1\\n")), PATIENCE).toBe(true);
  });

  test('not that it is ready, when it could not start', async (context) => {
    requirePeer(context, 'python3');
    const told = await fakeManager(path.join(dir, 'notify'));
    const daemon = start(['--blockdev', 'driver=nonsense'], { NOTIFY_SOCKET: path.join(dir, 'notify') });
    expect(await reportOf(daemon)).toMatchObject({ status: 1 });
    expect(told().join('\n')).not.toContain('READY');
  });

  test.each(['/nonexistent/notify', 'vsock:2:1', '@', `/${'x'.repeat(200)}`])(
    'a manager at %s is no reason to fail',
    async (address) => {
      const daemon = start(['--pidfile', 'pid'], { NOTIFY_SOCKET: address });
      const report = reportOf(daemon);
      await expect.poll(() => existsSync(path.join(dir, 'pid')), PATIENCE).toBe(true);
      daemon.kill('SIGTERM');
      expect(await report).toMatchObject({ status: 0, stderr: '' });
    },
  );

  test.each<[Record<string, string>, number | null]>([
    [{}, null],
    [{ WATCHDOG_USEC: '30000000' }, 15000],
    [{ WATCHDOG_USEC: '30000000', WATCHDOG_PID: '7' }, 15000],
    [{ WATCHDOG_USEC: '30000000', WATCHDOG_PID: '8' }, null],
    [{ WATCHDOG_USEC: '0' }, null],
    [{ WATCHDOG_USEC: 'x' }, null],
    [{ WATCHDOG_USEC: '9'.repeat(19) }, 2 ** 31 - 1],
  ])('how often, for %j', (env, expected) => {
    expect(watchdogMs(env, 7)).toBe(expected);
  });
});

describe('sockets that are passed', () => {
  test('serve QMP, WebSocket and NBD', async (context) => {
    requirePeer(context, 'python3');
    const sockets = [
      ['qmp', 'qmp'],
      ['ws', null],
      ['nbd', 'nbd'],
    ] as const;
    const daemon = startWithSockets(sockets, [
      ...['--blockdev', 'driver=null-co,node-name=n,size=65536,read-zeroes=on'],
      ...['--qmp', 'fd:qmp', '--qmp', 'ws-fd:ws,token=t'],
      ...['--nbd-server', 'addr.type=fd,addr.str=nbd', '--export', 'type=nbd,id=e,node-name=n'],
      ...['--pidfile', 'pid'],
    ]);
    let output = '';
    daemon.stdout?.on('data', (text) => {
      output += String(text);
    });
    const report = reportOf(daemon);
    await expect.poll(() => existsSync(path.join(dir, 'pid')), PATIENCE).toBe(true);
    const port = Number(/^\d+/.exec(output)?.[0]);
    const qmp = await QmpClient.connect(path.join(dir, 'qmp'));
    await qmp.execute('qmp_capabilities');
    const exports = await qmp.execute('query-block-exports');
    expect(exports).toMatchObject([{ id: 'e' }]);
    qmp.close();
    const io = daemonProgram('qblockd').replace(/qblockd$/, 'qblock-io');
    const read = spawnSync(io, [
      '-r',
      '-c',
      'read -P 0 0 4k',
      '-f',
      'raw',
      `nbd+unix:///n?socket=${dir}/nbd`,
    ]);
    expect(String(read.stderr)).toBe('');
    expect(read.status).toBe(0);
    const url = `ws://127.0.0.1:${port}/?token=t`;
    const greeting = await new Promise((resolve, reject) => {
      const socket = new WebSocket(url);
      socket.once('message', (data) => resolve(String(data))).once('error', reject);
      cleanups.push(() => socket.terminate());
    });
    expect(greeting).toContain('"QMP"');
    daemon.kill('SIGTERM');
    expect(await report).toMatchObject({ status: 0, stderr: '' });
  });

  test('a client that comes before the daemon is served', async (context) => {
    requirePeer(context, 'systemd');
    const args = ['--fdname=qmp', '-l', path.join(dir, 'qmp'), daemonProgram('qblockd'), '--qmp', 'fd:qmp'];
    const child = spawn('systemd-socket-activate', args, { cwd: dir, stdio: ['ignore', 'ignore', 'pipe'] });
    cleanups.push(() => child.kill('SIGKILL'));
    const report = reportOf(child);
    await expect.poll(() => existsSync(path.join(dir, 'qmp')), PATIENCE).toBe(true);
    const client = await QmpClient.connect(path.join(dir, 'qmp'));
    await client.execute('qmp_capabilities');
    await client.execute('quit');
    expect(await report).toMatchObject({ status: 0 });
  });

  test('are found by their names', () => {
    const protectedFds: number[] = [];
    const env = { LISTEN_PID: '7', LISTEN_FDS: '4', LISTEN_FDNAMES: 'qmp:nbd:nbd' };
    const sockets = takePassedSockets(env, 7, (fd) => protectedFds.push(fd));
    expect(passedSocket(sockets, 'qmp')).toBe('3');
    expect(passedSocket(sockets, 'unknown')).toBe('6');
    expect(() => passedSocket(sockets, 'nbd')).toThrow("2 sockets are called 'nbd'");
    expect(() => passedSocket(sockets, 'ws')).toThrow("No socket 'ws' has been passed to the daemon");
    expect(protectedFds).toEqual([3, 4, 5, 6]);
    expect(env).toEqual({});
  });

  test.each<Record<string, string>>([
    { LISTEN_PID: '8', LISTEN_FDS: '1' },
    { LISTEN_FDS: '1' },
    { LISTEN_PID: '7', LISTEN_FDS: '-1' },
    { LISTEN_PID: '7', LISTEN_FDS: '99999' },
  ])('are not ours: %j', (env) => {
    expect(takePassedSockets(env, 7, () => undefined).size).toBe(0);
  });

  test('one that is missing stops the start', async () => {
    const report = await reportOf(start(['--qmp', 'fd:qmp'], {}));
    expect(report.status).toBe(1);
    expect(report.stderr).toContain("No socket 'qmp' has been passed to the daemon");
  });
});

test('the unit files are understood by systemd', (context) => {
  requirePeer(context, 'systemd');
  const units = path.join(repositoryRoot, 'packaging/systemd');
  const service = readFileSync(path.join(units, 'qblockd.service'), 'utf8');
  expect(service).toMatch(/^NoNewPrivileges=yes$/m);
  const files = ['qblockd.service', 'qblockd.socket'].map((name) => path.join(units, name));
  const { stderr } = spawnSync('systemd-analyze', ['verify', '--man=no', ...files], { encoding: 'utf8' });
  const complaints = stderr.split('\n').filter((line) => /qblockd\.(service|socket)/.test(line));
  // Only what is not installed on this machine may be missing.
  expect(complaints.filter((line) => !/not executable|No such file/.test(line))).toEqual([]);
});
