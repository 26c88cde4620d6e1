/** Dirty bitmaps against a plain model: a set of the indices of dirty blocks. */

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  createBitmap,
  createBitmapTable,
  type DirtyBitmap,
  defaultGranularity,
  dirtyBytes,
  isDirty,
  mergeBitmap,
  nextDirty,
  recordWrite,
  releaseBitmap,
  resetDirty,
  resizeBitmaps,
  setDirty,
} from '../../src/block/bitmaps/dirty-bitmap.ts';
import { HierarchicalBitmap } from '../../src/block/bitmaps/hierarchical-bitmap.ts';
import type { BlockNode } from '../../src/block/graph/node.ts';

/** As much of a node as bitmaps look at. */
function fakeNode(totalBytes: number): BlockNode {
  return { totalBytes, dirtyBitmaps: createBitmapTable() } as unknown as BlockNode;
}

// ---- the tree of bits ------------------------------------------------------------------------------------------

/** Lengths and positions around the borders of words, leaves and inner nodes. */
const LENGTH = 70_000;
const position = fc.oneof(
  fc.integer({ min: 0, max: LENGTH }),
  fc.constantFrom(
    0,
    1,
    31,
    32,
    33,
    63,
    64,
    32_767,
    32_768,
    32_769,
    65_535,
    65_536,
    65_537,
    LENGTH - 1,
    LENGTH,
  ),
);

type Operation =
  | { readonly kind: 'set' | 'reset'; readonly from: number; readonly to: number }
  | { readonly kind: 'clear' }
  | { readonly kind: 'resize'; readonly length: number }
  | { readonly kind: 'merge'; readonly from: number; readonly to: number };

const operation: fc.Arbitrary<Operation> = fc.oneof(
  fc.record({ kind: fc.constantFrom('set' as const, 'reset' as const), from: position, to: position }),
  fc.record({ kind: fc.constantFrom('set' as const, 'reset' as const), from: position, to: position }),
  fc.record({ kind: fc.constant('merge' as const), from: position, to: position }),
  fc.record({ kind: fc.constant('resize' as const), length: position }),
  fc.constant({ kind: 'clear' as const }),
);

/** The model: one byte per bit. */
class Model {
  bits = new Uint8Array(LENGTH);

  apply(op: Operation): void {
    switch (op.kind) {
      case 'set':
      case 'merge':
        if (op.from < op.to) this.bits.fill(1, op.from, op.to);
        break;
      case 'reset':
        if (op.from < op.to) this.bits.fill(0, op.from, op.to);
        break;
      case 'clear':
        this.bits.fill(0);
        break;
      case 'resize': {
        const next = new Uint8Array(op.length);
        next.set(this.bits.subarray(0, op.length));
        this.bits = next;
      }
    }
  }
}

function apply(bitmap: HierarchicalBitmap, op: Operation): void {
  if (op.kind === 'set') bitmap.set(op.from, op.to);
  else if (op.kind === 'reset') bitmap.reset(op.from, op.to);
  else if (op.kind === 'clear') bitmap.clear();
  else if (op.kind === 'resize') bitmap.resize(op.length);
  else {
    const other = new HierarchicalBitmap(bitmap.length);
    other.set(op.from, op.to);
    bitmap.merge(other);
  }
}

function packed(bits: Uint8Array, bytes: number): Buffer {
  const out = Buffer.alloc(bytes);
  bits.forEach((bit, index) => {
    if (bit === 1) out[index >> 3]! |= 1 << (index & 7);
  });
  return out;
}

