/**
 * From guest offsets to host offsets: the L1 table and the slices of L2 tables in memory. Synchronous.
 *
 *   guest offset -> L1 entry -> L2 table -> L2 entry (8 bytes; 16 with subclusters) -> host cluster
 *
 * `lookup` is the hot path of every read and of writes in place: no lock, no await, no allocation on a hit.
 * Changing entries is allocation.ts and discard.ts, by the setters here.
 * Source: qcow2 specification, "Cluster mapping", "Extended L2 Entries".
 */

import type { CachedTable } from '../../shared/table-cache.ts';
import { hex, ImageCorruption } from '../layout/damage.ts';
import {
  entryOffset,
  HI_COMPRESSED,
  HI_COPIED,
  LO_ZERO,
  offsetHi,
  offsetLo,
  SUBCLUSTERS,
} from '../layout/layout.ts';
import { type Found, Mapping, type MappingKind, type Need, type Qcow2State } from '../layout/state.ts';

/** Index in the L1 table of the entry for a guest offset. */
export function l1IndexOf(s: Qcow2State, offset: number): number {
  return Math.floor(offset / s.l2SpanBytes);
}

/** Host offset of an L2 table from the L1 table; 0 when there is none. */
export function l2TableOffset(s: Qcow2State, l1Index: number): number {
  if (l1Index >= s.header.l1Entries) return 0;
  const offset = entryOffset(s.l1.getUint32(l1Index * 8), s.l1.getUint32(l1Index * 8 + 4));
  if (offset % s.clusterBytes !== 0) {
    throw new ImageCorruption(`L2 table offset ${hex(offset)} unaligned (L1 index: ${hex(l1Index)})`, true);
  }
  return offset;
}

/** Whether the L2 table of that L1 entry belongs to the active state alone. */
export function isL2Copied(s: Qcow2State, l1Index: number): boolean {
  return (s.l1.getUint32(l1Index * 8) & HI_COPIED) !== 0;
}

/** Points an L1 entry to a table that belongs to the active state alone. 0: to none. */
export function setL1Entry(s: Qcow2State, l1Index: number, tableOffset: number): void {
  const at = l1Index * 8;
  s.l1.setUint32(at, tableOffset === 0 ? 0 : (offsetHi(tableOffset) | HI_COPIED) >>> 0);
  s.l1.setUint32(at + 4, offsetLo(tableOffset));
  s.l1Dirty.add(at >> 9);
}

/** Index of a guest offset's entry within its L2 table. */
export function l2IndexOf(s: Qcow2State, offset: number): number {
  return Math.floor((offset % s.l2SpanBytes) / s.clusterBytes);
}

/** Host offset of the slice of an L2 table that holds entry `l2Index`. */
export function sliceOffsetOf(s: Qcow2State, tableOffset: number, l2Index: number): number {
  return tableOffset + Math.floor(l2Index / s.sliceEntries) * s.l2Cache.tableBytes;
}

/** Writes entry `l2Index` of the table that `slice` is part of. */
export function setL2Entry(s: Qcow2State, slice: CachedTable, l2Index: number, hi: number, lo: number): void {
  const at = (l2Index % s.sliceEntries) * s.l2EntryBytes;
  slice.view.setUint32(at, hi);
  slice.view.setUint32(at + 4, lo);
  s.l2Cache.markDirty(slice);
}

/** Writes the subcluster bitmaps of an extended entry. */
export function setL2Bitmap(
  s: Qcow2State,
  slice: CachedTable,
  l2Index: number,
  zero: number,
  allocated: number,
): void {
  const at = (l2Index % s.sliceEntries) * s.l2EntryBytes + 8;
  slice.view.setUint32(at, zero);
  slice.view.setUint32(at + 4, allocated);
  s.l2Cache.markDirty(slice);
}

/** Bits of the subclusters [from, to) of a cluster. */
export function subclusterMask(from: number, to: number): number {
  const upTo = (n: number): number => (n >= SUBCLUSTERS ? 0xffffffff : 2 ** n - 1);
  return (upTo(to) ^ upTo(from)) >>> 0;
}

/**
 * Looks up what guest [offset, offset+bytes) starts with: fills s.found with the longest run of one mapping (data
 * clusters only while they are contiguous in the file, and all COPIED or none). Returns a Need when the slice is not
 * in memory. Never looks beyond one slice.
 */
export function lookup(s: Qcow2State, offset: number, bytes: number): Need | null {
  const { found, clusterBytes } = s;
  const l1Index = l1IndexOf(s, offset);
  const tableOffset = l2TableOffset(s, l1Index);
  if (tableOffset === 0) {
    const spanLeft = s.l2SpanBytes - (offset % s.l2SpanBytes);
    found.kind = Mapping.unallocated;
    found.bytes = Math.min(bytes, spanLeft);
    found.host = 0;
    found.copied = false;
    return null;
  }
  const l2Index = l2IndexOf(s, offset);
  const sliceOffset = sliceOffsetOf(s, tableOffset, l2Index);
  const slice = s.l2Cache.get(sliceOffset);
  if (slice === undefined) return { need: 'l2', offset: sliceOffset };
  if (s.subclusterBytes !== clusterBytes)
    return lookupSubclusters(s, slice, tableOffset, l2Index, offset, bytes);
  const { view } = slice;
  let index = l2Index % s.sliceEntries;
  const inCluster = offset % clusterBytes;
  let hi = view.getUint32(index * 8);
  let lo = view.getUint32(index * 8 + 4);
  const kind = entryKind(s, hi, lo);
  if (kind === INVALID) throw invalidEntry('Zero cluster entry found in pre-v3 image', tableOffset, l2Index);
  let run = clusterBytes - inCluster;
  found.kind = kind;
  found.entryHi = hi;
  found.entryLo = lo;
  found.copied = (hi & HI_COPIED) !== 0 && isL2Copied(s, l1Index);
  if (kind === Mapping.data || kind === Mapping.zeroAllocated) {
    const host = checkedHost(s, hi, lo, tableOffset, l2Index);
    found.host = host + inCluster;
    let next = host + clusterBytes;
    const copiedBit = hi & HI_COPIED;
    while (run < bytes && ++index < s.sliceEntries) {
      hi = view.getUint32(index * 8);
      lo = view.getUint32(index * 8 + 4);
      if (entryOffset(hi, lo) !== next || entryKind(s, hi, lo) !== kind || (hi & HI_COPIED) !== copiedBit)
        break;
      next += clusterBytes;
      run += clusterBytes;
    }
  } else {
    found.host = 0;
    if (kind !== Mapping.compressed) {
      while (run < bytes && ++index < s.sliceEntries) {
        if (entryKind(s, view.getUint32(index * 8), view.getUint32(index * 8 + 4)) !== kind) break;
        run += clusterBytes;
      }
    }
  }
  found.bytes = Math.min(bytes, run);
  return null;
}

