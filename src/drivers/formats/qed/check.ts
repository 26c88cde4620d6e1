/** Checking qed images: offsets that cannot be, clusters used twice, clusters nobody uses. */

import { createTurns, type Turns } from '../../../aio/host/turns.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import {
  emptyCheckResult,
  type ImageCheckRequest,
  type ImageCheckResult,
} from '../../../block/contract/image.ts';
import { addBit, createBits, type SparseBits } from '../shared/sparse-bits.ts';
import { readBytes, viewOf, writeBytes } from '../shared/table-io.ts';
import { readEntry, writeEntry } from '../shared/two-level.ts';
import { flushMapped } from '../shared/write-back.ts';
import { isPlace, map, type QedNode } from './map.ts';
import { clearNeedCheck } from './need-check.ts';

/** Tables are read in pieces of this length, and others run in between. */
const PIECE_BYTES = 1024 * 1024;

interface Check {
  readonly turns: Turns;
  readonly node: QedNode;
  readonly guard: GraphReadGuard;
  readonly fix: boolean;
  /** Of what may be named. */
  readonly end: number;
  readonly used: SparseBits;
  readonly result: ImageCheckResult;
}

/** Counts the clusters of [offset, offset+bytes) as used; false when one of them was before. */
function use({ node, used }: Check, offset: number, bytes: number): boolean {
  const { clusterBytes } = node.state.header;
  let isFirst = true;
  for (let at = offset; at < offset + bytes; at += clusterBytes)
    isFirst = addBit(used, at / clusterBytes) && isFirst;
  return isFirst;
}

/** Counts an entry that is wrong; true: it is to be cleared. */
function countWrong({ result, fix }: Check): boolean {
  result.corruptions++;
  if (fix) result.corruptionsFixed++;
  return fix;
}

async function checkL2(check: Check, l2: number): Promise<void> {
  const { node, guard, result, end } = check;
  const { file, header, table } = node.state;
  const { clusterBytes } = header;
  // Entries behind the end of the disk are looked at too.
  const clusters = table.l2Entries;
  let previous = 0;
  for (let first = 0; first < clusters; first += PIECE_BYTES / 8) {
    const count = Math.min(PIECE_BYTES / 8, clusters - first);
    const bytes = await readBytes(file, guard, l2 + first * 8, count * 8);
    const view = viewOf(bytes);
    let changed = false;
    for (let i = 0; i < count; i++) {
      const entry = readEntry(view, i * 8, true);
      if (entry <= 1) continue;
      result.allocatedClusters++;
      if (previous !== 0 && entry !== previous + clusterBytes) result.fragmentedClusters++;
      previous = entry;
      if (isPlace(entry, clusterBytes, end) && use(check, entry, clusterBytes)) continue;
      if (!countWrong(check)) continue;
      writeEntry(view, i * 8, 0, true);
      changed = true;
    }
    if (changed) await writeBytes(file, guard, l2 + first * 8, bytes);
    await check.turns.next();
  }
}

/** L1 entries [first, first+count): all there is on the disk, needed or not. */
async function checkL1(check: Check, first: number, count: number): Promise<void> {
  const { node, guard, end } = check;
  const { header, table, file } = node.state;
  const bytes = await readBytes(file, guard, header.l1Offset + first * 8, count * 8);
  const view = viewOf(bytes);
  let changed = false;
  for (let i = 0; i < count; i++) {
    const l2 = readEntry(view, i * 8, true);
    if (l2 === 0) continue;
    const fits = isPlace(l2, header.clusterBytes, end) && l2 + table.l2Bytes <= end;
    if (fits && use(check, l2, table.l2Bytes)) {
      await checkL2(check, l2);
    } else if (countWrong(check)) {
      writeEntry(view, i * 8, 0, true);
      if (first + i < table.l1Entries) writeEntry(table.l1, (first + i) * 8, 0, true);
      changed = true;
    }
  }
  if (changed) await writeBytes(file, guard, header.l1Offset + first * 8, bytes);
}

/** Looks through all tables. The node is drained. */
export async function check(
  node: QedNode,
  guard: GraphReadGuard,
  request: ImageCheckRequest,
): Promise<ImageCheckResult> {
  const { state } = node;
  const { header, table, file } = state;
  const { clusterBytes } = header;
  if (!node.readOnly) await flushMapped(map, node, guard);
  const end = file.node.totalBytes;
  const result: ImageCheckResult = {
    ...emptyCheckResult(),
    totalClusters: Math.ceil(header.size / clusterBytes),
  };
  const used = createBits();
  const fix = request.fixErrors && !node.readOnly;
  const checking: Check = { turns: createTurns(), node, guard, fix, end, used, result };
  use(checking, 0, header.headerClusters * clusterBytes);
  use(checking, header.l1Offset, header.tableClusters * clusterBytes);
  for (let first = 0; first < table.l2Entries; first += PIECE_BYTES / 8)
    await checkL1(checking, first, Math.min(PIECE_BYTES / 8, table.l2Entries - first));
  if (result.corruptionsFixed > 0) table.tables.cache.clear();
  result.leaks = Math.max(0, Math.floor(end / clusterBytes) - used.count);
  if (
    result.corruptions === result.corruptionsFixed &&
    !node.readOnly &&
    (request.fixErrors || request.fixLeaks)
  )
    await clearNeedCheck(node, guard);
  return result;
}
