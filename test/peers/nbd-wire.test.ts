/**
 * The same conversations with the original's NBD server and with ours: the transcripts must be equal.
 */

import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { RawClient } from '../nbd/raw-client.ts';
import { type DaemonKind, type RunningDaemon, startDaemon } from './daemons.ts';
import { SCENARIOS } from './nbd-wire-scenarios.ts';
import { hasPeer, requirePeer } from './requires.ts';

/** A disk image of 1 MiB: 64 KiB of data, the rest a hole. */
function makeDisk(file: string): void {
  const fd = openSync(file, 'w');
  writeSync(fd, Buffer.alloc(64 * 1024, 0x11), 0, 64 * 1024, 0);
  ftruncateSync(fd, 1024 * 1024);
  closeSync(fd);
}

const ARGS = [
  ['--blockdev', 'driver=file,node-name=disk,filename=$DIR/disk.raw,discard=unmap'],
  ['--blockdev', 'driver=file,node-name=ro,filename=$DIR/ro.raw,read-only=on'],
  ['--blockdev', 'driver=null-co,node-name=nul,size=1048576,read-zeroes=on'],
  ['--blockdev', 'driver=null-co,node-name=blk,size=8796093022208,read-zeroes=on'],
  ['--nbd-server', 'addr.type=unix,addr.path=$DIR/nbd.sock'],
  ['--export', 'type=nbd,id=disk,node-name=disk,writable=on,description=hello'],
  ['--export', 'type=nbd,id=ro,node-name=ro'],
  ['--export', 'type=nbd,id=nul,node-name=nul,writable=on'],
  ['--export', 'type=nbd,id=blk,node-name=blk,writable=on'],
  ['--export', 'type=nbd,id=depth,node-name=ro,name=depth,allocation-depth=on'],
].flat();

function start(kind: DaemonKind): Promise<RunningDaemon> {
  return startDaemon(kind, {
    args: ARGS,
    prepare: (dir) => {
      makeDisk(path.join(dir, 'disk.raw'));
      makeDisk(path.join(dir, 'ro.raw'));
    },
  });
}

/** Runs one conversation on a fresh disk image. */
async function converse(daemon: RunningDaemon, index: number): Promise<string[]> {
  const scenario = SCENARIOS[index];
  if (scenario === undefined) throw new Error('no such scenario');
  makeDiskAgain(daemon);
  return scenario.run(() => RawClient.connect(path.join(daemon.dir, 'nbd.sock')));
}

function makeDiskAgain(daemon: RunningDaemon): void {
  const fd = openSync(path.join(daemon.dir, 'disk.raw'), 'r+');
  ftruncateSync(fd, 0);
  writeSync(fd, Buffer.alloc(64 * 1024, 0x11), 0, 64 * 1024, 0);
  ftruncateSync(fd, 1024 * 1024);
  closeSync(fd);
}

describe('conversations agree with the original', () => {
  let original: RunningDaemon | undefined;
  let ours: RunningDaemon;

  beforeAll(async () => {
    if (hasPeer('qemu-storage-daemon')) original = await start('qemu-storage-daemon');
    ours = await start('qblockd');
  });
  afterAll(async () => {
    await original?.stop();
    await ours?.stop();
  });

  for (const [index, scenario] of SCENARIOS.entries()) {
    test(scenario.name, async (context) => {
      requirePeer(context, 'qemu-storage-daemon');
      if (original === undefined) throw new Error('the original did not start');
      const [expected, actual] = await Promise.all([converse(original, index), converse(ours, index)]);
      expect(actual).toEqual(expected);
    });
  }
});
