/** The log: what it says of clients and commands, where it goes, and how the process is called. */

import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync, statSync } from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { readableLine } from '../../daemon/logger.ts';
import { OPTIONS } from '../../daemon/options.ts';
import { RawClient } from '../nbd/raw-client.ts';
import { waitUntil } from '../patience.ts';
import { daemonProgram, makeScratchDir, startDaemon } from '../peers/daemons.ts';

let dir = '';
beforeEach(() => {
  dir = makeScratchDir();
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const disk = [
  ...[
    '--blockdev',
    'driver=null-co,node-name=n,size=1048576',
    '--nbd-server',
    'addr.type=unix,addr.path=nbd',
  ],
  ...['--export', 'type=nbd,id=e,node-name=n,name=disk'],
];

type Line = Readonly<Record<string, unknown>>;

function linesOf(file: string): Line[] {
  const text = readFileSync(path.join(dir, file), 'utf8');
  return text
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line) as Line);
}

describe('log levels', () => {
  async function session(level: string): Promise<Line[]> {
    const args = [...disk, '--log-file', 'log', '--log-level', level];
    const daemon = await startDaemon('qblockd', { dir, args });
    const raw = await RawClient.connect(path.join(dir, 'nbd'));
    await raw.enter('disk');
    raw.socket.destroy();
    const wrong = await RawClient.connect(path.join(dir, 'nbd'));
    await expect(wrong.enter('nothing')).rejects.toThrow('GO failed');
    wrong.socket.destroy();
    const qmp = await daemon.connect();
    await qmp.negotiate();
    await qmp.execute('object-add', { 'qom-type': 'secret', id: 's', data: 'hush' });
    await qmp.execute('blockdev-del', { 'node-name': 'no' }).catch(() => undefined);
    qmp.close();
    const { stderr } = await daemon.stop();
    expect(stderr).toBe('');
    return linesOf('log');
  }

  test('info: who comes, who goes, who asks for what is not there', async () => {
    const lines = await session('info');
    expect(lines.map(({ msg }) => msg)).toContain('ready');
    expect(lines).toContainEqual(
      expect.objectContaining({
        msg: 'client asks for an export that is not there',
        export: 'nothing',
        peer: 'unix',
        level: 40,
      }),
    );
    expect(lines).toContainEqual(
      expect.objectContaining({ msg: 'QMP client connected', peer: 'chardev qmp0' }),
    );
    expect(lines.some(({ command }) => command !== undefined)).toBe(false);
  });

  test('debug: every command, never its arguments', async () => {
    const lines = await session('debug');
    expect(lines).toContainEqual(
      expect.objectContaining({ msg: 'QMP command', command: 'object-add', level: 20 }),
    );
    expect(lines).toContainEqual(
      expect.objectContaining({
        msg: 'QMP command failed',
        command: 'blockdev-del',
        error: "Failed to find node with node-name='no'",
      }),
    );
    expect(readFileSync(path.join(dir, 'log'), 'utf8')).not.toContain('hush');
  });

  test('warn: only what was refused', async () => {
    const lines = await session('warn');
    expect(lines.map(({ msg }) => msg)).toEqual(['client asks for an export that is not there']);
  });
});

test('--daemonize keeps the log', async () => {
  const { status, stderr } = spawnSync(
    daemonProgram('qblockd'),
    [...disk, '--daemonize', '--pidfile', 'pid', '--log-file', 'log', '--log-level', 'info'],
    { cwd: dir, encoding: 'utf8' },
  );
  expect([status, stderr]).toEqual([0, '']);
  const pid = Number(readFileSync(path.join(dir, 'pid'), 'utf8'));
  expect(statSync(path.join(dir, 'log')).mode & 0o777).toBe(0o600);
  const raw = await RawClient.connect(path.join(dir, 'nbd'));
  await raw.enter('disk');
  raw.socket.destroy();
  await waitUntil('the client in the log', () =>
    linesOf('log').some(({ msg }) => msg === 'client connected'),
  );
  process.kill(pid, 'SIGTERM');
  await waitUntil('the daemon to end', () => !existsSync(`/proc/${pid}`));
});

test('a log file that cannot be made', () => {
  const { status, stderr } = spawnSync(daemonProgram('qblockd'), ['--log-file', 'no/log'], {
    cwd: dir,
    encoding: 'utf8',
  });
  expect([status, stderr]).toEqual([
    1,
    "qblockd: Could not open log file 'no/log': No such file or directory\n",
  ]);
});

test('the process is called what it is', async () => {
  const daemon = await startDaemon('qblockd', { dir });
  expect(readFileSync(`/proc/${daemon.process.pid}/comm`, 'utf8')).toBe('qblockd\n');
  await daemon.stop();
});

test('colours where they are wanted', () => {
  const json = JSON.stringify({ level: 40, time: 0, msg: 'm', peer: 'unix' });
  expect(readableLine(json, false)).toMatch(/^\d\d:\d\d:\d\d WARN {2}m peer=unix\n$/);
  expect(readableLine(json)).toContain('\u001b[33m');
});

test('--help names every option and variable', () => {
  const { stdout } = spawnSync(daemonProgram('qblockd'), ['--help'], { encoding: 'utf8' });
  for (const name of Object.keys(OPTIONS)) expect(stdout).toContain(`--${name}`);
  for (const name of ['QBLOCKD_LOG', 'QBLOCKD_ENGINE', 'NO_COLOR', 'bitmap=']) expect(stdout).toContain(name);
});

test('who asks for an export that is not here is told which are', () => {
  const { status, stderr } = spawnSync(
    daemonProgram('qblockd'),
    ['--export', 'type=vduse-blk,id=e,node-name=n'],
    { encoding: 'utf8' },
  );
  expect(status).toBe(1);
  expect(stderr).toMatch(/does not accept value 'vduse-blk'\nTypes of exports: .*\bnbd\b/);
});
