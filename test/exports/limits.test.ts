/** What is the same for exports of every kind: counters, latencies, limits of a throttle group changed at run time. */

import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { XBlockExportDetails } from '../../schema/generated/types.ts';
import { allocateIoMemory, vectorOf } from '../../src/aio/memory.ts';
import { Command } from '../../src/nbd/protocol/messages.ts';
import { VirtioBlockDriver } from '../../src/virtio/block-driver.ts';
import { RawClient } from '../nbd/raw-client.ts';
import { type RunningDaemon, startDaemon } from '../peers/daemons.ts';
import type { QmpClient } from '../peers/qmp-client.ts';
import { requirePeer } from '../peers/requires.ts';

let daemon: RunningDaemon;
let qmp: QmpClient;

beforeEach(async () => {
  daemon = await startDaemon('qblockd');
  qmp = await daemon.connect();
  await qmp.negotiate();
  await qmp.execute('blockdev-add', {
    driver: 'null-co',
    'node-name': 'n',
    size: 1048576,
    'read-zeroes': true,
  });
  await qmp.execute('nbd-server-start', { addr: { type: 'unix', data: { path: `${daemon.dir}/nbd` } } });
});

afterEach(async () => {
  qmp.close();
  await daemon.stop();
});

async function details(): Promise<XBlockExportDetails> {
  const [first] = (await qmp.execute('x-query-block-exports')) as XBlockExportDetails[];
  if (first === undefined) throw new Error('no export');
  return first;
}

function read(client: RawClient, length: bigint): Promise<string> {
  return client.request({ type: Command.READ, length }).reply(Number(length));
}

async function enter(): Promise<RawClient> {
  const client = await RawClient.connect(`${daemon.dir}/nbd`);
  await client.enter('n');
  return client;
}

test('requests are counted by kind, with their latencies', async () => {
  await qmp.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'n', writable: true });
  const client = await enter();
  for (let i = 0; i < 5; i++) await read(client, 4096n);
  await client.request({ type: Command.WRITE, length: 512n }, Buffer.alloc(512)).reply();
  await client.request({ type: Command.FLUSH }).reply();
  await client.request({ type: Command.TRIM, length: 65536n }).reply();
  const { clients, requests, 'latency-borders-us': borders } = await details();
  expect(clients).toBe(1);
  const byKind = new Map(requests.map((entry) => [entry.kind, entry]));
  expect([...byKind].map(([kind, { operations, bytes }]) => [kind, operations, bytes])).toEqual([
    ['read', 5, 20480],
    ['write', 1, 512],
    ['flush', 1, 0],
    ['discard', 1, 65536],
    ['write-zeroes', 0, 0],
  ]);
  for (const { operations, 'latency-histogram': histogram } of requests) {
    expect(histogram).toHaveLength(borders.length + 1);
    expect(histogram.reduce((sum, count) => sum + count, 0)).toBe(operations);
  }
  client.close();
});

test('a throttle group limits the clients, and its limits change while they wait', async () => {
  await expect(
    qmp.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'n', 'x-throttle-group': 'g' }),
  ).rejects.toThrow("Throttle group 'g' does not exist");
  await qmp.execute('object-add', { 'qom-type': 'throttle-group', id: 'g', limits: { 'iops-total': 1 } });
  await qmp.execute('block-export-add', {
    type: 'nbd',
    id: 'e',
    'node-name': 'n',
    'x-throttle-group': 'g',
  });
  await expect(qmp.execute('object-del', { id: 'g' })).rejects.toThrow('in use');
  const client = await enter();
  for (let i = 0; i < 50; i++) client.request({ type: Command.READ, length: 512n });
  await new Promise((resolve) => setTimeout(resolve, 200));
  expect((await details()).requests[0]?.operations).toBeLessThan(10);
  // At one request a second the rest would take longer than the test may.
  await qmp.execute('qom-set', { path: 'g', property: 'limits', value: { 'iops-total': 0 } });
  for (let i = 0; i < 50; i++) await client.reply(512);
  expect((await details()).requests[0]?.operations).toBe(50);
  client.close();
});

test('what waits for its turn keeps no export', async () => {
  await qmp.execute('object-add', { 'qom-type': 'throttle-group', id: 'g', limits: { 'iops-total': 1 } });
  await qmp.execute('block-export-add', {
    type: 'nbd',
    id: 'e',
    'node-name': 'n',
    'x-throttle-group': 'g',
  });
  const client = await enter();
  for (let i = 0; i < 50; i++) client.request({ type: Command.READ, length: 512n });
  // The first one is through, the others would wait for most of a minute.
  await client.reply(512);
  await qmp.execute('block-export-del', { id: 'e', mode: 'hard' });
  client.close();
  while (((await qmp.execute('query-block-exports')) as unknown[]).length > 0);
  await qmp.execute('object-del', { id: 'g' });
  await qmp.execute('blockdev-del', { 'node-name': 'n' });
});

/** Begins 40 reads of 4096 bytes by this export, one after another; resolves when they have been answered. */
type Reads = () => Promise<unknown>;

async function vhostReads(): Promise<Reads> {
  const path = `${daemon.dir}/v`;
  await qmp.execute('block-export-add', {
    ...{ type: 'vhost-user-blk', id: 'e', 'node-name': 'n', 'x-throttle-group': 'g' },
    addr: { type: 'unix', path },
  });
  const driver = await VirtioBlockDriver.open({ path, queues: 1, depth: 4, reconnect: false });
  return async () => {
    for (let i = 0; i < 40; i++) await driver.read(i * 4096, vectorOf(allocateIoMemory(4096)));
    driver.close();
  };
}

async function fuseReads(): Promise<Reads> {
  const place = `${daemon.dir}/m`;
  writeFileSync(place, '');
  await qmp.execute('block-export-add', {
    ...{ type: 'fuse', id: 'e', 'node-name': 'n', 'x-throttle-group': 'g', mountpoint: place },
  });
  return () => {
    const child = spawn('dd', [`if=${place}`, 'of=/dev/null', 'bs=4096', 'count=40', 'status=none']);
    return new Promise((resolve) => child.on('close', resolve));
  };
}

test.for([
  ['vhost-user-blk', vhostReads],
  ['fuse', fuseReads],
] as const)('%s: counted, timed and limited in the same way', async ([name, begin], context) => {
  if (name === 'fuse') requirePeer(context, 'fuse');
  const limits = (value: object): Promise<unknown> =>
    qmp.execute('qom-set', { path: 'g', property: 'limits', value });
  await qmp.execute('object-add', { 'qom-type': 'throttle-group', id: 'g', limits: { 'iops-total': 1 } });
  const reads = await begin();
  const all = reads();
  await new Promise((resolve) => setTimeout(resolve, 200));
  expect((await details()).requests[0]?.operations).toBeLessThan(10);
  // Another limit besides, and none at last.
  await limits({ 'bps-total': 4096 });
  await limits({ 'iops-total': 0, 'bps-total': 0 });
  await all;
  const { requests } = await details();
  expect(requests[0]).toMatchObject({ kind: 'read', operations: 40, failed: 0, bytes: 40 * 4096 });
  expect(requests[0]?.['latency-histogram'].reduce((sum, count) => sum + count, 0)).toBe(40);
});
