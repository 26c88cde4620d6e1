/**
 * Writing guest data: in place where the clusters are the image's own, else by allocation and copy on write.
 */

import {
  allocateIoMemory,
  concatVectors,
  copyFromVector,
  type IoVector,
  sliceVector,
  vectorOf,
} from '../../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import type { ShortRequest } from '../../../../block/contract/short-request.ts';
import { co, sync } from '../../../../block/io/callbacks.ts';
import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import type { BlockCipher } from '../../../crypto/block-cipher.ts';
import { encryptBulk } from '../../../crypto/bulk.ts';
import { addPart, runParts } from '../../shared/parts.ts';
import { mayOverlap } from '../layout/overlap.ts';
import { type Allocation, type Extras, Mapping, type Qcow2Node } from '../layout/state.ts';
import { toRequestError } from '../metadata/corruption.ts';
import { debugEvent, isDebugged } from '../metadata/debug.ts';
import { lookup } from '../metadata/mapping.ts';
import { checkOverlap } from '../metadata/metadata-io.ts';
import { tryLookup, trySatisfy } from '../metadata/needs.ts';
import { giveBack, isNeed } from '../metadata/refcount.ts';
import { flushMetadata, withSpace } from '../metadata/writeback.ts';
import {
  abandonAllocation,
  copyOnWriteRange,
  endAllocation,
  findAllocation,
  linkAllocation,
  planWrite,
  type WritePlan,
} from './allocation.ts';
import { planOn } from './plan-on.ts';
import { readExtents } from './read.ts';

/** Parts of one request that are written at the same time. */
const MAX_PARALLEL = 8;
/** Zeroes around the data up to this size are written with it; more go as a zero write of their own. */
const MERGED_ZEROES_BYTES = 64 * 1024;

/**
 * Writes within this turn: in place, or by an allocation around which nothing has to be copied or cleared. The
 * allocation is linked before anybody else runs, so nobody can come in between. A write in place may be begun only.
 */
export function tryPwritev(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  short: ShortRequest | null,
): boolean {
  if (!tryLookup(node, guard, offset, bytes)) return false;
  const s = node.state;
  try {
    const { found } = s;
    if (found.kind === Mapping.data && found.copied) {
      return (
        found.bytes === bytes &&
        (s.hasDataFile || !mayOverlap(s, found.host, bytes)) &&
        sync.tryPwritev(s.dataFile.node, guard, found.host, bytes, vec, short)
      );
    }
    return tryAllocating(node, guard, offset, bytes, vec);
  } catch {
    // Damage is met again, and reported, on the long way.
    return false;
  }
}

function tryAllocating(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): boolean {
  const s = node.state;
  // A compressed cluster or one shared with a snapshot has content that would have to move.
  if (s.found.kind === Mapping.data || s.found.kind === Mapping.compressed) return false;
  if (s.l2Cache.size > s.l2Cache.capacity * 2) return false;
  const start = offset - (offset % s.clusterBytes);
  const end = Math.ceil((offset + bytes) / s.clusterBytes) * s.clusterBytes;
  if (s.allocations.length > 0 && findAllocation(s, start, end) !== null) return false;
  const whole = offset === start && offset + bytes === end;
  // Whole clusters have nothing around them that shows through now.
  const behind = whole ? 0 : backingBytes(node);
  if (!holdsNothing(node, start, end - start, behind)) return false;
  const plan = tryPlan(node, guard, offset, bytes);
  if (plan === null || plan.kind !== 'allocate') return false;
  const { allocation } = plan;
  const host = allocation.host + (offset - allocation.start);
  let written = false;
  try {
    written =
      plan.bytes === bytes &&
      (allocation.fresh || whole) &&
      (s.hasDataFile || !mayOverlap(s, allocation.host, end - start)) &&
      sync.tryPwritev(s.dataFile.node, guard, host, bytes, vec, null);
  } finally {
    if (!written) takeBack(node, allocation);
  }
  if (!written) return false;
  const { from, to } = copyOnWriteRange(s, allocation, offset, bytes);
  linkAllocation(node, allocation, from, to);
  return true;
}

