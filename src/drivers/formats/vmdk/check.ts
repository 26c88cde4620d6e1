/** Checking a VMDK image: grains and tables that lie behind the end of their file, grains with two places in the disk. */

import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import {
  emptyCheckResult,
  type ImageCheckRequest,
  type ImageCheckResult,
} from '../../../block/contract/image.ts';
import { E } from '../../../errors/errno.ts';
import { ioError } from '../../../errors/error.ts';
import { addBit, createBits } from '../shared/sparse-bits.ts';
import { readBytes, viewOf } from '../shared/table-io.ts';
import { flushMapped } from '../shared/write-back.ts';
import { map } from './map.ts';
import { SECTOR_BYTES } from './sparse-header.ts';
import type { Extent, SparsePart, VmdkNode } from './state.ts';

/**
 * Reports what is wrong, and repairs nothing (ENOTSUP). As with the original, an image whose grains are not all there
 * fails with EINVAL at the first of them.
 */
export async function check(
  node: VmdkNode,
  guard: GraphReadGuard,
  request: ImageCheckRequest,
): Promise<ImageCheckResult> {
  if (request.fixErrors || request.fixLeaks) throw ioError(E.ENOTSUP);
  const extents = node.state.extents.filter(({ sparse }) => sparse !== null);
  if (!node.readOnly) await flushMapped(map, node, guard);
  const result = emptyCheckResult();
  for (const extent of extents) {
    const count = await checkExtent(extent, extent.sparse!, guard, request);
    result.corruptions += count;
  }
  return result;
}

/** Returns the number of grains whose place another one has, too. */
async function checkExtent(
  extent: Extent,
  part: SparsePart,
  guard: GraphReadGuard,
  { report }: ImageCheckRequest,
): Promise<number> {
  const { directory, entriesPerTable, entryBytes, grainBytes, tables } = part;
  const child = extent.child!;
  const fileBytes = child.node.totalBytes;
  const used = createBits();
  let twice = 0;
  for (const [number, offset] of directory.entries()) {
    if (offset === 0) continue;
    const first = number * entriesPerTable;
    const sector = (extent.start + first * grainBytes) / SECTOR_BYTES;
    if (offset + tables.cache.tableBytes > fileBytes) {
      report(`ERROR: grain table for sector ${sector} points after EOF`);
      throw ioError(E.EINVAL);
    }
    const view = viewOf(await readBytes(child, guard, offset, tables.cache.tableBytes));
    const grains = Math.min(entriesPerTable, Math.ceil(extent.bytes / grainBytes) - first);
    for (let i = 0; i < grains; i++) {
      const at = sector + (i * grainBytes) / SECTOR_BYTES;
      const place = placeOf(part, view, i * entryBytes);
      if (place === null) {
        report(`ERROR: cluster offset for sector ${at} points after EOF`);
        throw ioError(E.EINVAL);
      }
      if (place < 0) continue;
      if (addBit(used, Math.floor(place / (part.compressed ? SECTOR_BYTES : grainBytes)))) continue;
      report(`ERROR: cluster offset for sector ${at} is that of another one`);
      twice++;
    }
  }
  return twice;
}

/** As the part's decode; null where it throws. */
function placeOf(part: SparsePart, view: DataView, at: number): number | null {
  try {
    return part.decode(view, at);
  } catch {
    return null;
  }
}
