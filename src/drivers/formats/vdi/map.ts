/** Where the blocks of a VDI image are, how new ones are taken, and how that reaches the disk. */

import type { OpenPurpose } from '../../../block/contract/driver.ts';
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
  lookupFlat,
  planFlat,
  tablePieces,
  ZERO,
} from '../shared/flat-table.ts';
import { type BlockMap, createFound, type MappedState } from '../shared/mapped-image.ts';
import { writeBytes } from '../shared/table-io.ts';
import { createWriteBack } from '../shared/write-back.ts';
import { ALLOCATED_COUNT_AT, TYPE_STATIC, UNALLOCATED, type VdiHeader, ZEROED } from './header.ts';

export interface VdiState extends MappedState {
  readonly file: BlockChild;
  readonly header: VdiHeader;
  readonly purpose: OpenPurpose;
  readonly table: FlatTable;
  /** From a block to the next in the file, in bytes. */
  readonly strideBytes: number;
  /** Length of the file when it was opened: blocks behind it are this node's own, or not there. */
  readonly fileBytes: number;
  /** Null: not open for writing. */
  space: AppendSpace | null;
  /** Where `space` began. */
  ownFrom: number;
}

export type VdiNode = BlockNode<VdiState>;

export function createState(file: BlockChild, header: VdiHeader, purpose: OpenPurpose): VdiState {
  const strideBytes = header.blockBytes + header.extraBytes;
  const { dataOffset, extraBytes } = header;
  const state: VdiState = {
    file,
    header,
    purpose,
    strideBytes,
    fileBytes: file.node.totalBytes,
    space: null,
    ownFrom: Number.POSITIVE_INFINITY,
    found: createFound(),
    allocations: [],
    writeBack: createWriteBack(),
    table: createFlatTable(file, {
      startBytes: header.mapOffset,
      entryBytes: 4,
      blockBytes: header.blockBytes,
      count: header.blocks,
      decode(view, at) {
        const entry = view.getUint32(at, true);
        if (entry >= ZEROED) return ZERO;
        const host = dataOffset + entry * strideBytes + extraBytes;
        // The rest of the image is missing.
        if (host >= state.fileBytes && host < state.ownFrom) throw ioError(E.EIO);
        return host;
      },
    }),
  };
  return state;
}

/**
 * Looks through the whole map, so that no new block is put where one is already. Throws when two blocks have the same
 * place: writing to one would change the other.
 */
export async function startWriting(node: VdiNode, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  const { dataOffset, blocks } = s.header;
  const inFile = Math.max(0, Math.ceil((s.fileBytes - dataOffset) / s.strideBytes));
  const used = new Uint8Array(Math.ceil(Math.min(inFile, blocks) / 8));
  let next = Math.min(s.header.allocated, blocks);
  for await (const { view, first, count } of tablePieces(s.table, guard)) {
    for (let i = 0; i < count; i++) {
      const entry = view.getUint32(i * 4, true);
      if (entry >= ZEROED) continue;
      if (entry >= used.length * 8) continue;
      const bit = 1 << (entry & 7);
      if ((used[entry >>> 3]! & bit) !== 0) {
        throw new BlockError(`vdi: Block ${first + i} has the same place in the image as another one`, {
          errno: E.EINVAL,
        });
      }
      used[entry >>> 3]! |= bit;
      if (entry >= next) next = entry + 1;
    }
  }
  s.ownFrom = dataOffset + next * s.strideBytes;
  s.space = createSpace(s.file, s.ownFrom);
}

/** Blocks in the file, by what has been given out. */
function allocatedCount(s: VdiState): number {
  return s.space === null ? s.header.allocated : (s.space.end - s.header.dataOffset) / s.strideBytes;
}

export const map: BlockMap<VdiState> = {
  lookup: ({ state }, offset, bytes) => lookupFlat(state.table, state.found, offset, bytes),
  plan({ state }, offset) {
    if (state.space === null) throw ioError(E.EPERM);
    return planFlat(state.table, state.space, offset, state.strideBytes, state.header.extraBytes);
  },
  link({ state }, allocation) {
    const { page, index, taken } = finishFlat(state.table, allocation);
    const number = (taken - state.header.dataOffset) / state.strideBytes;
    page.view.setUint32(entryPlace(state.table, index), number, true);
  },
  abandon: ({ state }, allocation, untouched) => abandonFlat(state.space!, allocation, untouched),
  showsHoles: ({ state }) => state.header.type === TYPE_STATIC,
  writeBack: {
    tableFiles: ({ table }) => [table.tables],
    hasMore: (state) => allocatedCount(state) !== state.header.allocated,
    async prepare({ state }, guard) {
      const count = allocatedCount(state);
      await extendFile(state.space!, guard);
      if (count === state.header.allocated) return;
      state.header.sector.writeUInt32LE(count, ALLOCATED_COUNT_AT);
      await writeBytes(state.file, guard, 0, state.header.sector);
      state.header.allocated = count;
    },
  },
};

/** Whether a block map entry names a block of the file. */
export function isPlace(entry: number): boolean {
  return entry !== UNALLOCATED && entry !== ZEROED;
}
