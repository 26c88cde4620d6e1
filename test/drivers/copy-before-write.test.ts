/**
 * What a copy-before-write filter preserves, against a model, with real files: random writes, reads of the snapshot
 * and discards of it at once. And copies by the kernel, which the filter's job uses.
 */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { createEngine } from '../../src/aio/create-engine.ts';
import { allocateIoMemory, vectorOf } from '../../src/aio/memory.ts';
import { createBitmap, dirtyBytes, nextDirty } from '../../src/block/bitmaps/dirty-bitmap.ts';
import type { BlockDriver } from '../../src/block/contract/driver.ts';
import { Role } from '../../src/block/contract/request.ts';
import type { BlockNode } from '../../src/block/graph/node.ts';
import { wrapped } from '../../src/block/io/callbacks.ts';
import { canCopyRange, coCopyRange } from '../../src/block/io/copy-range.ts';
import { BlockLayer } from '../../src/block/layer.ts';
import { addNode } from '../../src/block/open/open.ts';
import { passOn } from '../../src/drivers/filters/pass-on.ts';
import { drivers } from '../../src/drivers/table.ts';
import { memoryDisk, memoryLayer } from '../block/memory-driver.ts';
import { requirePeer } from '../peers/requires.ts';

const KIB = 1024;
const CLUSTER = 64 * KIB;
const BYTES = 20 * CLUSTER + 5 * 512;

let dir: string;
let layer: BlockLayer;

beforeEach(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'qb-cbw-'));
  layer = new BlockLayer({
    engine: createEngine('threads').engine,
    events: { emit: () => undefined },
    drivers,
    report: () => undefined,
  });
});

afterEach(async () => {
  await layer.closeAll();
  rmSync(dir, { recursive: true });
});

/** A byte for every 512 bytes that says where it is. */
function pattern(bytes: number): Buffer {
  const data = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; at += 512) data.fill(1 + ((at / 512) % 250), at, at + 512);
  return data;
}

async function addFile(name: string, content: Buffer): Promise<BlockNode> {
  writeFileSync(path.join(dir, name), content);
  return addNode(layer, {
    driver: 'file',
    'node-name': name,
    filename: path.join(dir, name),
    discard: 'unmap',
  });
}

async function read(node: BlockNode, offset: number, bytes: number): Promise<Buffer> {
  const memory = allocateIoMemory(bytes);
  await wrapped.preadv(node, offset, bytes, vectorOf(memory), 0);
  return memory.buf;
}

function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return state / 2 ** 32;
  };
}

/** Offset and length in whole sectors. */
function range(next: () => number, max: number): [offset: number, bytes: number] {
  const offset = Math.floor((next() * BYTES) / 512) * 512;
  return [offset, Math.min(BYTES - offset, 512 * (1 + Math.floor((next() * max) / 512)))];
}

test('the snapshot is what was there at the start, whatever is written and given up', async () => {
  for (let seed = 1; seed <= 3; seed++) {
    const next = random(seed);
    const before = pattern(BYTES);
    const source = await addFile(`s${seed}`, before);
    await addFile(`t${seed}`, Buffer.alloc(BYTES));
    const filter = await addNode(layer, {
      driver: 'copy-before-write',
      'node-name': `c${seed}`,
      file: `s${seed}`,
      target: `t${seed}`,
      discard: 'unmap',
    });
    const snapshot = await addNode(layer, {
      driver: 'snapshot-access',
      'node-name': `a${seed}`,
      file: `c${seed}`,
      discard: 'unmap',
    });
    /** Sectors that were written, zeroed or discarded. */
    const touched = new Set<number>();
    /** Clusters that were given up, or are being given up. */
    const gone = new Set<number>();
    const touch = (max: number): [offset: number, bytes: number] => {
      const [offset, bytes] = range(next, max);
      for (let at = offset; at < offset + bytes; at += 512) touched.add(at / 512);
      return [offset, bytes];
    };
    const write = (): Promise<void> => {
      const [offset, bytes] = touch(3 * CLUSTER);
      const memory = allocateIoMemory(bytes);
      memory.buf.fill(255);
      return wrapped.pwritev(filter, offset, bytes, vectorOf(memory), 0);
    };
    const zero = (): Promise<void> => wrapped.pwriteZeroes(filter, ...touch(CLUSTER), 0);
    const discard = (): Promise<void> => wrapped.pdiscard(filter, ...touch(CLUSTER));
    const look = async (): Promise<void> => {
      const [offset, bytes] = range(next, 4 * CLUSTER);
      const touches = (cluster: number): boolean =>
        cluster * CLUSTER < offset + bytes && offset < (cluster + 1) * CLUSTER;
      const mayFail = (): boolean => [...gone].some(touches);
      try {
        const data = await read(snapshot, offset, bytes);
        expect(data.equals(before.subarray(offset, offset + bytes))).toBe(true);
      } catch (error) {
        expect(mayFail(), String(error)).toBe(true);
      }
    };
    const giveUp = async (): Promise<void> => {
      const cluster = Math.floor((next() * BYTES) / CLUSTER);
      gone.add(cluster);
      await wrapped.pdiscard(snapshot, cluster * CLUSTER, Math.min(CLUSTER, BYTES - cluster * CLUSTER));
    };
    const kinds = [write, write, zero, discard, look, look, look, look, giveUp];
    for (let round = 0; round < 30; round++) {
      const actions = Array.from({ length: 6 }, () => kinds[Math.floor(next() * (round < 15 ? 8 : 9))]!());
      await Promise.all(actions);
    }
    const after = await read(source, 0, BYTES);
    for (let at = 0; at < BYTES; at += 512) {
      const same = after.subarray(at, at + 512).equals(before.subarray(at, at + 512));
      expect(same, `sector ${at / 512}`).toBe(!touched.has(at / 512));
    }
  }
});