/** Not a mapping: an entry that the format does not allow. */
const INVALID = 6;

function invalidEntry(what: string, tableOffset: number, l2Index: number): ImageCorruption {
  return new ImageCorruption(`${what} (L2 offset: ${hex(tableOffset)}, L2 index: ${hex(l2Index)})`, true);
}

function entryKind(s: Qcow2State, hi: number, lo: number): MappingKind | typeof INVALID {
  if ((hi & HI_COMPRESSED) !== 0) return Mapping.compressed;
  const mapped = entryOffset(hi, lo) !== 0 || (s.hasDataFile && (hi & HI_COPIED) !== 0);
  if ((lo & LO_ZERO) !== 0) {
    if (s.header.version < 3) return INVALID;
    return mapped ? Mapping.zeroAllocated : Mapping.zero;
  }
  return mapped ? Mapping.data : Mapping.unallocated;
}

/** The host cluster of an entry; damage when it cannot be one. */
function checkedHost(s: Qcow2State, hi: number, lo: number, tableOffset: number, l2Index: number): number {
  const host = entryOffset(hi, lo);
  if (host % s.clusterBytes !== 0)
    throw invalidEntry(`Cluster allocation offset ${hex(host)} unaligned`, tableOffset, l2Index);
  return host;
}

function lookupSubclusters(
  s: Qcow2State,
  slice: CachedTable,
  tableOffset: number,
  l2Index: number,
  offset: number,
  bytes: number,
): null {
  const { found, clusterBytes, subclusterBytes } = s;
  const { view } = slice;
  let index = l2Index % s.sliceEntries;
  let hi = view.getUint32(index * 16);
  let lo = view.getUint32(index * 16 + 4);
  found.entryHi = hi;
  found.entryLo = lo;
  found.copied = (hi & HI_COPIED) !== 0 && isL2Copied(s, l1IndexOf(s, offset));
  const inCluster = offset % clusterBytes;
  if ((hi & HI_COMPRESSED) !== 0) {
    found.kind = Mapping.compressed;
    found.host = 0;
    found.bytes = Math.min(bytes, clusterBytes - inCluster);
    return null;
  }
  let sub = Math.floor(inCluster / subclusterBytes);
  const kind = subclusterKind(
    s,
    hi,
    lo,
    view.getUint32(index * 16 + 8),
    view.getUint32(index * 16 + 12),
    sub,
  );
  if (kind === INVALID) throw invalidEntry('Invalid cluster entry found ', tableOffset, l2Index);
  const hosted = kind !== Mapping.unallocated && kind !== Mapping.zero;
  const host = hosted ? checkedHost(s, hi, lo, tableOffset, l2Index) : 0;
  found.kind = kind;
  found.host = hosted ? host + inCluster : 0;
  let run = subclusterBytes - (inCluster % subclusterBytes);
  let next = host + clusterBytes;
  const copiedBit = hi & HI_COPIED;
  while (run < bytes) {
    if (++sub === SUBCLUSTERS) {
      sub = 0;
      if (++index === s.sliceEntries) break;
      hi = view.getUint32(index * 16);
      lo = view.getUint32(index * 16 + 4);
      if ((hi & HI_COMPRESSED) !== 0) break;
      if (hosted && (entryOffset(hi, lo) !== next || (hi & HI_COPIED) !== copiedBit)) break;
      next += clusterBytes;
    }
    if (
      subclusterKind(s, hi, lo, view.getUint32(index * 16 + 8), view.getUint32(index * 16 + 12), sub) !== kind
    )
      break;
    run += subclusterBytes;
  }
  found.bytes = Math.min(bytes, run);
  return null;
}

function subclusterKind(
  s: Qcow2State,
  hi: number,
  lo: number,
  zeroBits: number,
  allocatedBits: number,
  sub: number,
): MappingKind | typeof INVALID {
  const zero = ((zeroBits >>> sub) & 1) === 1;
  const allocated = ((allocatedBits >>> sub) & 1) === 1;
  const mapped = entryOffset(hi, lo) !== 0 || (s.hasDataFile && (hi & HI_COPIED) !== 0);
  if (allocated && (zero || !mapped)) return INVALID;
  if (!mapped) return zero ? Mapping.zero : Mapping.unallocated;
  if (zero) return Mapping.zeroAllocated;
  return allocated ? Mapping.data : Mapping.unallocatedInCluster;
}

/** An empty result record. */
export function createFound(): Found {
  return { kind: Mapping.unallocated, bytes: 0, host: 0, copied: false, entryHi: 0, entryLo: 0 };
}
