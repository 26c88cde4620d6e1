/** Where the blocks of a VHDX image are, how new ones are taken, and how that reaches the disk through the log. */

import { randomBytes } from 'node:crypto';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BlockChild, BlockNode } from '../../../block/graph/node.ts';
import { co } from '../../../block/io/callbacks.ts';
import { E } from '../../../errors/errno.ts';
import { ioError } from '../../../errors/error.ts';
import { type AppendSpace, extendFile } from '../shared/append-space.ts';
import {
  abandonFlat,
  entryPlace,
  type FlatTable,
  finishFlat,
  HOLE,
  lookupFlat,
  PACKED,
  planFlat,
  ZERO,
} from '../shared/flat-table.ts';
import {
  type BlockMap,
  type MappedState,
  Place,
  type TableFile,
  type TableNeed,
  type TableWrite,
} from '../shared/mapped-image.ts';
import { writeBytes } from '../shared/table-io.ts';
import { writeTables } from '../shared/write-back.ts';
import { encodeHeader, HEADER_AT, type Header, type Metadata, MIB, State } from './layout.ts';
import { encodeEntry, LOG_SECTOR_BYTES, MAX_LOGGED_SECTORS, type Replay } from './log.ts';

const BITMAP_BYTES = MIB;

export interface VhdxState extends MappedState {
  readonly file: BlockChild;
  header: Header;
  readonly metadata: Metadata;
  /** Entries of payload blocks, with those of bitmaps in between. */
  readonly table: FlatTable;
  readonly chunkRatio: number;
  /** The whole table, by entries as they are on the disk. */
  readonly tableOffset: number;
  readonly bitmaps: TableFile;
  /** Length of the file when it was opened: blocks behind it are this node's own, or not there. */
  readonly fileBytes: number;
  /** Null: not open for writing. */
  space: AppendSpace | null;
  /** Where `space` began. */
  ownFrom: number;
  /** Next entry of the log: place in the ring, number. */
  logAt: number;
  logSequence: bigint;
  /** The header says that the guest has written since the image was opened. */
  marked: boolean;
  marking: Promise<void> | null;
  /** Names of the parent; null: none. */
  parentName: string | null;
  /** What the log held when the image was opened, as long as it is not in its place; see replay.ts. */
  replay: Replay | null;
  /** The log has been replayed in the file, which a check tells. */
  repaired: boolean;
}

export type VhdxNode = BlockNode<VhdxState>;

/** What an entry of the table says; `at` in `view`. */
export function decodeEntry(state: VhdxState, view: DataView, at: number): number {
  const low = view.getUint32(at, true);
  const { hasParent } = state.metadata;
  switch (low & 7) {
    case State.notPresent:
      return hasParent ? HOLE : ZERO;
    case State.undefined:
    case State.zero:
    case State.unmapped:
      return ZERO;
    case State.partiallyPresent:
      if (!hasParent) throw ioError(E.EIO);
      return PACKED;
    case State.fullyPresent:
      return hostOf(state, view, at);
    default:
      throw ioError(E.EIO);
  }
}

function hostOf(state: VhdxState, view: DataView, at: number): number {
  const host = (view.getUint32(at + 4, true) * 4096 + (view.getUint32(at, true) >>> 20)) * MIB;
  if (host < MIB || (host >= state.fileBytes && host < state.ownFrom)) throw ioError(E.EIO);
  return host;
}

function lookup({ state }: VhdxNode, offset: number, bytes: number): TableNeed | null {
  const { found, table } = state;
  const missing = lookupFlat(table, found, offset, bytes);
  if (missing !== null || found.kind !== Place.packed) return missing;
  return lookupPartial(state, offset, bytes);
}

/** In a block that is present in part the bitmap says which sectors are in this file. */
function lookupPartial(state: VhdxState, offset: number, bytes: number): TableNeed | null {
  const { metadata, chunkRatio, table, bitmaps, found } = state;
  const { blockBytes, sectorBytes } = metadata;
  const block = Math.floor(offset / blockBytes);
  const chunk = Math.floor(block / chunkRatio);
  // The bitmap's entry follows those of its chunk.
  const index = (chunk + 1) * (chunkRatio + 1) - 1;
  const entryOffset = state.tableOffset + index * 8;
  const pageOffset = entryOffset - ((entryOffset - state.tableOffset) % LOG_SECTOR_BYTES);
  const page = table.tables.cache.get(pageOffset);
  if (page === undefined) return { tables: table.tables, offset: pageOffset };
  const { view } = page;
  if ((view.getUint32(entryOffset - pageOffset, true) & 7) !== State.fullyPresent) throw ioError(E.EIO);
  const bitmapAt = hostOf(state, view, entryOffset - pageOffset);
  const sector = Math.floor(offset / sectorBytes) - (chunk * chunkRatio * blockBytes) / sectorBytes;
  const byte = sector >>> 3;
  if (byte >= BITMAP_BYTES) throw ioError(E.EIO);
  const pieceAt = bitmapAt + byte - (byte % LOG_SECTOR_BYTES);
  const piece = bitmaps.cache.get(pieceAt);
  if (piece === undefined) return { tables: bitmaps, offset: pieceAt };
  const blockPageAt = pageOffsetOf(state, block);
  const blockPage = table.tables.cache.get(blockPageAt);
  if (blockPage === undefined) return { tables: table.tables, offset: blockPageAt };
  const host = hostOf(state, blockPage.view, rawEntryAt(state, block) - blockPageAt);
  const within = offset % blockBytes;
  const base = (pieceAt - bitmapAt) * 8;
  const isHere = (each: number): boolean => (piece.mem.buf[(each - base) >>> 3]! & (1 << (each & 7))) !== 0;
  const here = isHere(sector);
  const most = Math.min(bytes, blockBytes - within);
  const last = Math.min(
    base + LOG_SECTOR_BYTES * 8,
    sector + Math.ceil(((offset % sectorBytes) + most) / sectorBytes),
  );
  let next = sector + 1;
  while (next < last && isHere(next) === here) next++;
  found.bytes = Math.min(most, (next - sector) * sectorBytes - (offset % sectorBytes));
  found.kind = here ? Place.data : Place.hole;
  found.host = here ? host + within : 0;
  found.child = state.file;
  return null;
}