test('the kernel copies between windows into files, as if it had been read and written', async () => {
  const content = pattern(BYTES);
  await addFile('s', content);
  const target = await addFile('t', Buffer.alloc(BYTES));
  const from = await addNode(layer, { driver: 'raw', 'node-name': 'from', file: 's', offset: 4096 });
  const to = await addNode(layer, {
    driver: 'raw',
    'node-name': 'to',
    file: 't',
    offset: 512,
    size: CLUSTER,
  });
  const bitmaps = [to, target].map((node) => createBitmap(node, { name: 'b', granularityBytes: 512 }));
  await layer.graphLock.withRead(async (guard) => {
    expect(canCopyRange(from, to, guard)).toBe(true);
    expect(await coCopyRange(from, guard, 1024, to, 2048, 3 * 512)).toBe(true);
    // Beyond the window; and beyond the end of the source, which is not begun at all.
    expect(await coCopyRange(from, guard, 0, to, CLUSTER - 512, 1024)).toBe(false);
    expect(await coCopyRange(from, guard, BYTES - 4096 - 512, to, 0, 1024)).toBe(false);
  });
  const after = readFileSync(path.join(dir, 't'));
  expect(after.length).toBe(BYTES);
  expect(
    after.subarray(512 + 2048, 512 + 2048 + 3 * 512).equals(content.subarray(5120, 5120 + 3 * 512)),
  ).toBe(true);
  expect(after.subarray(512 + 2048 + 3 * 512).every((byte) => byte === 0)).toBe(true);
  expect(nextDirty(bitmaps[0]!, 2048)).toEqual({ offset: 2048, bytes: 3 * 512 });
  expect(nextDirty(bitmaps[1]!, 2560)).toEqual({ offset: 2560, bytes: 3 * 512 });
  // A copy that did not work counts as a write, as far as the node reaches.
  expect(dirtyBytes(bitmaps[0]!)).toBe(4 * 512);
  expect([from.inFlight, to.inFlight, target.inFlight]).toEqual([0, 0, 0]);
});

test('a copy by the kernel is a write as far as the threshold of the target goes', async () => {
  const seen: string[] = [];
  const watched = new BlockLayer({
    engine: layer.engine,
    events: { emit: (name) => void seen.push(name) },
    drivers,
  });
  const [from, to] = await Promise.all(
    ['s', 't'].map((name) => {
      writeFileSync(path.join(dir, name), pattern(BYTES));
      return addNode(watched, { driver: 'file', 'node-name': name, filename: path.join(dir, name) });
    }),
  );
  to!.writeThreshold = CLUSTER;
  const copy = (bytes: number): Promise<boolean> =>
    watched.graphLock.withRead((guard) => coCopyRange(from!, guard, 0, to!, 0, bytes));
  expect(await copy(CLUSTER)).toBe(true);
  expect(seen).toEqual([]);
  expect(await copy(CLUSTER + 512)).toBe(true);
  expect(seen).toEqual(['BLOCK_WRITE_THRESHOLD']);
  await watched.closeAll();
});

