/** Who holds an image's lock: in the errors of the tools and over QMP, whichever program holds it. */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { isLockedAt } from '../../src/aio/host/lock-holders.ts';
import { repositoryRoot } from './daemons.ts';
import { requirePeer } from './requires.ts';

const bin = (name: string): string => path.join(repositoryRoot, 'daemon/bin', name);
let dir = '';
let holder: ChildProcess | null = null;
beforeEach(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'qb-locks-'));
  // Formats do not let others write, raw does.
  spawnSync(bin('qblock-img'), ['create', '-q', '-f', 'qcow2', 'disk', '1M'], { cwd: dir });
});
afterEach(() => {
  holder?.kill('SIGKILL');
  rmSync(dir, { recursive: true, force: true });
});

/** Opens the disk for writing in another program, and waits until it has it. */
async function hold(program: string): Promise<number> {
  holder = spawn(program, ['-f', 'qcow2', path.join(dir, 'disk')], { stdio: ['pipe', 'pipe', 'inherit'] });
  holder.stdin!.write('length\n');
  // The prompt, then the answer.
  for (let text = ''; !text.includes('MiB'); ) text += String((await once(holder.stdout!, 'data'))[0]);
  return holder.pid!;
}

test.each(['qblock-io', 'qemu-io'])('%s holds it, and the error says so', async (name) => {
  const pid = await hold(name === 'qemu-io' ? name : bin(name));
  const { stderr, status } = spawnSync(bin('qblock-img'), ['info', '-f', 'qcow2', 'disk'], {
    cwd: dir,
    encoding: 'utf8',
  });
  expect(status).toBe(1);
  expect(stderr).toBe(
    `qblock-img: Could not open 'disk': Failed to get shared "write" lock, held by process ${pid} (${name})\n` +
      'Is another process using the image [disk]?\n' +
      'To read it all the same: -U (force-share=on), but what is read may change meanwhile.\n',
  );
  expect(spawnSync(bin('qblock-img'), ['info', '-U', '-f', 'qcow2', 'disk'], { cwd: dir }).status).toBe(0);
});

test('over QMP too', async (context) => {
  requirePeer(context, 'qemu-io');
  const pid = await hold('qemu-io');
  const daemon = spawnSync(
    bin('qblockd'),
    [
      '--blockdev',
      `driver=file,node-name=f,filename=${path.join(dir, 'disk')}`,
      '--chardev',
      'stdio,id=c',
      '--monitor',
      'c',
    ],
    {
      encoding: 'utf8',
      input: `{"execute":"qmp_capabilities"}{"execute":"blockdev-add","arguments":{"driver":"qcow2","node-name":"r","file":"f"}}
        {"execute":"nbd-server-start","arguments":{"addr":{"type":"unix","data":{"path":"${dir}/s"}}}}
        {"execute":"block-export-add","arguments":{"type":"nbd","id":"e","node-name":"r","writable":true}}{"execute":"quit"}`,
    },
  );
  expect(daemon.stdout).toContain(
    `"desc": "Failed to get \\"write\\" lock, held by process ${pid} (qemu-io)"`,
  );
});

test('locks as /proc shows them', () => {
  const line = (range: string): string => `pos:\t0\nlock:\t1: OFDLCK ADVISORY  READ -1 fe:00:17 ${range}\n`;
  expect([100, 101, 102, 103].map((byte) => isLockedAt(line('101 102'), byte))).toEqual([
    false,
    true,
    true,
    false,
  ]);
  expect(isLockedAt(line('0 EOF'), 203)).toBe(true);
  expect(isLockedAt('pos:\t0\nflags:\t02\n', 100)).toBe(false);
});
