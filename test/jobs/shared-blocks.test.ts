/**
 * Who copies: the kernel where a file system lets files share blocks, which they then do whatever job or tool copies, and
 * nowhere else. On file systems made for the test.
 */

import { spawnSync } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, type TestContext, test } from 'vitest';
import { kernelSharesData } from '../../src/aio/host/kernel-copies.ts';
import { makeScratchDir, type RunningDaemon, repositoryRoot, startWithMonitor } from '../peers/daemons.ts';
import type { QmpClient } from '../peers/qmp-client.ts';
import { hasLoopDevices, type PeerName, requirePeer } from '../peers/requires.ts';

/** Of data in an image. */
const MIB = 24;
const QBLOCK_IMG = path.join(repositoryRoot, 'daemon/bin/qblock-img');

interface FileSystem {
  readonly name: string;
  readonly peer: PeerName;
  readonly make: string;
  readonly shares: boolean;
}

const FILE_SYSTEMS: readonly FileSystem[] = [
  { name: 'xfs', peer: 'mkfs.xfs', make: 'mkfs.xfs -q', shares: true },
  { name: 'xfs without reflinks', peer: 'mkfs.xfs', make: 'mkfs.xfs -q -m reflink=0', shares: false },
  { name: 'btrfs', peer: 'mkfs.btrfs', make: 'mkfs.btrfs -q', shares: true },
  { name: 'ext4', peer: 'mkfs.ext4', make: 'mkfs.ext4 -q', shares: false },
];

let dir = '';

/** Runs a shell script in the scratch folder; throws with its output when it fails. */
function sh(script: string): string {
  const { status, stdout, stderr } = spawnSync('sh', ['-e', '-c', script], { cwd: dir, encoding: 'utf8' });
  if (status !== 0) throw new Error(`${script}: status ${status}\n${stdout}${stderr}`);
  return stdout.trim();
}

/** Makes the file system and mounts it on the folder `name`. */
function mount(context: TestContext, { peer, make }: FileSystem, name: string): void {
  requirePeer(context, peer, 'qemu-img');
  if (!hasLoopDevices()) context.skip('no loop device to be had');
  sh(`truncate -s 400M ${name}.fs; ${make} ${name}.fs >&2; mkdir ${name}; mount -o loop ${name}.fs ${name}`);
}

/** MiB of a file in blocks that other files have too. */
function sharedMib(file: string): number {
  // Where blocks are the kernel knows when the data have been written.
  const extents = sh(`sync ${file}; filefrag -v -b1024 ${file}`).split('\n');
  // Number, first and last block in the file, first and last on the disk, length, flags.
  const lengths = extents.filter((line) => line.includes('shared')).map((line) => line.split(':')[3]);
  return lengths.reduce((sum, length) => sum + Number(length), 0) / 1024;
}

beforeEach(() => {
  dir = makeScratchDir();
});

afterEach(() => {
  sh('for each in */; do ! mountpoint -q "$each" || umount "$each"; done; rm -rf -- "$PWD"');
});

