/** readahead, cache and retry over a slow disk with faults: what is read is what was written last, whatever is kept. */

import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { createEngine } from '../../../src/aio/create-engine.ts';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import type { BlockBackend } from '../../../src/block/backend.ts';
import { Perm } from '../../../src/block/contract/request.ts';
import { asMonitor } from '../../../src/block/graph/debug.ts';
import { drainedBegin } from '../../../src/block/graph/drain.ts';
import { wrapped } from '../../../src/block/io/callbacks.ts';
import { BlockLayer } from '../../../src/block/layer.ts';
import { addNode } from '../../../src/block/open/open.ts';
import { drivers } from '../../../src/drivers/table.ts';
import { E } from '../../../src/errors/errno.ts';
import { ioError } from '../../../src/errors/error.ts';
import { memoryDisk, memoryDriver } from '../../block/memory-driver.ts';
import { createRandom } from '../qcow2/random.ts';

const KiB = 1024;
const SIZE = 1024 * KiB;
const owner = { describe: () => 'a test', drainedBegin: () => undefined, drainedEnd: () => undefined };
let layer: BlockLayer;
let folder: string;
/** What a call of the disk waits for or fails by. */
let onCall: (name: string) => Promise<void> | void;
let disk: ReturnType<typeof memoryDisk>;

beforeEach(async () => {
  folder = mkdtempSync(path.join(tmpdir(), 'qb-filters-'));
  onCall = () => undefined;
  disk = memoryDisk(SIZE, { onCall: (name) => onCall(name) });
  layer = new BlockLayer({
    engine: createEngine('io_uring').engine,
    events: { emit: () => undefined },
    drivers: { ...drivers, memory: memoryDriver(disk) },
  });
  await asMonitor(() => addNode(layer, { driver: 'memory', 'node-name': 'm' }));
});

afterEach(async () => {
  await asMonitor(() => layer.closeAll());
  layer.engine.close();
  rmSync(folder, { recursive: true });
});

async function open(options: Record<string, unknown>): Promise<BlockBackend> {
  return asMonitor(async () => {
    const node = await addNode(layer, { 'node-name': 'f', file: 'm', ...options });
    return layer.createBackend(node, { perm: Perm.consistentRead | Perm.write, shared: Perm.all }, owner);
  });
}

async function read(backend: BlockBackend, offset: number, bytes: number): Promise<Buffer> {
  const memory = allocateIoMemory(bytes);
  await backend.preadv(offset, bytes, vectorOf(memory, 0, bytes), 0);
  return memory.buf.subarray(0, bytes);
}

async function write(backend: BlockBackend, offset: number, bytes: number, value: number): Promise<void> {
  const memory = allocateIoMemory(bytes);
  memory.buf.fill(value);
  await backend.pwritev(offset, bytes, vectorOf(memory, 0, bytes), 0);
}

const VARIANTS: readonly [string, Record<string, unknown>][] = [
  ['readahead', { driver: 'readahead', initial: 64 * KiB, window: 256 * KiB }],
  ['cache', { driver: 'cache', size: 512 * KiB, 'block-size': 16 * KiB }],
  ['a cache of one block', { driver: 'cache', size: 64 * KiB }],
  ['cache in a file', { driver: 'cache', size: 512 * KiB, 'block-size': 16 * KiB, 'cache-file': 'FOLDER/c' }],
  ['retry', { driver: 'retry', 'retry-delay': 1 }],
  [
    'all of them',
    {
      driver: 'readahead',
      file: { driver: 'cache', file: { driver: 'retry', file: 'm', 'retry-delay': 1 } },
    },
  ],
];

describe.each(VARIANTS)('%s', (_name, options) => {
  test('many requests at once, the disk fails now and then: reads see what was written last', async () => {
    const random = createRandom(11);
    const isRetried = JSON.stringify(options).includes('retry');
    onCall = async (name) => {
      await new Promise((resolve) => setTimeout(resolve, random.below(3)));
      if (name === 'preadv' && random.below(8) === 0) throw ioError(E.EIO);
    };
    const text = JSON.stringify(options).replace('FOLDER', folder);
    const backend = await open(JSON.parse(text) as Record<string, unknown>);
    expect(existsSync(path.join(folder, 'c'))).toBe(false);
    const model = Buffer.alloc(SIZE);
    let failed = 0;
    for (let round = 0; round < 60; round++) {
      const requests: Promise<unknown>[] = [];
      const slot = SIZE / 8;
      for (let i = 0; i < 8; i++) {
        const bytes = 1 + random.below(slot - 1);
        const offset = i * slot + random.below(slot - bytes);
        if (random.below(3) === 0) {
          const value = 1 + random.below(255);
          requests.push(
            write(backend, offset, bytes, value).then(() => model.fill(value, offset, offset + bytes)),
          );
          // May see either, and must not keep the old.
          requests.push(read(backend, offset, bytes).catch(() => undefined));
        } else {
          const expected = Buffer.from(model.subarray(offset, offset + bytes));
          const check = async (): Promise<void> => {
            const data = await read(backend, offset, bytes).catch(() => null);
            if (data === null) failed++;
            else expect(data.equals(expected)).toBe(true);
          };
          requests.push(check());
        }
      }
      await Promise.all(requests);
      if (round % 20 === 10) (await drainedBegin(layer.findNode('f')!)).end();
    }
    if (isRetried) expect(failed).toBe(0);
    onCall = () => undefined;
    for (let at = 0; at < SIZE; at += 4 * KiB)
      expect((await read(backend, at, 4 * KiB)).equals(model.subarray(at, at + 4 * KiB))).toBe(true);
    await asMonitor(() => backend.close());
  });
});

