/**
 * Writing guest data of an image that maps blocks: in place where a block has one, else by giving it one and copying
 * what surrounds the data.
 *
 * Two requests that need the same new block meet in `allocations`: the later one waits and starts over, and then finds
 * the block mapped. No lock is held across data I/O.
 */

import {
  allocateIoMemory,
  concatVectors,
  type IoVector,
  sliceVector,
  vectorOf,
} from '../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { ShortRequest } from '../../../block/contract/short-request.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { co, sync } from '../../../block/io/callbacks.ts';
import { E } from '../../../errors/errno.ts';
import { ioError } from '../../../errors/error.ts';
import {
  type Allocation,
  type BlockMap,
  isNeed,
  type MappedState,
  Place,
  type TableNeed,
} from './mapped-image.ts';
import { tryLookup } from './mapped-read.ts';
import { addPart, runParts } from './parts.ts';
import { loadTable, tryLoadTable } from './table-io.ts';
import { scheduleWriteBack } from './write-back.ts';

/** Parts of one request that are written at the same time. */
const MAX_PARALLEL = 8;
/** Zeroes around the data up to this size are written with it; more go as a zero write of their own. */
const MERGED_ZEROES_BYTES = 64 * 1024;
const DONE = Promise.resolve();

/** Writes within this turn: in place, or into a new block around which nothing has to be copied or cleared. */
export function tryWriteMapped<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  short: ShortRequest | null,
): boolean {
  if (!tryLookup(map, node, guard, offset, bytes)) return false;
  const { found } = node.state;
  if (found.kind === Place.data)
    return found.bytes === bytes && sync.tryPwritev(found.child!.node, guard, found.host, bytes, vec, short);
  if (found.kind === Place.packed || map.plan === undefined) return false;
  return tryAllocating(map, node, guard, offset, bytes, vec);
}

function tryAllocating<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): boolean {
  const { found, allocations } = node.state;
  if (found.bytes !== bytes) return false;
  const readsAsZero = found.kind === Place.zero || node.child('backing') === null;
  if (allocations.length > 0 && findAllocation(allocations, offset, offset + bytes) !== null) return false;
  let run: Run;
  try {
    let planned = planRun(map, node, offset, bytes);
    if (isNeed(planned)) {
      if (!tryLoadTable(planned, guard)) return false;
      planned = planRun(map, node, offset, bytes);
      if (isNeed(planned)) return false;
    }
    run = planned;
  } catch {
    return false;
  }
  const { start, end, host, child, fresh } = run;
  const whole = offset === start && offset + bytes === end;
  const written =
    offset + bytes <= end &&
    (whole || (fresh && readsAsZero)) &&
    sync.tryPwritev(child.node, guard, host + (offset - start), bytes, vec);
  if (!written) {
    abandonRun(map, node, run, true);
    return false;
  }
  for (const block of run.blocks) map.link!(node, block);
  scheduleWriteBack(map, node);
  return true;
}

/** Blocks that lie one behind the other, in the guest and in the file: written as one. */
interface Run extends Allocation {
  readonly blocks: readonly Allocation[];
}

/**
 * Gives places to the block at `offset` and to those behind it, up to offset+bytes, as far as their tables are in memory
 * and their places are neighbours. The caller knows that the whole range is of one kind, without a place.
 */
function planRun<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  offset: number,
  bytes: number,
): Run | TableNeed {
  const first = map.plan!(node, offset);
  if (isNeed(first)) return first;
  const blocks = [first];
  let last = first;
  while (last.end < offset + bytes) {
    const next = planNext(map, node, last);
    if (next === null) break;
    blocks.push(next);
    last = next;
  }
  const { start, host, child, fresh, waiters } = first;
  return { start, end: last.end, host, child, fresh, waiters, blocks };
}

/** The block behind `last`, if it gets the place behind it. */
function planNext<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  last: Allocation,
): Allocation | null {
  let next: Allocation | TableNeed;
  try {
    next = map.plan!(node, last.end);
  } catch {
    // Met again, and reported, when its turn comes.
    return null;
  }
  if (isNeed(next)) return null;
  if (
    next.start === last.end &&
    next.child === last.child &&
    next.host === last.host + (last.end - last.start)
  )
    return next;
  map.abandon!(node, next, true);
  return null;
}

/** Gives up the places, the last one first: so the space is there again. */
function abandonRun<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  { blocks }: Run,
  untouched: boolean,
): void {
  for (const block of blocks.toReversed()) map.abandon!(node, block, untouched);
}

/** The allocation that overlaps the range and begins first; null when there is none. */
function findAllocation(list: readonly Allocation[], from: number, to: number): Allocation | null {
  let first: Allocation | null = null;
  for (const each of list) {
    if (each.start < to && each.end > from && (first === null || each.start < first.start)) first = each;
  }
  return first;
}

export function writeMapped<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  if (tryWriteMapped(map, node, guard, offset, bytes, vec, null)) return DONE;
  return writeExtents(map, node, guard, offset, bytes, vec);
}

