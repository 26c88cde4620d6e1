/**
 * The mirror engine on a model: users write at random through the filter while the copy runs, operations fail now and
 * then, and in the end the target equals the source byte for byte.
 */

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { allocateIoMemory, vectorOf } from '../../src/aio/memory.ts';
import { createBitmap } from '../../src/block/bitmaps/dirty-bitmap.ts';
import type { BlockDriver } from '../../src/block/contract/driver.ts';
import { Req } from '../../src/block/contract/request.ts';
import { createMover } from '../../src/block/copy/mover.ts';
import { changeGraph } from '../../src/block/graph/change.ts';
import type { BlockChild, BlockNode, RootParent } from '../../src/block/graph/node.ts';
import { wrapped } from '../../src/block/io/callbacks.ts';
import { BlockLayer } from '../../src/block/layer.ts';
import { addNode } from '../../src/block/open/open.ts';
import type { MirrorTopNode } from '../../src/drivers/filters/mirror-top.ts';
import { E } from '../../src/errors/errno.ts';
import { ioError } from '../../src/errors/error.ts';
import { dismantle, insertFilter, jobNodes, pivot, setCopyMode } from '../../src/jobs/mirror/graph.ts';
import { firstRound } from '../../src/jobs/mirror/init.ts';
import { type LoopControl, mirrorLoop } from '../../src/jobs/mirror/loop.ts';
import { type CopyMode, createMirror, type Mirror } from '../../src/jobs/mirror/state.ts';
import { type MemoryDisk, memoryDisk, memoryLayer } from '../block/memory-driver.ts';

const SIZE = 192 * 1024;
const BLOCK = 512;
const USERS = 12;

/** Two disks in one layer, by names. */
function twoDisks(a: MemoryDisk, b: MemoryDisk): BlockLayer {
  const first = memoryLayer(a);
  const { memory } = memoryLayer(b).drivers;
  return new BlockLayer({
    engine: first.engine,
    events: { emit: () => undefined },
    drivers: { ...first.drivers, other: { ...(memory as BlockDriver), name: 'other' } },
  });
}

interface Rest {
  readonly parent: RootParent;
  /** Sections that a parent of the job's is in. */
  depth: number;
}

/** The job's side of its edges: it rests when nothing is copied, or in a section of its own. */
function restingParent(mirror: () => Mirror | null): Rest {
  const rest: Rest = {
    depth: 0,
    parent: {
      staysAtNode: true,
      allowsInactive: false,
      jobId: null,
      describe: () => 'the job',
      drainedBegin: () => void rest.depth++,
      drainedEnd: () => void rest.depth--,
      resized: () => undefined,
      waitForRest() {
        const at = mirror();
        if (at === null || at.drain === 'begins' || at.copies === 0) return null;
        return at.changed.wait();
      },
    },
  };
  return rest;
}

/** Takes the nodes as the job does; the result lets go of them. The filter is held besides. */
async function takeNodes(
  source: BlockNode,
  target: BlockNode,
  filter: MirrorTopNode,
  root: RootParent,
): Promise<() => Promise<void>> {
  const { layer } = source;
  layer.hold(filter as unknown as BlockNode);
  const edges: BlockChild[] = [];
  for (const { name, node, permissions } of jobNodes(source, target, filter))
    edges.push(await layer.attachChild({ kind: 'root', root }, name, 0, node, permissions));
  return async () => {
    for (const edge of edges) await changeGraph(layer, [], (graph) => graph.detach(edge));
  };
}

interface Run {
  readonly mode: CopyMode;
  readonly seed: number;
  readonly failures: boolean;
  /** Copies cover at least this, as for a target with clusters and nothing below it. */
  readonly alignBytes: number;
  readonly granularityBytes: number;
  readonly switches: boolean;
}

