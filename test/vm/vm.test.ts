/**
 * A real virtual machine whose disk is an export of ours, over vhost-user-blk and over NBD: a file system is made and
 * worked on in the guest while jobs run below, the disk grows, and the daemon is killed and started again. Then the
 * guest reboots, every file is as it was written, and the image has no errors.
 *
 * VM_ROUNDS is how often the guest's load and the jobs go round (npm run test:vm for more).
 */

import { spawnSync } from 'node:child_process';
import { existsSync, rmSync } from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { makeScratchDir, type RunningDaemon, repositoryRoot, startDaemon } from '../peers/daemons.ts';
import type { QmpClient } from '../peers/qmp-client.ts';
import { requirePeer } from '../peers/requires.ts';
import { Guest } from './guest.ts';

const MiB = 1024 * 1024;
const ROUNDS = Number(process.env.VM_ROUNDS ?? 1);
const TEST_MS = 240_000 + ROUNDS * 120_000;

let dir: string;
let daemon: RunningDaemon;
let qmp: QmpClient;
let guest: Guest | null = null;

interface Attachment {
  /** Commands that offer node `disk`. */
  readonly offer: readonly (readonly [string, object])[];
  /** QEMU's arguments. */
  readonly devices: readonly string[];
  /** The guest learns of another size at once. */
  readonly tellsSize: boolean;
}

const vhostUser = (): Attachment => ({
  offer: [
    [
      'block-export-add',
      {
        type: 'vhost-user-blk',
        id: 'e',
        'node-name': 'disk',
        writable: true,
        addr: { type: 'unix', path: `${dir}/vhost` },
        'num-queues': 2,
        'x-throttle-group': 'limits',
      },
    ],
  ],
  devices: [
    ...['-chardev', `socket,id=c0,path=${dir}/vhost,reconnect=1`],
    ...['-device', 'vhost-user-blk-pci,chardev=c0,num-queues=2'],
  ],
  tellsSize: true,
});

const nbd = (): Attachment => ({
  offer: [
    ['nbd-server-start', { addr: { type: 'unix', data: { path: `${dir}/nbd` } } }],
    [
      'block-export-add',
      { type: 'nbd', id: 'e', 'node-name': 'disk', writable: true, name: 'e', 'x-throttle-group': 'limits' },
    ],
  ],
  devices: [
    '-blockdev',
    `nbd,node-name=d,server.type=unix,server.path=${dir}/nbd,export=e,reconnect-delay=60,discard=unmap`,
    ...['-device', 'virtio-blk-pci,drive=d'],
  ],
  tellsSize: false,
});

const img = (...args: readonly string[]): string => {
  const program = path.join(repositoryRoot, 'daemon/bin/qblock-img');
  const { status, stdout, stderr } = spawnSync(program, args, { cwd: dir, encoding: 'utf8' });
  if (status !== 0) throw new Error(`qblock-img ${args.join(' ')}: ${stdout}${stderr}`);
  return stdout;
};

async function startAll(image: string, { offer }: Attachment, writethrough = false): Promise<void> {
  for (const name of ['pid', 'qmp.sock']) rmSync(`${dir}/${name}`, { force: true });
  daemon = await startDaemon('qblockd', { dir });
  qmp = await daemon.connect();
  await qmp.negotiate();
  await qmp.execute('object-add', { 'qom-type': 'throttle-group', id: 'limits' });
  await addImage('disk', image);
  for (const [name, args] of offer)
    await qmp.execute(name, name === 'block-export-add' ? { ...args, writethrough } : args);
}

async function restart(
  signal: NodeJS.Signals,
  image: string,
  writethrough: boolean,
  attachment: Attachment,
): Promise<void> {
  qmp.close();
  daemon.process.kill(signal);
  await daemon.exited;
  // An end in order leaves nothing behind. A kill may: clusters that were taken and not yet mapped, and nothing worse.
  // They are given back here, so that what the next daemon leaves behind is its own.
  if (signal === 'SIGKILL') img('check', '-q', '-r', 'leaks', image);
  img('check', '-q', image);
  await startAll(image, attachment, writethrough);
}

const addImage = (node: string, image: string): Promise<unknown> =>
  qmp.execute('blockdev-add', {
    driver: 'qcow2',
    'node-name': node,
    discard: 'unmap',
    file: { driver: 'file', filename: `${dir}/${image}`, discard: 'unmap' },
  });

