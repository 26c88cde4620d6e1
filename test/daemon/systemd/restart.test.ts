/** What clients and the service manager see of a daemon that is reloaded, and of one that is restarted. */

import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { limitMs } from '../../patience.ts';
import { daemonProgram, makeScratchDir, reportOf, startDaemon } from '../../peers/daemons.ts';
import { QmpClient } from '../../peers/qmp-client.ts';
import { requirePeer } from '../../peers/requires.ts';

const PATIENCE = { timeout: limitMs(30_000) };
let dir = '';
const cleanups: (() => unknown)[] = [];
beforeEach(() => {
  dir = makeScratchDir();
});
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
  rmSync(dir, { recursive: true, force: true });
});

function start(args: readonly string[], env: Readonly<Record<string, string>> = {}): ChildProcess {
  const child = spawn(daemonProgram('qblockd'), args, {
    cwd: dir,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  cleanups.push(() => child.kill('SIGKILL'));
  return child;
}

test('a reload is told to the service manager', async (context) => {
  requirePeer(context, 'python3');
  const address = path.join(dir, 'notify');
  const log = path.join(dir, 'told');
  const program =
    'import socket, sys\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.bind(sys.argv[1])\n' +
    "with open(sys.argv[2], 'w') as log:\n    while True: print(repr(s.recv(4096).decode()), file=log, flush=True)\n";
  const manager = spawn('python3', ['-c', program, address, log], { stdio: 'inherit' });
  cleanups.push(() => manager.kill('SIGKILL'));
  await expect.poll(() => existsSync(log), PATIENCE).toBe(true);
  mkdirSync(path.join(dir, 'conf'));
  writeFileSync(path.join(dir, 'conf/a.yaml'), 'blockdev: ["null-co,node-name=a"]\n');
  const daemon = start(['--config', 'conf'], { NOTIFY_SOCKET: address });
  const told = (): string => readFileSync(log, 'utf8');
  await expect.poll(told, PATIENCE).toMatch(/READY=1/);
  daemon.kill('SIGHUP');
  await expect.poll(told, PATIENCE).toMatch(/READY=1[\s\S]*RELOADING=1.*MONOTONIC_USEC=\d+[\s\S]*READY=1/);
  daemon.kill('SIGTERM');
  expect((await reportOf(daemon)).status).toBe(0);
});

test('a client over NBD that reconnects goes on over a restart of the daemon, and loses nothing', async () => {
  writeFileSync(path.join(dir, 'disk'), Buffer.alloc(64 * 1024 * 1024, 1));
  writeFileSync(
    path.join(dir, 'serve.yaml'),
    [
      `blockdev: [{driver: file, node-name: d, filename: ${dir}/disk}]`,
      `nbd-server: {addr: {type: unix, path: ${dir}/nbd.sock}}`,
      'export: {type: nbd, id: e, node-name: d, writable: true}',
      '',
    ].join('\n'),
  );
  const serving = ['--config', 'serve.yaml', '--qmp', 'unix:serve.sock'];
  const first = start(serving);
  await expect.poll(() => existsSync(path.join(dir, 'serve.sock')), PATIENCE).toBe(true);
  // The client is a daemon, too: a job that copies through an nbd node, throttled so that the restart meets it at work.
  const folder = path.join(dir, 'client');
  mkdirSync(folder);
  writeFileSync(path.join(folder, 'copy'), Buffer.alloc(64 * 1024 * 1024));
  const client = await startDaemon('qblockd', { dir: folder });
  cleanups.push(() => client.stop());
  const qmp = await client.connect();
  cleanups.push(() => qmp.close());
  await qmp.negotiate();
  await qmp.execute('blockdev-add', {
    driver: 'nbd',
    'node-name': 'n',
    server: { type: 'unix', path: path.join(dir, 'nbd.sock') },
    export: 'd',
    'reconnect-delay': 60,
  });
  await qmp.execute('blockdev-add', {
    driver: 'file',
    'node-name': 't',
    filename: path.join(folder, 'copy'),
  });
  await qmp.execute('blockdev-backup', {
    'job-id': 'j',
    device: 'n',
    target: 't',
    sync: 'full',
    speed: 16 * 1024 * 1024,
    'auto-dismiss': false,
  });
  interface JobState {
    readonly status: string;
    readonly error?: string;
    readonly 'current-progress': number;
  }
  const job = async (): Promise<JobState> => ((await qmp.execute('query-jobs')) as [JobState])[0];
  await expect.poll(async () => (await job())['current-progress'], PATIENCE).toBeGreaterThan(1024 * 1024);
  first.kill('SIGTERM');
  expect((await reportOf(first)).status).toBe(0);
  expect((await job()).status).toBe('running');
  start(serving);
  await expect.poll(async () => (await job()).status, PATIENCE).toBe('concluded');
  expect((await job()).error).toBe(undefined);
  const copy = readFileSync(path.join(folder, 'copy'));
  expect(copy.every((byte) => byte === 1)).toBe(true);
  const monitor = await QmpClient.connect(path.join(dir, 'serve.sock'));
  await monitor.negotiate();
  await monitor.execute('quit');
  monitor.close();
});
