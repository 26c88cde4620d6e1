/**
 * Satisfying Needs: the waiting part of metadata operations.
 *
 * A synchronous step that cannot be done returns a Need; `retry` satisfies it and runs the step again until it is
 * done. What takes several writes in order (new refcount blocks, copies of L2 tables) runs under the metadata lock.
 */

import { nextTurn } from '../../../../aio/host/turns.ts';
import { allocateIoMemory, type IoMemory, vectorOf } from '../../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { sync } from '../../../../block/io/callbacks.ts';
import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import type { CachedTable } from '../../shared/table-cache.ts';
import { hex, ImageCorruption } from '../layout/damage.ts';
import type { Need, Qcow2Node, Qcow2State } from '../layout/state.ts';
import { debugEvent } from './debug.ts';
import { isL2Copied, l2TableOffset, lookup, setL1Entry } from './mapping.ts';
import { checkTablePlace, readInto, readMetadata, writeMetadata } from './metadata-io.ts';
import { allocateRun, deferFree, giveBack, isNeed } from './refcount.ts';
import { addRefcountBlock } from './refcount-blocks.ts';

/** Runs `step` until it needs nothing more. It must be synchronous and change nothing when it returns a Need. */
export async function retry<T>(node: Qcow2Node, guard: GraphReadGuard, step: () => T | Need): Promise<T> {
  for (;;) {
    const result = step();
    if (!isNeed(result)) return result;
    await satisfy(node, guard, result);
  }
}

/** As retry, for callers that hold the metadata lock. */
export async function retryLocked<T>(
  node: Qcow2Node,
  guard: GraphReadGuard,
  step: () => T | Need,
): Promise<T> {
  for (;;) {
    const result = step();
    if (!isNeed(result)) return result;
    await satisfyLocked(node, guard, result);
  }
}

/** Does what a step needs; afterwards the step is worth another try. */
export async function satisfy(node: Qcow2Node, guard: GraphReadGuard, need: Need): Promise<void> {
  switch (need.need) {
    case 'l2':
      await loadSlice(node, guard, need.offset);
      return;
    case 'refcounts':
      await loadRefcounts(node, guard, need.offset);
      return;
    case 'turn':
      await nextTurn();
      return;
    default:
      await node.state.metadataLock.with(need.need, () => satisfyLocked(node, guard, need));
  }
}

async function satisfyLocked(node: Qcow2Node, guard: GraphReadGuard, need: Need): Promise<void> {
  switch (need.need) {
    case 'new-l2':
      return newL2Table(node, guard, need.l1Index);
    case 'new-refcount-block':
      return addRefcountBlock(node, guard, need.index);
    case 'copy-l2':
      return copyL2Table(node, guard, need.l1Index);
    default:
      return satisfy(node, guard, need);
  }
}

/** Reads a slice of an L2 table into the cache. */
export function loadSlice(node: Qcow2Node, guard: GraphReadGuard, offset: number): Promise<CachedTable> {
  return node.state.l2Cache.load(offset, async (mem) => {
    await debugEvent(node, guard, 'l2_load');
    await readInto(node, guard, offset, mem);
  });
}

/**
 * Satisfies a need within this turn, when the table is in the page cache or is a new one; false: nothing has been done.
 */
export function trySatisfy(node: Qcow2Node, guard: GraphReadGuard, need: Need): boolean {
  const s = node.state;
  if (need.need === 'new-l2' && s.metadataLock.holder === null)
    return tryNewL2Table(node, guard, need.l1Index);
  if (need.need !== 'l2' || need.offset % s.l2Cache.tableBytes !== 0) return false;
  const { offset } = need;
  const read = (mem: IoMemory): boolean =>
    sync.tryPreadv(s.file.node, guard, offset, mem.buf.length, vectorOf(mem));
  return s.l2Cache.tryLoad(offset, read) !== undefined;
}

/**
 * Looks up [offset, offset+bytes) within this turn, for what needs no cipher. False: that needs waiting, or there is
 * damage, which is met again, and reported, on the long way.
 */
