/** Two daemons in one place: the second does not take what the first one has, and says so. What is left over is taken. */

import { spawn } from 'node:child_process';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { daemonProgram, type ExitReport, makeScratchDir, reportOf } from '../peers/daemons.ts';
import { QmpClient } from '../peers/qmp-client.ts';

let dir = '';
const children: { kill(signal: NodeJS.Signals): boolean }[] = [];
beforeEach(() => {
  dir = makeScratchDir();
});
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL');
  rmSync(dir, { recursive: true, force: true });
});

function start(...args: string[]) {
  const child = spawn(daemonProgram('qblockd'), args, { cwd: dir, stdio: ['ignore', 'pipe', 'pipe'] });
  children.push(child);
  return { child, exited: reportOf(child) };
}

async function serving(...args: string[]): Promise<ReturnType<typeof start>> {
  const pidFile = path.join(dir, 'pid');
  rmSync(pidFile, { force: true });
  const daemon = start(...args, '--pidfile', pidFile);
  let ended: ExitReport | null = null;
  void daemon.exited.then((report) => {
    ended = report;
  });
  while (!existsSync(pidFile) || readFileSync(pidFile, 'utf8') === '') {
    if (ended !== null) throw new Error(JSON.stringify(ended));
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return daemon;
}

const PLACES: Readonly<Record<string, readonly string[]>> = {
  'a monitor': ['--qmp', 'unix:s.sock'],
  'a character device': ['--chardev', 'socket,id=c,path=s.sock,server=on,wait=off', '--monitor', 'c'],
  'the NBD server': ['--nbd-server', 'addr.type=unix,addr.path=s.sock'],
};

test.each(Object.entries(PLACES))('the socket of %s', async (_name, args) => {
  const first = await serving(...args);
  for (const others of Object.values(PLACES)) {
    const { status, stderr } = await start(...others).exited;
    expect(status).toBe(1);
    expect(stderr).toContain('Failed to bind socket to s.sock: Address already in use');
  }
  expect(first.child.exitCode).toBeNull();
  expect(existsSync(path.join(dir, 's.sock'))).toBe(true);
  // Nobody listens any more, though the file is there.
  first.child.kill('SIGKILL');
  await first.exited;
  expect(existsSync(path.join(dir, 's.sock'))).toBe(true);
  const next = await serving(...args);
  next.child.kill('SIGTERM');
  expect((await next.exited).status).toBe(0);
  expect(existsSync(path.join(dir, 's.sock'))).toBe(false);
});

test('the folder of an embedded daemon', async () => {
  const first = await serving('--embedded', 'data');
  const { status, stderr } = await start('--embedded', 'data').exited;
  expect(status).toBe(1);
  expect(stderr).toContain(`'data' is being served by another process (pid ${first.child.pid})`);
  const qmp = await QmpClient.connect(path.join(dir, 'data/qmp.sock'));
  await qmp.negotiate();
  expect(await qmp.execute('query-block-exports')).toHaveLength(1);
  qmp.close();
  first.child.kill('SIGKILL');
  await first.exited;
  const next = await serving('--embedded', 'data');
  next.child.kill('SIGTERM');
  expect((await next.exited).status).toBe(0);
});
