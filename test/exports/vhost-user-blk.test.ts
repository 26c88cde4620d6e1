/**
 * The vhost-user-blk export and its driver, against each other and the original: data, sizes, coming back after a kill,
 * one front end after another. What hostile front ends do is in vhost-user-hostile.test.ts.
 */

import { readdirSync, readFileSync, rmSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { allocateIoMemory, type IoVector, vectorOf } from '../../src/aio/memory.ts';
import { VirtioBlockDriver } from '../../src/virtio/block-driver.ts';
import { DriverQueue } from '../../src/virtio/driver-queue.ts';
import { Feature, hasFeature } from '../../src/virtio/ring.ts';
import { ProtocolFeature } from '../../src/virtio/vhost-user/messages.ts';
import {
  type DaemonKind,
  makeScratchDir,
  privateKib,
  type RunningDaemon,
  startDaemon,
} from '../peers/daemons.ts';
import type { QmpClient } from '../peers/qmp-client.ts';
import { requirePeer } from '../peers/requires.ts';
import { createRandom } from './random.ts';

const MiB = 1024 * 1024;
const SIZE = 8 * MiB;

let dir: string;
let daemon: RunningDaemon;
let qmp: QmpClient;
const drivers: VirtioBlockDriver[] = [];

async function start(kind: DaemonKind, options: object = {}): Promise<void> {
  for (const name of ['pid', 'qmp.sock', 'v']) rmSync(`${dir}/${name}`, { force: true });
  daemon = await startDaemon(kind, { dir });
  qmp = await daemon.connect();
  await qmp.negotiate();
  await qmp.execute('blockdev-add', {
    driver: 'file',
    'node-name': 'f',
    filename: `${dir}/disk`,
    discard: 'unmap',
  });
  await qmp.execute('block-export-add', {
    type: 'vhost-user-blk',
    id: 'an-id',
    'node-name': 'f',
    writable: true,
    'num-queues': 2,
    addr: { type: 'unix', path: `${dir}/v` },
    ...options,
  });
}

async function open(
  options: Partial<Parameters<typeof VirtioBlockDriver.open>[0]> = {},
): Promise<VirtioBlockDriver> {
  const driver = await VirtioBlockDriver.open({
    path: `${dir}/v`,
    queues: 2,
    depth: 16,
    reconnect: false,
    ...options,
  });
  drivers.push(driver);
  return driver;
}

beforeEach(async () => {
  dir = makeScratchDir();
  const { writeFileSync, truncateSync } = await import('node:fs');
  writeFileSync(`${dir}/disk`, '');
  truncateSync(`${dir}/disk`, SIZE);
});

afterEach(async () => {
  for (const driver of drivers.splice(0)) driver.close();
  qmp.close();
  await daemon.stop();
  rmSync(dir, { recursive: true, force: true });
});

function memoryOf(bytes: number, fill: number): { readonly vec: IoVector; readonly buf: Buffer } {
  const mem = allocateIoMemory(bytes);
  mem.buf.fill(fill);
  return { vec: vectorOf(mem), buf: mem.buf };
}

/** Random requests of one client on a part of the disk that is its own; every read is compared with a model. */
async function work(
  driver: VirtioBlockDriver,
  model: Buffer,
  from: number,
  to: number,
  requests: number,
  seed: number,
  discards = false,
): Promise<void> {
  const random = createRandom(seed);
  for (let i = 0; i < requests; i++) {
    const bytes = 512 * (1 + random(random(8) === 0 ? 128 : 16));
    const offset = from + 512 * random((to - from - bytes) / 512);
    switch (random(8)) {
      case 0:
      case 1:
      case 2: {
        const fill = 1 + random(255);
        await driver.write(offset, memoryOf(bytes, fill).vec);
        model.fill(fill, offset, offset + bytes);
        break;
      }
      case 3:
        // A file that takes discards reads as zeroes there. One done twice would be found behind the next write.
        if (discards && random(2) === 0) await driver.changeRange(true, offset, bytes, false);
        else await driver.changeRange(false, offset, bytes, random(2) === 0);
        model.fill(0, offset, offset + bytes);
        break;
      case 4:
        await driver.flush();
        break;
      default: {
        const { vec, buf } = memoryOf(bytes, 0xee);
        await driver.read(offset, vec);
        expect(buf.equals(model.subarray(offset, offset + bytes)), `read at ${offset}`).toBe(true);
      }
    }
  }
}

/** Eight clients at once. */
async function workAll(
  driver: VirtioBlockDriver,
  model: Buffer,
  requests: number,
  discards = false,
): Promise<void> {
  const part = SIZE / 8;
  await Promise.all(
    Array.from({ length: 8 }, (_, i) =>
      work(driver, model, i * part, (i + 1) * part, requests, i + 1, discards),
    ),
  );
}

describe.each(['qblockd', 'qemu-storage-daemon'] as const)('%s', (kind) => {
  test('every read returns what was written', async (context) => {
    if (kind === 'qemu-storage-daemon') requirePeer(context, 'qemu-storage-daemon');
    await start(kind);
    const driver = await open();
    expect(driver.config).toMatchObject({ sizeBytes: SIZE, blockBytes: 512, queues: 2, segmentsMax: 126 });
    const model = Buffer.alloc(SIZE);
    await workAll(driver, model, 60);
    await driver.flush();
    expect(readFileSync(`${dir}/disk`).equals(model)).toBe(true);
  });

  test('what is outside of the disk, misaligned or too long fails', async (context) => {
    if (kind === 'qemu-storage-daemon') requirePeer(context, 'qemu-storage-daemon');
    await start(kind, { 'logical-block-size': 4096 });
    const driver = await open();
    const { vec } = memoryOf(4096, 1);
    await expect(driver.read(SIZE, vec)).rejects.toThrow('Input/output error');
    await expect(driver.write(SIZE - 512, vec)).rejects.toThrow('Input/output error');
    await expect(driver.read(512, vec)).rejects.toThrow('Input/output error');
    await expect(driver.write(4096, memoryOf(4095, 1).vec)).rejects.toThrow('Input/output error');
    await driver.write(4096, memoryOf(512, 1).vec);
    await expect(driver.changeRange(true, SIZE, 4096, false)).rejects.toThrow('Input/output error');
    await expect(driver.changeRange(true, 0, 32 * MiB, false)).rejects.toThrow('Input/output error');
    await expect(driver.changeRange(true, 0, 4096, true)).rejects.toThrow('Operation not supported');
    await driver.changeRange(false, 0, 4096, true);
    await driver.read(0, vec);
  });
});

test('the front end learns of another size', async () => {
  await start('qblockd');
  const sizes: number[] = [];
  const driver = await open({ configChanged: ({ sizeBytes }) => sizes.push(sizeBytes) });
  await qmp.execute('block_resize', { 'node-name': 'f', size: 2 * SIZE });
  while (sizes.length === 0) await new Promise((resolve) => setTimeout(resolve, 10));
  expect(sizes.at(-1)).toBe(2 * SIZE);
  await driver.write(2 * SIZE - 4096, memoryOf(4096, 3).vec);
});

test('read-only exports take no writes', async () => {
  await start('qblockd', { writable: false });
  const driver = await open();
  expect(hasFeature(driver.features, Feature.blkReadOnly)).toBe(true);
  await expect(driver.write(0, memoryOf(512, 1).vec)).rejects.toThrow('Input/output error');
  await expect(driver.changeRange(true, 0, 512, false)).rejects.toThrow('Input/output error');
  await driver.read(0, memoryOf(512, 1).vec);
});

describe('the daemon is ended under load and started again', () => {
  test.each([
    ['killed, with a record of requests under way', true, 'SIGKILL'],
    ['killed, with rings made anew', false, 'SIGKILL'],
    ['told to end, with a record of requests under way', true, 'SIGTERM'],
  ] as const)('%s', async (_name, tracks, signal) => {
    await start('qblockd');
    const { multiQueue, replyAck, config, inflightShmFd } = ProtocolFeature;
    const driver = await open({
      reconnect: true,
      protocolFeatures: [multiQueue, replyAck, config, ...(tracks ? [inflightShmFd] : [])],
    });
    const model = Buffer.alloc(SIZE);
    let done = false;
    const all = workAll(driver, model, 250, true).finally(() => {
      done = true;
    });
    let kills = 0;
    for (; !done && kills < 4; kills++) {
      await new Promise((resolve) => setTimeout(resolve, 60));
      qmp.close();
      daemon.process.kill(signal);
      await daemon.exited;
      await start('qblockd');
    }
    await all;
    expect(kills).toBeGreaterThan(0);
    await driver.flush();
    expect(readFileSync(`${dir}/disk`).equals(model)).toBe(true);
  });
});

test('with a record, a base that is too old takes no request twice', async () => {
  await start('qblockd');
  const { multiQueue, replyAck, config, inflightShmFd } = ProtocolFeature;
  const driver = await open({
    reconnect: true,
    protocolFeatures: [multiQueue, replyAck, config, inflightShmFd],
  });
  for (let i = 0; i < 8; i++) await driver.write(0, memoryOf(512, i).vec);
  // As of a front end that looked while the daemon, its socket closed already, still gave requests back.
  const { get } = Object.getOwnPropertyDescriptor(DriverQueue.prototype, 'usedIndex')!;
  const older = vi.spyOn(DriverQueue.prototype, 'usedIndex', 'get').mockImplementation(function (
    this: DriverQueue,
  ) {
    const known: number = get!.call(this);
    return known > 0 ? known - 1 : 0;
  });
  qmp.close();
  daemon.process.kill('SIGTERM');
  await daemon.exited;
  await start('qblockd');
  for (let i = 0; i < 8; i++) await driver.write(0, memoryOf(512, i + 8).vec);
  expect(older).toHaveBeenCalled();
  older.mockRestore();
  await driver.flush();
  expect(readFileSync(`${dir}/disk`).subarray(0, 512).equals(Buffer.alloc(512, 15))).toBe(true);
});

test('drained sections and removal under load', async () => {
  await start('qblockd');
  const driver = await open();
  const model = Buffer.alloc(SIZE);
  let done = false;
  const all = workAll(driver, model, 100).finally(() => {
    done = true;
  });
  while (!done) {
    await qmp.execute('blockdev-reopen', {
      options: [{ driver: 'file', 'node-name': 'f', filename: `${dir}/disk`, discard: 'unmap' }],
    });
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  await all;
  const last = Promise.allSettled(
    Array.from({ length: 32 }, (_, i) => driver.read(i * 4096, memoryOf(4096, 0).vec)),
  );
  await qmp.execute('block-export-del', { id: 'an-id' });
  await last;
  await expect(driver.read(0, memoryOf(512, 0).vec)).rejects.toThrow();
  expect(await qmp.execute('query-block-exports')).toEqual([]);
});

test('who is told to go finds everything given back that was begun', async () => {
  await start('qblockd');
  await qmp.execute('blockdev-add', {
    driver: 'null-co',
    'node-name': 'slow',
    size: SIZE,
    'latency-ns': 150_000_000,
  });
  await qmp.execute('block-export-add', {
    type: 'vhost-user-blk',
    id: 'b',
    'node-name': 'slow',
    addr: { type: 'unix', path: `${dir}/v2` },
  });
  // Without a record of requests under way: what is not in the used ring by the end would be done again, or be lost.
  const { config } = ProtocolFeature;
  const driver = await open({ path: `${dir}/v2`, protocolFeatures: [config] });
  const reads = Array.from({ length: 8 }, (_, i) => driver.read(i * 4096, memoryOf(4096, 0).vec));
  await driver.read(0, memoryOf(0, 0).vec);
  await qmp.execute('block-export-del', { id: 'b' });
  await Promise.all(reads);
});

test('a thousand front ends, one after another; nothing is left of them', async () => {
  await start('qblockd');
  const count = (): number => readdirSync(`/proc/${daemon.process.pid}/fd`).length;
  const maps = (): number => readFileSync(`/proc/${daemon.process.pid}/maps`, 'utf8').split('\n').length;
  const first = await open();
  const waiting = open();
  await first.read(0, memoryOf(4096, 0).vec);
  first.close();
  const second = await waiting;
  await second.read(0, memoryOf(4096, 0).vec);
  second.close();
  const settled = async (): Promise<void> => {
    for (;;) {
      const [details] = (await qmp.execute('x-query-block-exports')) as { clients: number }[];
      if (details?.clients === 0) return;
    }
  };
  const connect = async (times: number): Promise<void> => {
    for (let i = 0; i < times; i++) {
      const driver = await VirtioBlockDriver.open({
        path: `${dir}/v`,
        queues: 2,
        depth: 2,
        reconnect: false,
      });
      const read = driver.read(0, memoryOf(4096, 0).vec).catch(() => undefined);
      if (i % 2 === 0) await read;
      driver.close();
    }
    await settled();
  };
  await settled();
  await connect(200);
  const before = { fds: count(), maps: maps(), kib: privateKib(daemon.process.pid) };
  await connect(800);
  // What the guests' memory is made of is counted by the maps. The heap takes some sixty at once, once; one kept a connection would be 800.
  expect(privateKib(daemon.process.pid)).toBeLessThan(before.kib + 64 * 1024);
  expect(count()).toBeLessThanOrEqual(before.fds + 3);
  expect(maps()).toBeLessThanOrEqual(before.maps + 200);
});
