/**
 * Images whose blocks are mapped by tables of two levels: a first table (L1) in memory, which names second tables (L2),
 * which name blocks. New tables and blocks are put at the end of the file.
 *
 * L2 tables are cached in pieces of a page. A new L2 table reaches the disk before the L1 entry that names it: its pages
 * count as unlinked until then, and the L1 table is written last in a round of write-back. What an entry means is the
 * format's. Rules as in mapped-image.ts.
 */

import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BlockChild } from '../../../block/graph/node.ts';
import { CoQueue } from '../../../coroutine/co-queue.ts';
import { E } from '../../../errors/errno.ts';
import { ioError } from '../../../errors/error.ts';
import { type AppendSpace, extendFile, giveBack, takeSpace } from './append-space.ts';
import { HOLE, ZERO } from './flat-table.ts';
import {
  type Allocation,
  type Found,
  type MappedState,
  Place,
  type TableFile,
  type TableNeed,
  type WriteBackSteps,
} from './mapped-image.ts';
import { type CachedTable, TableCache } from './table-cache.ts';
import { writeBytes } from './table-io.ts';

/** Pages of L2 tables in memory: 16 MiB at most. */
const MAX_PAGE_BYTES = 4096;
const MAX_CACHE_BYTES = 16 * 1024 * 1024;
/** A new table on space that may hold something is cleared by way of the cache, if it is no longer than this. */
const MAX_CLEARED_BYTES = 1024 * 1024;
const ENTRY_BYTES = 8;
/** The L1 table is written in pieces of this length. */
const L1_PIECE_BYTES = 512;

export interface TwoLevelShape {
  readonly blockBytes: number;
  /** Entries of an L2 table. */
  readonly l2Entries: number;
  readonly l1Offset: number;
  readonly littleEndian: boolean;
  /** Offset of the block in the file, HOLE, ZERO or PACKED; throws for damage. `at`: where the entry is in `view`. */
  decode(view: DataView, at: number): number;
  /** Throws for an L1 entry that cannot be; 0 is no table. */
  checkTable(offset: number): void;
}

export interface TwoLevelTable extends TwoLevelShape {
  /** As on the disk, apart from what is in `changed`. */
  l1: DataView;
  l1Entries: number;
  /** L1 entries that differ from the disk, and those of them that this round of write-back takes. */
  readonly changed: Set<number>;
  readonly taken: Set<number>;
  readonly tables: TableFile;
  readonly l2Bytes: number;
  /** Guest bytes that an L2 table maps. */
  readonly spanBytes: number;
}

/** What an image of this kind has, besides what is the format's own. */
export interface TwoLevelState extends MappedState {
  readonly table: TwoLevelTable;
  readonly space: AppendSpace;
}

export function createTwoLevel(child: BlockChild, l1: DataView, shape: TwoLevelShape): TwoLevelTable {
  const l2Bytes = shape.l2Entries * ENTRY_BYTES;
  const pageBytes = Math.min(l2Bytes, MAX_PAGE_BYTES);
  return {
    ...shape,
    l1,
    l1Entries: l1.byteLength / ENTRY_BYTES,
    changed: new Set(),
    taken: new Set(),
    tables: {
      child,
      cache: new TableCache(pageBytes, Math.ceil(MAX_CACHE_BYTES / pageBytes)),
      endBytes: Number.MAX_SAFE_INTEGER,
    },
    l2Bytes,
    spanBytes: shape.blockBytes * shape.l2Entries,
  };
}

/** A 64-bit number of a table; above 2^53 the low bits are lost, which is out of every accepted range. */
export function readEntry(view: DataView, at: number, littleEndian: boolean): number {
  return littleEndian
    ? view.getUint32(at + 4, true) * 2 ** 32 + view.getUint32(at, true)
    : view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4);
}

export function writeEntry(view: DataView, at: number, value: number, littleEndian: boolean): void {
  const [high, low] = [Math.floor(value / 2 ** 32), value % 2 ** 32];
  view.setUint32(littleEndian ? at + 4 : at, high, littleEndian);
  view.setUint32(littleEndian ? at : at + 4, low, littleEndian);
}

/** Offset of the L2 table for L1 entry `index`; 0: none. */
export function tableOffset(table: TwoLevelTable, index: number): number {
  if (index >= table.l1Entries) throw ioError(E.EIO);
  const offset = readEntry(table.l1, index * ENTRY_BYTES, table.littleEndian);
  if (offset !== 0) table.checkTable(offset);
  return offset;
}

/** Where the L2 entry of guest offset `offset` is, in bytes from the start of its table. */
function entryAt(table: TwoLevelTable, offset: number): number {
  return Math.floor((offset % table.spanBytes) / table.blockBytes) * ENTRY_BYTES;
}

/** The lookup of a map over such tables; ranges are not followed over the end of a page. */
export function lookupTwoLevel(
  table: TwoLevelTable,
  found: Found,
  offset: number,
  bytes: number,
): TableNeed | null {
  const { blockBytes, spanBytes, tables } = table;
  const { tableBytes: pageBytes } = tables.cache;
  const l2 = tableOffset(table, Math.floor(offset / spanBytes));
  found.host = 0;
  found.child = tables.child;
  if (l2 === 0) {
    found.kind = Place.hole;
    found.bytes = Math.min(bytes, spanBytes - (offset % spanBytes));
    return null;
  }
  const entry = entryAt(table, offset);
  const pageOffset = l2 + entry - (entry % pageBytes);
  const page = tables.cache.get(pageOffset);
  if (page === undefined) return { tables, offset: pageOffset };
  let at = entry % pageBytes;
  const place = table.decode(page.view, at);
  const within = offset % blockBytes;
  let length = blockBytes - within;
  for (let next = 1; length < bytes; next++) {
    at += ENTRY_BYTES;
    if (at >= pageBytes || place < ZERO) break;
    const follows = table.decode(page.view, at);
    if (place >= 0 ? follows !== place + next * blockBytes : follows !== place) break;
    length += blockBytes;
  }
  found.bytes = Math.min(length, bytes);
  if (place >= 0) {
    found.kind = Place.data;
    found.host = place + within;
  } else {
    found.kind = place === HOLE ? Place.hole : place === ZERO ? Place.zero : Place.packed;
  }
  return null;
}

