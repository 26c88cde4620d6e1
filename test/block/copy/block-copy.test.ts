/**
 * The block copy engine against a model: whatever is written while it runs, the target gets the content of the start.
 */

import { expect, test } from 'vitest';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import { HierarchicalBitmap } from '../../../src/block/bitmaps/hierarchical-bitmap.ts';
import {
  type BlockCopy,
  copyBeforeWrite,
  createBlockCopy,
  remainingBytes,
} from '../../../src/block/copy/block-copy.ts';
import { type RunOptions, runCopy } from '../../../src/block/copy/run.ts';
import type { BlockNode } from '../../../src/block/graph/node.ts';
import { wrapped } from '../../../src/block/io/callbacks.ts';
import type { BlockLayer } from '../../../src/block/layer.ts';
import { addNode } from '../../../src/block/open/open.ts';
import { E } from '../../../src/errors/errno.ts';
import { ioError } from '../../../src/errors/error.ts';
import { type MemoryDisk, memoryDisk, memoryLayer } from '../memory-driver.ts';

const CLUSTER = 4096;
const CLUSTERS = 64;
const BYTES = CLUSTER * CLUSTERS - 512;

interface Ends {
  readonly layer: BlockLayer;
  readonly from: MemoryDisk;
  readonly to: MemoryDisk;
  readonly source: BlockNode;
  readonly target: BlockNode;
  readonly copy: BlockCopy;
}

async function makeEnds(
  onCall: { from?: MemoryDisk['onCall']; to?: MemoryDisk['onCall'] } = {},
): Promise<Ends> {
  const from = memoryDisk(BYTES, { onCall: onCall.from ?? (() => undefined) });
  const to = memoryDisk(BYTES, { onCall: onCall.to ?? (() => undefined) });
  for (let i = 0; i < BYTES; i++) from.data[i] = (i / 512) & 0xff;
  const layer = memoryLayer(from);
  const source = await addNode(layer, { driver: 'memory', 'node-name': 's' });
  const target = await addNode(memoryLayer(to), { driver: 'memory', 'node-name': 't' });
  const dirty = new HierarchicalBitmap(CLUSTERS);
  dirty.set(0, CLUSTERS);
  const copy = createBlockCopy({
    source: () => source,
    target: () => target,
    clusterBytes: CLUSTER,
    totalBytes: BYTES,
    dirty,
  });
  return { layer, from, to, source, target, copy };
}

function options(layer: BlockLayer, more: Partial<RunOptions> = {}): RunOptions {
  return {
    maxRequests: 8,
    maxChunkBytes: 2 * CLUSTER,
    enter: async () => layer.graphLock.tryRead() ?? (await layer.graphLock.read()),
    leave: (guard) => layer.graphLock.readDone(guard),
    isLimited: () => false,
    mayGoOn: async () => true,
    ...more,
  };
}

/** A guest's write: what is there is copied first. */
async function guestWrite(ends: Ends, offset: number, bytes: number, value: number): Promise<void> {
  const { layer, copy, source } = ends;
  const failure = await layer.graphLock.withRead((guard) => copyBeforeWrite(copy, guard, offset, bytes));
  expect(failure).toBeNull();
  const memory = allocateIoMemory(bytes);
  memory.buf.fill(value);
  await wrapped.pwritev(source, offset, bytes, vectorOf(memory), 0);
}

function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return state / 2 ** 32;
  };
}

test('the target gets the content of the start, under writes all the time', async () => {
  for (let seed = 1; seed <= 8; seed++) {
    const next = random(seed);
    const ends = await makeEnds();
    const before = Buffer.from(ends.from.data);
    let running = true;
    const writer = async (): Promise<void> => {
      while (running) {
        const offset = Math.floor(next() * (BYTES / 512)) * 512;
        const bytes = Math.min(BYTES - offset, 512 * (1 + Math.floor(next() * 24)));
        await guestWrite(ends, offset, bytes, 0xff);
        for (let i = next() * 4; i > 1; i--) await new Promise((resolve) => setImmediate(resolve));
      }
    };
    const writers = [writer(), writer(), writer()];
    const failure = await runCopy(ends.copy, options(ends.layer));
    running = false;
    await Promise.all(writers);
    expect(failure).toBeNull();
    expect(remainingBytes(ends.copy)).toBe(0);
    expect(ends.copy.copiedBytes).toBe(CLUSTERS * CLUSTER);
    expect(ends.to.data.equals(before)).toBe(true);
    expect(ends.from.data.equals(before)).toBe(false);
  }
});

test('no cluster is copied twice, whoever copies', async () => {
  const ends = await makeEnds();
  const writes = Array.from({ length: 20 }, (_, i) =>
    guestWrite(ends, (i * 3 * CLUSTER) % (BYTES - CLUSTER), 1024, 9),
  );
  await Promise.all([runCopy(ends.copy, options(ends.layer)), ...writes]);
  expect(ends.copy.copiedBytes).toBe(CLUSTERS * CLUSTER);
});

test('a failed copy is put back on the list, and tells on which side it failed', async () => {
  for (const side of ['from', 'to'] as const) {
    let fails = true;
    const onCall = (name: string): void => {
      if (fails && name === (side === 'from' ? 'preadv' : 'pwritev')) throw ioError(E.ENOSPC);
    };
    const ends = await makeEnds({ [side]: onCall });
    const failure = await runCopy(ends.copy, options(ends.layer));
    expect(failure?.isRead).toBe(side === 'from');
    expect(failure?.error).toMatchObject({ errno: E.ENOSPC });
    expect(remainingBytes(ends.copy)).toBe(CLUSTERS * CLUSTER);
    expect(ends.copy.copiedBytes).toBe(0);
    fails = false;
    expect(await runCopy(ends.copy, options(ends.layer))).toBeNull();
    expect(ends.to.data.equals(ends.from.data)).toBe(true);
  }
});

test('a write that meets a failing copy copies by itself', async () => {
  let failures = 1;
  const ends = await makeEnds({
    to: (name) => {
      if (name === 'pwritev' && failures-- > 0) throw ioError(E.EIO);
    },
  });
  const before = Buffer.from(ends.from.data);
  const run = runCopy(ends.copy, options(ends.layer));
  while (ends.copy.tasks.size === 0) await new Promise((resolve) => setImmediate(resolve));
  await guestWrite(ends, 0, 512, 1);
  expect(await run).toMatchObject({ isRead: false, offset: 0 });
  expect(ends.to.data.subarray(0, CLUSTER).equals(before.subarray(0, CLUSTER))).toBe(true);
});

test('it stops between two requests when told to, and goes on where it was', async () => {
  const ends = await makeEnds();
  let requests = 3;
  const failure = await runCopy(ends.copy, options(ends.layer, { mayGoOn: async () => requests-- > 0 }));
  expect(failure).toBeNull();
  expect(ends.copy.copiedBytes).toBe(3 * 2 * CLUSTER);
  expect(remainingBytes(ends.copy)).toBe((CLUSTERS - 6) * CLUSTER);
  await runCopy(ends.copy, options(ends.layer));
  expect(ends.to.data.equals(ends.from.data)).toBe(true);
});