/** File offset of the entry of a payload block. */
function rawEntryAt({ tableOffset, chunkRatio }: VhdxState, block: number): number {
  return tableOffset + (block + Math.floor(block / chunkRatio)) * 8;
}

function pageOffsetOf(state: VhdxState, block: number): number {
  const at = rawEntryAt(state, block) - state.tableOffset;
  return state.tableOffset + at - (at % LOG_SECTOR_BYTES);
}

// ---- headers -------------------------------------------------------------------------------------------------

function randomGuid(): Buffer {
  const guid = randomBytes(16);
  guid[7] = (guid[7]! & 0x0f) | 0x40;
  guid[8] = (guid[8]! & 0x3f) | 0x80;
  return guid;
}

/** Writes the header with changes into the slot that does not count, from where on it does. */
export async function writeHeader(
  { state }: VhdxNode,
  guard: GraphReadGuard,
  changes: Partial<Pick<Header, 'fileGuid' | 'dataGuid' | 'logGuid'>>,
): Promise<void> {
  const { header, file } = state;
  const next = { ...header, ...changes, slot: 1 - header.slot, sequence: header.sequence + 1n };
  await writeBytes(file, guard, HEADER_AT[next.slot]!, encodeHeader(next));
  await co.flush(file.node, guard);
  state.header = next;
}

export const NO_LOG = Buffer.alloc(16);

/** Tells the header of the first write since the opening, as those who have images above this one must know. */
export function markWritten(node: VhdxNode, guard: GraphReadGuard): Promise<void> {
  const { state } = node;
  state.marking ??= mark(node, guard).finally(() => {
    state.marking = null;
  });
  return state.marking;
}

async function mark(node: VhdxNode, guard: GraphReadGuard): Promise<void> {
  const { state } = node;
  // The write-back changes the header as well.
  await state.writeBack.lock.with('header', async () => {
    if (state.marked) return;
    await writeHeader(node, guard, { fileGuid: randomGuid(), dataGuid: randomGuid() });
    state.marked = true;
  });
}

// ---- write-back ----------------------------------------------------------------------------------------------

/** Through the log: an entry with all sectors, made durable, then the sectors in their places. */
async function writeLogged(
  node: VhdxNode,
  guard: GraphReadGuard,
  writes: readonly TableWrite[],
): Promise<void> {
  const { state } = node;
  if (writes.length === 0) return;
  // A log that counts must hold a valid entry: the header names it when the first one is there.
  const isNew = state.header.logGuid.equals(NO_LOG);
  const logGuid = isNew ? randomGuid() : state.header.logGuid;
  for (let from = 0; from < writes.length; from += MAX_LOGGED_SECTORS) {
    const some = writes.slice(from, from + MAX_LOGGED_SECTORS);
    // What the entry before has described must be in its place before this one takes over.
    if (from > 0) await co.flush(state.file.node, guard);
    await logSectors(state, guard, logGuid, some);
    await co.flush(state.file.node, guard);
    if (isNew && from === 0) await writeHeader(node, guard, { logGuid });
    await writeTables(guard, some);
  }
}

async function logSectors(
  state: VhdxState,
  guard: GraphReadGuard,
  logGuid: Buffer,
  writes: readonly TableWrite[],
): Promise<void> {
  const { logBytes, logOffset } = state.header;
  const sectors = writes.map(({ offset, data }) => {
    const whole = data.length === LOG_SECTOR_BYTES ? data : Buffer.alloc(LOG_SECTOR_BYTES);
    if (whole !== data) data.copy(whole);
    return { offset, data: whole };
  });
  const entry = encodeEntry(sectors, {
    at: state.logAt,
    sequence: state.logSequence,
    logGuid,
    fileBytes: state.file.node.totalBytes,
  });
  const first = Math.min(entry.length, logBytes - state.logAt);
  await writeBytes(state.file, guard, logOffset + state.logAt, entry.subarray(0, first));
  if (first < entry.length) await writeBytes(state.file, guard, logOffset, entry.subarray(first));
  state.logAt = (state.logAt + entry.length) % logBytes;
  state.logSequence += 1n;
}

export const map: BlockMap<VhdxState> = {
  lookup,
  plan({ state }, offset) {
    if (state.space === null) throw ioError(E.EPERM);
    return planFlat(state.table, state.space, offset, state.metadata.blockBytes, 0);
  },
  link({ state }, allocation) {
    const { page, index, taken } = finishFlat(state.table, allocation);
    const at = entryPlace(state.table, index);
    const mib = taken / MIB;
    page.view.setUint32(at, (((mib % 4096) << 20) | State.fullyPresent) >>> 0, true);
    page.view.setUint32(at + 4, Math.floor(mib / 4096), true);
  },
  abandon: ({ state }, allocation, untouched) => abandonFlat(state.space!, allocation, untouched),
  // The original tells nothing of blocks here, so there is nothing to be like.
  showsHoles: () => true,
  writeBack: {
    tableFiles: ({ table }) => [table.tables],
    async prepare({ state }, guard) {
      if (state.space !== null) await extendFile(state.space, guard);
    },
    write: writeLogged,
  },
};
