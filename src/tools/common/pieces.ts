/**
 * A file that lies in pieces, one behind the other, in files or in places of a file: disks of OVF packages that were cut
 * into chunks. A node to be read, which only the tools have. Which pieces there are is ova.ts.
 */

import { fillVector, sliceVector } from '../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../block/contract/driver.ts';
import type { DriverOptions } from '../../block/contract/image.ts';
import { Role } from '../../block/contract/request.ts';
import type { BlockChild } from '../../block/graph/node.ts';
import { co } from '../../block/io/callbacks.ts';

/** Where a piece is, in bytes. */
export interface PieceOfFile {
  readonly file: string;
  readonly offset: number;
  readonly bytes: number;
}

interface OpenPiece {
  readonly child: BlockChild;
  readonly offset: number;
  /** Where the piece begins and ends in the whole. */
  readonly start: number;
  readonly end: number;
}

interface PiecesState {
  readonly pieces: readonly OpenPiece[];
  readonly bytes: number;
}

/** Options of such a node. */
export function piecesOptions(pieces: readonly PieceOfFile[]): DriverOptions {
  return { driver: 'pieces', 'read-only': true, pieces };
}

async function open(_node: unknown, context: OpenContext): Promise<PiecesState> {
  const { pieces } = context.options as { readonly pieces: readonly PieceOfFile[] };
  const children = new Map<string, BlockChild>();
  const open: OpenPiece[] = [];
  let start = 0;
  for (const [i, { file, offset, bytes }] of pieces.entries()) {
    const options = { driver: 'file', filename: file };
    const child = children.get(file) ?? (await context.openChild(`piece-${i}`, Role.data, true, options))!;
    children.set(file, child);
    open.push({ child, offset, start, end: start + bytes });
    start += bytes;
  }
  return { pieces: open, bytes: start };
}

export const pieces: BlockDriver<PiecesState> = {
  name: 'pieces',
  kind: 'protocol',
  supportedWriteFlags: 0,
  supportedZeroFlags: 0,
  open,
  async preadv({ state }, guard, offset, bytes, vec) {
    const end = offset + bytes;
    for (const piece of state.pieces) {
      const from = Math.max(offset, piece.start);
      const length = Math.min(end, piece.end) - from;
      if (length <= 0) continue;
      const at = piece.offset + (from - piece.start);
      await co.preadv(piece.child.node, guard, at, length, sliceVector(vec, from - offset, length), 0);
    }
    // The last sector may be longer than the file.
    const behind = Math.max(offset, state.bytes);
    if (behind < end) fillVector(sliceVector(vec, behind - offset, end - behind), 0);
  },
  getLength: async ({ state }) => state.bytes,
};
