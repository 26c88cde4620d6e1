/**
 * Which clusters of the file are metadata, and the check that a write does not hit them.
 *
 * A write to the image file that overlaps metadata it is not meant for would destroy the image: it is refused and the
 * image is marked corrupt. Which kinds are looked at is the `overlap-check` option. Tables that are known all the
 * time are kept in a sparse bitmap, so that a data write is checked by one lookup.
 * Source of the facts: QEMU documentation, qcow2 driver options.
 */

import { isZero } from '../../../../aio/memory.ts';
import { entryOffset, MAX_HOST_OFFSET, MAX_SNAPSHOT_TABLE_BYTES } from './layout.ts';
import type { Qcow2State } from './state.ts';

export const OVERLAP_KINDS = [
  'main-header',
  'active-l1',
  'active-l2',
  'refcount-table',
  'refcount-block',
  'snapshot-table',
  'inactive-l1',
  'inactive-l2',
  'bitmap-directory',
] as const;
export type OverlapKind = (typeof OVERLAP_KINDS)[number];

export type OverlapChecks = Readonly<Record<OverlapKind, boolean>>;

const CONSTANT: readonly OverlapKind[] = [
  'main-header',
  'active-l1',
  'refcount-table',
  'snapshot-table',
  'bitmap-directory',
];
const CACHED: readonly OverlapKind[] = [...CONSTANT, 'active-l2', 'refcount-block', 'inactive-l1'];

interface OverlapOption extends Partial<Readonly<Record<OverlapKind, boolean>>> {
  readonly template?: 'none' | 'constant' | 'cached' | 'all';
}

/** The checks that the `overlap-check` option asks for. */
export function overlapChecks(option: string | OverlapOption | undefined): OverlapChecks {
  const flags: OverlapOption = typeof option === 'object' ? option : {};
  const template = typeof option === 'string' ? option : (flags.template ?? 'cached');
  const set: readonly OverlapKind[] =
    template === 'none'
      ? []
      : template === 'constant'
        ? CONSTANT
        : template === 'cached'
          ? CACHED
          : OVERLAP_KINDS;
  return Object.fromEntries(
    OVERLAP_KINDS.map((kind) => [kind, flags[kind] ?? set.includes(kind)]),
  ) as unknown as OverlapChecks;
}

const PAGE_BITS = 15;
const PAGE_CLUSTERS = 2 ** PAGE_BITS;
/** Entries of a table that are looked at for zeroes at once. */
const SCAN_ENTRIES = 512;

/** A sparse set of cluster indices. */
export class MetadataMap {
  readonly #pages = new Map<number, Uint8Array>();
  /** The page added to last: tables lie side by side. */
  #lastIndex = -1;
  #lastPage: Uint8Array = new Uint8Array(0);

  add(cluster: number): void {
    const bit = cluster % PAGE_CLUSTERS;
    const index = (cluster - bit) / PAGE_CLUSTERS;
    if (index !== this.#lastIndex) this.#select(index);
    this.#lastPage[bit >> 3]! |= 1 << (bit & 7);
  }

  #select(index: number): void {
    let page = this.#pages.get(index);
    if (page === undefined) {
      page = new Uint8Array(PAGE_CLUSTERS / 8);
      this.#pages.set(index, page);
    }
    this.#lastIndex = index;
    this.#lastPage = page;
  }

  delete(cluster: number): void {
    const page = this.#pages.get(Math.floor(cluster / PAGE_CLUSTERS));
    const bit = cluster % PAGE_CLUSTERS;
    if (page !== undefined) page[bit >> 3]! &= ~(1 << (bit & 7));
  }

  has(cluster: number): boolean {
    const page = this.#pages.get(Math.floor(cluster / PAGE_CLUSTERS));
    if (page === undefined) return false;
    const bit = cluster % PAGE_CLUSTERS;
    return (page[bit >> 3]! & (1 << (bit & 7))) !== 0;
  }

  clear(): void {
    this.#pages.clear();
    this.#lastIndex = -1;
  }
}

const NAMES: Readonly<Record<OverlapKind, string>> = {
  'main-header': 'qcow2_header',
  'active-l1': 'active L1 table',
  'active-l2': 'active L2 table',
  'refcount-table': 'refcount table',
  'refcount-block': 'refcount block',
  'snapshot-table': 'snapshot table',
  'inactive-l1': 'inactive L1 table',
  'inactive-l2': 'inactive L2 table',
  'bitmap-directory': 'bitmap directory',
};

/** How the original names a kind in its messages. */
export function overlapName(kind: OverlapKind): string {
  return NAMES[kind];
}