/** The page with the entry of `offset`, for a change; a table that is not there yet is made. */
export function pageForChange(
  table: TwoLevelTable,
  space: AppendSpace,
  offset: number,
): { readonly page: CachedTable; readonly at: number } | TableNeed {
  const { tables } = table;
  const { cache } = tables;
  const index = Math.floor(offset / table.spanBytes);
  const entry = entryAt(table, offset);
  const inPage = entry % cache.tableBytes;
  let l2 = tableOffset(table, index);
  if (l2 === 0) {
    l2 = takeTable(table, space);
    writeEntry(table.l1, index * ENTRY_BYTES, l2, table.littleEndian);
    table.changed.add(index);
  }
  const pageOffset = l2 + entry - inPage;
  const page = cache.get(pageOffset);
  return page === undefined ? { tables, offset: pageOffset } : { page, at: inPage };
}

/** A table of zeroes at the end of the file. */
function takeTable({ tables, l2Bytes }: TwoLevelTable, space: AppendSpace): number {
  const { cache } = tables;
  const fresh = space.end >= space.freshFrom;
  // Behind the end of the file there are zeroes: the pages need not be there before they are changed.
  if (!fresh && l2Bytes > MAX_CLEARED_BYTES) throw ioError(E.ENOTSUP);
  const l2 = takeSpace(space, l2Bytes);
  const count = fresh && l2Bytes > MAX_CLEARED_BYTES ? 0 : l2Bytes / cache.tableBytes;
  for (let i = 0; i < count; i++) cache.create(l2 + i * cache.tableBytes).unlinked = true;
  return l2;
}

/** A block that is getting a place. */
export interface TwoLevelAllocation extends Allocation {
  /** Pinned until the block is linked or given up. */
  readonly page: CachedTable;
  readonly at: number;
}

/** The plan of a map over such tables: a place at the end of the file. */
export function planTwoLevel(
  table: TwoLevelTable,
  space: AppendSpace,
  offset: number,
): TwoLevelAllocation | TableNeed {
  const place = pageForChange(table, space, offset);
  if (!('page' in place)) return place;
  const { blockBytes } = table;
  const start = offset - (offset % blockBytes);
  const fresh = space.end >= space.freshFrom;
  const host = takeSpace(space, blockBytes);
  place.page.pins++;
  return {
    start,
    end: start + blockBytes,
    host,
    child: space.child,
    fresh,
    waiters: new CoQueue(),
    ...place,
  };
}

/** Maps the block: its entry becomes `entry`. */
export function linkTwoLevel(table: TwoLevelTable, allocation: Allocation, entry: number): void {
  const { page, at } = allocation as TwoLevelAllocation;
  page.pins--;
  writeEntry(page.view, at, entry, table.littleEndian);
  table.tables.cache.markDirty(page);
}

export function abandonTwoLevel(
  table: TwoLevelTable,
  space: AppendSpace,
  allocation: Allocation,
  untouched: boolean,
): void {
  (allocation as TwoLevelAllocation).page.pins--;
  giveBack(space, allocation.host, table.blockBytes, untouched);
}

// ---- write-back ----------------------------------------------------------------------------------------------

/** Write-back of a format whose only metadata are its tables: the file grows, L2 tables are written, and then L1. */
export const twoLevelWriteBack: WriteBackSteps<TwoLevelState> = {
  tableFiles: ({ table }) => [table.tables],
  hasMore: ({ table }) => table.changed.size + table.taken.size > 0,
  async prepare({ state }, guard) {
    takeL1Changes(state.table);
    await extendFile(state.space, guard);
  },
  finish: ({ state }, guard) => writeL1Changes(state.table, guard),
};

/** L1 entries that change later wait for the next round. */
function takeL1Changes({ changed, taken }: TwoLevelTable): void {
  for (const index of changed) taken.add(index);
  changed.clear();
}

/** Writes the L1 entries taken by takeL1Changes. */
async function writeL1Changes(table: TwoLevelTable, guard: GraphReadGuard): Promise<void> {
  const { taken, l1, l1Offset, tables } = table;
  const perPiece = L1_PIECE_BYTES / ENTRY_BYTES;
  const pieces = new Set([...taken].map((index) => Math.floor(index / perPiece)));
  for (const piece of pieces) {
    const from = piece * L1_PIECE_BYTES;
    const data = Buffer.from(
      new Uint8Array(l1.buffer, l1.byteOffset + from, Math.min(L1_PIECE_BYTES, l1.byteLength - from)),
    );
    // What came to be after this round began must not be named yet.
    for (const index of table.changed) {
      const at = index * ENTRY_BYTES - from;
      if (at >= 0 && at < data.length) data.fill(0, at, at + ENTRY_BYTES);
    }
    await writeBytes(tables.child, guard, l1Offset + from, data);
  }
  taken.clear();
}