test('readahead: a reader from front to back needs few fetches, one that jumps around fetches nothing more', async () => {
  const backend = await open({ driver: 'readahead', initial: 64 * KiB });
  const reads = (): number => disk.calls.filter((name) => name === 'preadv').length;
  for (let at = 0; at < SIZE; at += 4 * KiB) await read(backend, at, 4 * KiB);
  expect(reads()).toBeLessThan(30);
  const before = reads();
  for (let i = 0; i < 20; i++) await read(backend, ((i * 37) % 16) * 64 * KiB + 8 * KiB, 512);
  expect(reads() - before).toBeLessThanOrEqual(22);
  await asMonitor(() => backend.close());
});

test('cache: what was read is not read again, what was read longest ago goes first', async () => {
  const backend = await open({ driver: 'cache', size: 128 * KiB, 'block-size': 64 * KiB });
  const reads = (): number => disk.calls.filter((name) => name === 'preadv').length;
  await read(backend, 0, 512);
  await read(backend, 64 * KiB, 512);
  await read(backend, 1024, 4 * KiB);
  expect(reads()).toBe(2);
  await read(backend, 128 * KiB, 512);
  await read(backend, 2048, 512);
  expect(reads()).toBe(3);
  await read(backend, 64 * KiB, 512);
  expect(reads()).toBe(4);
  await asMonitor(() => backend.close());
});

test('nobody else may write below a filter that remembers', async () => {
  for (const driver of ['cache', 'readahead']) {
    const backend = await open({ driver });
    const node = layer.findNode('m')!;
    const want = { perm: Perm.write, shared: Perm.all };
    await expect(asMonitor(() => layer.createBackend(node, want, owner))).rejects.toThrow();
    await asMonitor(() => backend.close());
    await asMonitor(() => layer.deleteNode('f'));
  }
});

test('retry: how often and what, and not for ever when somebody waits', async () => {
  const backend = await open({ driver: 'retry', retries: 2, 'retry-delay': 1 });
  const tries = async (errno: number): Promise<number> => {
    let count = 0;
    onCall = (name) => {
      if (name !== 'preadv') return;
      count++;
      throw ioError(errno);
    };
    await expect(read(backend, 0, 512)).rejects.toMatchObject({ errno });
    onCall = () => undefined;
    return count;
  };
  expect(await tries(E.EIO)).toBe(3);
  expect(await tries(E.ENOSPC)).toBe(1);
  await asMonitor(() => backend.close());
  await asMonitor(() => layer.deleteNode('f'));
  const slow = await open({ driver: 'retry', retries: 50, 'retry-delay': 100_000 });
  onCall = (name) => {
    if (name === 'preadv') throw ioError(E.EIO);
  };
  const failing = expect(read(slow, 0, 512)).rejects.toMatchObject({ errno: E.EIO });
  await new Promise((resolve) => setTimeout(resolve, 20));
  (await drainedBegin(layer.findNode('f')!)).end();
  await failing;
  onCall = () => undefined;
  await asMonitor(() => slow.close());
});

test('odd options are refused, and a file that is there is left alone', async () => {
  const refused = (options: object): Promise<unknown> =>
    expect(asMonitor(() => addNode(layer, { 'node-name': 'f', file: 'm', ...options }))).rejects.toThrow();
  await refused({ driver: 'cache', 'block-size': 5000 });
  await refused({ driver: 'cache', size: 10 });
  await refused({ driver: 'readahead', initial: 2 ** 20, window: 4096 });
  const file = path.join(folder, 'there');
  writeFileSync(file, 'x');
  await refused({ driver: 'cache', 'cache-file': file });
  expect(existsSync(file)).toBe(true);
  expect(await wrapped.getLength(layer.findNode('m')!)).toBe(SIZE);
});
