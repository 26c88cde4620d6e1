/**
 * The FUSE export as people use it: file systems on it, loop devices, sparse copies, verified load, image tools, users
 * without rights, and what is left when a daemon is killed. What system calls say is compared in test/peers.
 */

import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { limitMs } from '../patience.ts';
import {
  makeScratchDir,
  privateKib,
  type RunningDaemon,
  repositoryRoot,
  startWithMonitor,
} from '../peers/daemons.ts';
import type { QmpClient } from '../peers/qmp-client.ts';
import { hasPeer, requirePeer } from '../peers/requires.ts';

const MiB = 1024 * 1024;

let daemon: RunningDaemon;
let qmp: QmpClient;
let dir: string;

async function start(): Promise<void> {
  ({ daemon, qmp } = await startWithMonitor(dir));
}

async function exportDisk(options: object = {}): Promise<void> {
  await qmp.execute('block-export-add', {
    type: 'fuse',
    id: 'e',
    'node-name': 'd',
    mountpoint: `${dir}/m`,
    writable: true,
    ...options,
  });
}

/** A node `d` over a new qcow2 image. */
async function addDisk(size: string): Promise<void> {
  sh(`${path.join(repositoryRoot, 'daemon/bin/qblock-img')} create -q -f qcow2 disk ${size}`);
  await qmp.execute('blockdev-add', {
    driver: 'qcow2',
    'node-name': 'd',
    file: { driver: 'file', filename: `${dir}/disk` },
  });
}

/** Runs a shell script in the scratch folder; throws with its output when it fails. */
function sh(script: string): string {
  const { status, stdout, stderr } = spawnSync('sh', ['-e', '-c', script], { cwd: dir, encoding: 'utf8' });
  if (status !== 0) throw new Error(`${script}: status ${status}\n${stdout}${stderr}`);
  return stdout.trim();
}

/** As sh, without holding up this process. */
function later(script: string): Promise<string> {
  const child = spawn('sh', ['-e', '-c', script], { cwd: dir, stdio: ['ignore', 'pipe', 'pipe'] });
  let text = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk: Buffer) => (text += chunk));
  return new Promise((resolve, reject) => {
    child.on('close', (status) => (status === 0 ? resolve(text) : reject(new Error(`${script}: ${text}`))));
  });
}

const mounted = (): boolean => readFileSync('/proc/mounts', 'utf8').includes(`${dir}/`);

beforeEach(async () => {
  dir = makeScratchDir();
  writeFileSync(`${dir}/m`, '');
  await start();
});

afterEach(async () => {
  qmp.close();
  await daemon.stop();
  const left = mounted();
  spawnSync('umount', ['-l', `${dir}/m`]);
  sh('rm -rf -- "$PWD"');
  expect(left, 'a mount was left behind').toBe(false);
});

describe('a file system on the file', () => {
  test('made, checked, loop-mounted and read back', async (context) => {
    requirePeer(context, 'fuse', 'mkfs.ext4');
    await addDisk('64M');
    await exportDisk();
    await later('mkfs.ext4 -q m; e2fsck -fn m; mkdir mnt');
    const loops = spawnSync('losetup', ['--find'], { stdio: 'ignore' }).status === 0;
    if (loops) {
      // All of it through the loop driver's own reads, writes, discards and flushes.
      await later(`
        loop=$(losetup --find --show m); trap 'umount mnt || true; losetup -d $loop' EXIT
        mount $loop mnt; dd if=/dev/urandom of=mnt/a bs=1M count=20 status=none; cp mnt/a mnt/b; sync
        sha256sum mnt/a | cut -d' ' -f1 > sum; rm mnt/a; fstrim mnt; umount mnt
        mount $loop mnt; test $(sha256sum mnt/b | cut -d' ' -f1) = $(cat sum)`);
      await later('e2fsck -fn m');
    }
    await qmp.execute('block-export-del', { id: 'e' });
    await qmp.execute('blockdev-del', { 'node-name': 'd' });
    expect(sh(`${path.join(repositoryRoot, 'daemon/bin/qblock-img')} check disk`)).toContain('No errors');
  });

  test('verified load from several processes', async (context) => {
    requirePeer(context, 'fuse', 'fio');
    await addDisk('64M');
    await exportDisk();
    const load = (name: string, rest: string): Promise<string> =>
      later(
        `fio --name=${name} --filename=m --verify=crc32c --verify_fatal=1 --do_verify=1 --minimal ${rest} > ${name}.txt`,
      );
    await Promise.all([
      load('a', '--offset=0 --size=12M --rw=randwrite --bs=4k --ioengine=libaio --iodepth=32 --direct=1'),
      load('b', '--offset=16M --size=12M --rw=randrw --bsrange=512-64k --ioengine=psync --direct=0'),
      load('c', '--offset=32M --size=16M --rw=write --bs=1M --ioengine=libaio --iodepth=4 --direct=1'),
      // Trims and verifies in between.
      load('d', '--offset=48M --size=8M --rw=randwrite --bs=8k --ioengine=psync --fsync=16'),
    ]);
  });
});

