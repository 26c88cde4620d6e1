/**
 * How the daemon starts, ends and cleans up after itself, compared with the original where the two must agree.
 */

import { execFile, spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync, statSync } from 'node:fs';
import { connect } from 'node:net';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { limitMs } from '../patience.ts';
import {
  type DaemonKind,
  daemonProgram,
  type ExitReport,
  makeScratchDir,
  reportOf,
} from '../peers/daemons.ts';
import { QmpClient } from '../peers/qmp-client.ts';
import { requirePeer } from '../peers/requires.ts';

const kinds: readonly DaemonKind[] = ['qemu-storage-daemon', 'qblockd'];

let dir = '';
const cleanups: (() => unknown)[] = [];
beforeEach(() => {
  dir = makeScratchDir();
});
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
  rmSync(dir, { recursive: true, force: true });
});

const file = (name: string): string => path.join(dir, name);

interface Started {
  readonly pid: number;
  readonly exited: Promise<ExitReport>;
  kill(signal: NodeJS.Signals): void;
}

function start(kind: DaemonKind, ...args: string[]): Started {
  const child = spawn(daemonProgram(kind), args, { cwd: dir, stdio: ['ignore', 'pipe', 'pipe'] });
  const exited = reportOf(child);
  cleanups.push(() => child.kill('SIGKILL'));
  return { pid: child.pid ?? 0, exited, kill: (signal) => void child.kill(signal) };
}

const monitor = ['--chardev', 'socket,id=c,path=c.sock,server=on,wait=off', '--monitor', 'c'];

async function client(name: string): Promise<QmpClient> {
  await expect.poll(() => existsSync(file(name)), { timeout: limitMs(30_000) }).toBe(true);
  const connection = await QmpClient.connect(file(name));
  cleanups.push(() => connection.close());
  return connection;
}

/** Waits for the pid file, which comes last. */
async function pidFrom(name: string): Promise<number> {
  await expect
    .poll(() => existsSync(file(name)) && readFileSync(file(name), 'utf8'), { timeout: limitMs(30_000) })
    .toMatch(/\n$/);
  return Number(readFileSync(file(name), 'utf8'));
}

async function gone(pid: number): Promise<void> {
  const isAlive = (): boolean => existsSync(`/proc/${pid}`);
  await expect.poll(isAlive, { timeout: limitMs(30_000) }).toBe(false);
}

