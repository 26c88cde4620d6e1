/**
 * A running virtual machine moves from one QEMU to another, its disk on two vhost-user-blk exports of one node: what the
 * exports write to the guest's memory meanwhile moves along.
 *
 * The guest reads its disk all the time, past its cache, and compares: a page that was written to and not logged would be
 * missing on the other side.
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

let dir: string;
let daemon: RunningDaemon;
let qmp: QmpClient;
const guests: Guest[] = [];
const monitors: QmpClient[] = [];

beforeEach(() => {
  dir = makeScratchDir();
});

afterEach(async () => {
  for (const monitor of monitors.splice(0)) monitor.close();
  for (const guest of guests.splice(0)) await guest.end();
  qmp.close();
  await daemon.stop();
  rmSync(dir, { recursive: true, force: true });
});

/** QEMU's arguments for the side of this name. */
const machine = (name: string): string[] => [
  ...['-chardev', `socket,id=c0,path=${dir}/${name}.vhost`],
  ...['-device', 'vhost-user-blk-pci,chardev=c0,num-queues=2'],
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

test('a guest moves while it works on its disk', { timeout: 400_000 }, async (context) => {
  requirePeer(context, 'qemu-system-x86_64', 'guest kernel');
  const img = path.join(repositoryRoot, 'daemon/bin/qblock-img');
  expect(spawnSync(img, ['create', '-q', '-f', 'qcow2', `${dir}/disk`, '64M']).status).toBe(0);
  daemon = await startDaemon('qblockd', { dir });
  qmp = await daemon.connect();
  await qmp.negotiate();
  await qmp.execute('blockdev-add', {
    driver: 'qcow2',
    'node-name': 'disk',
    file: { driver: 'file', filename: `${dir}/disk` },
  });
  // As with disks of shared storage: both sides have it, one of them works.
  for (const name of ['source', 'target'])
    await qmp.execute('block-export-add', {
      type: 'vhost-user-blk',
      id: name,
      'node-name': 'disk',
      writable: true,
      'num-queues': 2,
      addr: { type: 'unix', path: `${dir}/${name}.vhost` },
    });
  const { guest, monitor } = await start('source', []);
  await guest.run('/sbin/mke2fs -q -F -t ext4 /dev/vda && mount /dev/vda /mnt');
  await guest.run(
    'dd if=/dev/urandom of=/mnt/a bs=64k count=128 2>/dev/null && sha256sum /mnt/a > /tmp/sum && sync',
  );
  // Each round the disk's data come to other pages of memory; files in memory tell how often, and what went wrong.
  await guest.run(
    '(i=0; while ! [ -e /tmp/stop ]; do echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /tmp/sum >/dev/null 2>&1 || touch /tmp/failed; dd if=/mnt/a of=/mnt/b bs=32k count=32 conv=fsync 2>/dev/null; i=$((i + 1)); echo $i > /tmp/rounds; done; touch /tmp/stopped) &',
  );
  // The rings are taken away and given back.
  for (const command of ['stop', 'cont', 'stop', 'cont']) await monitor.execute(command);
  const target = await start('target', ['-incoming', `unix:${dir}/migrate`]);
  // Slow enough for the guest to change much on the way.
  await monitor.execute('migrate-set-parameters', { 'max-bandwidth': 24 << 20, 'downtime-limit': 2000 });
  await monitor.execute('migrate', { uri: `unix:${dir}/migrate` });
  expect(await migrated(monitor)).toBeGreaterThan(1);
  const moved = target.guest;
  // What the guest has in its cache came from the disk before, during and after the move.
  await moved.run('sha256sum -c /tmp/sum && cat /tmp/rounds');
  const rounds = Number(/^(\d+)$/m.exec(await moved.run('cat /tmp/rounds'))?.[1]);
  await moved.run(`while [ $(cat /tmp/rounds) -lt ${rounds + 2} ]; do sleep 0.1; done`);
  await moved.run('touch /tmp/stop; while ! [ -e /tmp/stopped ]; do sleep 0.1; done; ! [ -e /tmp/failed ]');
  await moved.run('umount /mnt && /sbin/e2fsck -fn /dev/vda');
  for (const one of guests.splice(0)) await one.end();
  const details = (await qmp.execute('x-query-block-exports')) as { requests: { operations: number }[] }[];
  for (const { requests } of details) expect(requests[0]?.operations).toBeGreaterThan(0);
  for (const id of ['source', 'target']) await qmp.execute('block-export-del', { id });
  await qmp.execute('blockdev-del', { 'node-name': 'disk' });
  expect(spawnSync(img, ['check', `${dir}/disk`], { encoding: 'utf8' }).stdout).toContain('No errors');
});