async function writeExtents<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const s = node.state;
  let at = 0;
  await runParts(MAX_PARALLEL, async (parts) => {
    if (at >= bytes) return false;
    const start = offset + at;
    const missing = map.lookup(node, start, bytes - at);
    if (missing !== null) {
      await loadTable(missing, guard);
      return true;
    }
    const { kind, host, child } = s.found;
    let length = s.found.bytes;
    let write: Promise<void>;
    if (kind === Place.data) {
      write = co.pwritev(child!.node, guard, host, length, sliceVector(vec, at, length), 0);
    } else {
      // Compressed blocks cannot be written to again, as in the original.
      if (kind === Place.packed || map.plan === undefined) throw ioError(E.EIO);
      const conflict = findAllocation(s.allocations, start, start + length);
      if (conflict !== null && conflict.start <= start) {
        await conflict.waiters.wait();
        return true;
      }
      if (conflict !== null) length = conflict.start - start;
      const planned = planRun(map, node, start, length);
      if (isNeed(planned)) {
        await loadTable(planned, guard);
        return true;
      }
      length = Math.min(length, planned.end - start);
      const readsAsZero = kind === Place.zero;
      s.allocations.push(planned);
      const part = sliceVector(vec, at, length);
      write = writeAllocating(map, node, guard, planned, start, part, readsAsZero);
    }
    at += length;
    await addPart(parts, write);
    return true;
  });
}

async function writeAllocating<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  guard: GraphReadGuard,
  run: Run,
  offset: number,
  vec: IoVector,
  readsAsZero: boolean,
): Promise<void> {
  const { start, end, host, child, fresh } = run;
  let linked = false;
  try {
    let first = offset;
    let whole = vec;
    const stop = offset + vec.bytes;
    for (const [from, to] of [
      [start, offset],
      [stop, end],
    ] as const) {
      if (from === to) continue;
      const part = readsAsZero ? null : await backingPart(node, guard, from, to);
      if (part === null && fresh) continue;
      if (part === null && to - from > MERGED_ZEROES_BYTES) {
        await co.pwriteZeroes(child.node, guard, host + (from - start), to - from, 0);
        continue;
      }
      const content = part ?? zeroes(to - from);
      if (from === start) first = from;
      whole = from === start ? concatVectors(content, whole) : concatVectors(whole, content);
    }
    await co.pwritev(child.node, guard, host + (first - start), whole.bytes, whole, 0);
    for (const block of run.blocks) map.link!(node, block);
    linked = true;
  } finally {
    const list = node.state.allocations;
    list.splice(list.indexOf(run), 1);
    if (!linked) abandonRun(map, node, run, false);
    run.waiters.wakeAll();
  }
  scheduleWriteBack(map, node);
}

function zeroes(bytes: number): IoVector {
  const memory = allocateIoMemory(bytes);
  memory.buf.fill(0);
  return vectorOf(memory);
}

/** What the backing image has of [from, to), zeroes behind its end; null: it has nothing there. */
async function backingPart(
  node: BlockNode,
  guard: GraphReadGuard,
  from: number,
  to: number,
): Promise<IoVector | null> {
  const backing = node.child('backing');
  const inside = backing === null ? 0 : Math.min(to, backing.node.totalBytes) - from;
  if (inside <= 0) return null;
  const vec = zeroes(to - from);
  await co.preadv(backing!.node, guard, from, inside, sliceVector(vec, 0, inside), 0);
  return vec;
}

/**
 * Makes a range read as zeroes: nothing to do where it does already, a hole in the file where there is data. ENOTSUP
 * where zeroes would have to be written to a block that has no place.
 */
export async function zeroMapped<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  flags: number,
): Promise<void> {
  const s = node.state;
  for (let at = offset; at < offset + bytes; ) {
    const left = offset + bytes - at;
    const missing = map.lookup(node, at, left);
    if (missing !== null) {
      await loadTable(missing, guard);
      continue;
    }
    const { kind, host, child, bytes: found } = s.found;
    if (kind === Place.packed) throw ioError(E.ENOTSUP);
    if (kind === Place.data) {
      const zeroed = map.zero?.(node, at, found) ?? 0;
      if (typeof zeroed !== 'number') await loadTable(zeroed, guard);
      else if (zeroed > 0) at += zeroed;
      else {
        await co.pwriteZeroes(child!.node, guard, host, found, flags);
        at += found;
      }
      continue;
    }
    // A block that is getting a place gets data, too: it is looked at when that is there.
    const conflict = findAllocation(s.allocations, at, at + found);
    if (conflict !== null) {
      if (conflict.start > at && readsAsZeroes(node, kind, at)) at = conflict.start;
      else await conflict.waiters.wait();
      continue;
    }
    if (!readsAsZeroes(node, kind, at)) {
      const zeroed = map.zero?.(node, at, found) ?? 0;
      if (typeof zeroed !== 'number') {
        await loadTable(zeroed, guard);
        continue;
      }
      if (zeroed === 0) throw ioError(E.ENOTSUP);
      at += zeroed;
      continue;
    }
    at += found;
  }
  scheduleWriteBack(map, node);
}

function readsAsZeroes(node: BlockNode, kind: number, offset: number): boolean {
  const backing = node.child('backing');
  return kind === Place.zero || backing === null || offset >= backing.node.totalBytes;
}

/** Passes a discard of data on to the file below. */
export async function discardMapped<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<void> {
  for (let at = offset; at < offset + bytes; ) {
    const missing = map.lookup(node, at, offset + bytes - at);
    if (missing !== null) {
      await loadTable(missing, guard);
      continue;
    }
    const { kind, host, child, bytes: found } = node.state.found;
    if (kind === Place.data) await co.pdiscard(child!.node, guard, host, found);
    at += found;
  }
}
