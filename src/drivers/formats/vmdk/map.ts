/** Where the sectors of a VMDK image are, how grains and tables are taken, and how that reaches the disk. */

import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import { co } from '../../../block/io/callbacks.ts';
import { CoQueue } from '../../../coroutine/co-queue.ts';
import { E } from '../../../errors/errno.ts';
import { ioError } from '../../../errors/error.ts';
import { extendFile, giveBack, takeSpace } from '../shared/append-space.ts';
import { HOLE, ZERO } from '../shared/flat-table.ts';
import {
  type Allocation,
  type BlockMap,
  Place,
  type TableNeed,
  type TableWrite,
} from '../shared/mapped-image.ts';
import type { CachedTable } from '../shared/table-cache.ts';
import { writeBytes } from '../shared/table-io.ts';
import { writeTables } from '../shared/write-back.ts';
import { readGrain } from './grain-read.ts';
import { GTE_ZEROED, SECTOR_BYTES } from './sparse-header.ts';
import { type Extent, extentAt, type SparsePart, type VmdkNode, type VmdkState } from './state.ts';

interface GrainAllocation extends Allocation {
  readonly part: SparsePart;
  readonly page: CachedTable;
  /** Where the entry is in the table, in bytes. */
  readonly entryAt: number;
}

/** The table and the entry of a place in an extent. `at` in bytes from the start of the extent. */
function placeOf(part: SparsePart, at: number): { readonly table: number; readonly entry: number } {
  const grain = Math.floor(at / part.grainBytes);
  const table = Math.floor(grain / part.entriesPerTable);
  return { table, entry: grain - table * part.entriesPerTable };
}

function lookup({ state }: VmdkNode, offset: number, bytes: number): TableNeed | null {
  const { found } = state;
  const extent = extentAt(state, offset);
  const at = offset - extent.start;
  const most = Math.min(bytes, extent.bytes - at);
  const { sparse, child } = extent;
  found.child = child;
  if (sparse !== null) return lookupGrain(state, extent, sparse, at, most);
  found.bytes = most;
  found.kind = child === null ? Place.zero : Place.data;
  found.host = child === null ? 0 : extent.offset + at;
  return null;
}

function lookupGrain(
  state: VmdkState,
  extent: Extent,
  part: SparsePart,
  at: number,
  most: number,
): TableNeed | null {
  const { found } = state;
  const { grainBytes, entriesPerTable, entryBytes } = part;
  const { table, entry } = placeOf(part, at);
  const offset = part.directory[table]!;
  found.host = 0;
  if (offset === 0) {
    // Without a table nothing here is.
    found.kind = Place.hole;
    found.bytes = Math.min(most, (table + 1) * entriesPerTable * grainBytes - at);
    if (state.parentMismatch) throw ioError(E.EINVAL);
    return null;
  }
  const page = part.tables.cache.get(offset);
  if (page === undefined) {
    if (offset + part.tables.cache.tableBytes > extent.child!.node.totalBytes) throw ioError(E.EIO);
    return { tables: part.tables, offset };
  }
  const { view } = page;
  const place = part.decode(view, entry * entryBytes);
  const within = at % grainBytes;
  let length = grainBytes - within;
  if (!(part.compressed && place >= 0)) {
    for (let next = entry + 1; length < most && next < entriesPerTable; next++) {
      const follows = part.decode(view, next * entryBytes);
      if (place >= 0 ? follows !== place + (next - entry) * grainBytes : follows !== place) break;
      length += grainBytes;
    }
  }
  found.bytes = Math.min(length, most);
  if (place >= 0) {
    found.kind = part.compressed ? Place.packed : Place.data;
    found.host = part.compressed ? place : place + within;
    return null;
  }
  found.kind = place === ZERO ? Place.zero : Place.hole;
  if (place === HOLE && state.parentMismatch) throw ioError(E.EINVAL);
  return null;
}

/** The table for a place, made if there is none yet. */
function tableFor(part: SparsePart, number: number): CachedTable | TableNeed {
  const offset = part.directory[number]!;
  if (offset !== 0) return part.tables.cache.get(offset) ?? { tables: part.tables, offset };
  const { space, tables, redundant } = part;
  const bytes = Math.ceil(tables.cache.tableBytes / SECTOR_BYTES) * SECTOR_BYTES;
  if (redundant !== null) redundant[number] = takeSpace(space!, bytes);
  const at = takeSpace(space!, bytes);
  part.directory[number] = at;
  part.tableNumbers?.set(at, number);
  part.changed.add(number);
  return tables.cache.create(at);
}

function writablePart(extent: Extent): SparsePart {
  const { sparse } = extent;
  if (sparse === null || sparse.space === null || sparse.compressed) throw ioError(E.EIO);
  return sparse;
}

function plan({ state }: VmdkNode, offset: number): GrainAllocation | TableNeed {
  const extent = extentAt(state, offset);
  const part = writablePart(extent);
  const at = offset - extent.start;
  const { table, entry } = placeOf(part, at);
  const page = tableFor(part, table);
  if ('tables' in page) return page;
  const { grainBytes } = part;
  const space = part.space!;
  const fresh = space.end >= space.freshFrom;
  const host = takeSpace(space, grainBytes);
  page.pins++;
  const start = extent.start + at - (at % grainBytes);
  return {
    start,
    // The last grain may reach over the end of the extent, where nothing of it is used.
    end: Math.min(start + grainBytes, extent.start + extent.bytes),
    host,
    child: extent.child!,
    fresh,
    waiters: new CoQueue(),
    part,
    page,
    entryAt: entry * part.entryBytes,
  };
}