/** Bytes at `offset` that this image does not hold, as far as can be told at once; see BlockDriver.unheldNow. */
export function unheldNow(node: Qcow2Node, guard: GraphReadGuard, offset: number, bytes: number): number {
  if (isDebugged(node) || !tryLookup(node, guard, offset, bytes)) return 0;
  const { found } = node.state;
  return found.kind === Mapping.unallocated ? found.bytes : 0;
}

/** The plan, if all tables it takes can be had at once. */
function tryPlan(node: Qcow2Node, guard: GraphReadGuard, offset: number, bytes: number): WritePlan | null {
  // A new table, then its slice: each need brings the plan a step further.
  for (let attempt = 0; attempt < 4; attempt++) {
    const plan = planWrite(node, offset, bytes);
    if (!isNeed(plan)) return plan;
    if (!trySatisfy(node, guard, plan)) return null;
  }
  return null;
}

/** Undoes a plan of this turn: nothing was written, nobody has seen it. */
function takeBack(node: Qcow2Node, allocation: Allocation): void {
  const s = node.state;
  if (!allocation.keepsHost)
    giveBack(node, allocation.host, (allocation.end - allocation.start) / s.clusterBytes);
  endAllocation(s, allocation);
}

export function pwritev(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  if (tryPwritev(node, guard, offset, bytes, vec, null)) return DONE;
  return writeExtents(node, guard, offset, bytes, vec, flags);
}

const DONE = Promise.resolve();

/** The general form of a write: part by part, waiting for what is in the way. */
export async function writeExtents(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  const s = node.state;
  try {
    // What was written before the disk was found full is then written again, in place.
    await withSpace(node, guard, () => writeParts(node, guard, offset, bytes, vec, flags));
  } catch (error) {
    throw await toRequestError(node, guard, error);
  }
  // More changed tables than the cache should hold: whoever makes them waits for them to be written.
  if (s.l2Cache.size > s.l2Cache.capacity * 2) await flushMetadata(node, guard);
}

function writeParts(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  let at = 0;
  return runParts(MAX_PARALLEL, async (parts) => {
    if (at >= bytes) return false;
    const start = offset + at;
    const plan = await planOn(node, guard, start, bytes - at, (length) => planWrite(node, start, length));
    const part = sliceVector(vec, at, plan.bytes);
    at += plan.bytes;
    await addPart(
      parts,
      plan.kind === 'in-place'
        ? writeInPlace(node, guard, start, plan.host, part, flags)
        : writeAllocating(node, guard, plan.allocation, start, part, flags),
    );
    return true;
  });
}

async function writeInPlace(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  host: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  const s = node.state;
  if (!s.hasDataFile) checkOverlap(node, host, vec.bytes, null);
  if (isDebugged(node)) await debugEvent(node, guard, 'write_aio');
  const data = s.extras.cipher === null ? vec : await encrypted(s.extras, s.extras.cipher, vec, offset, host);
  await co.pwritev(s.dataFile.node, guard, host, vec.bytes, data, flags);
}

/**
 * The vector as it goes to the disk. Other requests run meanwhile: `host` stays this request's, since a cluster that a
 * discard takes from the mapping is given to nobody before the requests in flight have ended (DeferredFree).
 */
async function encrypted(
  { cipherUsesHostOffset }: Extras,
  cipher: BlockCipher,
  vec: IoVector,
  offset: number,
  host: number,
): Promise<IoVector> {
  const mem = allocateIoMemory(vec.bytes);
  copyFromVector(vec, mem.buf);
  await encryptBulk(cipher, mem.buf, cipherUsesHostOffset ? host : offset);
  return vectorOf(mem);
}