describe.each(kinds)('%s', (kind) => {
  test.each(['SIGTERM', 'SIGINT', 'SIGHUP'] as const)('%s ends it with status 0', async (signal) => {
    const daemon = start(kind, ...monitor, '--pidfile', 'first', '--pidfile', 'pid');
    expect(await pidFrom('pid')).toBe(daemon.pid);
    expect(existsSync(file('first'))).toBe(false); // the last one counts
    expect(statSync(file('pid')).mode & 0o777).toBe(0o600);
    daemon.kill(signal);
    expect(await daemon.exited).toEqual({ status: 0, signal: null, stdout: '', stderr: '' });
    for (const name of ['pid', 'c.sock']) expect([name, existsSync(file(name))]).toEqual([name, false]);
  });

  test('quit answers, then ends; what follows is not read', async () => {
    const daemon = start(kind, ...monitor);
    const qmp = await client('c.sock');
    await qmp.negotiate();
    qmp.send('{"execute": "quit"}{"execute": "query-version"}');
    expect(await qmp.next()).toEqual({ return: {} });
    expect(await qmp.next()).toBeNull();
    expect((await daemon.exited).status).toBe(0);
  });

  test('standard input and output as a monitor; the end of input is not the end', async () => {
    const script = '{"execute": "qmp_capabilities"}\n{"execute": "query-chardev"}\n';
    const child = spawn(daemonProgram(kind), ['--chardev', 'stdio,id=c', '--monitor', 'c'], { cwd: dir });
    const exited = reportOf(child);
    child.stdin.end(script);
    let output = '';
    child.stdout.on('data', (text) => {
      output += String(text);
    });
    await expect.poll(() => output.split('\r\n').length, { timeout: limitMs(30_000) }).toBe(4);
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(child.exitCode).toBeNull();
    child.kill('SIGTERM');
    expect((await exited).status).toBe(0);
  });

  test('a pid file is locked', async () => {
    const first = start(kind, '--pidfile', 'pid');
    await pidFrom('pid');
    for (const other of kinds) {
      const { stderr, status } = spawnSync(daemonProgram(other), ['--pidfile', 'pid'], { cwd: dir });
      const message = 'cannot create PID file: Cannot lock pid file: Resource temporarily unavailable\n';
      expect([status, stderr.toString()]).toEqual([1, `${path.basename(daemonProgram(other))}: ${message}`]);
    }
    expect(await pidFrom('pid')).toBe(first.pid);
  });

  test('--daemonize: the parent ends when all is ready, the daemon lives in a session of its own', async () => {
    const args = ['--daemonize', '--pidfile', 'pid', ...monitor, '--chardev', 'pty,id=p'];
    cleanups.push(() => {
      // Still there only if the test has failed half-way.
      if (existsSync(file('pid'))) process.kill(Number(readFileSync(file('pid'), 'utf8')), 'SIGKILL');
    });
    // Like a shell's $(...): ends when nobody holds the pipes any more.
    const output = await new Promise<{ stdout: string; stderr: string }>((resolve, reject) =>
      execFile(daemonProgram(kind), args, { cwd: dir, timeout: limitMs(30_000) }, (error, stdout, stderr) =>
        error === null ? resolve({ stdout, stderr }) : reject(error),
      ),
    );
    expect(output.stderr).toBe('');
    // The original loses what it has printed when that is no terminal.
    if (kind === 'qblockd')
      expect(output.stdout).toMatch(/^char device redirected to \/dev\/pts\/\d+ \(label p\)\n$/);
    const pid = await pidFrom('pid');
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? [];
    const [, parent, , session] = stat;
    expect(parent).toBe('1');
    expect(session).not.toBe(readFileSync('/proc/self/stat', 'utf8').split(') ')[1]?.split(' ')[3]);
    const qmp = await client('c.sock');
    await qmp.negotiate();
    await qmp.execute('quit');
    await gone(pid);
    expect(existsSync(file('pid'))).toBe(false);
  });

  test('options are executed before anybody is served', async () => {
    // The listening device comes first, what the client asks for last.
    const nodes = Array.from({ length: 20 }, (_, index) => [
      '--blockdev',
      `null-co,node-name=n${index}`,
    ]).flat();
    start(kind, ...monitor, ...nodes);
    const qmp = await client('c.sock');
    await qmp.negotiate();
    expect(await qmp.execute('query-named-block-nodes')).toHaveLength(20);
  });

  test('with wait=on it waits for a client', async () => {
    const option = 'socket,id=c,path=c.sock,server=on';
    const daemon = start(kind, '--chardev', option, '--monitor', 'c', '--pidfile', 'pid');
    await expect.poll(() => existsSync(file('c.sock')), { timeout: limitMs(30_000) }).toBe(true);
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(existsSync(file('pid'))).toBe(false);
    const qmp = await client('c.sock');
    expect(await qmp.next()).toHaveProperty('QMP');
    expect(await pidFrom('pid')).toBe(daemon.pid);
    daemon.kill('SIGTERM');
    const { stderr } = await daemon.exited;
    const info = 'info: QEMU waiting for connection on: disconnected:unix:c.sock,server=on\n';
    expect(stderr).toBe(`${path.basename(daemonProgram(kind))}: --chardev ${option}: ${info}`);
  });
});

