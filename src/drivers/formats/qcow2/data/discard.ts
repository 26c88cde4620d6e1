/**
 * Zero writes and discards: changes of the mapping alone, no data is written.
 *
 * What a range pointed to is freed later (see DeferredFree); requests in flight that found the old mapping finish on
 * clusters nobody else can be given. A range that somebody is allocating is waited for.
 */

import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { Req, Status } from '../../../../block/contract/request.ts';
import { co } from '../../../../block/io/callbacks.ts';
import { blockStatusAbove } from '../../../../block/io/status-chain.ts';
import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import type { CachedTable } from '../../shared/table-cache.ts';
import { Autoclear, entryOffset, HI_COMPRESSED, HI_COPIED, LO_ZERO } from '../layout/layout.ts';
import { type FreeReason, Mapping, type Need, type Qcow2Node, type Qcow2State } from '../layout/state.ts';
import { toRequestError } from '../metadata/corruption.ts';
import {
  l1IndexOf,
  l2IndexOf,
  l2TableOffset,
  lookup,
  setL2Bitmap,
  setL2Entry,
  subclusterMask,
} from '../metadata/mapping.ts';
import { satisfy } from '../metadata/needs.ts';
import { isNeed } from '../metadata/refcount.ts';
import { scheduleWriteBack } from '../metadata/writeback.ts';
import { freeOld, ownSlice } from './allocation.ts';
import { planOn } from './plan-on.ts';
import { readsAsZero } from './write.ts';

/** Runs `step` over [offset, offset+bytes); it does as much as one slice holds and returns the bytes done. */
async function overClusters(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  step: (at: number, bytes: number) => number | Need,
): Promise<void> {
  try {
    for (let at = offset; at < offset + bytes; ) {
      const from = at;
      at += await planOn(node, guard, from, offset + bytes - from, (length) => step(from, length));
    }
  } catch (error) {
    throw await toRequestError(node, guard, error);
  }
  scheduleWriteBack(node);
}

/** Bytes from `at` to the end of its slice, at most `bytes`. */
function inSlice(s: Qcow2State, at: number, bytes: number): number {
  const entry = l2IndexOf(s, at) % s.sliceEntries;
  return Math.min(bytes, (s.sliceEntries - entry) * s.clusterBytes - (at % s.clusterBytes));
}

export async function pwriteZeroes(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  flags: number,
): Promise<void> {
  const s = node.state;
  const unit = s.subclusterBytes;
  const end = offset + bytes;
  const whole = offset % unit === 0 && (end % unit === 0 || end === node.totalBytes);
  if (!whole) {
    // Part of a cluster: all of it becomes a zero cluster if the rest reads as zeroes anyway, else it has to be written.
    const from = offset - (offset % unit);
    const to = Math.min(Math.ceil(end / unit) * unit, node.totalBytes);
    await loadMapping(node, guard, from, to - from);
    if (!hasNoData(node, from, to - from)) throw ioError(E.ENOTSUP);
    if (!(await backingIsZero(node, guard, from, offset)) || !(await backingIsZero(node, guard, end, to)))
      throw ioError(E.ENOTSUP);
    if (s.header.version >= 3 && !s.hasDataFile) await zeroRange(node, guard, from, to - from, flags, true);
    return;
  }
  if (s.header.version < 3) {
    // Version 2 knows no zero clusters; without a backing image unallocated ones read as zeroes.
    if (node.child('backing') !== null || s.hasDataFile) throw ioError(E.ENOTSUP);
    if (offset % s.clusterBytes !== 0) throw ioError(E.ENOTSUP);
    await discardRange(node, guard, offset, bytes, 'request', false);
    return;
  }
  if (s.hasDataFile && (s.header.autoclear & Autoclear.dataFileRaw) !== 0) {
    await co.pwriteZeroes(s.dataFile.node, guard, offset, bytes, flags & ~Req.noFallback);
  }
  await zeroRange(node, guard, offset, bytes, flags, false);
}