describe('HierarchicalBitmap', () => {
  it('agrees with an array of bits', () => {
    fc.assert(
      fc.property(
        fc.array(operation, { maxLength: 12 }),
        fc.array(position, { maxLength: 8 }),
        (ops, probes) => {
          const bitmap = new HierarchicalBitmap(LENGTH);
          const model = new Model();
          for (const op of ops) {
            apply(bitmap, op);
            model.apply(op);
          }
          const { bits } = model;
          expect(bitmap.length).toBe(bits.length);
          expect(bitmap.count).toBe(bits.reduce((sum, bit) => sum + bit, 0));
          for (const probe of probes) {
            expect(bitmap.get(probe)).toBe(bits[probe] === 1);
            expect(bitmap.nextSet(probe)).toBe(bits.indexOf(1, probe));
            expect(bitmap.nextClear(probe)).toBe(bits.indexOf(0, probe));
            const end = Math.min(probe + 100, bits.length);
            const within = bits.subarray(0, end).indexOf(1, probe);
            expect(bitmap.nextSet(probe, end)).toBe(within);
          }
          const bytes = Math.ceil(bits.length / 64) * 8;
          const data = new Uint8Array(bytes);
          bitmap.serialize(0, data);
          expect(Buffer.compare(data, packed(bits, bytes))).toBe(0);
          const copy = new HierarchicalBitmap(bits.length);
          // In pieces, as clusters of an image come.
          for (let at = 0; at < bytes; at += 512)
            copy.deserialize(at * 8, Buffer.from(data.subarray(at, at + 512)));
          expect(copy.count).toBe(bitmap.count);
          copy.merge(bitmap);
          expect(copy.count).toBe(bitmap.count);
        },
      ),
      { numRuns: 150 },
    );
  });

  it('reads no bits behind its end', () => {
    const bitmap = new HierarchicalBitmap(33);
    bitmap.deserialize(0, Buffer.alloc(64, 0xff));
    expect(bitmap.count).toBe(33);
    bitmap.resize(100);
    expect(bitmap.nextSet(33)).toBe(-1);
  });

  it('takes memory for what differs only', () => {
    // 16 TiB in blocks of 512 bytes: 4 GiB of bits.
    const length = 2 ** 35;
    const bitmap = new HierarchicalBitmap(length);
    const before = process.memoryUsage().arrayBuffers;
    bitmap.set(0, length);
    expect(bitmap.count).toBe(length);
    bitmap.reset(length / 2 + 5, length / 2 + 6);
    expect(bitmap.nextClear(0)).toBe(length / 2 + 5);
    expect(bitmap.nextClear(length / 2 + 6)).toBe(-1);
    bitmap.clear();
    bitmap.set(length - 1, length);
    expect(bitmap.nextSet(0)).toBe(length - 1);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(1024 * 1024);
  });

  it('merges bitmaps that grew and bitmaps that did not', () => {
    const grown = new HierarchicalBitmap(10);
    grown.set(3, 4);
    grown.resize(100_000);
    const shrunk = new HierarchicalBitmap(2 ** 30);
    shrunk.set(50_000, 60_000);
    shrunk.resize(100_000);
    grown.merge(shrunk);
    expect(grown.count).toBe(10_001);
    shrunk.merge(grown);
    expect(shrunk.count).toBe(10_001);
    expect(shrunk.nextSet(0)).toBe(3);
  });
});

// ---- bitmaps of nodes ------------------------------------------------------------------------------------------

const SIZE = 1024 * 1024;

function blocks(bitmap: DirtyBitmap): Set<number> {
  const found = new Set<number>();
  for (let at = 0; ; ) {
    const extent = nextDirty(bitmap, at);
    if (extent === null) return found;
    expect(extent.bytes).toBeGreaterThan(0);
    at = extent.offset + extent.bytes;
    expect(at).toBeLessThanOrEqual(bitmap.sizeBytes);
    for (let block = extent.offset; block < at; block += bitmap.granularityBytes)
      found.add(block / bitmap.granularityBytes);
  }
}

