/**
 * Changing the virtual size. Runs as the only request inside the node (exclusiveTruncate).
 *
 * Growing: a larger L1 table if need be, preallocation, then the size in the header. Shrinking: unmap what goes, the
 * size in the header, and the end of the file is cut off as far as nothing is there.
 */

import { createTurns } from '../../../../aio/host/turns.ts';
import { allocateIoMemory, vectorOf } from '../../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import type { PreallocMode } from '../../../../block/contract/image.ts';
import { co } from '../../../../block/io/callbacks.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError, errnoError, errnoOf, ioError } from '../../../../errors/error.ts';
import { checkBitmapsResizable } from '../bitmaps/bitmaps.ts';
import { abandonAllocation, linkAllocation, planWrite } from '../data/allocation.ts';
import { discardRange, pwriteZeroes } from '../data/discard.ts';
import { readsAsZero, writeExtents } from '../data/write.ts';
import { checkAlive } from '../layout/damage.ts';
import { Autoclear, MAX_L1_BYTES } from '../layout/layout.ts';
import type { Qcow2Node, Qcow2State } from '../layout/state.ts';
import { toRequestError } from '../metadata/corruption.ts';
import { debugEvent } from '../metadata/debug.ts';
import { alone } from '../metadata/exclusive.ts';
import { growL1 } from '../metadata/l1-table.ts';
import { l2TableOffset, setL1Entry } from '../metadata/mapping.ts';
import { changeHeader } from '../metadata/metadata-io.ts';
import { retry } from '../metadata/needs.ts';
import { deferFree, getRefcount } from '../metadata/refcount.ts';
import { dropEmptyBlocks } from '../metadata/refcount-blocks.ts';
import { settleAlone, withSpace } from '../metadata/writeback.ts';

/** Zeroes are written in pieces of this size. */
const ZERO_CHUNK_BYTES = 1024 * 1024;

/** Throws what keeps the image, of that version, from getting that length. */
export function checkResizable(
  node: Qcow2Node,
  length: number,
  prealloc: PreallocMode,
  version: number,
): void {
  const s = node.state;
  if (length % 512 !== 0) throw new BlockError('The new size must be a multiple of 512', { errno: E.EINVAL });
  if (length === s.header.size) return;
  if (s.extras.snapshots.length > 0 && version < 3) {
    throw new BlockError("Can't resize a v2 image which has snapshots", { errno: E.ENOTSUP });
  }
  checkBitmapsResizable(node);
  const l1Entries = Math.ceil(length / s.l2SpanBytes);
  if (l1Entries * 8 > MAX_L1_BYTES) throw errnoError('Failed to grow the L1 table', E.EFBIG);
  if (length < s.header.size && prealloc !== 'off') {
    throw new BlockError("Preallocation can't be used for shrinking an image", { errno: E.EINVAL });
  }
}

export async function truncate(
  node: Qcow2Node,
  guard: GraphReadGuard,
  length: number,
  _exact: boolean,
  prealloc: PreallocMode,
  zeroFill: boolean,
): Promise<void> {
  const s = node.state;
  const old = s.header.size;
  if (length === old && length % 512 === 0) return;
  checkResizable(node, length, prealloc, s.header.version);
  checkAlive(node);
  // A raw data file is the disk: every cluster of it has its place.
  const mode = length > old && isRawDataFile(s) && prealloc === 'off' ? 'metadata' : prealloc;
  try {
    if (length < old) await shrink(node, guard, length, old);
    else await withSpace(node, guard, () => grow(node, guard, old, length, mode, zeroFill));
  } catch (error) {
    throw await toRequestError(node, guard, error);
  }
  // A data file has the size of the image, whatever it had before, but that clusters with a place in it are whole.
  if (s.hasDataFile && mode === 'off') await co.truncate(s.dataFile.node, guard, length, false, 'off', false);
  await setSize(node, guard, length);
}

function isRawDataFile(s: Qcow2State): boolean {
  return s.hasDataFile && (s.header.autoclear & Autoclear.dataFileRaw) !== 0;
}

async function setSize(node: Qcow2Node, guard: GraphReadGuard, length: number): Promise<void> {
  try {
    await changeHeader(node, guard, { size: length });
  } catch (error) {
    throw errnoError('Failed to update the image size', errnoOf(error));
  }
}

async function shrink(node: Qcow2Node, guard: GraphReadGuard, length: number, old: number): Promise<void> {
  const s = node.state;
  const from = Math.ceil(length / s.clusterBytes) * s.clusterBytes;
  if (from < old) {
    const to = Math.ceil(old / s.clusterBytes) * s.clusterBytes;
    try {
      await discardRange(node, guard, from, to - from, 'always', true);
    } catch (error) {
      throw errnoError('Failed to discard cropped clusters', errnoOf(error));
    }
  }
  // The state of a virtual machine behind the disk does not stay where it would be looked for.
  for (let index = Math.ceil(old / s.l2SpanBytes); index < s.header.l1Entries; index++) {
    if (l2TableOffset(s, index) === 0) continue;
    await discardRange(node, guard, index * s.l2SpanBytes, s.l2SpanBytes, 'always', true);
  }
  await debugEvent(node, guard, 'l1_shrink_write_table');
  await debugEvent(node, guard, 'l1_shrink_free_l2_clusters');
  // Tables that map nothing any more go too.
  for (let index = Math.ceil(length / s.l2SpanBytes); index < s.header.l1Entries; index++) {
    const table = l2TableOffset(s, index);
    if (table === 0) continue;
    setL1Entry(s, index, 0);
    for (let at = 0; at < s.clusterBytes; at += s.l2Cache.tableBytes) s.l2Cache.drop(table + at);
    s.metadata.delete(table / s.clusterBytes);
    deferFree(node, table, 1, 'always');
  }
  await cutFile(node, guard);
}

