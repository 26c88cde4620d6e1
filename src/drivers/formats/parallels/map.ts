/** Where the clusters of a Parallels image are, how new ones are taken, and how that reaches the disk. */

import type { OpenPurpose } from '../../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BlockChild, BlockNode } from '../../../block/graph/node.ts';
import { co } from '../../../block/io/callbacks.ts';
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
} from '../shared/flat-table.ts';
import { type BlockMap, createFound, type MappedState } from '../shared/mapped-image.ts';
import { addBit, createBits } from '../shared/sparse-bits.ts';
import { writeBytes } from '../shared/table-io.ts';
import { createWriteBack } from '../shared/write-back.ts';
import { HEADER_BYTES, markedHeader, type ParallelsHeader } from './header.ts';

export interface ParallelsState extends MappedState {
  readonly file: BlockChild;
  readonly header: ParallelsHeader;
  readonly purpose: OpenPurpose;
  readonly table: FlatTable;
  /** Of the file when it was opened: what lies behind is this node's own, or not there. */
  readonly fileBytes: number;
  /** Null: not open for writing. */
  space: AppendSpace | null;
  /** Where `space` began. */
  ownFrom: number;
  /** The mark of an open image is on the disk, and this node has put it there. */
  marked: boolean;
}

export type ParallelsNode = BlockNode<ParallelsState>;

export function createState(file: BlockChild, header: ParallelsHeader, purpose: OpenPurpose): ParallelsState {
  const { unitBytes, dataOffset } = header;
  const state: ParallelsState = {
    file,
    header,
    purpose,
    fileBytes: file.node.totalBytes,
    space: null,
    ownFrom: Number.POSITIVE_INFINITY,
    marked: false,
    found: createFound(),
    allocations: [],
    writeBack: createWriteBack(),
    table: createFlatTable(file, {
      startBytes: HEADER_BYTES,
      entryBytes: 4,
      blockBytes: header.clusterBytes,
      count: header.entries,
      decode(view, at) {
        const entry = view.getUint32(at, true);
        if (entry === 0) return HOLE;
        const host = entry * unitBytes;
        // In the table, or in a part of the image that is missing.
        if (host < dataOffset || (host >= state.fileBytes && host < state.ownFrom)) throw ioError(E.EIO);
        return host;
      },
    }),
  };
  return state;
}

/**
 * Looks through the table, so that no new cluster is put where one is already, and marks the image as open. Throws when
 * two clusters have the same place: writing to one would change the other.
 */
export async function startWriting(node: ParallelsNode, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  const { clusterBytes, unitBytes, dataOffset } = s.header;
  const used = createBits();
  let end = Math.max(s.fileBytes, dataOffset);
  for await (const { view, first, count } of tablePieces(s.table, guard)) {
    for (let i = 0; i < count; i++) {
      const entry = view.getUint32(i * 4, true);
      if (entry === 0 || entry * unitBytes >= s.fileBytes) continue;
      if (!addBit(used, entry)) {
        throw new BlockError(
          `parallels: Cluster ${first + i} has the same place in the image as another one`,
          {
            errno: E.EINVAL,
          },
        );
      }
      end = Math.max(end, entry * unitBytes + clusterBytes);
    }
  }
  s.ownFrom = Math.ceil(end / clusterBytes) * clusterBytes;
  s.space = createSpace(s.file, s.ownFrom);
  await mark(node, guard, true);
}

/** Writes the header with the mark or without it. */
export async function mark({ state }: ParallelsNode, guard: GraphReadGuard, inUse: boolean): Promise<void> {
  if (!inUse) await co.flush(state.file.node, guard);
  await writeBytes(state.file, guard, 0, markedHeader(state.header, inUse));
  if (inUse) await co.flush(state.file.node, guard);
  state.marked = inUse;
}

export const map: BlockMap<ParallelsState> = {
  lookup: ({ state }, offset, bytes) => lookupFlat(state.table, state.found, offset, bytes),
  plan({ state }, offset) {
    const { space, header, table } = state;
    if (space === null) throw ioError(E.EPERM);
    if ((space.end + header.clusterBytes) / header.unitBytes > 0xffffffff) throw ioError(E.ENOSPC);
    return planFlat(table, space, offset, header.clusterBytes, 0);
  },
  link({ state }, allocation) {
    const { page, index, taken } = finishFlat(state.table, allocation);
    page.view.setUint32(entryPlace(state.table, index), taken / state.header.unitBytes, true);
  },
  abandon: ({ state }, allocation, untouched) => abandonFlat(state.space!, allocation, untouched),
  writeBack: {
    tableFiles: ({ table }) => [table.tables],
    prepare: ({ state }, guard) => extendFile(state.space!, guard),
  },
};