export function tryLookup(node: Qcow2Node, guard: GraphReadGuard, offset: number, bytes: number): boolean {
  const s = node.state;
  if (s.extras.cipher !== null || s.dead) return false;
  try {
    const missing = lookup(s, offset, bytes);
    return missing === null || (trySatisfy(node, guard, missing) && lookup(s, offset, bytes) === null);
  } catch {
    return false;
  }
}

function loadRefcounts(node: Qcow2Node, guard: GraphReadGuard, offset: number): Promise<CachedTable> {
  const s = node.state;
  if (offset % s.clusterBytes !== 0) {
    const index = s.refcountTable.indexOf(offset);
    throw new ImageCorruption(
      `Refblock offset ${hex(offset)} unaligned (reftable index: ${hex(index)})`,
      true,
    );
  }
  return s.refcountCache.load(offset, async (mem) => {
    await debugEvent(node, guard, 'refblock_load');
    await readInto(node, guard, offset, mem);
  });
}

// ---- new L2 tables -------------------------------------------------------------------------------------------

/**
 * Gives an L1 entry without a table one of its own. Its cluster is written at once, so that it has its space in the
 * file: a write-back on a full disk must not fail for want of it.
 */
async function newL2Table(node: Qcow2Node, guard: GraphReadGuard, l1Index: number): Promise<void> {
  const s = node.state;
  const run = await retryLocked(node, guard, () => allocateRun(s, 1));
  try {
    checkTablePlace(s, run.offset, 'L2 table');
    await debugEvent(node, guard, 'l2_alloc_write');
    await writeMetadata(node, guard, run.offset, Buffer.alloc(s.clusterBytes), null);
    // Another request was here first.
    if (l2TableOffset(s, l1Index) !== 0) giveBack(node, run.offset, 1);
    else linkNewTable(s, l1Index, run.offset);
  } catch (error) {
    giveBack(node, run.offset, 1);
    throw error;
  }
}

/** As newL2Table, within this turn; false: nothing has been done. */
function tryNewL2Table(node: Qcow2Node, guard: GraphReadGuard, l1Index: number): boolean {
  const s = node.state;
  const run = allocateRun(s, 1);
  if (isNeed(run)) return false;
  let written = false;
  try {
    checkTablePlace(s, run.offset, 'L2 table');
    const mem = zeroTable(s.clusterBytes);
    written = sync.tryPwritev(s.file.node, guard, run.offset, s.clusterBytes, vectorOf(mem));
  } finally {
    if (!written) giveBack(node, run.offset, 1);
  }
  if (written) linkNewTable(s, l1Index, run.offset);
  return written;
}

function zeroTable(bytes: number): IoMemory {
  const mem = allocateIoMemory(bytes);
  mem.buf.fill(0);
  return mem;
}

function linkNewTable(s: Qcow2State, l1Index: number, offset: number): void {
  for (let at = offset; at < offset + s.clusterBytes; at += s.l2Cache.tableBytes) s.l2Cache.drop(at);
  setL1Entry(s, l1Index, offset);
  s.metadata.add(offset / s.clusterBytes);
}

/**
 * Replaces an L2 table that a snapshot uses too by a copy of our own. Its entries keep their missing COPIED flags:
 * the data clusters stay shared until they are written.
 */
async function copyL2Table(node: Qcow2Node, guard: GraphReadGuard, l1Index: number): Promise<void> {
  const s = node.state;
  const old = l2TableOffset(s, l1Index);
  // Another request was here first.
  if (old === 0 || isL2Copied(s, l1Index)) return;
  await debugEvent(node, guard, 'l2_alloc_cow_read');
  // A shared table is never changed, so what is on the disk is all there is.
  const content = await readMetadata(node, guard, old, s.clusterBytes);
  const run = await retryLocked(node, guard, () => allocateRun(s, 1));
  try {
    checkTablePlace(s, run.offset, 'L2 table');
    // Now, as for a new table: later there might be no space for it.
    await debugEvent(node, guard, 'l2_alloc_write');
    await writeMetadata(node, guard, run.offset, content, null);
    if (l2TableOffset(s, l1Index) !== old) throw ioError(E.EIO);
  } catch (error) {
    giveBack(node, run.offset, 1);
    throw error;
  }
  linkNewTable(s, l1Index, run.offset);
  s.metadata.delete(old / s.clusterBytes);
  deferFree(node, old, 1, 'other');
}