/** Whether no cluster of a range holds data of its own. Its mapping is in memory; if not, the answer is no. */
function hasNoData(node: Qcow2Node, offset: number, bytes: number): boolean {
  const s = node.state;
  for (let at = offset; at < offset + bytes; at += s.found.bytes) {
    try {
      if (lookup(s, at, offset + bytes - at) !== null) return false;
    } catch {
      // Damage is reported by whoever needs the mapping.
      return false;
    }
    if (s.found.kind === Mapping.data || s.found.kind === Mapping.compressed) return false;
  }
  return true;
}

/**
 * Whether what is below shows zeroes in [from, to), or nothing. Only what the image leaves to it is looked at: a range in
 * which hasNoData holds, inside one cluster.
 */
async function backingIsZero(
  node: Qcow2Node,
  guard: GraphReadGuard,
  from: number,
  to: number,
): Promise<boolean> {
  const backing = node.child('backing')?.node;
  if (from >= to || readsAsZero(node, from, to - from)) return true;
  if (backing === undefined) return true;
  for (let at = from; at < Math.min(to, backing.totalBytes); ) {
    const { bytes, flags } = await blockStatusAbove(backing, guard, null, true, at, to - at);
    if (bytes === 0) return true;
    if ((flags & Status.zero) === 0) return false;
    at += bytes;
  }
  return true;
}