describe.each(FILE_SYSTEMS)('$name', (fileSystem) => {
  let daemon: RunningDaemon;
  let qmp: QmpClient;

  /** Opens `fs/NAME`; what `backing` names is below it. */
  async function add(name: string, driver: 'raw' | 'qcow2', backing: string | null = null): Promise<void> {
    const file = { driver: 'file', filename: `${dir}/fs/${name}` };
    await qmp.execute('blockdev-add', {
      driver,
      'node-name': name,
      file,
      ...(driver === 'qcow2' && { backing }),
    });
  }

  /** Runs a job to its end; a mirror stays a copy. */
  async function run(command: string, args: object): Promise<void> {
    await qmp.execute(command, { 'job-id': 'job', 'auto-dismiss': false, ...args });
    let isEnding = false;
    for (;;) {
      const [job] = (await qmp.execute('query-jobs')) as { status: string; error?: string }[];
      if (job!.status === 'ready' && !isEnding) await qmp.execute('block-job-cancel', { device: 'job' });
      isEnding ||= job!.status === 'ready';
      if (job!.status === 'concluded') {
        expect(job!.error).toBeUndefined();
        break;
      }
      await sleep(10);
    }
    await qmp.execute('job-dismiss', { id: 'job' });
  }

  function expectCopy(name: string): void {
    sh(`qemu-img compare -q -U -f raw fs/data -F ${name.includes('raw') ? 'raw' : 'qcow2'} fs/${name}`);
    const mib = sharedMib(`fs/${name}`);
    // What is not in the page cache is read to see whether it is zeroes.
    if (fileSystem.shares) expect(mib, name).toBeGreaterThan(MIB * 0.5);
    else expect(mib, name).toBe(0);
  }

  test('jobs', async (context) => {
    mount(context, fileSystem, 'fs');
    sh(`dd if=/dev/urandom of=fs/data bs=1M count=${MIB} status=none; cp --reflink=never fs/data fs/below`);
    sh(`qemu-img convert -O qcow2 fs/data fs/image; for each in raw-mirror raw-base; do truncate -s ${MIB}M fs/$each; done
      for each in backup mirror; do qemu-img create -q -f qcow2 fs/$each ${MIB}M; done
      qemu-img create -q -f qcow2 -b below -F raw fs/stream
      qemu-img create -q -f qcow2 fs/middle ${MIB}M; qemu-img convert -n -O qcow2 fs/data fs/middle
      qemu-img create -q -f qcow2 fs/top ${MIB}M; sync -f fs`);
    ({ daemon, qmp } = await startWithMonitor(dir));
    try {
      for (const name of ['data', 'below', 'raw-mirror', 'raw-base']) await add(name, 'raw');
      for (const name of ['image', 'backup', 'mirror']) await add(name, 'qcow2');
      await add('stream', 'qcow2', 'below');
      await add('middle', 'qcow2', 'raw-base');
      await add('top', 'qcow2', 'middle');
      await run('blockdev-mirror', { device: 'data', target: 'mirror', sync: 'full' });
      await run('blockdev-mirror', { device: 'image', target: 'raw-mirror', sync: 'full' });
      await run('blockdev-backup', { device: 'data', target: 'backup', sync: 'full' });
      await run('block-stream', { device: 'stream' });
      await run('block-commit', { device: 'top', 'top-node': 'middle', 'base-node': 'raw-base' });
    } finally {
      qmp.close();
      await daemon.stop();
    }
    for (const name of ['raw-mirror', 'raw-base', 'backup', 'mirror', 'stream']) expectCopy(name);
  });

  test('tools', async (context) => {
    mount(context, fileSystem, 'fs');
    sh(`dd if=/dev/urandom of=fs/data bs=1M count=${MIB} status=none; sync fs/data; cd fs; truncate -s ${MIB}M raw-base
      qemu-img create -q -f qcow2 -b raw-base -F raw top; qemu-img convert -n -O qcow2 data top; sync top
      ${QBLOCK_IMG} commit -q top; ${QBLOCK_IMG} dd -f raw -O raw if=data of=raw-dd bs=1M`);
    // An image that was emptied shares nothing any more.
    sh('qemu-img compare -q -f raw fs/data -F raw fs/raw-base');
    expectCopy('raw-dd');
    const [from, to] = ['data', 'raw-dd'].map((name) => openSync(`${dir}/fs/${name}`, 'r+')) as [
      number,
      number,
    ];
    expect(kernelSharesData(from, to)).toBe(fileSystem.shares);
    for (const fd of [from, to]) closeSync(fd);
  });
});

test('files of two file systems share nothing', (context) => {
  const [xfs] = FILE_SYSTEMS;
  for (const name of ['a', 'b']) mount(context, xfs!, name);
  sh('echo 1 > a/1; echo 2 > a/2; echo 3 > b/3');
  const open = (name: string): number => openSync(path.join(dir, name), 'r+');
  const files = ['a/1', 'a/2', 'b/3'].map(open);
  const [one, two, three] = files as [number, number, number];
  expect(kernelSharesData(one, two)).toBe(true);
  expect(kernelSharesData(one, three)).toBe(false);
  for (const fd of files) closeSync(fd);
  // Whoever asks leaves no mark.
  expect(sh('cat a/1 a/2 b/3')).toBe('1\n2\n3');
});
