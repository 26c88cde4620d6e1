/**
 * Allocating writes: from the plan (which host clusters, which dependencies) over the data write to the link.
 *
 *   plan   synchronous: take host clusters, enter the range into the list of allocations in flight
 *   write  the data, together with what surrounds it in its clusters (copy on write), in one request
 *   link   synchronous: point the L2 entries to the clusters, give back what they pointed to before
 *
 * A request that comes to a range somebody is allocating waits on that allocation's queue and starts over: the second
 * writer then finds the clusters mapped and writes in place. Between plan and link nothing else changes the range's
 * entries: discards and zero writes wait likewise, and exclusive sections wait for all requests.
 */

import { CoQueue } from '../../../../coroutine/co-queue.ts';
import type { CachedTable } from '../../shared/table-cache.ts';
import { hex, ImageCorruption } from '../layout/damage.ts';
import {
  decodeCompressed,
  entryOffset,
  HI_COMPRESSED,
  HI_COPIED,
  LO_ZERO,
  offsetHi,
  offsetLo,
  SUBCLUSTERS,
} from '../layout/layout.ts';
import {
  type Allocation,
  type FreeReason,
  Mapping,
  type Need,
  type Qcow2Node,
  type Qcow2State,
} from '../layout/state.ts';
import { reportHarmless } from '../metadata/corruption.ts';
import {
  isL2Copied,
  l1IndexOf,
  l2IndexOf,
  l2TableOffset,
  lookup,
  setL2Bitmap,
  setL2Entry,
  sliceOffsetOf,
  subclusterMask,
} from '../metadata/mapping.ts';
import { allocateRun, deferFree, deferFreeCompressed, giveBack, isNeed } from '../metadata/refcount.ts';
import { scheduleWriteBack } from '../metadata/writeback.ts';

/** Most clusters one allocation takes: a request is at most a few MiB, tables are not. */
const MAX_RUN_CLUSTERS = 4096;

/** The allocation in flight that overlaps guest [start, end) and begins first; null when there is none. */
export function findAllocation(s: Qcow2State, start: number, end: number): Allocation | null {
  let first: Allocation | null = null;
  for (const allocation of s.allocations) {
    if (
      allocation.start < end &&
      allocation.end > start &&
      (first === null || allocation.start < first.start)
    ) {
      first = allocation;
    }
  }
  return first;
}

/** The slice of the active state's own L2 table for a guest offset. */
export function ownSlice(node: Qcow2Node, offset: number): CachedTable | Need {
  const s = node.state;
  const l1Index = l1IndexOf(s, offset);
  const l2Index = l2IndexOf(s, offset);
  const tableOffset = l2TableOffset(s, l1Index);
  if (tableOffset === 0) return { need: 'new-l2', l1Index };
  if (!isL2Copied(s, l1Index)) return { need: 'copy-l2', l1Index };
  const sliceOffset = sliceOffsetOf(s, tableOffset, l2Index);
  return s.l2Cache.get(sliceOffset) ?? { need: 'l2', offset: sliceOffset };
}

/** What a write reports of damage that the lookup has met: of data it would have overwritten it says more. */
function damageInTheWay({ found }: Qcow2State, offset: number, met: ImageCorruption): ImageCorruption {
  const { kind, copied, entryHi, entryLo } = found;
  if (!copied || !met.message.startsWith('Cluster allocation offset')) return met;
  const what = kind === Mapping.data ? 'Data' : 'Preallocated zero';
  const host = hex(entryOffset(entryHi, entryLo));
  return new ImageCorruption(`${what} cluster offset ${host} unaligned (guest offset: ${hex(offset)})`, true);
}

/** A write's way for its first part. */
export type WritePlan =
  | { readonly kind: 'in-place'; readonly host: number; readonly bytes: number }
  | { readonly kind: 'allocate'; readonly allocation: Allocation; readonly bytes: number };

/**
 * Plans a write of [offset, offset+bytes) as far as one step reaches. The caller has made sure that no allocation in
 * flight overlaps the first cluster, and that `bytes` ends before the next one that is in flight.
 */
