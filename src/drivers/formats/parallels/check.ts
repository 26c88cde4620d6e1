/** Checking Parallels images: the mark of an open one, clusters outside the file or in one place, what is left over. */

import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import {
  emptyCheckResult,
  type ImageCheckRequest,
  type ImageCheckResult,
} from '../../../block/contract/image.ts';
import { co } from '../../../block/io/callbacks.ts';
import { tablePieces } from '../shared/flat-table.ts';
import { addBit, createBits } from '../shared/sparse-bits.ts';
import { writeBytes } from '../shared/table-io.ts';
import { flushMapped } from '../shared/write-back.ts';
import { HEADER_BYTES, markedHeader } from './header.ts';
import { map, type ParallelsNode } from './map.ts';

export async function check(
  node: ParallelsNode,
  guard: GraphReadGuard,
  request: ImageCheckRequest,
): Promise<ImageCheckResult> {
  const { header, table, file, marked } = node.state;
  const { clusterBytes, unitBytes, dataOffset } = header;
  if (!node.readOnly) await flushMapped(map, node, guard);
  const fileBytes = file.node.totalBytes;
  const result: ImageCheckResult = { ...emptyCheckResult(), totalClusters: header.entries };
  const wrong = (what: string): boolean => {
    request.report(`${request.fixErrors ? 'Repairing' : 'ERROR'} ${what}`);
    result.corruptions++;
    if (request.fixErrors) result.corruptionsFixed++;
    return request.fixErrors;
  };
  // What this node has put there itself is no damage.
  if (header.inUse && !marked && wrong('image was not closed correctly'))
    await writeBytes(file, guard, 0, markedHeader(header, false));
  const used = createBits();
  let end = 0;
  let previous = 0;
  for await (const { view, first, count } of tablePieces(table, guard)) {
    let changed = false;
    for (let i = 0; i < count; i++) {
      const place = view.getUint32(i * 4, true) * unitBytes;
      if (place === 0) {
        previous = 0;
        continue;
      }
      const outside =
        place < dataOffset || place + clusterBytes > Math.max(fileBytes, node.state.space?.end ?? 0);
      if (outside || !addBit(used, place / unitBytes)) {
        const what = outside ? 'is outside image' : 'has the same place as another one';
        if (wrong(`cluster ${first + i} ${what}`)) {
          view.setUint32(i * 4, 0, true);
          changed = true;
          previous = 0;
          continue;
        }
      }
      end = Math.max(end, place + clusterBytes);
      result.allocatedClusters++;
      if (previous !== 0 && place !== previous + clusterBytes) result.fragmentedClusters++;
      previous = place;
    }
    if (!changed) continue;
    const bytes = Buffer.from(view.buffer, view.byteOffset, count * 4);
    await writeBytes(file, guard, HEADER_BYTES + first * 4, bytes);
    table.tables.cache.clear();
  }
  if (end === 0) end = dataOffset;
  result.imageEndOffset = end;
  if (fileBytes > end) {
    const leaks = Math.ceil((fileBytes - end) / clusterBytes);
    request.report(
      `${request.fixLeaks ? 'Repairing' : 'ERROR'} space leaked at the end of the image ${fileBytes - end}`,
    );
    result.leaks += leaks;
    if (request.fixLeaks) {
      await co.truncate(file.node, guard, end, true, 'off', false);
      if (node.state.space !== null) node.state.space.end = Math.min(node.state.space.end, end);
      result.leaksFixed += leaks;
    }
  }
  return result;
}