/** Cuts off the end of the file behind the last cluster in use. */
async function cutFile(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  await settleAlone(node, guard);
  await s.metadataLock.with('empty refcount blocks', () => dropEmptyBlocks(node, guard));
  const fileBytes = await co.getLength(s.file.node, guard);
  let last = Math.ceil(fileBytes / s.clusterBytes) - 1;
  while (last > 0) {
    const at = last;
    const used = await retry(node, guard, () => getRefcount(s, at));
    if (used !== 0) break;
    last--;
  }
  const end = (last + 1) * s.clusterBytes;
  if (end < fileBytes) await co.truncate(s.file.node, guard, end, false, 'off', false).catch(() => undefined);
}

async function grow(
  node: Qcow2Node,
  guard: GraphReadGuard,
  old: number,
  length: number,
  prealloc: PreallocMode,
  zeroFill: boolean,
): Promise<void> {
  const s = node.state;
  const l1Entries = Math.ceil(length / s.l2SpanBytes);
  try {
    await alone(node, guard, () => growL1(node, guard, l1Entries));
  } catch (error) {
    throw errnoError('Failed to grow the L1 table', errnoOf(error));
  }
  // What the last cluster holds behind the old end was never the guest's, or is not any more.
  const wholeFrom = Math.min(length, Math.ceil(old / s.clusterBytes) * s.clusterBytes);
  const isHidden = wholeFrom > old && !isRawDataFile(s);
  if (isHidden && (prealloc !== 'off' || !readsAsZero(node, old, wholeFrom - old)))
    await writeZeroes(node, guard, old, wholeFrom);
  const backing = node.child('backing')?.node;
  if (zeroFill && backing !== undefined && backing.totalBytes > wholeFrom) {
    // What the backing image has behind the old end must not show.
    node.totalBytes = Math.max(node.totalBytes, length);
    const to = Math.min(length, Math.ceil(backing.totalBytes / s.clusterBytes) * s.clusterBytes);
    if (to <= wholeFrom) node.totalBytes = Math.max(old, node.totalBytes);
    else if (s.header.version >= 3) await pwriteZeroes(node, guard, wholeFrom, to - wholeFrom, 0);
    else await writeZeroes(node, guard, wholeFrom, to);
  }
  if (prealloc !== 'off') await preallocate(node, guard, old, length, prealloc);
}

/** Writes zeroes as data, where the format has no other way to say it. */
async function writeZeroes(node: Qcow2Node, guard: GraphReadGuard, from: number, to: number): Promise<void> {
  const chunk = allocateIoMemory(Math.min(to - from, ZERO_CHUNK_BYTES));
  chunk.buf.fill(0);
  for (let at = from; at < to; ) {
    const bytes = Math.min(to - at, chunk.buf.length);
    await writeExtents(node, guard, at, bytes, vectorOf(chunk, 0, bytes), 0);
    at += bytes;
  }
}

/** Maps every cluster of [old, length); `full` and `falloc` give them space in the file as well. */
async function preallocate(
  node: Qcow2Node,
  guard: GraphReadGuard,
  old: number,
  length: number,
  prealloc: PreallocMode,
): Promise<void> {
  const s = node.state;
  // A cluster that is partly old has been written to, which gave it a place but not all of its space.
  const first = old - (old % s.clusterBytes);
  if (first < old && !s.hasDataFile) {
    const plan = await retry(node, guard, () => planWrite(node, first, s.clusterBytes));
    if (plan.kind === 'in-place') await reserve(node, guard, plan.host, s.clusterBytes, prealloc);
    else abandonAllocation(node, plan.allocation);
  }
  const turns = createTurns();
  for (let at = Math.ceil(old / s.clusterBytes) * s.clusterBytes; at < length; ) {
    const from = at;
    if (node.isUnwanted() || node.layer.endSignal.aborted) throw ioError(E.ECANCELED);
    await turns.next();
    const plan = await planOrFail(() =>
      retry(node, guard, () => planWrite(node, from, Math.min(length - from, s.l2SpanBytes))),
    );
    if (plan.kind !== 'allocate') {
      at += plan.bytes;
      continue;
    }
    const { allocation } = plan;
    const bytes = allocation.end - allocation.start;
    try {
      await reserve(node, guard, allocation.host, bytes, prealloc);
      // Used before: what is there must not show.
      if (!allocation.fresh && !s.hasDataFile) {
        await co.pwriteZeroes(s.file.node, guard, allocation.host, bytes, 0);
      }
      // Subclusters stay without content of their own: what reads through to the backing image goes on doing so.
      const written = s.subclusterBytes === s.clusterBytes ? allocation.end : allocation.start;
      linkAllocation(node, allocation, allocation.start, written);
    } catch (error) {
      abandonAllocation(node, allocation);
      throw error;
    }
    at = allocation.end;
  }
}

async function planOrFail<T>(plan: () => Promise<T>): Promise<T> {
  try {
    return await plan();
  } catch (error) {
    throw errnoError('Allocating clusters failed', errnoOf(error));
  }
}

async function reserve(
  node: Qcow2Node,
  guard: GraphReadGuard,
  host: number,
  bytes: number,
  prealloc: PreallocMode,
): Promise<void> {
  const target = node.state.dataFile.node;
  const end = host + bytes;
  if (target.totalBytes < end) {
    const mode = prealloc === 'metadata' ? 'off' : prealloc;
    try {
      await co.truncate(target, guard, end, false, mode, false);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      const { errno } = error;
      throw new BlockError(`Failed to resize underlying file: ${error.message}`, { errno, cause: error });
    }
  }
}
