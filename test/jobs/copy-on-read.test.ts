/** Copy on read against writes at the same time: what users see is what they wrote, or what was below. */

import { rmSync } from 'node:fs';
import path from 'node:path';
import { expect, test } from 'vitest';
import { nextTurn } from '../../src/aio/host/turns.ts';
import { allocateIoMemory, fillVector, vectorOf } from '../../src/aio/memory.ts';
import { Perm } from '../../src/block/contract/request.ts';
import { cowChild } from '../../src/block/graph/chain.ts';
import { changeGraph } from '../../src/block/graph/change.ts';
import type { BlockNode } from '../../src/block/graph/node.ts';
import { wrapped } from '../../src/block/io/callbacks.ts';
import { coCopyOnRead, copyOnReadNow } from '../../src/block/io/copy-on-read.ts';
import type { BlockLayer } from '../../src/block/layer.ts';
import { addNode } from '../../src/block/open/open.ts';
import { scratch, testLayer } from '../drivers/qcow2/open-layer.ts';
import { createRandom } from '../drivers/qcow2/random.ts';

const CLUSTER = 65536;
const CLUSTERS = 24;
const SIZE = CLUSTERS * CLUSTER;
/** Size of a write. */
const SLOT = 1024;
/** Writes to the range of each copy. */
const WRITES = 12;
const ROUNDS = 6;

const noProgress = { update: () => undefined };
const owner = { describe: () => 'the test', drainedBegin: () => undefined, drainedEnd: () => undefined };

async function openOverlay(layer: BlockLayer, dir: string): Promise<BlockNode> {
  const qcow2 = await layer.driver('qcow2');
  for (const name of ['base', 'top']) {
    const file = path.join(dir, name);
    await qcow2!.creation!.createFile(layer, file, { size: String(SIZE) }, noProgress);
    await addNode(layer, {
      driver: 'qcow2',
      'node-name': name,
      file: { driver: 'file', filename: file },
      backing: name === 'top' ? 'base' : null,
    });
  }
  return layer.findNode('top')!;
}

function write(node: BlockNode, offset: number, bytes: number, value: number): Promise<void> {
  const vec = vectorOf(allocateIoMemory(bytes), 0, bytes);
  fillVector(vec, value);
  return wrapped.pwritev(node, offset, bytes, vec, 0);
}

test.each([false, true])(
  'no write is lost, and nothing of the backing image; within a turn: %s',
  async (isInTurn) => {
    let inTurnBytes = 0;
    for (let seed = 1; seed <= ROUNDS; seed++) {
      const dir = scratch();
      const { layer, close } = testLayer();
      const random = createRandom(seed);
      try {
        const top = await openOverlay(layer, dir);
        const base = layer.findNode('base')!;
        const expected = Buffer.alloc(SIZE);
        for (let at = 0; at < SIZE; at += CLUSTER) {
          if (random.below(4) === 0) continue;
          expected.fill(1 + random.below(99), at, at + CLUSTER);
          await write(base, at, CLUSTER, expected[at]!);
        }
        const backend = await layer.createBackend(top, { perm: Perm.all, shared: Perm.all }, owner);
        const taken = new Set<number>();
        // A new table is made by waiting.
        expected.fill(1, 0, SLOT);
        taken.add(0);
        await write(top, 0, SLOT, 1);
        const piece = allocateIoMemory(2 * CLUSTER);
        const work: Promise<void>[] = [];
        for (let offset = 0; offset < SIZE; offset += 5 * CLUSTER) {
          const bytes = Math.min(5 * CLUSTER, SIZE - offset);
          const writes: Promise<void>[] = [];
          const copyNow = (): void => {
            inTurnBytes +=
              layer.graphLock.readNow((guard) =>
                copyOnReadNow(top, guard, offset, bytes, piece, () => true),
              ) ?? 0;
          };
          const copy = (): Promise<void> =>
            layer.graphLock.withRead((guard) => coCopyOnRead(top, guard, offset, bytes));
          if (!isInTurn) work.push(copy());
          else if (random.below(2) === 0) copyNow();
          for (let number = 0; number < WRITES; number++) {
            // Each write has a place of its own: two to one place could come in either order.
            const place = offset + SLOT * random.below(bytes / SLOT);
            if (taken.has(place)) continue;
            taken.add(place);
            const value = 100 + random.below(150);
            expected.fill(value, place, place + SLOT);
            writes.push(write(top, place, SLOT, value));
            if (isInTurn && random.below(4) === 0) copyNow();
          }
          work.push(...writes);
          // Writes are under way; and then they are not.
          if (isInTurn) work.push(nextTurn().then(copyNow), Promise.all(writes).then(copyNow).then(copy));
        }
        await Promise.all(work);
        // Without its backing image it shows the same.
        await changeGraph(layer, [top], (graph) => graph.detach(cowChild(top)!));
        const vec = vectorOf(allocateIoMemory(SIZE), 0, SIZE);
        await wrapped.preadv(top, 0, SIZE, vec, 0);
        expect(vec.segments[0]!.mem.buf.equals(expected), `seed ${seed}`).toBe(true);
        await backend.close();
      } finally {
        await close();
        rmSync(dir, { recursive: true, force: true });
      }
    }
    expect(inTurnBytes > 0).toBe(isInTurn);
  },
);
