/**
 * Satisfying Needs: the waiting part of metadata operations.
 *
 * A synchronous step that cannot be done returns a Need; `retry` satisfies it and runs the step again until it is
 * done. What takes several writes in order (new refcount blocks, copies of L2 tables) runs under the metadata lock.
 */

import { type IoMemory, vectorOf } from '../../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { sync } from '../../../../block/io/callbacks.ts';
import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import type { CachedTable } from '../../shared/table-cache.ts';
import { hex, ImageCorruption } from '../layout/damage.ts';
import type { Need, Qcow2Node } from '../layout/state.ts';
import { debugEvent } from './debug.ts';
import { isL2Copied, l2TableOffset, setL1Entry } from './mapping.ts';
import { checkTablePlace, readInto, readMetadata } from './metadata-io.ts';
import { allocateRun, deferFree, isNeed } from './refcount.ts';
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
    default:
      await node.state.metadataLock.with(need.need, () => satisfyLocked(node, guard, need));
  }
}

async function satisfyLocked(node: Qcow2Node, guard: GraphReadGuard, need: Need): Promise<void> {
  switch (need.need) {
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
 * Satisfies a need within this turn, when the table is in the page cache; false: nothing has been done. Only tables
 * can be had this way.
 */
export function trySatisfy(node: Qcow2Node, guard: GraphReadGuard, need: Need): boolean {
  const s = node.state;
  if (need.need !== 'l2' || need.offset % s.l2Cache.tableBytes !== 0) return false;
  const { offset } = need;
  const read = (mem: IoMemory): boolean =>
    sync.tryPreadv(s.file.node, guard, offset, mem.buf.length, vectorOf(mem));
  return s.l2Cache.tryLoad(offset, read) !== undefined;
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
  checkTablePlace(s, run.offset, 'L2 table');
  if (l2TableOffset(s, l1Index) !== old) throw ioError(E.EIO);
  const sliceBytes = s.l2Cache.tableBytes;
  for (let at = 0; at < s.clusterBytes; at += sliceBytes) {
    const slice = s.l2Cache.create(run.offset + at);
    content.copy(slice.mem.buf, 0, at, at + sliceBytes);
    slice.unlinked = true;
  }
  setL1Entry(s, l1Index, run.offset);
  s.metadata.delete(old / s.clusterBytes);
  s.metadata.add(run.offset / s.clusterBytes);
  deferFree(node, old, 1, 'other');
}
