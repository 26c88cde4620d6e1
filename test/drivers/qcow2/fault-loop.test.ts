/**
 * Fault loops: I/O number 1, 2, 3, ... of an operation fails, until it goes through. Whatever failed, the image is sound,
 * holds what it held or what was written, and leaks nothing once the disk works again.
 */

import { readFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { createEngine } from '../../../src/aio/create-engine.ts';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import type { BlockBackend } from '../../../src/block/backend.ts';
import { createBitmap } from '../../../src/block/bitmaps/dirty-bitmap.ts';
import { Perm, Req } from '../../../src/block/contract/request.ts';
import type { BlockNode } from '../../../src/block/graph/node.ts';
import { co } from '../../../src/block/io/callbacks.ts';
import { BlockLayer } from '../../../src/block/layer.ts';
import { openFromOptions } from '../../../src/block/open/open.ts';
import { storeBitmapsOrThrow } from '../../../src/drivers/formats/qcow2/bitmaps/bitmaps.ts';
import type { Qcow2Node } from '../../../src/drivers/formats/qcow2/layout/state.ts';
import { drivers } from '../../../src/drivers/table.ts';
import { requirePeer } from '../../peers/requires.ts';
import { type FaultyDisk, faultyDisk, faultyDriver, heal } from '../memory/faulty-disk.ts';
import { inspect } from './inspect.ts';
import { peer, scratch } from './open-layer.ts';
import { createRandom, type Random } from './random.ts';

const folder = scratch();
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const KIB = 1024;
const IMAGE_BYTES = 512 * KIB;
const UNIT = 16 * KIB;

interface Guest {
  readonly node: BlockNode;
  readonly backend: BlockBackend;
  readonly layer: BlockLayer;
  /** Values that each unit of the disk may have. */
  readonly units: Set<number>[];
}

function openGuest(disk: FaultyDisk): Promise<Guest & { close(): Promise<void> }> {
  const { engine } = createEngine('threads');
  const layer = new BlockLayer({
    engine,
    events: { emit: () => undefined },
    drivers: { ...drivers, faulty: faultyDriver(disk) },
    report: () => undefined,
  });
  return openFromOptions(layer, {
    driver: 'qcow2',
    'node-name': 'disk',
    file: { driver: 'faulty' },
    discard: 'unmap',
  }).then(async (node) => {
    const owner = { describe: () => 'a test', drainedBegin: () => undefined, drainedEnd: () => undefined };
    const backend = await layer.createBackend(node, { perm: Perm.all, shared: Perm.all }, owner);
    const units = Array.from({ length: IMAGE_BYTES / UNIT }, () => new Set([0]));
    const close = async (): Promise<void> => {
      try {
        await backend.close();
      } finally {
        await layer.closeAll().catch(() => undefined);
        engine.close();
      }
    };
    return { node, backend, layer, units, close };
  });
}

function buffer(bytes: number, value: number): ReturnType<typeof vectorOf> {
  const memory = allocateIoMemory(bytes);
  memory.buf.fill(value);
  return vectorOf(memory);
}

/** Fills units; a failed change may have happened in part. */
async function fill(guest: Guest, first: number, count: number, value: number): Promise<void> {
  const change =
    value === 0
      ? guest.backend.pwriteZeroes(first * UNIT, count * UNIT, Req.mayUnmap)
      : guest.backend.pwritev(first * UNIT, count * UNIT, buffer(count * UNIT, value), 0);
  for (let unit = first; unit < first + count; unit++) guest.units[unit]!.add(value);
  await change;
  for (let unit = first; unit < first + count; unit++) {
    guest.units[unit]!.clear();
    guest.units[unit]!.add(value);
  }
}

async function check({ backend, units, node }: Guest): Promise<void> {
  const bytes = Math.min(node.totalBytes, IMAGE_BYTES);
  const memory = allocateIoMemory(bytes);
  await backend.preadv(0, bytes, vectorOf(memory), 0);
  for (let unit = 0; (unit + 1) * UNIT <= bytes; unit++) {
    const content = memory.buf.subarray(unit * UNIT, (unit + 1) * UNIT);
    for (let at = 0; at < UNIT; at += 512)
      if (!units[unit]!.has(content[at]!))
        throw new Error(`unit ${unit}+${at} is ${content[at]}, allowed ${[...units[unit]!]}`);
  }
}

const times = { vmStateBytes: 0, dateSeconds: 1, dateNanoseconds: 0, vmClockNanoseconds: 0n, icount: null };
type Act = (guest: Guest) => Promise<unknown>;
const underGuard =
  (act: (node: BlockNode, guard: Parameters<typeof co.flush>[1]) => Promise<unknown>): Act =>
  ({ node, layer }) =>
    layer.graphLock.withRead((guard) => act(node, guard));
const snapshot = (name: string): Act =>
  underGuard((node, guard) => node.driver.snapshots!.create(node, guard, { name, ...times }));
const revert: Act = async (guest) => {
  for (const unit of guest.units) for (const value of [0, 1, 2]) unit.add(value);
  await underGuard((node, guard) => node.driver.snapshots!.apply(node, guard, 's'))(guest);
};
const forget = underGuard((node, guard) => node.driver.snapshots!.delete(node, guard, null, 's'));
const amend = (values: Record<string, string>): Act =>
  underGuard((node, guard) => co.amend(node, guard, values, false, { update: () => undefined }));
const resize =
  (bytes: number, prealloc: 'off' | 'metadata' = 'off'): Act =>
  ({ backend }) =>
    backend.truncate(bytes, false, prealloc);
const shrink: Act = async (guest) => {
  // What is cut off is discarded first.
  for (const unit of guest.units.slice(guest.units.length / 2)) unit.add(0);
  await resize(IMAGE_BYTES / 2)(guest);
};
const compressed =
  (first: number, value: number): Act =>
  async (guest) => {
    guest.units[first]!.add(value);
    await underGuard((node, guard) =>
      co.pwritevCompressed(node, guard, first * UNIT, UNIT, buffer(UNIT, value)),
    )(guest);
  };
const storeBitmap: Act = async ({ node, layer }) => {
  createBitmap(node, {
    name: `b${node.dirtyBitmaps.all.size}`,
    granularityBytes: 4096,
    enabled: true,
    persistent: true,
    inconsistent: false,
    readOnly: false,
  });
  await layer.graphLock.withRead((guard) => storeBitmapsOrThrow(node as unknown as Qcow2Node, guard));
};

interface Scenario {
  readonly create?: string;
  readonly before?: readonly Act[];
  readonly act: Act;
  /** Without the flush at its end. */
  readonly noFlush?: boolean;
}

const write =
  (first: number, count: number, value: number): Act =>
  (guest) =>
    fill(guest, first, count, value);

const SCENARIOS: Readonly<Record<string, Scenario>> = {
  'a write to new clusters': { act: write(2, 9, 1) },
  'a write to clusters a snapshot shares': {
    before: [write(0, 8, 1), snapshot('s')],
    act: write(2, 4, 2),
  },
  'a small write beside zeroes': {
    act: async (guest) => {
      guest.units[3]!.add(1);
      await guest.backend.pwritev(3 * UNIT + 512, 512, buffer(512, 1), 0);
    },
  },
  'a zero write': { before: [write(0, 12, 1)], act: write(2, 5, 0) },
  'a discard': {
    before: [write(0, 12, 1)],
    act: async (guest) => {
      for (let unit = 2; unit < 7; unit++) guest.units[unit]!.add(0);
      await guest.backend.pdiscard(2 * UNIT, 5 * UNIT);
    },
  },
  'a compressed write': { act: compressed(4, 1) },
  'a snapshot': { before: [write(0, 12, 1)], act: snapshot('s') },
  'a second snapshot': { before: [write(0, 8, 1), snapshot('t'), write(2, 2, 2)], act: snapshot('s') },
  'a return to a snapshot': { before: [write(0, 8, 1), snapshot('s'), write(4, 8, 2)], act: revert },
  'the end of a snapshot': { before: [write(0, 8, 1), snapshot('s'), write(4, 8, 2)], act: forget },
  'more disk': { before: [write(0, 4, 1)], act: resize(16 * 1024 * KIB) },
  'more disk, preallocated': { before: [write(0, 4, 1)], act: resize(IMAGE_BYTES + 256 * KIB, 'metadata') },
  'less disk': { before: [write(0, 32, 1)], act: shrink },
  'wider refcounts': { before: [write(0, 4, 1)], act: amend({ refcount_bits: '64' }) },
  'narrower refcounts': { before: [write(0, 4, 1)], act: amend({ refcount_bits: '1' }) },
  'the version up': {
    create: 'compat=0.10',
    before: [write(0, 4, 1), snapshot('s')],
    act: amend({ compat: '1.1' }),
  },
  'the version down': { before: [write(0, 8, 1), write(2, 3, 0)], act: amend({ compat: '0.10' }) },
  'a backing file': {
    act: underGuard((node, guard) => co.changeBackingFile(node, guard, { filename: 'b', format: 'raw' })),
  },
  'a bitmap to be stored': { before: [write(0, 2, 1)], act: storeBitmap },
};

async function prepare(scenario: Scenario): Promise<Buffer> {
  const file = path.join(folder, 'start.qcow2');
  const options = `cluster_size=1k,${scenario.create ?? 'compat=1.1'}`;
  peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, file, String(IMAGE_BYTES));
  return readFileSync(file);
}