test('copies stay sparse, holes are punched through to the image', async (context) => {
  requirePeer(context, 'fuse');
  await addDisk('64M');
  await exportDisk();
  await later(`
    dd if=/dev/urandom of=m bs=1M seek=8 count=4 conv=notrunc status=none
    cp --sparse=always m copy; cmp m copy
    test $(stat -c %b copy) -le 8300
    fallocate -p -o 8M -l 4M m; cmp -n 67108864 m /dev/zero`);
  const map = JSON.parse(
    await later(`python3 -c "
import os, json
f = os.open('m', os.O_RDONLY)
try: print(json.dumps(os.lseek(f, 0, os.SEEK_DATA)))
except OSError as e: print(json.dumps(e.errno))"`),
  ) as number;
  expect(map).toBe(6);
});

test('a growing file is a qcow2 image written by a tool', async (context) => {
  requirePeer(context, 'fuse', 'qemu-img');
  await qmp.execute('blockdev-create', {
    'job-id': 'j',
    options: { driver: 'file', filename: `${dir}/disk`, size: 0 },
  });
  await qmp.execute('blockdev-add', { driver: 'file', 'node-name': 'd', filename: `${dir}/disk` });
  await exportDisk({ growable: true });
  await later(`
    dd if=/dev/urandom of=source bs=1M count=12 status=none
    qemu-img convert -n -f raw -O raw source m 2>/dev/null || true
    qemu-img create -q -f qcow2 m 32M; qemu-img convert -n -f raw -O qcow2 source m
    qemu-img compare -f raw -F qcow2 source m || test $? = 1
    ${path.join(repositoryRoot, 'daemon/bin/qblock-img')} info m | grep -q 'file format: qcow2'
    ${path.join(repositoryRoot, 'daemon/bin/qblock-img')} check m`);
});

test('the daemon does not open a file that it serves itself', async (context) => {
  requirePeer(context, 'fuse');
  await addDisk('16M');
  await exportDisk();
  sh('ln -s m link; qemu-img create -q -f qcow2 -F raw -b "$PWD/m" -u over 16M');
  // Until what the kernel knows of the file is too old to be told without asking.
  await new Promise((resolve) => setTimeout(resolve, 1200));
  const own = 'It is an export of this process itself';
  for (const name of [`${dir}/m`, `${dir}/link`, '/proc/self/cwd/m'])
    await expect(
      qmp.execute('blockdev-add', { driver: 'file', 'node-name': 'x', filename: name }),
    ).rejects.toThrow(own);
  const over = { driver: 'qcow2', 'node-name': 'x', file: { driver: 'file', filename: `${dir}/over` } };
  await expect(qmp.execute('blockdev-add', over)).rejects.toThrow(own);
  const output = { type: 'file', data: { out: `${dir}/m` } };
  await expect(qmp.execute('chardev-add', { id: 'c', backend: output })).rejects.toThrow('deadlock');
  await expect(
    qmp.execute('nbd-server-start', { addr: { type: 'unix', data: { path: `${dir}/m` } } }),
  ).rejects.toThrow('Address already in use');
  await qmp.execute('blockdev-create', {
    'job-id': 'j',
    options: { driver: 'file', filename: `${dir}/m`, size: 4096 },
  });
  let error: string | undefined;
  while (error === undefined) {
    const [job] = (await qmp.execute('query-jobs')) as { status: string; error?: string }[];
    if (job?.status === 'concluded') error = job.error ?? '';
  }
  expect(error).toContain('deadlock');
  // Another process may: the file is there for that.
  expect(await later('head -c 16 m | wc -c')).toContain('16');
  await qmp.execute('block-export-del', { id: 'e' });
  await qmp.execute('blockdev-add', { driver: 'file', 'node-name': 'x', filename: `${dir}/m` });
});

