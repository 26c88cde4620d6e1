/** A vhost-user-blk export on a listening socket that the daemon inherits, as whoever starts machines passes it on. */

import { spawn } from 'node:child_process';
import { existsSync, rmSync, writeFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { allocateIoMemory, vectorOf } from '../../src/aio/memory.ts';
import { VirtioBlockDriver } from '../../src/virtio/block-driver.ts';
import { waitUntil } from '../patience.ts';
import { daemonProgram, makeScratchDir, reportOf } from '../peers/daemons.ts';
import { requirePeer } from '../peers/requires.ts';

/** Listens at the path that is the first argument, and becomes the program of the others with the socket as number 9. */
const PASS_ON = `
import os, socket, sys
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()
os.dup2(s.fileno(), 9, inheritable=True); os.execvp(sys.argv[2], sys.argv[2:])`;

test.for(['qblockd', 'qemu-storage-daemon'] as const)('%s', async (kind, context) => {
  requirePeer(context, 'python3', kind === 'qblockd' ? 'python3' : kind);
  const dir = makeScratchDir();
  writeFileSync(`${dir}/disk`, Buffer.alloc(1024 * 1024, 0x5a));
  const child = spawn('python3', [
    ...[
      '-c',
      PASS_ON,
      `${dir}/v`,
      daemonProgram(kind),
      '--blockdev',
      `file,node-name=f,filename=${dir}/disk`,
    ],
    ...['--export', 'vhost-user-blk,id=e,node-name=f,addr.type=fd,addr.str=9', '--pidfile', `${dir}/pid`],
  ]);
  const ended = reportOf(child);
  try {
    await waitUntil('the daemon to be there', () => existsSync(`${dir}/pid`) || child.exitCode !== null);
    for (let i = 0; i < 2; i++) {
      const driver = await VirtioBlockDriver.open({
        path: `${dir}/v`,
        queues: 1,
        depth: 1,
        reconnect: false,
      });
      const mem = allocateIoMemory(4096);
      await driver.read(8192, vectorOf(mem));
      expect(mem.buf[4095]).toBe(0x5a);
      driver.close();
    }
  } finally {
    child.kill('SIGTERM');
    await ended;
    rmSync(dir, { recursive: true, force: true });
  }
});
