/**
 * Block status over drivers whose extents end anywhere: no hole and no zeroes where none was reported, whatever the
 * alignment of the nodes above, and every question gets on.
 */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { createEngine } from '../../src/aio/create-engine.ts';
import type { BlockDriver } from '../../src/block/contract/driver.ts';
import { type BlockStatus, Role, Status } from '../../src/block/contract/request.ts';
import { chainChild } from '../../src/block/graph/chain.ts';
import { wrapped } from '../../src/block/io/callbacks.ts';
import { blockStatusAbove } from '../../src/block/io/status-chain.ts';
import { BlockLayer } from '../../src/block/layer.ts';
import { addNode } from '../../src/block/open/open.ts';
import { passOn } from '../../src/drivers/filters/pass-on.ts';
import { raw } from '../../src/drivers/formats/raw.ts';

const DISK_BYTES = 16 * 1024;
type Kind = 'data' | 'zero' | 'hole';

/** What each byte of the disk is reported as. */
type Disk = readonly Kind[];

function diskOf(lengths: readonly number[], kinds: readonly Kind[]): Disk {
  const disk: Kind[] = [];
  for (let i = 0; disk.length < DISK_BYTES; i++) {
    const kind = kinds[i % kinds.length]!;
    for (let left = lengths[i % lengths.length]!; left > 0; left--) disk.push(kind);
  }
  return disk.slice(0, DISK_BYTES);
}

const FLAGS = { data: Status.data, zero: Status.zero | Status.data, hole: Status.zero } as const;

/** A disk that reports its extents to the byte, whatever its alignment. */
function diskDriver(name: string, disk: Disk, align: number): BlockDriver {
  return {
    name,
    kind: 'protocol',
    supportedWriteFlags: 0,
    supportedZeroFlags: 0,
    open: async () => null,
    refreshLimits: (_node, limits) => {
      limits.requestAlignment = align;
    },
    async blockStatus(node, _guard, _wantZero, offset, bytes) {
      let end = offset + 1;
      while (end < offset + bytes && disk[end] === disk[offset]) end++;
      return {
        bytes: end - offset,
        flags: FLAGS[disk[offset]!] | Status.offsetValid,
        map: offset,
        file: node,
      };
    },
    getLength: async () => disk.length,
  };
}

/** An image over a backing image: 'hole' is what it leaves to that one. */
function overlayDriver(disk: Disk, align: number): BlockDriver {
  return {
    ...diskDriver('overlay', disk, align),
    kind: 'format',
    supportsBacking: true,
    async open(_node, context) {
      await context.openChild('backing', Role.cow, true);
      return null;
    },
    async blockStatus(_node, _guard, _wantZero, offset, bytes) {
      let end = offset + 1;
      while (end < offset + bytes && disk[end] === disk[offset]) end++;
      const kind = disk[offset]!;
      return { bytes: end - offset, flags: kind === 'hole' ? 0 : FLAGS[kind], map: 0, file: null };
    },
  };
}

function filterDriver(align: number): BlockDriver {
  return {
    name: 'aligned',
    kind: 'filter',
    supportedWriteFlags: 0,
    supportedZeroFlags: 0,
    async open(_node, context) {
      await context.openChild('file', Role.filtered | Role.primary, true);
      return null;
    },
    refreshLimits: (_node, limits) => {
      limits.requestAlignment = align;
    },
    blockStatus: passOn.blockStatus,
  };
}

interface Stack {
  readonly align: number;
  readonly totalBytes: number;
  status(offset: number, bytes: number): Promise<BlockStatus>;
  close(): Promise<void>;
}