test('a kill leaves a dead mount, which the next export takes away', async (context) => {
  requirePeer(context, 'fuse');
  for (const round of [1, 2]) {
    await addDisk('16M');
    await exportDisk();
    sh(`printf round${round} | dd of=m conv=notrunc,fsync status=none`);
    expect(sh('head -c 6 m')).toBe(`round${round}`);
    qmp.close();
    daemon.process.kill('SIGKILL');
    await daemon.exited;
    expect(mounted()).toBe(true);
    expect(() => sh('head -c 6 m')).toThrow('not connected');
    await start();
  }
  await addDisk('16M');
  await exportDisk();
  expect(sh('stat -c %s m')).toBe(String(16 * MiB));
});

test('exports come and go a thousand times, some with load on them, and leave nothing', async (context) => {
  requirePeer(context, 'fuse');
  await addDisk('16M');
  const descriptors = (): number => readdirSync(`/proc/${daemon.process.pid}/fd`).length;
  const once = async (): Promise<void> => {
    await exportDisk();
    const load = later('dd if=/dev/zero of=m bs=64k count=50 conv=notrunc status=none 2>/dev/null || true');
    await new Promise((resolve) => setTimeout(resolve, Math.random() * 4));
    await qmp.execute('block-export-del', { id: 'e' });
    await load;
  };
  for (let i = 0; i < 100; i++) await once();
  const before = { descriptors: descriptors(), kib: privateKib(daemon.process.pid) };
  for (let i = 0; i < 900; i++) {
    await exportDisk();
    await qmp.execute('block-export-del', { id: 'e' });
  }
  // The command answers when the export begins to end: its descriptor may be a moment behind.
  const soon = { timeout: limitMs(10_000) };
  await expect.poll(descriptors, soon).toBeLessThanOrEqual(before.descriptors);
  await expect.poll(mounted, soon).toBe(false);
  // A session has a megabyte a request.
  expect(privateKib(daemon.process.pid)).toBeLessThan(before.kib + 64 * 1024);
  await qmp.execute('blockdev-del', { 'node-name': 'd' });
});

test('a user without rights mounts through fusermount3', async (context) => {
  requirePeer(context, 'fuse');
  if (process.getuid?.() !== 0 || !hasPeer('fuse')) context.skip('needs root to become somebody else');
  // In a mount namespace where /dev/fuse is for everybody, as distributions have it.
  const script = `
    mknod -m 666 fuse c 10 229; mount --bind fuse /dev/fuse
    mkdir -m 777 home; cd home; truncate -s 1M disk; : > m; chown 65534:65534 . disk m
    cat > run <<'END'
      ${path.join(repositoryRoot, 'daemon/bin/qblockd')} --blockdev file,node-name=f,filename=disk \\
        --export fuse,id=e,node-name=f,mountpoint=m,writable=on --pidfile pid &
      while ! [ -e pid ]; do sleep 0.05; done
      printf hello | dd of=m conv=notrunc status=none; head -c 5 m; stat -c ' %s %u' m; grep -c "$PWD/m" /proc/mounts
      kill $!; wait $!; grep -c "$PWD/m" /proc/mounts || head -c 5 disk
END
    exec setpriv --reuid 65534 --regid 65534 --clear-groups sh run`;
  writeFileSync(`${dir}/script`, script);
  let text: string;
  try {
    sh('chmod 755 .');
    text = execFileSync('unshare', ['-m', 'sh', '-e', 'script'], { cwd: dir, encoding: 'utf8' });
  } catch (error) {
    if (existsSync('/.dockerenv')) context.skip('no mount namespace to be had');
    throw error;
  }
  expect(text).toBe('hello 1048576 65534\n1\n0\nhello');
});
