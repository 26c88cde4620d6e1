/** Where the sectors of a VHD image are, how new blocks are taken, and how that reaches the disk. */

import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BlockChild, BlockNode } from '../../../block/graph/node.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { type AppendSpace, createSpace, extendFile } from '../shared/append-space.ts';
import {
  abandonFlat,
  createFlatTable,
  entryPlace,
  type FlatTable,
  finishFlat,
  HOLE,
  lookupFlat,
  planFlat,
  tablePieces,
  ZERO,
} from '../shared/flat-table.ts';
import {
  type BlockMap,
  createFound,
  type Found,
  type MappedState,
  Place,
  type TableFile,
  type TableNeed,
} from '../shared/mapped-image.ts';
import { TableCache } from '../shared/table-cache.ts';
import { writeBytes } from '../shared/table-io.ts';
import { createWriteBack } from '../shared/write-back.ts';
import { bitmapBytes, type DynamicHeader, FOOTER_BYTES, type Footer, Type } from './footer.ts';

/** Bitmaps in memory: a few hundred bytes each. */
const MAX_BITMAPS = 1024;
const UNUSED = 0xffffffff;

/** What an image that grows has. */
interface Growing {
  readonly header: DynamicHeader;
  readonly table: FlatTable;
  readonly bitmaps: TableFile;
  readonly bitmapBytes: number;
  readonly differs: boolean;
  readonly space: AppendSpace;
  /** Where the footer is in the file. */
  footerAt: number;
}

export interface VpcState extends MappedState {
  readonly file: BlockChild;
  readonly footer: Footer;
  /** Null: a fixed image, the bytes of the disk as they are. */
  growing: Growing | null;
  /** What the image says of its parent. */
  parentName: string | null;
}

export type VpcNode = BlockNode<VpcState>;

export function createState(file: BlockChild, footer: Footer): VpcState {
  return {
    file,
    footer,
    growing: null,
    parentName: null,
    found: createFound(),
    allocations: [],
    writeBack: createWriteBack(),
  };
}

/** Looks through the table of a growing image: where new blocks may begin. Throws when blocks are missing. */
export async function createGrowing(
  file: BlockChild,
  guard: GraphReadGuard,
  footer: Footer,
  header: DynamicHeader,
): Promise<Growing> {
  const { blockBytes } = header;
  const differs = footer.type === Type.differencing;
  const bitmap = bitmapBytes(blockBytes);
  const fileBytes = file.node.totalBytes;
  const blocks = Math.ceil(footer.diskBytes / blockBytes);
  const tableEnd = header.tableOffset + header.entries * 4;
  const table = createFlatTable(file, {
    startBytes: header.tableOffset,
    entryBytes: 4,
    blockBytes,
    count: blocks,
    decode(view, at) {
      const entry = view.getUint32(at);
      if (entry !== UNUSED) return entry * 512 + bitmap;
      return differs ? HOLE : ZERO;
    },
  });
  let end = Math.max(tableEnd, FOOTER_BYTES);
  for await (const { view, count } of tablePieces(table, guard)) {
    for (let i = 0; i < count; i++) {
      const entry = view.getUint32(i * 4);
      if (entry === UNUSED) continue;
      if (entry * 512 < tableEnd && entry * 512 + bitmap + blockBytes > header.tableOffset) {
        throw new BlockError(`vpc: A block lies in the block allocation table (sector ${entry})`, {
          errno: E.EINVAL,
        });
      }
      const blockEnd = entry * 512 + bitmap + blockBytes;
      if (blockEnd > end) end = blockEnd;
    }
  }
  end = Math.ceil(end / 512) * 512;
  if (end > fileBytes) {
    throw new BlockError(
      'block-vpc: free_data_block_offset points after the end of file. The image has been truncated.',
      { errno: E.EINVAL },
    );
  }
  return {
    header,
    table,
    differs,
    bitmapBytes: bitmap,
    bitmaps: {
      child: file,
      cache: new TableCache(bitmap, Math.max(64, Math.min(MAX_BITMAPS, 2 ** 24 / bitmap))),
      endBytes: Number.POSITIVE_INFINITY,
    },
    space: createSpace(file, end),
    footerAt: end,
  };
}

/** In a differencing image only the sectors whose bits are set are in the file. */
function lookupSectors(growing: Growing, found: Found, offset: number, bytes: number): TableNeed | null {
  const { blockBytes } = growing.header;
  const within = offset % blockBytes;
  const length = Math.min(bytes, blockBytes - within);
  const bitmapAt = found.host - within - growing.bitmapBytes;
  const bitmap = growing.bitmaps.cache.get(bitmapAt);
  if (bitmap === undefined) return { tables: growing.bitmaps, offset: bitmapAt };
  const isHere = (sector: number): boolean => (bitmap.mem.buf[sector >>> 3]! & (0x80 >>> (sector & 7))) !== 0;
  const first = Math.floor(within / 512);
  const here = isHere(first);
  const last = Math.ceil((within + length) / 512);
  let next = first + 1;
  while (next < last && isHere(next) === here) next++;
  found.bytes = Math.min(length, next * 512 - within);
  if (here) return null;
  found.kind = Place.hole;
  found.host = 0;
  return null;
}

export const map: BlockMap<VpcState> = {
  lookup({ state }, offset, bytes) {
    const { growing, found } = state;
    if (growing === null) {
      found.kind = Place.data;
      found.bytes = bytes;
      found.host = offset;
      found.child = state.file;
      return null;
    }
    const missing = lookupFlat(growing.table, found, offset, bytes);
    if (missing !== null || !growing.differs || found.kind !== Place.data) return missing;
    return lookupSectors(growing, found, offset, bytes);
  },
  plan({ state }, offset) {
    const growing = state.growing!;
    if (growing.differs) throw ioError(E.EPERM);
    const { blockBytes } = growing.header;
    return planFlat(
      growing.table,
      growing.space,
      offset,
      growing.bitmapBytes + blockBytes,
      growing.bitmapBytes,
    );
  },
  link({ state }, allocation) {
    const growing = state.growing!;
    const { page, index, taken } = finishFlat(growing.table, allocation);
    const bitmap = growing.bitmaps.cache.create(taken);
    bitmap.mem.buf.fill(0xff);
    bitmap.unlinked = true;
    page.view.setUint32(entryPlace(growing.table, index), taken / 512);
  },
  abandon: ({ state }, allocation, untouched) => abandonFlat(state.growing!.space, allocation, untouched),
  showsHoles: ({ state }) => state.growing === null,
  writeBack: {
    tableFiles: ({ growing }) => (growing === null ? [] : [growing.table.tables, growing.bitmaps]),
    hasMore: ({ growing }) => growing !== null && growing.footerAt !== growing.space.end,
    async prepare({ state }, guard) {
      const growing = state.growing!;
      const { end } = growing.space;
      await extendFile(growing.space, guard, FOOTER_BYTES);
      if (growing.footerAt === end) return;
      await writeBytes(state.file, guard, end, state.footer.bytes);
      growing.footerAt = end;
    },
  },
};
