/** Checking a VHDX image: blocks that lie outside the file, in its metadata, or in one another. */

import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import {
  emptyCheckResult,
  type ImageCheckRequest,
  type ImageCheckResult,
} from '../../../block/contract/image.ts';
import { readBytes, viewOf } from '../shared/table-io.ts';
import { flushMapped } from '../shared/write-back.ts';
import { MIB, State } from './layout.ts';
import { map, type VhdxNode } from './map.ts';
import { patch } from './replay.ts';

const PIECE_BYTES = MIB;

export async function check(
  node: VhdxNode,
  guard: GraphReadGuard,
  request: ImageCheckRequest,
): Promise<ImageCheckResult> {
  const { file, tableOffset, table, chunkRatio, metadata, replay } = node.state;
  if (!node.readOnly) await flushMapped(map, node, guard);
  const fileBytes = Math.max(file.node.totalBytes, replay?.fileBytes ?? 0);
  /** A bit for each MiB of the file that a block takes. */
  const used = new Uint8Array(Math.ceil(fileBytes / MIB / 8) + 1);
  const take = (from: number, bytes: number): boolean => {
    let free = true;
    for (let mib = from / MIB; mib < (from + bytes) / MIB; mib++) {
      const bit = 1 << (mib & 7);
      if ((used[mib >>> 3]! & bit) !== 0) free = false;
      used[mib >>> 3]! |= bit;
    }
    return free;
  };
  take(0, MIB);
  take(node.state.header.logOffset, node.state.header.logBytes);
  take(tableOffset, Math.ceil((table.tables.endBytes - tableOffset) / MIB) * MIB);
  let corruptions = 0;
  const end = table.tables.endBytes;
  for (let at = tableOffset; at < end; at += PIECE_BYTES) {
    const bytes = await readBytes(file, guard, at, Math.min(PIECE_BYTES, end - at));
    patch(replay, at, bytes);
    const view = viewOf(bytes);
    for (let i = 0; i < bytes.length; i += 8) {
      const low = view.getUint32(i, true);
      const state = low & 7;
      if (state !== State.fullyPresent && state !== State.partiallyPresent) continue;
      const index = (at - tableOffset + i) / 8;
      const isBitmap = index % (chunkRatio + 1) === chunkRatio;
      const host = (view.getUint32(i + 4, true) * 4096 + (low >>> 20)) * MIB;
      const length = isBitmap ? MIB : metadata.blockBytes;
      if (host < MIB || host + 1 > fileBytes) {
        request.report(`ERROR: block ${index} lies outside the file`);
        corruptions++;
      } else if (!take(host, Math.min(length, Math.ceil((fileBytes - host) / MIB) * MIB))) {
        request.report(`ERROR: block ${index} overlaps with something else`);
        corruptions++;
      }
    }
  }
  const corruptionsFixed = node.state.repaired ? 1 : 0;
  node.state.repaired = false;
  return { ...emptyCheckResult(), corruptions, corruptionsFixed };
}