export function planWrite(node: Qcow2Node, offset: number, bytes: number): WritePlan | Need {
  const s = node.state;
  let missing: Need | null;
  try {
    missing = lookup(s, offset, bytes);
  } catch (error) {
    throw error instanceof ImageCorruption ? damageInTheWay(s, offset, error) : error;
  }
  if (missing !== null) return missing;
  const { found } = s;
  if (found.kind === Mapping.data && found.copied) {
    return { kind: 'in-place', host: found.host, bytes: found.bytes };
  }
  const slice = ownSlice(node, offset);
  if (isNeed(slice)) return slice;
  const start = offset - (offset % s.clusterBytes);
  const l2Index = l2IndexOf(s, offset);
  const most = Math.min(
    Math.ceil((offset + bytes - start) / s.clusterBytes),
    s.sliceEntries - (l2Index % s.sliceEntries),
    MAX_RUN_CLUSTERS,
  );
  const kept = keptHost(s, slice, l2Index);
  let host: number;
  let clusters: number;
  let fresh = false;
  if (kept !== null) {
    host = kept;
    clusters = 1;
    while (clusters < most && keptHost(s, slice, l2Index + clusters) === kept + clusters * s.clusterBytes)
      clusters++;
  } else {
    let wanted = 1;
    while (wanted < most && needsCluster(s, slice, l2Index + wanted)) wanted++;
    if (s.hasDataFile) {
      // In an external data file every guest cluster has its place.
      host = start;
      clusters = wanted;
    } else {
      const run = allocateRun(s, wanted);
      if (isNeed(run)) return run;
      ({ offset: host, count: clusters, fresh } = run);
    }
  }
  const end = start + clusters * s.clusterBytes;
  slice.pins++;
  const allocation: Allocation = {
    start,
    end,
    host,
    fresh,
    keepsHost: kept !== null || s.hasDataFile,
    table: slice,
    waiters: new CoQueue(),
  };
  s.allocations.push(allocation);
  return { kind: 'allocate', allocation, bytes: Math.min(bytes, end - offset) };
}

/**
 * The host cluster an entry has for itself although its content is not data there (a zero cluster that kept its
 * place, or missing subclusters): it can be used. Null when there is none.
 */
function keptHost(s: Qcow2State, slice: CachedTable, l2Index: number): number | null {
  const at = (l2Index % s.sliceEntries) * s.l2EntryBytes;
  const hi = slice.view.getUint32(at);
  const lo = slice.view.getUint32(at + 4);
  if ((hi & HI_COMPRESSED) !== 0 || (hi & HI_COPIED) === 0 || s.hasDataFile) return null;
  const offset = entryOffset(hi, lo);
  if (offset === 0 || offset % s.clusterBytes !== 0) return null;
  if (s.subclusterBytes === s.clusterBytes && (lo & LO_ZERO) === 0) return null;
  return offset;
}

/** Whether a write to that entry's cluster has to take a new host cluster. */
function needsCluster(s: Qcow2State, slice: CachedTable, l2Index: number): boolean {
  const at = (l2Index % s.sliceEntries) * s.l2EntryBytes;
  const hi = slice.view.getUint32(at);
  const lo = slice.view.getUint32(at + 4);
  if ((hi & HI_COMPRESSED) !== 0) return true;
  if (entryOffset(hi, lo) === 0 && !(s.hasDataFile && (hi & HI_COPIED) !== 0)) return true;
  return (hi & HI_COPIED) === 0;
}

/** The guest range around [offset, offset+bytes) that has to be written with it, so that what is linked is whole. */
export function copyOnWriteRange(
  s: Qcow2State,
  allocation: Allocation,
  offset: number,
  bytes: number,
): { readonly from: number; readonly to: number } {
  const { start, end } = allocation;
  if (s.subclusterBytes === s.clusterBytes) return { from: start, to: end };
  // Subclusters that are not written stay as they are, unless they move to another host cluster with data in them.
  // One that has its data in place already needs none either: others may be writing there right now.
  const unit = s.subclusterBytes;
  const limit = offset + bytes;
  let from = hasInPlace(s, allocation, offset) ? offset : Math.floor(offset / unit) * unit;
  let to = hasInPlace(s, allocation, limit - 1) ? limit : Math.ceil(limit / unit) * unit;
  if (movesData(s, allocation, start)) from = start;
  if (movesData(s, allocation, end - s.clusterBytes)) to = end;
  return { from, to };
}

