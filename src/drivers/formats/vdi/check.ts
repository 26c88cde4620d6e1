/** Checking the block map of a VDI image: numbers out of range or used twice, and the count in the header. */

import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import {
  emptyCheckResult,
  type ImageCheckRequest,
  type ImageCheckResult,
} from '../../../block/contract/image.ts';
import { tablePieces } from '../shared/flat-table.ts';
import { writeBytes } from '../shared/table-io.ts';
import { flushMapped } from '../shared/write-back.ts';
import { ALLOCATED_COUNT_AT } from './header.ts';
import { isPlace, map, type VdiNode } from './map.ts';

export async function check(
  node: VdiNode,
  guard: GraphReadGuard,
  request: ImageCheckRequest,
): Promise<ImageCheckResult> {
  const { header, table, file } = node.state;
  if (!node.readOnly) await flushMapped(map, node, guard);
  const used = new Uint8Array(Math.ceil(header.blocks / 8));
  let allocated = 0;
  let corruptions = 0;
  let corruptionsFixed = 0;
  /** The first block behind all those that are mapped. */
  let next = 0;
  for await (const { view, first, count } of tablePieces(table, guard)) {
    for (let i = 0; i < count; i++) {
      const entry = view.getUint32(i * 4, true);
      if (!isPlace(entry)) continue;
      if (entry >= header.blocks) {
        request.report(`ERROR: block index ${first + i} too large, is ${entry}`);
        corruptions++;
        continue;
      }
      allocated++;
      next = Math.max(next, entry + 1);
      const bit = 1 << (entry & 7);
      if ((used[entry >>> 3]! & bit) !== 0) {
        request.report(`ERROR: block index ${entry} also used by ${entry}`);
        corruptions++;
      }
      used[entry >>> 3]! |= bit;
    }
  }
  if (allocated !== header.allocated) {
    // New blocks go where the count says: it must never name a place that is taken.
    if (request.fixErrors && corruptions === 0 && next === allocated) {
      header.sector.writeUInt32LE(allocated, ALLOCATED_COUNT_AT);
      await writeBytes(file, guard, 0, header.sector);
      header.allocated = allocated;
      corruptionsFixed++;
    } else {
      request.report(`ERROR: allocated blocks mismatch, is ${allocated}, should be ${header.allocated}`);
      corruptions++;
    }
  }
  return { ...emptyCheckResult(), corruptions, corruptionsFixed };
}