describe('qblockd', () => {
  test('waiting for a client does not keep it from ending', async () => {
    const daemon = start('qblockd', '--chardev', 'socket,id=c,path=c.sock,server=on', '--monitor', 'c');
    await expect.poll(() => existsSync(file('c.sock')), { timeout: limitMs(30_000) }).toBe(true);
    daemon.kill('SIGTERM');
    expect((await daemon.exited).status).toBe(0);
    expect(existsSync(file('c.sock'))).toBe(false);
  });

  test('an NBD client that comes early finds the exports of the whole command line', async (context) => {
    requirePeer(context, 'nbdinfo');
    const exports = Array.from({ length: 10 }, (_, index) => [
      ...['--blockdev', `null-co,node-name=n${index}`],
      ...['--export', `nbd,id=e${index},node-name=n${index}`],
    ]).flat();
    start('qblockd', '--nbd-server', 'addr.type=unix,addr.path=n.sock', ...exports);
    await expect.poll(() => existsSync(file('n.sock')), { timeout: limitMs(30_000), interval: 1 }).toBe(true);
    const { stdout } = spawnSync('nbdinfo', ['--size', `nbd+unix:///n9?socket=${file('n.sock')}`]);
    expect(stdout.toString()).toBe('1073741824\n');
  });

  test('its sockets are for its user alone, and are removed at the end', async () => {
    const args = ['--nbd-server', 'addr.type=unix,addr.path=n.sock', '--qmp', 'unix:q.sock', ...monitor];
    const daemon = start('qblockd', ...args, '--pidfile', 'pid');
    await pidFrom('pid');
    for (const name of ['n.sock', 'q.sock', 'c.sock']) expect(statSync(file(name)).mode & 0o777).toBe(0o600);
    daemon.kill('SIGTERM');
    await daemon.exited;
    for (const name of ['n.sock', 'q.sock', 'c.sock'])
      expect([name, existsSync(file(name))]).toEqual([name, false]);
  });

  test('a stale socket is replaced, a file is not', async () => {
    // Left behind by a process that was killed.
    const listen = `require('net').createServer().listen('q.sock', () => process.kill(process.pid, 'SIGKILL'))`;
    spawnSync(process.execPath, ['-e', listen], { cwd: path.dirname(file('q.sock')) });
    expect(existsSync(file('q.sock'))).toBe(true);
    const first = start('qblockd', '--qmp', 'unix:q.sock', '--pidfile', 'pid');
    await pidFrom('pid');
    const qmp = await client('q.sock');
    expect(await qmp.next()).toHaveProperty('QMP');
    first.kill('SIGTERM');
    await first.exited;
    const { stderr, status } = spawnSync(daemonProgram('qblockd'), ['--qmp', `unix:${import.meta.filename}`]);
    expect(status).toBe(1);
    expect(stderr.toString()).toMatch(/Failed to bind socket to .*: Address already in use\n$/);
    expect(existsSync(import.meta.filename)).toBe(true);
  });

  test('--qmp serves several clients at once, each with a session of its own', async () => {
    start('qblockd', '--qmp', 'unix:q.sock', '--qmp', 'tcp:127.0.0.1:0,pretty=on', '--pidfile', 'pid');
    await pidFrom('pid');
    const [first, second] = [await client('q.sock'), await client('q.sock')];
    await first.negotiate();
    expect(await second.next()).toHaveProperty('QMP');
    second.send('{"execute": "query-version"}');
    expect(await second.next()).toMatchObject({ error: { class: 'CommandNotFound' } });
    expect(await first.execute('query-chardev')).toEqual([]);
    // Events reach all who have negotiated.
    second.send('{"execute": "qmp_capabilities"}');
    expect(await second.next()).toEqual({ return: {} });
    await first.execute('blockdev-add', { driver: 'null-co', 'node-name': 'n' });
    await first.execute('nbd-server-start', { addr: { type: 'unix', data: { path: file('n.sock') } } });
    await first.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'n' });
    await first.execute('block-export-del', { id: 'e' });
    expect(await second.next()).toMatchObject({ event: 'BLOCK_EXPORT_DELETED', data: { id: 'e' } });
    // A client that vanishes in the middle of a command disturbs nobody.
    const rude = connect(file('q.sock'));
    rude.write('{"execute": "qmp_capa');
    rude.destroy();
    expect(await first.execute('query-chardev')).toEqual([]);
  });

  test('--embedded makes a disk, serves it and says how to use it', async () => {
    const daemon = start('qblockd', '--embedded', 'data', '--pidfile', 'pid', '--log-level', 'info');
    await pidFrom('pid');
    expect(statSync(file('data/disk.raw')).size).toBe(2 ** 30);
    expect(statSync(file('data/disk.raw')).blocks).toBe(0);
    const qmp = await client('data/qmp.sock');
    await qmp.negotiate();
    expect(await qmp.execute('query-block-exports')).toMatchObject([
      { id: 'disk0', 'node-name': 'disk0', type: 'nbd' },
    ]);
    const token = readFileSync(file('data/qmp.token'), 'utf8').trim();
    expect(statSync(file('data/qmp.token')).mode & 0o777).toBe(0o600);
    await qmp.execute('quit');
    const { status, stdout, stderr } = await daemon.exited;
    expect(status).toBe(0);
    expect(stdout).toContain(`/?token=${token}`);
    expect(stdout.match(/^ {2}\S/gm)).toHaveLength(3);
    expect(stderr).toMatch(/"engine":"(io_uring|threads)","msg":"I\/O engine"/);
    for (const name of ['nbd.sock', 'qmp.sock', 'qmp.token'])
      expect(existsSync(file(`data/${name}`))).toBe(false);
    expect(existsSync(file('data/disk.raw'))).toBe(true);
  });

  test('a failure at start undoes what was done', () => {
    const args = [...monitor, '--nbd-server', 'addr.type=unix,addr.path=n.sock', '--qmp', 'unix:q.sock'];
    const { status } = spawnSync(
      daemonProgram('qblockd'),
      [...args, '--pidfile', 'pid', '--blockdev', 'nope'],
      { cwd: dir },
    );
    expect(status).toBe(1);
    for (const name of ['c.sock', 'n.sock', 'q.sock', 'pid'])
      expect([name, existsSync(file(name))]).toEqual([name, false]);
  });

  test('--help and --version', () => {
    const run = (option: string): string => spawnSync(daemonProgram('qblockd'), [option]).stdout.toString();
    expect(run('--help')).toMatch(/^Usage: qblockd \[options\]\n/);
    expect(run('-h')).toBe(run('--help'));
    expect(run('-V')).toMatch(/^qblockd version \d+\.\d+\.\d+ /);
    expect(run('--version')).toBe(run('-V'));
  });
});