/** Whether the subcluster at `guest` has data in the host cluster that it keeps. */
function hasInPlace(s: Qcow2State, { keepsHost, table }: Allocation, guest: number): boolean {
  if (!keepsHost) return false;
  const at = (l2IndexOf(s, guest) % s.sliceEntries) * s.l2EntryBytes;
  const sub = Math.floor((guest % s.clusterBytes) / s.subclusterBytes);
  return (
    (table.view.getUint32(at) & HI_COMPRESSED) === 0 && ((table.view.getUint32(at + 12) >>> sub) & 1) === 1
  );
}

/** Whether the cluster at `guest` gets another host cluster and has content of its own in the old one. */
function movesData(s: Qcow2State, { keepsHost, table }: Allocation, guest: number): boolean {
  if (keepsHost) return false;
  const at = (l2IndexOf(s, guest) % s.sliceEntries) * s.l2EntryBytes;
  if ((table.view.getUint32(at) & HI_COMPRESSED) !== 0) return true;
  return table.view.getUint32(at + 12) !== 0;
}

/**
 * Points the entries of the allocation to its clusters; guest [from, to) has been written there. Frees what they
 * pointed to before, and lets the waiting requests go on.
 */
export function linkAllocation(node: Qcow2Node, allocation: Allocation, from: number, to: number): void {
  const s = node.state;
  const { start, end, host, table, keepsHost } = allocation;
  for (let guest = start; guest < end; guest += s.clusterBytes) {
    const l2Index = l2IndexOf(s, guest);
    const newHost = host + (guest - start);
    if (!keepsHost || s.hasDataFile) freeOld(node, table, l2Index, newHost, 'other');
    const wasCompressed = (readHi(s, table, l2Index) & HI_COMPRESSED) !== 0;
    setL2Entry(s, table, l2Index, (offsetHi(newHost) | HI_COPIED) >>> 0, offsetLo(newHost));
    if (s.subclusterBytes !== s.clusterBytes) {
      const first = Math.max(0, Math.floor((from - guest) / s.subclusterBytes));
      const last = Math.min(SUBCLUSTERS, Math.ceil((to - guest) / s.subclusterBytes));
      const written = subclusterMask(Math.min(first, SUBCLUSTERS), Math.max(last, 0));
      const at = (l2Index % s.sliceEntries) * 16;
      const zero = wasCompressed ? 0 : table.view.getUint32(at + 8);
      const allocated = wasCompressed ? 0 : table.view.getUint32(at + 12);
      setL2Bitmap(s, table, l2Index, (zero & ~written) >>> 0, (allocated | written) >>> 0);
    }
  }
  endAllocation(s, allocation);
  scheduleWriteBack(node);
}

function readHi(s: Qcow2State, slice: CachedTable, l2Index: number): number {
  return slice.view.getUint32((l2Index % s.sliceEntries) * s.l2EntryBytes);
}

/** Frees what an entry points to, unless that is `keep`. The entry is changed by the caller. */
export function freeOld(
  node: Qcow2Node,
  slice: CachedTable,
  l2Index: number,
  keep: number,
  reason: FreeReason,
): void {
  const s = node.state;
  const at = (l2Index % s.sliceEntries) * s.l2EntryBytes;
  const hi = slice.view.getUint32(at);
  const lo = slice.view.getUint32(at + 4);
  if ((hi & HI_COMPRESSED) !== 0) {
    const { offset, bytes } = decodeCompressed(hi, lo, s.clusterBits);
    deferFreeCompressed(node, offset, bytes, reason);
    return;
  }
  const offset = entryOffset(hi, lo);
  if (offset === 0 || offset === keep || s.hasDataFile) return;
  if (offset % s.clusterBytes === 0) deferFree(node, offset, 1, reason);
  else reportHarmless(node, `Cannot free unaligned cluster ${hex(offset)}`);
}

/** Gives up an allocation whose data could not be written. */
export function abandonAllocation(node: Qcow2Node, allocation: Allocation): void {
  const s = node.state;
  if (!allocation.keepsHost) {
    giveBack(node, allocation.host, (allocation.end - allocation.start) / s.clusterBytes);
  }
  endAllocation(s, allocation);
  scheduleWriteBack(node);
}

/** Takes an allocation off the list and wakes who waits for it. */
export function endAllocation(s: Qcow2State, allocation: Allocation): void {
  allocation.table.pins--;
  s.allocations.splice(s.allocations.indexOf(allocation), 1);
  allocation.waiters.wakeAll();
}
