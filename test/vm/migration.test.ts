/**
 * A running virtual machine moves from one QEMU to another, its disk on two vhost-user-blk exports of one node: what the
 * exports write to the guest's memory meanwhile moves along.
 *
 * The guest reads its disk into its cache all the time, and looks at the content after the move: a page that was written
 * to and not logged would be missing there. The disk is slow, so that its processor has little to do meanwhile, because
 * QEMU 7.2's emulation itself loses what a guest writes to its memory when it moves: on a loaded machine, with QEMU's own
 * disk device, the guest's kernel came to grief or said nothing any more in 10 of 57 moves. Such a guest is tried again.
 * A page that was not logged, or a request that is not answered, does not look like that: the shell goes on. The moves of
 * test/exports/vhost-user-move.test.ts, without QEMU, look at every page.
 */

import { spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { makeScratchDir, type RunningDaemon, repositoryRoot, startDaemon } from '../peers/daemons.ts';
import { QmpClient } from '../peers/qmp-client.ts';
import { requirePeer } from '../peers/requires.ts';
import { Guest } from './guest.ts';

const MEMORY_MIB = 160;

/** What the guest reads in a round, and how much of it a second while it moves: a round is longer than the end of a move. */
const ROUND_PAGES = 2000;
const READ_BYTES_PER_SECOND = 3 << 20;
const TRIES = 5;

let dir: string;
let daemon: RunningDaemon;
let qmp: QmpClient;
const guests: Guest[] = [];
const monitors: QmpClient[] = [];

beforeEach(() => {
  dir = makeScratchDir();
});

async function tearDown(): Promise<void> {
  for (const monitor of monitors.splice(0)) monitor.close();
  for (const guest of guests.splice(0)) await guest.end();
  qmp.close();
  await daemon.stop();
}

afterEach(async () => {
  await tearDown();
  rmSync(dir, { recursive: true, force: true });
});

/** QEMU's arguments for the side of this name. */
const machine = (name: string): string[] => [
  ...['-chardev', `socket,id=c0,path=${dir}/${name}.vhost`],
  ...['-device', 'vhost-user-blk-pci,chardev=c0,num-queues=2'],
  ...['-smp', '2'],
  ...['-qmp', `unix:${dir}/${name}.qmp,server=on,wait=off`],
];

async function start(
  name: string,
  incoming: readonly string[],
): Promise<{ guest: Guest; monitor: QmpClient }> {
  const guest = Guest.start(dir, [...machine(name), ...incoming], MEMORY_MIB);
  guests.push(guest);
  // A guest that waits says nothing.
  if (incoming.length === 0) await guest.waitFor(/^READY$/m);
  for (;;) {
    try {
      const monitor = await QmpClient.connect(`${dir}/${name}.qmp`);
      monitors.push(monitor);
      await monitor.negotiate();
      return { guest, monitor };
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

/** Waits for the end of a migration; returns how often memory was gone through. The second time it goes fast. */
async function migrated(monitor: QmpClient): Promise<number> {
  for (let isFast = false; ; ) {
    const state = (await monitor.execute('query-migrate')) as {
      status: string;
      'error-desc'?: string;
      ram?: { 'dirty-sync-count': number };
    };
    if (state.status === 'completed') return state.ram?.['dirty-sync-count'] ?? 0;
    if (!isFast && (state.ram?.['dirty-sync-count'] ?? 0) > 1) {
      isFast = true;
      await monitor.execute('migrate-set-parameters', { 'max-bandwidth': 1 << 30 });
    }
    if (state.status === 'failed') throw new Error(`the migration failed: ${state['error-desc']}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** Starts the daemon with the disk, and exports it for both sides: one of them works, as with disks of shared storage. */
async function serveDisk(): Promise<void> {
  daemon = await startDaemon('qblockd', { dir });
  qmp = await daemon.connect();
  await qmp.negotiate();
  await qmp.execute('object-add', { 'qom-type': 'throttle-group', id: 'speed' });
  await qmp.execute('blockdev-add', {
    driver: 'throttle',
    'node-name': 'disk',
    'throttle-group': 'speed',
    file: { driver: 'qcow2', file: { driver: 'file', filename: `${dir}/disk` } },
  });
  for (const name of ['source', 'target'])
    await qmp.execute('block-export-add', {
      type: 'vhost-user-blk',
      id: name,
      'node-name': 'disk',
      writable: true,
      'num-queues': 2,
      addr: { type: 'unix', path: `${dir}/${name}.vhost` },
    });
}

async function move(): Promise<void> {
  const { guest, monitor } = await start('source', []);
  await guest.run('/sbin/mke2fs -q -F -t ext4 /dev/vda && mount /dev/vda /mnt');
  await guest.run(
    `for i in a:${ROUND_PAGES * 0.6} c:${ROUND_PAGES * 0.4}; do dd if=/dev/urandom of=/mnt/\${i%:*} bs=4k count=\${i#*:} 2>/dev/null; done; sha256sum /mnt/a /mnt/c > /tmp/sum && sync`,
  );
  // The rings are taken away and given back.
  for (const command of ['stop', 'cont', 'stop', 'cont']) await monitor.execute(command);
  await qmp.execute('qom-set', {
    path: '/objects/speed',
    property: 'limits',
    value: { 'bps-read': READ_BYTES_PER_SECOND },
  });
  // Each round the disk's data come to other pages of memory, since the order is another; a file in memory tells how often.
  await guest.run(
    '(i=0; x=a; y=c; while ! [ -e /tmp/stop ]; do echo 3 > /proc/sys/vm/drop_caches; dd if=/mnt/$x of=/dev/null bs=64k 2>/dev/null; dd if=/mnt/$y of=/dev/null bs=64k 2>/dev/null; z=$x; x=$y; y=$z; dd if=/mnt/a of=/mnt/b bs=32k count=4 conv=fsync 2>/dev/null; i=$((i + 1)); echo $i > /tmp/rounds; done; touch /tmp/stopped) &',
  );
  const target = await start('target', ['-incoming', `unix:${dir}/migrate`]);
  // Slow enough for the guest to change much on the way.
  await monitor.execute('migrate-set-parameters', { 'max-bandwidth': 24 << 20, 'downtime-limit': 2000 });
  await monitor.execute('migrate', { uri: `unix:${dir}/migrate` });
  expect(await migrated(monitor)).toBeGreaterThan(1);
  const moved = target.guest;
  // What the guest then has in its cache came from the disk before, during and after the move.
  await moved.run('touch /tmp/stop');
  await moved.run(
    'i=0; until [ -e /tmp/stopped ] || [ $i -ge 600 ]; do i=$((i + 1)); sleep 0.1; done; [ -e /tmp/stopped ]',
  );
  await moved.run('sha256sum -c /tmp/sum && [ $(cat /tmp/rounds) -gt 1 ]');
  await qmp.execute('qom-set', { path: '/objects/speed', property: 'limits', value: {} });
  await moved.run('echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /tmp/sum && cmp -n 131072 /mnt/a /mnt/b');
  await moved.run('umount /mnt && /sbin/e2fsck -fn /dev/vda');
}

test('a guest moves while it works on its disk', { timeout: 900_000 }, async (context) => {
  requirePeer(context, 'qemu-system-x86_64', 'guest kernel');
  const img = path.join(repositoryRoot, 'daemon/bin/qblock-img');
  for (let tried = 1; ; tried++) {
    expect(spawnSync(img, ['create', '-q', '-f', 'qcow2', `${dir}/disk`, '64M']).status).toBe(0);
    await serveDisk();
    try {
      await move();
      break;
    } catch (error) {
      if (tried === TRIES || !guests.some((guest) => guest.isDead)) throw error;
      console.warn(`the guest did not survive its move, try ${tried}`);
      await tearDown();
    }
  }
  for (const one of guests.splice(0)) await one.end();
  const details = (await qmp.execute('x-query-block-exports')) as { requests: { operations: number }[] }[];
  for (const { requests } of details) expect(requests[0]?.operations).toBeGreaterThan(0);
  for (const id of ['source', 'target']) await qmp.execute('block-export-del', { id });
  await qmp.execute('blockdev-del', { 'node-name': 'disk' });
  expect(spawnSync(img, ['check', `${dir}/disk`], { encoding: 'utf8' }).stdout).toContain('No errors');
});