test('the kernel is not asked where more than bytes are at stake', async () => {
  await addFile('s', pattern(BYTES));
  await addFile('t', Buffer.alloc(BYTES));
  const add = (options: object): Promise<BlockNode> => addNode(layer, { 'node-name': 'x', ...options });
  const source = layer.findNode('s')!;
  for (const options of [
    { driver: 'raw', file: 't', 'detect-zeroes': 'on' },
    { driver: 'raw', file: 't', 'read-only': true },
    { driver: 'blkdebug', image: 't' },
    { driver: 'null-co', size: BYTES },
  ]) {
    const target = await add(options);
    await layer.graphLock.withRead(async (guard) => {
      expect(canCopyRange(source, target, guard)).toBe(false);
      expect(await coCopyRange(source, guard, 0, target, 0, 512)).toBe(false);
    });
    await layer.deleteNode('x');
  }
});

test('every write waits for a read of what it overwrites, also the second one', async () => {
  let letGo = (): void => undefined;
  const held = new Promise<void>((resolve) => {
    letGo = resolve;
  });
  let reads = 0;
  const from = memoryDisk(CLUSTER, {
    onCall: (name) => (name === 'preadv' && reads++ === 0 ? held : undefined),
  });
  from.data.fill(1);
  const both = new BlockLayer({
    engine: layer.engine,
    events: layer.events,
    report: () => undefined,
    drivers: {
      ...drivers,
      memory: memoryLayer(from).drivers.memory!,
      target: memoryLayer(memoryDisk(CLUSTER)).drivers.memory!,
    },
  });
  const filter = await addNode(both, {
    driver: 'copy-before-write',
    'node-name': 'c',
    file: { driver: 'memory' },
    target: { driver: 'target' },
  });
  const snapshot = await addNode(both, { driver: 'snapshot-access', 'node-name': 'a', file: 'c' });
  const reading = read(snapshot, 0, CLUSTER);
  const memory = allocateIoMemory(512);
  memory.buf.fill(2);
  const write = (): Promise<void> => wrapped.pwritev(filter, 0, 512, vectorOf(memory), 0);
  const first = write();
  for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
  const second = write();
  for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
  expect(from.data[0]).toBe(1);
  letGo();
  expect((await reading).every((byte) => byte === 1)).toBe(true);
  await Promise.all([first, second]);
  expect(from.data[0]).toBe(2);
  expect((await read(snapshot, 0, CLUSTER)).every((byte) => byte === 1)).toBe(true);
  await both.closeAll();
});

test('a write waits for who reads the old content through the target', async (context) => {
  requirePeer(context, 'qemu-img');
  const bytes = 4 * CLUSTER;
  let letGo = (): void => undefined;
  const held = new Promise<void>((resolve) => {
    letGo = resolve;
  });
  const slow: BlockDriver = {
    ...passOn,
    name: 'slow',
    kind: 'filter',
    supportedWriteFlags: 0,
    supportedZeroFlags: 0,
    async open(_node, { openChild }) {
      await openChild('file', Role.filtered | Role.primary, true);
      return null;
    },
    preadv: (...args) => held.then(() => passOn.preadv(...args)),
  };
  const both = new BlockLayer({
    engine: layer.engine,
    events: layer.events,
    report: () => undefined,
    drivers: { ...drivers, slow },
  });
  const before = pattern(bytes);
  writeFileSync(path.join(dir, 's'), before);
  const overlay = path.join(dir, 't.qcow2');
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', overlay, `${bytes}`]);
  const source = await addNode(both, { driver: 'file', 'node-name': 's', filename: path.join(dir, 's') });
  await addNode(both, { driver: 'slow', 'node-name': 'slow', file: 's' });
  const target = await addNode(both, {
    driver: 'qcow2',
    'node-name': 't',
    file: { driver: 'file', filename: overlay },
    backing: 'slow',
  });
  const filter = await addNode(both, {
    driver: 'copy-before-write',
    'node-name': 'c',
    file: 's',
    target: 't',
  });
  const reading = read(target, 0, bytes);
  const memory = allocateIoMemory(bytes);
  memory.buf.fill(255);
  const writing = wrapped.pwritev(filter, 0, bytes, vectorOf(memory), 0);
  await new Promise((resolve) => setTimeout(resolve, 200));
  expect((await read(source, 0, 512))[0]).toBe(before[0]);
  letGo();
  expect((await reading).equals(before)).toBe(true);
  await writing;
  expect((await read(target, 0, bytes)).equals(before)).toBe(true);
  await both.closeAll();
});