async function writeAllocating(
  node: Qcow2Node,
  guard: GraphReadGuard,
  allocation: Allocation,
  offset: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  const s = node.state;
  const debug = isDebugged(node);
  try {
    if (debug) await debugEvent(node, guard, 'cluster_alloc');
    const end = offset + vec.bytes;
    const { from, to } = copyOnWriteRange(s, allocation, offset, vec.bytes);
    const hostOf = (guest: number): number => allocation.host + (guest - allocation.start);
    if (!s.hasDataFile) {
      checkOverlap(node, hostOf(offset), vec.bytes, null);
      checkOverlap(node, hostOf(from), to - from, null);
    }
    const around = [
      await surrounding(node, guard, from, offset),
      await surrounding(node, guard, end, to),
    ] as const;
    let first = offset;
    let whole = vec;
    // Zeroes need no writing where the host cluster is known to hold nothing else.
    const skipZeroes = allocation.fresh && s.extras.cipher === null;
    for (const [side, content] of around.entries()) {
      if (content === null || (content === 'zero' && skipZeroes)) continue;
      const guest = side === 0 ? from : end;
      const bytes = side === 0 ? offset - from : to - end;
      if (content === 'zero' && bytes > MERGED_ZEROES_BYTES && s.extras.cipher === null) {
        if (debug) await debugEvent(node, guard, 'cluster_alloc_space');
        await co.pwriteZeroes(s.dataFile.node, guard, hostOf(guest), bytes, 0);
        continue;
      }
      const part = content === 'zero' ? zeroes(bytes) : content;
      if (side === 0) first = from;
      whole = side === 0 ? concatVectors(part, whole) : concatVectors(whole, part);
    }
    if (debug) await debugEvent(node, guard, 'write_aio');
    if (debug && whole !== vec) await debugEvent(node, guard, 'cow_write');
    const { cipher } = s.extras;
    const data = cipher === null ? whole : await encrypted(s.extras, cipher, whole, first, hostOf(first));
    await co.pwritev(s.dataFile.node, guard, hostOf(first), whole.bytes, data, flags);
    if (s.dead) throw ioError(E.ENOMEDIUM);
    linkAllocation(node, allocation, from, to);
  } catch (error) {
    abandonAllocation(node, allocation);
    throw error;
  }
}

function zeroes(bytes: number): IoVector {
  const mem = allocateIoMemory(bytes);
  mem.buf.fill(0);
  return vectorOf(mem);
}

/** What guest [from, to) reads as now: the old content that has to move along. Null for an empty range. */
async function surrounding(
  node: Qcow2Node,
  guard: GraphReadGuard,
  from: number,
  to: number,
): Promise<IoVector | 'zero' | null> {
  if (from === to) return null;
  if (readsAsZero(node, from, to - from)) return 'zero';
  if (isDebugged(node)) await debugEvent(node, guard, 'cow_read');
  // What lies behind the end of the image is nobody's; it is written as zeroes.
  const inside = Math.max(0, Math.min(to, node.totalBytes) - from);
  const vec = zeroes(to - from);
  if (inside > 0) await readExtents(node, guard, from, inside, sliceVector(vec, 0, inside));
  return vec;
}

/** Whether the range is known to read as zeroes; false when that cannot be told from what is in memory. */
export function readsAsZero(node: Qcow2Node, offset: number, bytes: number): boolean {
  return holdsNothing(node, offset, bytes, backingBytes(node));
}

function backingBytes(node: Qcow2Node): number {
  return node.child('backing')?.node.totalBytes ?? 0;
}

/** Whether the image itself has no data in the range, and nothing shows through up to `behind`; false: nobody can tell. */
function holdsNothing(node: Qcow2Node, offset: number, bytes: number, behind: number): boolean {
  const s = node.state;
  for (let at = offset; at < offset + bytes; at += s.found.bytes) {
    try {
      if (lookup(s, at, offset + bytes - at) !== null) return false;
    } catch {
      // Damage is reported by whoever needs the mapping.
      return false;
    }
    const { kind } = s.found;
    if (kind === Mapping.data || kind === Mapping.compressed) return false;
    if (kind !== Mapping.zero && kind !== Mapping.zeroAllocated && at < behind) return false;
  }
  return true;
}
