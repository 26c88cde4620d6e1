/**
 * Moving within a turn, between files: the same bytes as by waiting, in whole units, for no longer than a turn, and under
 * writes all the time.
 */

import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { allocateIoMemory, fillVector, vectorOf } from '../../../src/aio/memory.ts';
import { HierarchicalBitmap } from '../../../src/block/bitmaps/hierarchical-bitmap.ts';
import { Perm } from '../../../src/block/contract/request.ts';
import { type BlockCopy, copyBeforeWrite, createBlockCopy } from '../../../src/block/copy/block-copy.ts';
import { moveExtent, moveOneTurn, updateUseOfKernel } from '../../../src/block/copy/mover.ts';
import { runCopy } from '../../../src/block/copy/run.ts';
import type { BlockNode } from '../../../src/block/graph/node.ts';
import { wrapped } from '../../../src/block/io/callbacks.ts';
import type { BlockLayer } from '../../../src/block/layer.ts';
import { addNode } from '../../../src/block/open/open.ts';
import { scratch, testLayer } from '../../drivers/qcow2/open-layer.ts';
import { createRandom } from '../../drivers/qcow2/random.ts';

const CLUSTER = 64 * 1024;
/** The last cluster is cut. */
const BYTES = 96 * CLUSTER - 4096;
const OWNER = { describe: () => 'the test', drainedBegin: () => undefined, drainedEnd: () => undefined };

let dir: string;
let layer: BlockLayer;
let close: () => Promise<void>;

beforeEach(() => {
  dir = scratch();
  ({ layer, close } = testLayer());
});

afterEach(async () => {
  await close();
  rmSync(dir, { recursive: true, force: true });
});

interface Ends {
  readonly before: Buffer;
  readonly source: BlockNode;
  readonly target: BlockNode;
  readonly copy: BlockCopy;
}

async function makeEnds(format: 'raw' | 'qcow2', seed: number): Promise<Ends> {
  const random = createRandom(seed);
  const before = Buffer.alloc(BYTES);
  for (let at = 0; at < BYTES; at += 512) before.fill(1 + random.below(255), at, at + 512);
  writeFileSync(path.join(dir, 's'), before);
  writeFileSync(path.join(dir, 't'), '');
  const driver = await layer.driver(format);
  const file = path.join(dir, 't');
  await driver!.creation!.createFile(layer, file, { size: String(BYTES) }, { update: () => undefined });
  const open = async (name: string, kind: string): Promise<BlockNode> => {
    const options = {
      driver: kind,
      'node-name': name,
      file: { driver: 'file', filename: path.join(dir, name) },
    };
    const node = await addNode(layer, options);
    await layer.createBackend(node, { perm: Perm.all, shared: Perm.all }, OWNER);
    return node;
  };
  const source = await open('s', 'raw');
  const target = await open('t', format);
  // A new table is made by waiting.
  await wrapped.pwritev(target, 0, CLUSTER, vectorOf(allocateIoMemory(CLUSTER), 0, CLUSTER), 0);
  const clusters = Math.ceil(BYTES / CLUSTER);
  const dirty = new HierarchicalBitmap(clusters);
  dirty.set(0, clusters);
  const ends = {
    source: () => source,
    target: () => target,
    clusterBytes: CLUSTER,
    totalBytes: BYTES,
    dirty,
  };
  return { before, source, target, copy: createBlockCopy(ends) };
}

async function content(node: BlockNode): Promise<Buffer> {
  const vec = vectorOf(allocateIoMemory(BYTES), 0, BYTES);
  await wrapped.preadv(node, 0, BYTES, vec, 0);
  return vec.segments[0]!.mem.buf;
}

function copyAll({ copy }: Ends): Promise<unknown> {
  return runCopy(copy, {
    maxRequests: 8,
    maxChunkBytes: 0,
    enter: async () => layer.graphLock.tryRead() ?? (await layer.graphLock.read()),
    leave: (guard) => layer.graphLock.readDone(guard),
    isLimited: () => false,
    mayGoOn: async () => true,
  });
}

describe.each(['raw', 'qcow2'] as const)('to %s', (format) => {
  test('turn by turn, in whole clusters, to the end', async () => {
    const ends = await makeEnds(format, 1);
    const { mover } = ends.copy;
    layer.graphLock.readNow((guard) => updateUseOfKernel(mover, guard));
    let inTurnBytes = 0;
    for (let at = 0; at < BYTES; ) {
      let moved = layer.graphLock.readNow((guard) => moveOneTurn(mover, guard, at, BYTES - at))!;
      inTurnBytes += moved;
      // Where new clusters follow on old ones it takes a wait.
      if (moved === 0) {
        moved = Math.min(CLUSTER, BYTES - at);
        const start = at;
        const bytes = moved;
        expect(
          await layer.graphLock.withRead((guard) => moveExtent(mover, guard, start, bytes, 'data')),
        ).toBeNull();
      }
      at += moved;
      expect(at === BYTES || at % CLUSTER === 0).toBe(true);
    }
    expect(inTurnBytes).toBeGreaterThan(BYTES / 2);
    expect(mover.buffers).toHaveLength(1);
    expect((await content(ends.target)).equals(ends.before)).toBe(true);
  });

  test('what cannot be moved so is left alone for some time', async () => {
    const { copy, source } = await makeEnds(format, 2);
    const { mover } = copy;
    layer.graphLock.readNow((guard) => updateUseOfKernel(mover, guard));
    const move = (): number | null =>
      layer.graphLock.readNow((guard) => moveOneTurn(mover, guard, 0, CLUSTER));
    // As a serialising request does.
    source.tracked.serialising++;
    expect(move()).toBe(0);
    source.tracked.serialising--;
    let refused = 0;
    while (refused < 1000 && move() === 0) refused++;
    expect(refused).toBeGreaterThan(4);
    expect(refused).toBeLessThan(1000);
    expect(move()).toBe(CLUSTER);
  });

  test('the target gets the content of the start, under writes all the time', async () => {
    const ends = await makeEnds(format, 3);
    const { source, copy } = ends;
    const random = createRandom(4);
    let isOver = false;
    const writer = async (): Promise<void> => {
      while (!isOver) {
        const bytes = 512 * (1 + random.below(200));
        const offset = 512 * random.below((BYTES - bytes) / 512);
        const failure = await layer.graphLock.withRead((guard) =>
          copyBeforeWrite(copy, guard, offset, bytes),
        );
        expect(failure).toBeNull();
        const vec = vectorOf(allocateIoMemory(bytes), 0, bytes);
        fillVector(vec, 0);
        await wrapped.pwritev(source, offset, bytes, vec, 0);
        for (let i = random.below(3); i > 0; i--) await new Promise((resolve) => setImmediate(resolve));
      }
    };
    const writers = [writer(), writer()];
    expect(await copyAll(ends)).toBeNull();
    isOver = true;
    await Promise.all(writers);
    expect((await content(ends.target)).equals(ends.before)).toBe(true);
    expect(readFileSync(path.join(dir, 's')).equals(ends.before)).toBe(false);
  });
});