/** Sees to it that the tables for a range are in memory; a look at them right afterwards finds them there. */
async function loadMapping(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<void> {
  const s = node.state;
  try {
    for (let at = offset; at < offset + bytes; ) {
      const missing = lookup(s, at, offset + bytes - at);
      if (missing === null) at += s.found.bytes;
      else await satisfy(node, guard, missing);
    }
  } catch (error) {
    throw await toRequestError(node, guard, error);
  }
}

/** Marks clusters as zero. `onlyZero`: those that hold no data themselves; ENOTSUP when one does by now. */
async function zeroRange(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  flags: number,
  onlyZero: boolean,
): Promise<void> {
  const s = node.state;
  const unmap = (flags & Req.mayUnmap) !== 0;
  await overClusters(node, guard, offset, bytes, (at, length) => {
    const slice = ownSlice(node, at);
    if (isNeed(slice)) return slice;
    const done = inSlice(s, at, length);
    // Looked at in the same breath as it is changed: somebody may have written there while this request waited.
    if (onlyZero && !hasNoData(node, at, done)) throw ioError(E.ENOTSUP);
    for (let guest = at; guest < at + done; ) {
      const next = guest - (guest % s.clusterBytes) + s.clusterBytes;
      zeroCluster(node, slice, guest, Math.min(next, at + done), unmap);
      guest = next;
    }
    return done;
  });
}

/** Makes guest [from, to), inside one cluster, read as zeroes. */
function zeroCluster(node: Qcow2Node, slice: CachedTable, from: number, to: number, unmap: boolean): void {
  const s = node.state;
  const l2Index = l2IndexOf(s, from);
  const at = (l2Index % s.sliceEntries) * s.l2EntryBytes;
  const hi = slice.view.getUint32(at);
  const lo = slice.view.getUint32(at + 4);
  const compressed = (hi & HI_COMPRESSED) !== 0;
  if (s.subclusterBytes === s.clusterBytes) {
    const drop = compressed || (unmap && entryOffset(hi, lo) !== 0);
    if (drop) freeOld(node, slice, l2Index, 0, 'request');
    const keep = drop || (entryOffset(hi, lo) === 0 && !s.hasDataFile);
    setL2Entry(s, slice, l2Index, keep ? 0 : hi, (keep ? 0 : lo) | LO_ZERO);
    return;
  }
  const start = from - (from % s.clusterBytes);
  const first = (from - start) / s.subclusterBytes;
  const last = Math.ceil((to - start) / s.subclusterBytes);
  const mask = subclusterMask(first, last);
  const all = mask === 0xffffffff || (start + last * s.subclusterBytes >= node.totalBytes && first === 0);
  if (all && (compressed || (unmap && entryOffset(hi, lo) !== 0))) {
    freeOld(node, slice, l2Index, 0, 'request');
    setL2Entry(s, slice, l2Index, 0, 0);
    setL2Bitmap(s, slice, l2Index, 0xffffffff, 0);
    return;
  }
  if (compressed) throw ioError(E.ENOTSUP);
  const zero = slice.view.getUint32(at + 8);
  const allocated = slice.view.getUint32(at + 12);
  setL2Bitmap(s, slice, l2Index, (zero | mask) >>> 0, (allocated & ~mask) >>> 0);
}

export async function pdiscard(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<void> {
  const s = node.state;
  if (s.header.version < 3 && node.child('backing') !== null) throw ioError(E.ENOTSUP);
  const end = offset + bytes;
  if (offset % s.clusterBytes !== 0 || (end % s.clusterBytes !== 0 && end !== node.totalBytes)) {
    throw ioError(E.ENOTSUP);
  }
  await discardRange(node, guard, offset, bytes, 'request', false);
}

/**
 * Unmaps whole clusters. `full`: they become unallocated; otherwise they read as zeroes from now on, where the format
 * can say so.
 */
export async function discardRange(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  reason: FreeReason,
  full: boolean,
): Promise<void> {
  const s = node.state;
  const passed: { host: number; bytes: number }[] = [];
  await overClusters(node, guard, offset, bytes, (at, length) => {
    if (l2TableOffset(s, l1IndexOf(s, at)) === 0 && (full || node.child('backing') === null)) {
      return Math.min(length, s.l2SpanBytes - (at % s.l2SpanBytes));
    }
    const slice = ownSlice(node, at);
    if (isNeed(slice)) return slice;
    const done = inSlice(s, at, length);
    for (let guest = at; guest < at + done; guest += s.clusterBytes) {
      discardCluster(node, slice, guest, reason, full, passed);
    }
    return done;
  });
  for (const range of passed) {
    await co.pdiscard(s.dataFile.node, guard, range.host, range.bytes).catch(() => undefined);
  }
}

/** Unmaps everything: the backing image shows. What the clusters held is given up when the mapping has gone from the disk. */
export function makeEmpty(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  return discardRange(node, guard, 0, node.totalBytes, 'request', true);
}

function discardCluster(
  node: Qcow2Node,
  slice: CachedTable,
  guest: number,
  reason: FreeReason,
  full: boolean,
  passed: { host: number; bytes: number }[],
): void {
  const s = node.state;
  const l2Index = l2IndexOf(s, guest);
  const at = (l2Index % s.sliceEntries) * s.l2EntryBytes;
  const hi = slice.view.getUint32(at);
  const lo = slice.view.getUint32(at + 4);
  const extended = s.l2EntryBytes === 16;
  const mapped =
    (hi & HI_COMPRESSED) !== 0 || entryOffset(hi, lo) !== 0 || (s.hasDataFile && (hi & HI_COPIED) !== 0);
  const leaveZero = !full && (mapped || node.child('backing') !== null);
  const newLo = leaveZero && !extended && s.header.version >= 3 ? LO_ZERO : 0;
  const wasZero = extended ? slice.view.getUint32(at + 8) : lo & LO_ZERO;
  if (!mapped && !full && !leaveZero) return;
  if (!mapped && !full && wasZero !== 0 && (!extended || wasZero === 0xffffffff)) return;
  const host = entryOffset(hi, lo);
  const own = (hi & HI_COMPRESSED) === 0 && (hi & HI_COPIED) !== 0 && host !== 0;
  if (s.discardNoUnref && reason === 'request' && leaveZero && own && s.header.version >= 3) {
    // Reads as zeroes, and the cluster stays where it is: the file does not fragment. One that a snapshot uses too is
    // given up as ever.
    if (s.passDiscard[reason]) passed.push({ host, bytes: s.clusterBytes });
    if (extended) setL2Bitmap(s, slice, l2Index, 0xffffffff, 0);
    else setL2Entry(s, slice, l2Index, hi, lo | LO_ZERO);
    return;
  }
  if (mapped && s.hasDataFile) {
    if (s.passDiscard[reason]) passed.push({ host: guest, bytes: s.clusterBytes });
  } else freeOld(node, slice, l2Index, 0, reason);
  setL2Entry(s, slice, l2Index, 0, newLo);
  if (extended) setL2Bitmap(s, slice, l2Index, leaveZero ? 0xffffffff : 0, 0);
}