/** disk, raw with an offset, a filter with an alignment, and above all an overlay. */
async function stack(
  disk: Disk,
  aligns: readonly [number, number],
  start: number,
  overlay: { readonly disk: Disk; readonly align: number } | null,
): Promise<Stack> {
  const { engine } = createEngine('threads');
  const layer = new BlockLayer({
    engine,
    events: { emit: () => undefined },
    drivers: {
      disk: diskDriver('disk', disk, aligns[0]),
      raw,
      aligned: filterDriver(aligns[1]),
      ...(overlay !== null && { overlay: overlayDriver(overlay.disk, overlay.align) }),
    },
  });
  await addNode(layer, { driver: 'disk', 'node-name': 'disk', 'read-only': true });
  await addNode(layer, { driver: 'raw', 'node-name': 'raw', file: 'disk', offset: start, 'read-only': true });
  let top = await addNode(layer, { driver: 'aligned', 'node-name': 'top', file: 'raw', 'read-only': true });
  const chain = overlay !== null;
  if (chain)
    top = await addNode(layer, { driver: 'overlay', 'node-name': 'over', backing: 'top', 'read-only': true });
  return {
    align: top.limits.requestAlignment,
    totalBytes: top.totalBytes,
    status: (offset, bytes) =>
      chain
        ? layer.graphLock.withRead((guard) => blockStatusAbove(top, guard, null, true, offset, bytes))
        : wrapped.blockStatus(top, true, offset, bytes),
    close: async () => {
      expect(chainChild(top)).not.toBeNull();
      await layer.closeAll();
      engine.close();
    },
  };
}

const kinds = fc.array(fc.constantFrom<Kind>('data', 'zero', 'hole'), { minLength: 2, maxLength: 5 });
const lengths = fc.array(fc.integer({ min: 1, max: 1500 }), { minLength: 1, maxLength: 6 });
const align = fc.constantFrom(1, 512, 1024, 4096);

async function walk(of: Stack, kindAt: (offset: number) => Kind, from: number, step: number): Promise<void> {
  for (let at = from; at < of.totalBytes; ) {
    const asked = Math.min(step, of.totalBytes - at);
    const { bytes, flags } = await of.status(at, asked);
    expect(bytes).toBeGreaterThan(0);
    expect(bytes).toBeLessThanOrEqual(asked);
    const end = at + bytes;
    if (end % of.align !== 0) expect(end === at + asked || end === of.totalBytes).toBe(true);
    for (let i = at; i < end; i++) {
      const kind = kindAt(i);
      if ((flags & Status.zero) !== 0 && kind === 'data') throw new Error(`byte ${i} is data, not zero`);
      if ((flags & (Status.data | Status.allocated)) === 0 && kind !== 'hole')
        throw new Error(`byte ${i} is ${kind}, not a hole`);
    }
    expect((flags & Status.eof) !== 0).toBe(end === of.totalBytes);
    at = end;
  }
}

describe('extents that end anywhere', () => {
  test('through an offset and an alignment', async () => {
    await fc.assert(
      fc.asyncProperty(
        lengths,
        kinds,
        fc.tuple(align, align),
        fc.integer({ min: 0, max: 2000 }),
        fc.nat(5000),
        fc.integer({ min: 1, max: DISK_BYTES }),
        async (some, all, aligns, start, from, step) => {
          const disk = diskOf(some, all);
          const of = await stack(disk, aligns, start, null);
          // What rounds the length up to sectors reads as zeroes.
          await walk(of, (offset) => disk[start + offset] ?? 'zero', from, step);
          await of.close();
        },
      ),
      { numRuns: 60 },
    );
  });

  test('through a chain of backing images', async () => {
    await fc.assert(
      fc.asyncProperty(
        lengths,
        kinds,
        lengths,
        kinds,
        align,
        align,
        async (some, all, over, upper, low, high) => {
          const disk = diskOf(some, all);
          const above = diskOf(over, upper);
          const of = await stack(disk, [1, low], 0, { disk: above, align: high });
          const kindAt = (offset: number): Kind => {
            const own = above[offset] ?? 'zero';
            return own === 'hole' ? (disk[offset] ?? 'zero') : own;
          };
          await walk(of, kindAt, 0, DISK_BYTES);
          await of.close();
        },
      ),
      { numRuns: 60 },
    );
  });
});
