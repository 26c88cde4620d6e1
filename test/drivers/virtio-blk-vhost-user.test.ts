/** The driver virtio-blk-vhost-user over exports of ours and of the original: what a user does with such a node. */

import { rmSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { makeScratchDir, type RunningDaemon, startDaemon } from '../peers/daemons.ts';
import type { QmpClient } from '../peers/qmp-client.ts';
import { requirePeer } from '../peers/requires.ts';

const MiB = 1024 * 1024;

let dir: string;
let back: RunningDaemon;
let front: RunningDaemon;
let backQmp: QmpClient;
let qmp: QmpClient;

async function start(kind: 'qblockd' | 'qemu-storage-daemon', options: object = {}): Promise<void> {
  back = await startDaemon(kind);
  backQmp = await back.connect();
  await backQmp.negotiate();
  await backQmp.execute('blockdev-add', {
    driver: 'null-co',
    'node-name': 'n',
    size: 8 * MiB,
    'read-zeroes': true,
  });
  await backQmp.execute('block-export-add', {
    type: 'vhost-user-blk',
    id: 'v',
    'node-name': 'n',
    writable: true,
    addr: { type: 'unix', path: `${dir}/v` },
    ...options,
  });
  front = await startDaemon('qblockd');
  qmp = await front.connect();
  await qmp.negotiate();
}

const addNode = (options: object = {}): Promise<unknown> =>
  qmp.execute('blockdev-add', {
    driver: 'virtio-blk-vhost-user',
    'node-name': 'd',
    path: `${dir}/v`,
    ...options,
  });

beforeEach(() => {
  dir = makeScratchDir();
});

afterEach(async () => {
  for (const client of [qmp, backQmp]) client.close();
  await front.stop();
  await back.stop();
  rmSync(dir, { recursive: true, force: true });
});

describe.each(['qblockd', 'qemu-storage-daemon'] as const)('of %s', (kind) => {
  test('is copied from and to by jobs', async (context) => {
    if (kind === 'qemu-storage-daemon') requirePeer(context, 'qemu-storage-daemon');
    await start(kind);
    await addNode();
    const [node] = (await qmp.execute('query-named-block-nodes')) as { image: { 'virtual-size': number } }[];
    expect(node?.image['virtual-size']).toBe(8 * MiB);
    await qmp.execute('blockdev-add', { driver: 'null-co', 'node-name': 'z', size: 8 * MiB });
    for (const [device, target] of [
      ['z', 'd'],
      ['d', 'z'],
    ]) {
      await qmp.execute('blockdev-backup', {
        'job-id': 'j',
        device,
        target,
        sync: 'full',
        'auto-dismiss': false,
      });
      let job: { status: string; error?: string } | undefined;
      do [job] = (await qmp.execute('query-jobs')) as { status: string; error?: string }[];
      while (job?.status !== 'concluded');
      expect(job.error).toBeUndefined();
      await qmp.execute('job-dismiss', { id: 'j' });
    }
    await qmp.execute('blockdev-del', { 'node-name': 'd' });
  });
});

test('read-only back ends, missing ones, and what is no back end', async () => {
  await start('qblockd', { writable: false });
  await expect(addNode()).rejects.toThrow('Device is read-only');
  await addNode({ 'read-only': true });
  await qmp.execute('blockdev-del', { 'node-name': 'd' });
  await addNode({ 'auto-read-only': true });
  await qmp.execute('blockdev-del', { 'node-name': 'd' });
  await expect(addNode({ path: `${dir}/missing` })).rejects.toThrow('No such file or directory');
  // One that serves somebody else, and so does not answer.
  await expect(addNode({ path: back.socketPath })).rejects.toThrow('does not answer');
});
