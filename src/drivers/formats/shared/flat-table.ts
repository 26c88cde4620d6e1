/**
 * Block allocation tables: one entry for each block of the guest, in one piece of the file.
 *
 * The table is cached in pieces of a page, so that the size of a disk costs nothing when it is opened. What an entry
 * means is the format's; here is what all do alike: finding an entry, and how far its kind goes on.
 */

import { createTurns } from '../../../aio/host/turns.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BlockChild } from '../../../block/graph/node.ts';
import { CoQueue } from '../../../coroutine/co-queue.ts';
import { type AppendSpace, giveBack, takeSpace } from './append-space.ts';
import {
  type Allocation,
  type Found,
  isNeed,
  Place,
  type TableFile,
  type TableNeed,
} from './mapped-image.ts';
import { type CachedTable, TableCache } from './table-cache.ts';
import { readBytes, viewOf } from './table-io.ts';

export const PAGE_BYTES = 4096;
/** 32 MiB of tables at most, far fewer for most disks. */
const MAX_PAGES = 8192;
/** A lookup may need several pages at once, and other lookups must not take them from each other for ever. */
const MIN_PAGES = 64;
const PIECE_BYTES = 1024 * 1024;

/** What an entry can say besides a place. */
export const HOLE = -1;
export const ZERO = -2;
/** To be had through the map's readPacked only. */
export const PACKED = -3;

export interface FlatTable {
  readonly tables: TableFile;
  /** Where entry 0 is, in bytes. */
  readonly startBytes: number;
  readonly entryBytes: number;
  readonly blockBytes: number;
  readonly count: number;
  /** After every so many entries there is one of something else; absent: never. */
  readonly gapEvery?: number;
  /** Offset of the block in the file, HOLE or ZERO; throws for damage. `at`: where the entry is in `view`. */
  decode(view: DataView, at: number, index: number): number;
}

/** The cache for a table of `count` entries. */
export function createFlatTable(child: BlockChild, shape: Omit<FlatTable, 'tables'>): FlatTable {
  const bytes = placeIndex(shape, shape.count) * shape.entryBytes;
  const pages = Math.min(MAX_PAGES, Math.max(MIN_PAGES, Math.ceil(bytes / PAGE_BYTES)));
  const cache = new TableCache(PAGE_BYTES, pages);
  return { ...shape, tables: { child, cache, endBytes: shape.startBytes + bytes } };
}

/** The place of an entry among all. */
function placeIndex({ gapEvery }: Pick<FlatTable, 'gapEvery'>, index: number): number {
  return gapEvery === undefined ? index : index + Math.floor(index / gapEvery);
}

/** File offset of the page that entry `index` is in. */
function pageOffset(table: FlatTable, index: number): number {
  const at = placeIndex(table, index) * table.entryBytes;
  return table.startBytes + at - (at % PAGE_BYTES);
}

/** The page with entry `index`, or the need for it. */
export function pageOf(table: FlatTable, index: number): CachedTable | TableNeed {
  const offset = pageOffset(table, index);
  return table.tables.cache.get(offset) ?? { tables: table.tables, offset };
}

/** Where entry `index` is in its page. */
export function entryPlace(table: FlatTable, index: number): number {
  return (placeIndex(table, index) * table.entryBytes) % PAGE_BYTES;
}

/** The lookup of a map over such a table; ranges are not followed over the end of a page. */
export function lookupFlat(table: FlatTable, found: Found, offset: number, bytes: number): TableNeed | null {
  const { blockBytes, entryBytes } = table;
  const index = Math.floor(offset / blockBytes);
  const page = table.tables.cache.get(pageOffset(table, index));
  if (page === undefined) return { tables: table.tables, offset: pageOffset(table, index) };
  const { view } = page;
  let at = entryPlace(table, index);
  const place = table.decode(view, at, index);
  const within = offset - index * blockBytes;
  let length = blockBytes - within;
  for (let next = index + 1; length < bytes && next < table.count; next++) {
    at += entryBytes;
    if (at >= PAGE_BYTES || (table.gapEvery !== undefined && next % table.gapEvery === 0)) break;
    const follows = table.decode(view, at, next);
    if (place >= 0 ? follows !== place + (next - index) * blockBytes : follows !== place) break;
    length += blockBytes;
  }
  found.bytes = Math.min(length, bytes);
  if (place >= 0) {
    found.kind = Place.data;
    found.host = place + within;
  } else {
    found.kind = place === HOLE ? Place.hole : place === ZERO ? Place.zero : Place.packed;
    found.host = 0;
  }
  found.child = table.tables.child;
  return null;
}

/** A block of a flat table that is getting a place. */
export interface FlatAllocation extends Allocation {
  readonly index: number;
  /** Pinned until the block is linked or given up. */
  readonly page: CachedTable;
  /** What was taken of the space: the block and what belongs to it. */
  readonly taken: number;
  readonly takenBytes: number;
}

/**
 * The plan of a map over such a table: a place of `takenBytes` at the end of the file, the block's data at
 * `dataOffset` bytes in it.
 */
export function planFlat(
  table: FlatTable,
  space: AppendSpace,
  offset: number,
  takenBytes: number,
  dataOffset: number,
): FlatAllocation | TableNeed {
  const { blockBytes } = table;
  const index = Math.floor(offset / blockBytes);
  const page = pageOf(table, index);
  if (isNeed(page)) return page;
  const fresh = space.end >= space.freshFrom;
  const taken = takeSpace(space, takenBytes);
  page.pins++;
  const start = index * blockBytes;
  return {
    start,
    end: start + blockBytes,
    host: taken + dataOffset,
    child: space.child,
    fresh,
    waiters: new CoQueue(),
    index,
    page,
    taken,
    takenBytes,
  };
}

/** The page may be changed and goes its way. */
export function finishFlat(table: FlatTable, allocation: Allocation): FlatAllocation {
  const flat = allocation as FlatAllocation;
  flat.page.pins--;
  table.tables.cache.markDirty(flat.page);
  return flat;
}

export function abandonFlat(space: AppendSpace, allocation: Allocation, untouched: boolean): void {
  const { page, taken, takenBytes } = allocation as FlatAllocation;
  page.pins--;
  giveBack(space, taken, takenBytes, untouched);
}

/** All entries of the table in pieces of at most 1 MiB, read from the file. Others run in between. */
export async function* tablePieces(
  table: FlatTable,
  guard: GraphReadGuard,
): AsyncGenerator<{ readonly view: DataView; readonly first: number; readonly count: number }> {
  const perPiece = PIECE_BYTES / table.entryBytes;
  const turns = createTurns();
  for (let first = 0; first < table.count; first += perPiece) {
    const count = Math.min(perPiece, table.count - first);
    const offset = table.startBytes + first * table.entryBytes;
    const bytes = await readBytes(table.tables.child, guard, offset, count * table.entryBytes);
    await turns.next();
    yield { view: viewOf(bytes), first, count };
  }
}