/** Runs the scenario with fault number `n`; false: there were fewer I/Os. */
async function runOnce(start: Buffer, scenario: Scenario, n: number, errno: number, persistent: boolean) {
  const disk = faultyDisk(start);
  disk.errno = errno;
  const guest = await openGuest(disk);
  for (const act of scenario.before ?? []) await act(guest);
  await guest.backend.flush();
  disk.left = n;
  disk.persistent = persistent;
  let failed = false;
  try {
    await scenario.act(guest);
    if (scenario.noFlush !== true) await guest.backend.flush();
  } catch {
    failed = true;
  }
  const { hit } = disk;
  if (failed) expect(hit).toBe(true);
  const now = inspect(disk.data);
  expect(now.corruptions, `fault ${n}`).toEqual([]);
  heal(disk);
  await check(guest);
  // It goes on working.
  const { units } = guest;
  if (units.length > 0) await fill(guest, 1, 3, 7);
  await check(guest);
  await guest.backend.flush();
  await guest.close();
  const { corruptions, leaks, dirty } = inspect(disk.data);
  expect({ corruptions, leaks, dirty }, `fault ${n}`).toEqual({ corruptions: [], leaks: 0, dirty: false });
  return hit;
}

describe.each(Object.entries(SCENARIOS))('%s', (_name, scenario) => {
  test.for([
    [5, false],
    [28, true],
  ] as const)('fails with errno %i, persistent %s', async ([errno, persistent], context) => {
    requirePeer(context, 'qemu-img');
    const start = await prepare(scenario);
    let faults = 0;
    for (let n = 1; await runOnce(start, scenario, n, errno, persistent); n++) faults++;
    expect(faults).toBeGreaterThan(0);
  });
});