/** Ranges of the file that tables occupy which are found through the header. */
function* fixedRanges(s: Qcow2State): Generator<readonly [OverlapKind, number, number]> {
  const { header } = s;
  yield ['main-header', 0, s.clusterBytes];
  if (header.l1Entries > 0) yield ['active-l1', header.l1Offset, header.l1Entries * 8];
  yield ['refcount-table', header.refcountTableOffset, header.refcountTableClusters * s.clusterBytes];
  if (header.snapshotCount > 0) yield ['snapshot-table', header.snapshotsOffset, 1];
  if (header.bitmaps !== null)
    yield ['bitmap-directory', header.bitmaps.directoryOffset, header.bitmaps.directoryBytes];
  for (const snapshot of s.extras.snapshots) {
    if (snapshot.l1Entries > 0) yield ['inactive-l1', snapshot.l1Offset, snapshot.l1Entries * 8];
  }
}

/** Whether the cluster belongs to a table that is found through the header: those are looked at by range. */
function isFixed(s: Qcow2State, cluster: number): boolean {
  const start = cluster * s.clusterBytes;
  for (const [, offset, bytes] of fixedRanges(s)) {
    if (offset < start + s.clusterBytes && offset + bytes > start) return true;
  }
  return false;
}

/** The kind of metadata that [offset, offset+bytes) of the image file overlaps, or null. `allowed` is not looked at. */
export function findOverlap(
  s: Qcow2State,
  offset: number,
  bytes: number,
  allowed: OverlapKind | null,
): OverlapKind | null {
  const first = Math.floor(offset / s.clusterBytes);
  const last = Math.floor((offset + bytes - 1) / s.clusterBytes);
  // A cluster belongs to one thing, even if that does not fill it.
  const from = first * s.clusterBytes;
  const to = (last + 1) * s.clusterBytes;
  for (const [kind, start, length] of fixedRanges(s)) {
    if (kind !== allowed && s.overlap[kind] && from < start + length && to > start) return kind;
  }
  const checksInactive = s.overlap['inactive-l2'] && allowed !== 'inactive-l2';
  for (let cluster = first; cluster <= last; cluster++) {
    // First of all: a table that the active L1 table shares with a snapshot must not be written as an active one either.
    if (checksInactive && s.inactiveL2.has(cluster)) return 'inactive-l2';
    if (!s.metadata.has(cluster) || isFixed(s, cluster)) continue;
    const kind: OverlapKind = s.refcountBlocks.has(cluster) ? 'refcount-block' : 'active-l2';
    if (kind !== allowed && s.overlap[kind]) return kind;
  }
  return null;
}

/** Fills the map of metadata clusters anew from the header and the tables in memory. */
export function rebuildMetadata(s: Qcow2State): void {
  s.metadata.clear();
  const add = (offset: number, bytes: number): void => {
    // A damaged image may say anything; no write goes there.
    if (offset + bytes > MAX_HOST_OFFSET) return;
    const last = Math.floor((offset + Math.min(bytes, MAX_SNAPSHOT_TABLE_BYTES) - 1) / s.clusterBytes);
    for (let cluster = Math.floor(offset / s.clusterBytes); cluster <= last; cluster++)
      s.metadata.add(cluster);
  };
  for (const [, offset, bytes] of fixedRanges(s)) add(offset, bytes);
  s.refcountBlocks.clear();
  const { refcountTable } = s;
  for (let start = 0; start < refcountTable.length; start += SCAN_ENTRIES) {
    const part = refcountTable.subarray(start, start + SCAN_ENTRIES);
    if (isZero(Buffer.from(part.buffer, part.byteOffset, part.byteLength))) continue;
    for (const offset of part) {
      if (offset === 0) continue;
      add(offset, 1);
      s.refcountBlocks.add(Math.floor(offset / s.clusterBytes));
    }
  }
  // Opening runs before any of this is compiled, and an L1 table has thousands of entries: nothing is called for an empty one.
  const { l1, metadata, clusterBytes } = s;
  const bytes = s.header.l1Entries * 8;
  for (let at = 0; at < bytes; at += 8) {
    const lo = l1.getUint32(at + 4);
    const hi = l1.getUint32(at);
    if (lo === 0 && hi === 0) continue;
    const offset = entryOffset(hi, lo);
    if (offset === 0 || offset >= MAX_HOST_OFFSET) continue;
    metadata.add((offset - (offset % clusterBytes)) / clusterBytes);
  }
}

/** Whether a write of guest data to [offset, offset+bytes) of the image file may hit metadata; false is certain. */
export function mayOverlap(s: Qcow2State, offset: number, bytes: number): boolean {
  const last = Math.floor((offset + bytes - 1) / s.clusterBytes);
  for (let cluster = Math.floor(offset / s.clusterBytes); cluster <= last; cluster++) {
    if (s.metadata.has(cluster) || s.inactiveL2.has(cluster)) return true;
  }
  return false;
}