describe('bitmaps of a node', () => {
  it('record writes in blocks of their granularity', () => {
    const write = fc.record({ offset: fc.nat(SIZE - 1), bytes: fc.nat(200_000) });
    fc.assert(
      fc.property(
        fc.array(write, { maxLength: 10 }),
        fc.integer({ min: 9, max: 20 }),
        (writes, granularityBits) => {
          const node = fakeNode(SIZE);
          const granularityBytes = 2 ** granularityBits;
          const bitmap = createBitmap(node, { name: 'b', granularityBytes });
          const off = createBitmap(node, { name: 'off', granularityBytes, enabled: false });
          const model = new Set<number>();
          for (const { offset, bytes } of writes) {
            const length = Math.min(bytes, SIZE - offset);
            recordWrite(node.dirtyBitmaps, offset, length);
            for (
              let block = Math.floor(offset / granularityBytes);
              block * granularityBytes < offset + length;
              block++
            )
              if (length > 0) model.add(block);
          }
          expect(blocks(bitmap)).toEqual(model);
          expect(dirtyBytes(bitmap)).toBe(model.size * granularityBytes);
          expect(dirtyBytes(off)).toBe(0);
          for (const block of model) expect(isDirty(bitmap, block * granularityBytes)).toBe(true);
        },
      ),
      { numRuns: 100 },
    );
  });

  it('merge over different granularities', () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat(SIZE - 1), { maxLength: 20 }),
        fc.integer({ min: 9, max: 18 }),
        fc.integer({ min: 9, max: 18 }),
        (offsets, from, to) => {
          const node = fakeNode(SIZE);
          const source = createBitmap(node, { name: 's', granularityBytes: 2 ** from });
          const target = createBitmap(node, { name: 't', granularityBytes: 2 ** to });
          for (const offset of offsets) setDirty(source, offset, 1);
          mergeBitmap(target, source);
          const expected = new Set<number>();
          for (const block of blocks(source)) {
            const last = (block + 1) * 2 ** from - 1;
            for (let at = block * 2 ** from; at <= last; at += Math.min(2 ** from, 2 ** to))
              expected.add(Math.floor(at / 2 ** to));
          }
          expect(blocks(target)).toEqual(expected);
        },
      ),
      { numRuns: 100 },
    );
  });

  it('cut extents to the range asked for and to the node', () => {
    const node = fakeNode(1000 * 512);
    const bitmap = createBitmap(node, { name: 'b', granularityBytes: 65536 });
    setDirty(bitmap, 999 * 512, 1);
    expect(nextDirty(bitmap, 0)).toEqual({ offset: 7 * 65536, bytes: 1000 * 512 - 7 * 65536 });
    expect(nextDirty(bitmap, 7 * 65536 + 10, 7 * 65536 + 30)).toEqual({ offset: 7 * 65536 + 10, bytes: 20 });
    expect(nextDirty(bitmap, 0, 7 * 65536)).toBeNull();
    resetDirty(bitmap, 7 * 65536, 1);
    expect(nextDirty(bitmap, 0)).toBeNull();
  });

  it('follow the length of the node', () => {
    const node = fakeNode(SIZE);
    const bitmap = createBitmap(node, { name: 'b', granularityBytes: 512 });
    setDirty(bitmap, 0, SIZE);
    Object.assign(node, { totalBytes: SIZE / 2 });
    resizeBitmaps(node);
    Object.assign(node, { totalBytes: 2 * SIZE });
    resizeBitmaps(node);
    expect(dirtyBytes(bitmap)).toBe(SIZE / 2);
    expect(nextDirty(bitmap, SIZE / 2)).toBeNull();
  });

  it('have names of their own, or none', () => {
    const node = fakeNode(SIZE);
    const bitmap = createBitmap(node, { name: 'b', granularityBytes: 512 });
    expect(() => createBitmap(node, { name: 'b', granularityBytes: 512 })).toThrow(
      'Bitmap already exists: b',
    );
    createBitmap(node, { name: null, granularityBytes: 512 });
    createBitmap(node, { name: null, granularityBytes: 512 });
    releaseBitmap(bitmap);
    createBitmap(node, { name: 'b', granularityBytes: 512 });
    expect(node.dirtyBitmaps.all.size).toBe(3);
  });

  it('cover what requests can reach of a node that says it is longer', () => {
    const node = fakeNode(2 ** 63 - 2 ** 30);
    const bitmap = createBitmap(node, { name: 'b', granularityBytes: 512 });
    setDirty(bitmap, 2 ** 53 - 512, 512);
    expect(nextDirty(bitmap, 0)).toEqual({ offset: 2 ** 53 - 512, bytes: 512 });
  });

  it('have a granularity that fits the image', () => {
    expect([0, 512, 4096, 16_384, 65_536, 2 ** 21].map(defaultGranularity)).toEqual([
      65_536, 4096, 4096, 16_384, 65_536, 65_536,
    ]);
  });
});

it('a last block that is cut by the end of the node is found once', () => {
  const node = fakeNode(65536 + 512);
  const coarse = createBitmap(node, { name: 'a', granularityBytes: 65536 });
  const fine = createBitmap(node, { name: 'b', granularityBytes: 4096 });
  setDirty(coarse, 65536, 512);
  expect(nextDirty(coarse, 65536)).toEqual({ offset: 65536, bytes: 512 });
  expect(nextDirty(coarse, 65536 + 512)).toBeNull();
  expect(nextDirty(coarse, 65536 + 100, 65536 + 100)).toBeNull();
  mergeBitmap(fine, coarse);
  expect(dirtyBytes(fine)).toBe(4096);
});