/** One random request. */
function randomAct(random: Random): Act {
  const first = random.below(IMAGE_BYTES / UNIT);
  const count = 1 + random.below(Math.min(12, IMAGE_BYTES / UNIT - first));
  switch (random.below(8)) {
    case 0:
      return write(first, count, 0);
    case 1:
      return async (guest) => {
        for (let unit = first; unit < first + count; unit++) guest.units[unit]!.add(0);
        await guest.backend.pdiscard(first * UNIT, count * UNIT);
      };
    case 2:
      return ({ backend }) => backend.flush();
    case 3:
      return compressed(first, 5);
    default:
      return write(first, count, 1 + random.below(200));
  }
}

describe('a disk that is full', () => {
  test.each([1, 2, 3, 4, 5, 6])('random requests, seed %i', async (seed) => {
    const random = createRandom(seed);
    const disk = faultyDisk(await prepare({ act: write(0, 1, 1) }));
    const guest = await openGuest(disk);
    disk.capacityPages = disk.pages.size + 200 + random.below(400);
    let full = 0;
    for (let i = 0; i < 80; i++) {
      const acts = Array.from({ length: 1 + random.below(3) }, () => randomAct(random));
      for (const act of acts) {
        try {
          await act(guest);
        } catch (error) {
          const { errno } = error as { errno?: number };
          // Compression overwrites nothing.
          if (errno === 28) full++;
          else expect(errno).toBe(5);
        }
      }
      if (random.below(6) === 0) await check(guest);
    }
    expect(full).toBeGreaterThan(0);
    await check(guest);
    // Without a byte more: nothing that was acknowledged needs space.
    await guest.backend.flush();
    await guest.close();
    const { corruptions, leaks } = inspect(disk.data);
    expect({ corruptions, leaks }).toEqual({ corruptions: [], leaks: 0 });
  });

  test('discarded clusters are used before it is told', async () => {
    const disk = faultyDisk(await prepare({ act: write(0, 1, 1) }));
    const guest = await openGuest(disk);
    await fill(guest, 0, 10, 1);
    await guest.backend.flush();
    disk.capacityPages = disk.pages.size;
    await guest.backend.pdiscard(0, 8 * UNIT);
    for (let unit = 0; unit < 8; unit++) guest.units[unit] = new Set([0]);
    await fill(guest, 20, 6, 2);
    await expect(fill(guest, 26, 6, 3)).rejects.toThrow('No space left on device');
    await check(guest);
    await guest.close();
    const { corruptions, leaks } = inspect(disk.data);
    expect({ corruptions, leaks }).toEqual({ corruptions: [], leaks: 0 });
  });
});
