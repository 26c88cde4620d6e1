/** Votes of a quorum, and a quorum whose children are slow in different ways while reads and writes meet. */

import { expect, test } from 'vitest';
import { createEngine } from '../../../src/aio/create-engine.ts';
import {
  allocateIoMemory,
  copyFromVector,
  copyToVector,
  fillVector,
  vectorOf,
} from '../../../src/aio/memory.ts';
import type { BlockDriver } from '../../../src/block/contract/driver.ts';
import { Perm } from '../../../src/block/contract/request.ts';
import { BlockLayer } from '../../../src/block/layer.ts';
import { addNode } from '../../../src/block/open/open.ts';
import { quorum } from '../../../src/drivers/filters/quorum/quorum.ts';
import { countVotes, votedErrno, winnerOf } from '../../../src/drivers/filters/quorum/vote.ts';

const same = (a: string, b: string): boolean => a === b;
const ballots = (...values: string[]) => values.map((value, child) => ({ child, value }));

test('the version with most votes wins, of several the one that came last', () => {
  const winner = (...values: string[]) => winnerOf(countVotes(ballots(...values), same))?.value;
  expect(winner('a', 'b', 'b')).toBe('b');
  expect(winner('a', 'b', 'a')).toBe('a');
  expect(winner('a', 'b', 'b', 'a')).toBe('b');
  expect(winner('a', 'b', 'c')).toBe('c');
  expect(winner()).toBe(undefined);
  expect(countVotes(ballots('a', 'b', 'a'), same)[0]!.ballots.map(({ child }) => child)).toEqual([0, 2]);
});

test('the errno of most children is given', () => {
  expect(votedErrno([0, 5, 28])).toBe(28);
  expect(votedErrno([5, 28, 5])).toBe(5);
  expect(votedErrno([0, 0])).toBe(0);
});

const BLOCK = 512;
const BLOCKS = 8;

/** A disk that takes its time, another time for every request. */
function slowDriver(disks: Map<string, Buffer>, random: () => number): BlockDriver {
  const late = async (): Promise<void> => {
    for (let turns = Math.floor(random() * 6); turns > 0; turns--)
      await new Promise((resolve) => setImmediate(resolve));
  };
  return {
    name: 'slow',
    kind: 'protocol',
    supportedWriteFlags: 0,
    supportedZeroFlags: 0,
    open: async () => null,
    async preadv(node, _guard, offset, bytes, vec) {
      await late();
      copyToVector(vec, disks.get(node.name)!.subarray(offset, offset + bytes));
      await late();
    },
    async pwritev(node, _guard, offset, _bytes, vec) {
      await late();
      copyFromVector(vec, disks.get(node.name)!.subarray(offset));
      await late();
    },
    getLength: async (node) => disks.get(node.name)!.length,
  };
}

/** Numbers in [0, 1), the same for the same seed. */
function randomOf(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

async function run(seed: number, spoilt: boolean): Promise<{ events: string[]; disks: Buffer[] }> {
  const random = randomOf(seed);
  const names = ['a', 'b', 'c'];
  const disks = new Map(names.map((name) => [name, Buffer.alloc(BLOCK * BLOCKS)]));
  const events: string[] = [];
  const { engine } = createEngine('threads');
  const layer = new BlockLayer({
    engine,
    events: { emit: (name) => void events.push(name) },
    drivers: { slow: slowDriver(disks, random), quorum: quorum as unknown as BlockDriver },
  });
  const children = names.map((name) => ({ driver: 'slow', 'node-name': name }));
  const node = await addNode(layer, {
    ...{ driver: 'quorum', 'node-name': 'q', children, 'vote-threshold': 2, 'rewrite-corrupted': true },
  });
  const owner = { describe: () => 'test', drainedBegin: () => undefined, drainedEnd: () => undefined };
  const backend = await layer.createBackend(node, { perm: Perm.all & ~Perm.resize, shared: Perm.all }, owner);
  const newest = new Array<number>(BLOCKS).fill(0);
  /** Each writes to blocks of its own and reads them all; what it wrote last is what it must read. */
  const worker = async (own: number): Promise<void> => {
    const vec = vectorOf(allocateIoMemory(BLOCK));
    for (let step = 0; step < 60; step++) {
      const at = random() < 0.5 ? own : Math.floor(random() * BLOCKS);
      if (at === own && random() < 0.6) {
        const value = (newest[own]! % 250) + 1;
        fillVector(vec, value);
        await backend.pwritev(own * BLOCK, BLOCK, vec, 0);
        newest[own] = value;
      } else {
        const before = newest[at]!;
        await backend.preadv(at * BLOCK, BLOCK, vec, 0);
        if (at === own) expect(vec.segments[0]!.mem.buf[0]).toBe(before);
      }
      if (spoilt && random() < 0.05) disks.get('b')!.fill(255, own * BLOCK, own * BLOCK + 1);
    }
  };
  await Promise.all(Array.from({ length: BLOCKS }, (_, own) => worker(own)));
  const all = vectorOf(allocateIoMemory(BLOCK * BLOCKS));
  await backend.preadv(0, BLOCK * BLOCKS, all, 0);
  await backend.close();
  await layer.closeAll();
  engine.close();
  return { events, disks: [...disks.values()] };
}

test('a write that some children have already is no damage', async () => {
  for (let seed = 1; seed <= 20; seed++) {
    const { events, disks } = await run(seed, false);
    expect(events).toEqual([]);
    expect(disks[1]).toEqual(disks[0]);
    expect(disks[2]).toEqual(disks[0]);
  }
});

test('a spoilt child is healed and never outvotes the others', async () => {
  let reports = 0;
  for (let seed = 1; seed <= 20; seed++) {
    const { events, disks } = await run(seed, true);
    reports += events.length;
    expect(new Set(events).size).toBeLessThan(2);
    expect(disks[1]).toEqual(disks[0]);
    expect(disks[2]).toEqual(disks[0]);
  }
  expect(reports).toBeGreaterThan(0);
});