/** Waits until a job is in the state, or has gone. */
async function jobIs(wanted: 'ready' | 'gone'): Promise<void> {
  for (;;) {
    const jobs = (await qmp.execute('query-block-jobs')) as { ready: boolean }[];
    if (jobs.length === 0 || (wanted === 'ready' && jobs[0]?.ready === true)) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Jobs while the guest works: a backup with a bitmap, a snapshot and its commit, limits that change. */
async function runJobs(round: number): Promise<void> {
  const sizeOf = async (): Promise<number> => {
    const nodes = (await qmp.execute('query-named-block-nodes')) as {
      'node-name': string;
      image: { 'virtual-size': number };
    }[];
    return nodes.find((node) => node['node-name'] === 'disk')?.image['virtual-size'] ?? 0;
  };
  const limit = (limits: object): Promise<unknown> =>
    qmp.execute('qom-set', { path: 'limits', property: 'limits', value: limits });
  const size = String(await sizeOf());
  await limit({ 'iops-total': 200 });
  for (const sync of ['full', 'incremental']) {
    if (sync === 'full') await qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: `b${round}` });
    img('create', '-q', '-f', 'qcow2', `${sync}${round}`, size);
    await addImage('target', `${sync}${round}`);
    await qmp.execute('blockdev-backup', {
      'job-id': 'backup',
      device: 'disk',
      target: 'target',
      sync,
      ...(sync === 'incremental' && { bitmap: `b${round}` }),
    });
    await limit({});
    await jobIs('gone');
    await qmp.execute('blockdev-del', { 'node-name': 'target' });
  }
  await qmp.execute('block-dirty-bitmap-remove', { node: 'disk', name: `b${round}` });
  // The export goes along to the snapshot's overlay and comes back when that is committed.
  img('create', '-q', '-f', 'qcow2', `overlay${round}`, size);
  await qmp.execute('blockdev-add', {
    driver: 'qcow2',
    'node-name': 'overlay',
    backing: null,
    file: { driver: 'file', filename: `${dir}/overlay${round}` },
  });
  await qmp.execute('blockdev-snapshot', { node: 'disk', overlay: 'overlay' });
  await guest?.run('dd if=/mnt/a of=/mnt/c bs=32k conv=fsync 2>/dev/null && cmp /mnt/a /mnt/c');
  await qmp.execute('block-commit', { 'job-id': 'commit', device: 'overlay', 'base-node': 'disk' });
  await jobIs('ready');
  await qmp.execute('block-job-complete', { device: 'commit' });
  await jobIs('gone');
  await qmp.execute('blockdev-del', { 'node-name': 'overlay' });
}

/** Moves the disk to another image, which takes its place under the guest. */
async function moveTo(image: string, sizeBytes: number): Promise<void> {
  img('create', '-q', '-f', 'qcow2', image, String(sizeBytes));
  await addImage('moved', image);
  await qmp.execute('blockdev-mirror', { 'job-id': 'm', device: 'disk', target: 'moved', sync: 'full' });
  await jobIs('ready');
  await qmp.execute('block-job-complete', { device: 'm' });
  await jobIs('gone');
  await qmp.execute('blockdev-del', { 'node-name': 'disk' });
}

beforeEach(() => {
  dir = makeScratchDir();
});

afterEach(async () => {
  await guest?.end();
  guest = null;
  qmp.close();
  await daemon.stop();
  rmSync(dir, { recursive: true, force: true });
});

async function scenario(attachment: Attachment): Promise<void> {
  img('create', '-q', '-f', 'qcow2', 'base', '48M');
  img('create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2', 'top');
  await startAll('top', attachment);
  guest = await Guest.boot(dir, attachment.devices);
  await guest.run('/sbin/mke2fs -q -F -t ext4 /dev/vda && mount -o discard /dev/vda /mnt');
  await guest.run(
    'dd if=/dev/urandom of=/mnt/a bs=64k count=24 2>/dev/null && sha256sum /mnt/a > /mnt/sum && sync',
  );
  // Something is always being written and flushed from here on; what is written is known.
  await guest.run(
    '(i=0; while ! [ -e /tmp/stop ]; do dd if=/mnt/a of=/mnt/b$((i % 3)) bs=32k conv=fsync 2>/dev/null || touch /tmp/failed; i=$((i + 1)); done; touch /tmp/stopped) &',
  );
  for (let round = 0; round < ROUNDS; round++) {
    await runJobs(round);
    const sizeBytes = (64 + 16 * round) * MiB;
    if (attachment.tellsSize) {
      await qmp.execute('block_resize', { 'node-name': 'disk', size: sizeBytes });
      await guest.run(`while [ $(cat /sys/block/vda/size) != ${sizeBytes / 512} ]; do sleep 0.1; done`);
    }
    await moveTo(`moved${round}`, attachment.tellsSize ? sizeBytes : 48 * MiB);
    // Ended and started again under the same guest, then killed. A write cache does not outlive a kill, as on any disk
    // whose power is cut: whoever wants guests to go on without knowing must do without.
    await restart('SIGTERM', `moved${round}`, true, attachment);
    await guest.run('dd if=/mnt/a of=/mnt/d bs=32k conv=fsync 2>/dev/null && cmp /mnt/a /mnt/d');
    await restart('SIGKILL', `moved${round}`, false, attachment);
    await guest.run('dd if=/mnt/a of=/mnt/e bs=32k conv=fsync 2>/dev/null && cmp /mnt/a /mnt/e');
  }
  await guest.run(
    'touch /tmp/stop; while ! [ -e /tmp/stopped ]; do sleep 0.1; done; sync; ! [ -e /tmp/failed ]',
  );
  await guest.run(
    'echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /mnt/sum && cmp /mnt/a /mnt/b0 && cmp /mnt/a /mnt/d',
  );
  await guest.run('rm /mnt/b*; sync; /sbin/fstrim /mnt; umount /mnt && /sbin/e2fsck -fn /dev/vda');
  await guest.reboot();
  await guest.run('mount /dev/vda /mnt && sha256sum -c /mnt/sum && cmp /mnt/a /mnt/c && umount /mnt');
  const last = `moved${ROUNDS - 1}`;
  await guest.end();
  qmp.send('{"execute":"quit"}\n');
  await daemon.exited;
  expect(img('check', last)).toContain('No errors');
  if (existsSync('/sbin/e2fsck')) {
    img('convert', '-O', 'raw', last, 'raw');
    expect(spawnSync('/sbin/e2fsck', ['-fn', `${dir}/raw`]).status).toBe(0);
  }
}

test('over vhost-user-blk', { timeout: TEST_MS }, async (context) => {
  requirePeer(context, 'qemu-system-x86_64', 'guest kernel');
  await scenario(vhostUser());
});

test('over NBD', { timeout: TEST_MS }, async (context) => {
  requirePeer(context, 'qemu-system-x86_64', 'guest kernel');
  await scenario(nbd());
});