function link(_node: VmdkNode, allocation: Allocation): void {
  const { part, page, entryAt, host } = allocation as GrainAllocation;
  page.pins--;
  page.view.setUint32(entryAt, host / SECTOR_BYTES, true);
  part.tables.cache.markDirty(page);
}

function abandon(_node: VmdkNode, allocation: Allocation, untouched: boolean): void {
  const { part, page, host } = allocation as GrainAllocation;
  page.pins--;
  giveBack(part.space!, host, part.grainBytes, untouched);
}

/** Marks whole grains that have no place as zeroes, where the image has such marks. */
function zero({ state }: VmdkNode, offset: number, bytes: number): number | TableNeed {
  const extent = extentAt(state, offset);
  const part = extent.sparse;
  if (part === null || !part.zeroedGrains || part.compressed || part.space === null) return 0;
  if (state.found.kind !== Place.hole) return 0;
  const at = offset - extent.start;
  const { grainBytes, entryBytes, entriesPerTable } = part;
  if (at % grainBytes !== 0) return 0;
  const { table, entry } = placeOf(part, at);
  const page = tableFor(part, table);
  if ('tables' in page) return page;
  const isEnd = at + bytes === extent.bytes;
  const grains = Math.min(
    isEnd ? Math.ceil(bytes / grainBytes) : Math.floor(bytes / grainBytes),
    entriesPerTable - entry,
  );
  for (let i = 0; i < grains; i++) page.view.setUint32((entry + i) * entryBytes, GTE_ZEROED, true);
  if (grains > 0) part.tables.cache.markDirty(page);
  return Math.min(grains * grainBytes, bytes);
}

function sparseParts({ extents }: VmdkState): SparsePart[] {
  return extents.flatMap(({ sparse }) => (sparse === null ? [] : [sparse]));
}

/** Tables, with their redundant copies first; then the directories, when the tables they point to are safe. */
async function writeMetadata(
  node: VmdkNode,
  guard: GraphReadGuard,
  writes: readonly TableWrite[],
): Promise<void> {
  const parts = sparseParts(node.state);
  const copies = parts.flatMap((part) =>
    writes.filter(({ tables }) => tables === part.tables).flatMap((write) => redundantCopy(part, write)),
  );
  await writeTables(guard, [...copies, ...writes]);
  const changed = parts.filter((part) => part.inRound.length > 0);
  if (changed.length === 0) return;
  for (const part of changed) await co.flush(part.tables.child.node, guard);
  for (const part of changed) await writeDirectory(part, guard);
}

function redundantCopy(part: SparsePart, write: TableWrite): TableWrite[] {
  const { redundant, directory } = part;
  if (redundant === null) return [];
  part.tableNumbers ??= new Map(Array.from(directory, (offset, number) => [offset, number]));
  const offset = redundant[part.tableNumbers.get(write.offset) ?? -1] ?? 0;
  return offset === 0 ? [] : [{ ...write, offset }];
}

/** Entries of tables that this round has written; those that came later stay as they are on the disk. */
async function writeDirectory(part: SparsePart, guard: GraphReadGuard): Promise<void> {
  const { directory, redundant, tables, changed, inRound } = part;
  const perSector = SECTOR_BYTES / 4;
  const later = new Set(changed);
  for (const number of inRound) later.delete(number);
  for (const sector of new Set(inRound.map((number) => Math.floor(number / perSector)))) {
    for (const [offsets, start] of [
      [redundant, part.redundantOffset],
      [directory, part.directoryOffset],
    ] as const) {
      if (offsets === null) continue;
      const first = sector * perSector;
      const piece = offsets.subarray(first, first + perSector);
      const bytes = Buffer.alloc(piece.length * 4);
      for (const [i, offset] of piece.entries())
        bytes.writeUInt32LE(later.has(first + i) ? 0 : offset / SECTOR_BYTES, i * 4);
      await writeBytes(tables.child, guard, start + sector * SECTOR_BYTES, bytes);
    }
  }
  for (const number of inRound) changed.delete(number);
  part.inRound = [];
}

export const map: BlockMap<VmdkState> = {
  lookup,
  plan,
  link,
  abandon,
  zero,
  showsHoles: ({ state }, offset) => extentAt(state, offset).sparse === null,
  async readPacked({ state }, guard, { child, host, offset }, vec) {
    const extent = extentAt(state, offset);
    const { grainBytes } = extent.sparse!;
    const grain = { host, bytes: grainBytes, markers: true };
    await readGrain(extent.grains, child, guard, grain, (offset - extent.start) % grainBytes, vec);
  },
  writeBack: {
    tableFiles: (state) => sparseParts(state).flatMap((part) => (part.stream === null ? [part.tables] : [])),
    hasMore: (state) => sparseParts(state).some(({ changed }) => changed.size > 0),
    async prepare({ state }, guard) {
      // Runs in the turn in which the changed tables were taken.
      for (const part of sparseParts(state)) part.inRound = [...part.changed];
      for (const { space, stream } of sparseParts(state))
        if (space !== null && stream === null) await extendFile(space, guard);
    },
    write: writeMetadata,
  },
};