/** A small generator of its own: a run can be repeated from its seed. */
function random(seed: number): (below: number) => number {
  let state = seed >>> 0 || 1;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

async function runMirror({
  mode,
  seed,
  failures,
  alignBytes,
  granularityBytes,
  switches,
}: Run): Promise<void> {
  const next = random(seed);
  const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
  /** Requests overtake each other. */
  const takeTime = async (): Promise<void> => {
    for (let turns = next(6); turns > 0; turns--) await turn();
  };
  const failSometimes = async (name: string): Promise<void> => {
    await takeTime();
    if (failures && ['preadv', 'pwritev', 'pwriteZeroes'].includes(name) && next(12) === 0)
      throw ioError(E.EIO);
  };
  const a = memoryDisk(SIZE, { onCall: takeTime });
  const b = memoryDisk(SIZE, { onCall: failSometimes });
  a.data.forEach((_, i) => {
    a.data[i] = next(256);
  });
  b.data.fill(0xee);
  const layer = twoDisks(a, b);
  const source = await addNode(layer, { driver: 'memory', 'node-name': 's', discard: 'unmap' });
  const target = await addNode(layer, { driver: 'other', 'node-name': 't' });
  const backend = await layer.createBackend(
    source,
    { perm: 3, shared: 15 },
    {
      describe: () => 'users',
      drainedBegin: () => undefined,
      drainedEnd: () => undefined,
    },
  );

  const filter = await insertFilter(source, 'f');
  expect(backend.nodeName).toBe('f');
  let mirror: Mirror | null = null;
  const rest = restingParent(() => mirror);
  const release = await takeNodes(source, target, filter, rest.parent);
  const errors: string[] = [];
  mirror = createMirror({
    source,
    target,
    filter,
    bitmap: createBitmap(source, { name: null, granularityBytes }),
    alignBytes,
    mover: createMover({
      source: () => source,
      target: () => target,
      clusterBytes: alignBytes,
      bufferBytes: Math.max(4096, alignBytes),
    }),
    maxCopies: 4,
    copyMode: 'background',
    host: {
      onError: (isRead, error) => {
        errors.push(`${isRead ? 'read' : 'write'} ${error.errno}`);
        return 'ignore';
      },
      copied: () => undefined,
    },
  });
  if (mode === 'write-blocking') await setCopyMode(mirror, mode);
  let ready = false;
  let ended = false;
  const control: LoopControl = {
    isCancelled: () => false,
    mustPause: () => rest.depth > 0,
    pausePoint: async () => {
      while (rest.depth > 0) await turn();
    },
    sleep: turn,
    count: () => undefined,
    bytesPerSecond: () => 0,
    delayMs: () => 0,
    setRemaining: () => undefined,
    isReady: () => ready,
    becomeReady: () => {
      ready = true;
    },
    mustEnd: () => ended,
    letCommandReturn: turn,
  };

  /** Writes and reads of users; every read shows the last write. */
  const user = async (from: number): Promise<void> => {
    const own = SIZE / USERS;
    const model = Buffer.from(a.data.subarray(from, from + own));
    for (let i = 0; i < 50; i++) {
      const offset = next(own / BLOCK) * BLOCK;
      const bytes = Math.min((1 + next(20)) * BLOCK, own - offset);
      const memory = allocateIoMemory(bytes);
      const kind = next(4);
      if (kind === 0) await backend.pwriteZeroes(from + offset, bytes, next(2) * Req.mayUnmap);
      else if (kind === 3) {
        await backend.preadv(from + offset, bytes, vectorOf(memory, 0, bytes), 0);
        expect(memory.buf.equals(model.subarray(offset, offset + bytes))).toBe(true);
        continue;
      } else {
        memory.buf.fill(next(256));
        await backend.pwritev(from + offset, bytes, vectorOf(memory, 0, bytes), 0);
      }
      if (kind === 0) model.fill(0, offset, offset + bytes);
      else memory.buf.copy(model, offset);
      if (next(8) === 0) await turn();
    }
  };
  const working = mirror;
  const users = Promise.all(Array.from({ length: USERS }, (_, i) => user((i * SIZE) / USERS))).then(() => {
    ended = true;
  });
  const switching = (async () => {
    if (!switches) return;
    for (let i = 0; i < 4; i++) {
      for (let j = 0; j < 30; j++) await turn();
      if (working.drain !== 'rests') return;
      await setCopyMode(working, working.copyMode === 'background' ? 'write-blocking' : 'background');
    }
  })();
  await firstRound(working, { base: null, zeroTarget: true }, async () => true);
  const section = await mirrorLoop(working, control);
  await switching;
  await users;
  expect(working.failure).toBeNull();
  expect(section).not.toBeNull();
  expect(b.data.equals(a.data)).toBe(true);
  await release();
  await pivot(filter, source, target);
  await layer.release(filter as unknown as BlockNode);
  section!.end();
  expect(backend.nodeName).toBe('t');
  expect(layer.findNode('f')).toBeNull();
  await finish(layer, backend);
  if (failures) expect(errors.length).toBeGreaterThan(0);
}

async function finish(layer: BlockLayer, backend: { close(): Promise<void> }): Promise<void> {
  await backend.close();
  await layer.closeAll().catch(() => undefined);
  layer.engine.close();
}

const runs = fc.record({
  seed: fc.integer({ min: 1 }),
  alignBytes: fc.constantFrom(1, 4),
  granularityBytes: fc.constantFrom(512, 4096, 16384),
});

for (const mode of ['background', 'write-blocking'] as const) {
  for (const failures of [false, true]) {
    for (const switches of [false, true]) {
      test(`${mode}${failures ? ', with errors of the target' : ''}${switches ? ', changed while running' : ''}`, async () => {
        await fc.assert(
          fc.asyncProperty(runs, ({ seed, alignBytes, granularityBytes }) =>
            runMirror({
              mode,
              seed,
              failures,
              switches,
              granularityBytes,
              alignBytes: alignBytes * granularityBytes,
            }),
          ),
          { numRuns: 20 },
        );
      });
    }
  }
}

test('a job that is given up leaves the graph as it was', async () => {
  const layer = twoDisks(memoryDisk(SIZE), memoryDisk(SIZE));
  const source = await addNode(layer, { driver: 'memory', 'node-name': 's' });
  const target = await addNode(layer, { driver: 'other', 'node-name': 't' });
  const shape = (): string =>
    JSON.stringify(
      layer.nodes.map((node: BlockNode) => [node.name, node.parents.length, node.children.length]),
    );
  const before = shape();
  const filter = await insertFilter(source, null);
  expect(filter.implicit).toBe(true);
  const { parent } = restingParent(() => null);
  const release = await takeNodes(source, target, filter, parent);
  expect(shape()).not.toBe(before);
  await dismantle(source, filter);
  await release();
  await layer.release(filter as unknown as BlockNode);
  expect(shape()).toBe(before);
  await wrapped.flush(source);
  layer.engine.close();
});
