/**
 * New refcount blocks and a larger refcount table. All of it runs under the metadata lock.
 *
 * A new block lies at the start of the range it counts, so it counts itself: nothing in that range is in use yet. Several
 * that are made at once lie in a row at the start of the first one's range.
 * Order on the disk: the block, then the pointer to it. A pointer to a block that is not there would make free space
 * of everything counted by whatever is there instead.
 */

import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import { MAX_HOST_OFFSET, MAX_REFTABLE_BYTES, viewOf, writeU64 } from '../layout/layout.ts';
import { rebuildMetadata } from '../layout/overlap.ts';
import type { Qcow2Node, Qcow2State } from '../layout/state.ts';
import { debugEvent } from './debug.ts';
import { barrier, changeHeader, checkTablePlace, readMetadata, writeMetadata } from './metadata-io.ts';
import { deferFree, readRefcount, writeRefcount } from './refcount.ts';

/** Makes refcount block `index`, unless somebody else has. */
export async function addRefcountBlock(node: Qcow2Node, guard: GraphReadGuard, index: number): Promise<void> {
  const s = node.state;
  if (index < s.refcountTable.length && s.refcountTable[index] !== 0) return;
  await debugEvent(node, guard, 'refblock_alloc');
  if (index >= s.refcountTable.length) {
    await growRefcountTable(node, guard, index, 0);
    return;
  }
  const offset = index * s.refcountsPerBlock * s.clusterBytes;
  checkTablePlace(s, offset, 'refcount block');
  const content = Buffer.alloc(s.clusterBytes);
  writeRefcount(viewOf(content), s.refcountOrder, 0, 1);
  claim(node, offset, 1);
  await debugEvent(node, guard, 'refblock_alloc_write');
  await writeMetadata(node, guard, offset, content, null);
  await barrier(node, guard);
  await debugEvent(node, guard, 'refblock_alloc_hookup');
  await writeEntries(node, guard, index, [offset]);
  takeOver(s, index, [offset]);
}

/**
 * Makes refcount blocks behind everything counted so far, such that they leave `wanted` clusters in a row, and returns
 * the first of these. For runs that are as long as what one block counts, so that no place is left between the
 * blocks that lie at the start of their ranges.
 */
export async function makeRoomBehind(
  node: Qcow2Node,
  guard: GraphReadGuard,
  wanted: number,
): Promise<number> {
  const s = node.state;
  const blocks = blocksFor(s.refcountsPerBlock, () => wanted);
  let index = endOfBlocks(s);
  if (index + blocks > s.refcountTable.length) {
    await growRefcountTable(node, guard, index, blocks);
    index = endOfBlocks(s);
  }
  const start = index * s.refcountsPerBlock;
  if ((start + blocks + wanted) * s.clusterBytes > MAX_HOST_OFFSET) throw ioError(E.EFBIG);
  const content = Buffer.alloc(blocks * s.clusterBytes);
  countFirst(s, content, blocks, blocks);
  claim(node, start * s.clusterBytes, blocks);
  await debugEvent(node, guard, 'refblock_alloc_write_blocks');
  await writeMetadata(node, guard, start * s.clusterBytes, content, null);
  await barrier(node, guard);
  await debugEvent(node, guard, 'refblock_alloc_hookup');
  const offsets = Array.from({ length: blocks }, (_, block) => (start + block) * s.clusterBytes);
  // A block is pointed to when what counts it is: the first counts itself and those next to it, these the next ones.
  for (let done = 0; done < blocks; ) {
    const end = done === 0 ? 1 : Math.min(blocks, done * s.refcountsPerBlock);
    await writeEntries(node, guard, index + done, offsets.slice(done, end));
    if (end < blocks) await barrier(node, guard);
    done = end;
  }
  takeOver(s, index, offsets);
  return start + blocks;
}

/**
 * Takes refcount blocks off the end of the table that count nothing but themselves. The metadata is settled: what is on
 * the disk is what counts.
 */
export async function dropEmptyBlocks(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  for (let index = endOfBlocks(s) - 1; index > 0; index--) {
    const offset = s.refcountTable[index]!;
    if (offset === 0) continue;
    const own = offset / s.clusterBytes - index * s.refcountsPerBlock;
    if (own < 0 || own >= s.refcountsPerBlock) return;
    const view = viewOf(await readMetadata(node, guard, offset, s.clusterBytes));
    for (let i = 0; i < s.refcountsPerBlock; i++) {
      if (readRefcount(view, s.refcountOrder, i) !== (i === own ? 1 : 0)) return;
    }
    await writeEntries(node, guard, index, [0]);
    await barrier(node, guard);
    s.refcountCache.drop(offset);
    s.refcountTable[index] = 0;
    s.metadata.delete(offset / s.clusterBytes);
    s.refcountBlocks.delete(offset / s.clusterBytes);
  }
}

/** Blocks that count themselves and `rest` more clusters, whose number may depend on theirs. */
function blocksFor(perBlock: number, rest: (blocks: number) => number): number {
  let blocks = 1;
  while (blocks * perBlock < blocks + rest(blocks)) blocks++;
  return blocks;
}

/** Number of the first refcount block behind all that there are. */
function endOfBlocks(s: Qcow2State): number {
  let end = s.refcountTable.length;
  while (end > 0 && s.refcountTable[end - 1] === 0) end--;
  return end;
}

/** Counts one reference to each of the first `clusters` clusters that the blocks in `content` count. */
function countFirst(s: Qcow2State, content: Buffer, blocks: number, clusters: number): void {
  for (let block = 0; block < blocks; block++) {
    const view = viewOf(content.subarray(block * s.clusterBytes, (block + 1) * s.clusterBytes));
    const counted = Math.min(s.refcountsPerBlock, clusters - block * s.refcountsPerBlock);
    for (let i = 0; i < counted; i++) writeRefcount(view, s.refcountOrder, i, 1);
  }
}

/** Writes the entries from number `index` on of the refcount table. */
function writeEntries(
  node: Qcow2Node,
  guard: GraphReadGuard,
  index: number,
  offsets: readonly number[],
): Promise<void> {
  const entries = Buffer.alloc(offsets.length * 8);
  const view = viewOf(entries);
  for (const [i, offset] of offsets.entries()) writeU64(view, i * 8, offset);
  const at = node.state.header.refcountTableOffset + index * 8;
  return writeMetadata(node, guard, at, entries, 'refcount-table');
}

/** The blocks are in the table from now on. */
function takeOver(s: Qcow2State, index: number, offsets: readonly number[]): void {
  for (const [i, offset] of offsets.entries()) {
    s.refcountCache.drop(offset);
    s.refcountTable[index + i] = offset;
    s.metadata.add(offset / s.clusterBytes);
    s.refcountBlocks.add(offset / s.clusterBytes);
  }
}

/** The clusters are in use from now on, as far as freshness is concerned. */
function claim(node: Qcow2Node, offset: number, clusters: number): void {
  const s = node.state;
  s.freshFrom = Math.max(s.freshFrom, offset / s.clusterBytes + clusters);
}

/**
 * Moves the refcount table to a larger place behind everything counted so far, with room for `more` blocks besides
 * those that come with it. The new area starts with the blocks that count it, then comes the table; nothing points
 * there until the header does.
 */
async function growRefcountTable(
  node: Qcow2Node,
  guard: GraphReadGuard,
  index: number,
  more: number,
): Promise<void> {
  const s = node.state;
  // Before anything is computed from it: in a damaged image the index may be anything.
  if ((index + more) * 8 >= MAX_REFTABLE_BYTES) throw ioError(E.EFBIG);
  const perCluster = s.clusterBytes / 8;
  const start = index * s.refcountsPerBlock;
  const least = Math.ceil(s.refcountTable.length * 1.5);
  const clustersFor = (blocks: number): number =>
    Math.ceil(Math.max(index + blocks + more, Math.min(least, MAX_REFTABLE_BYTES / 8)) / perCluster);
  const blocks = blocksFor(s.refcountsPerBlock, clustersFor);
  const tableClusters = clustersFor(blocks);
  const used = blocks + tableClusters;
  if (
    tableClusters * s.clusterBytes > MAX_REFTABLE_BYTES ||
    (start + used) * s.clusterBytes > MAX_HOST_OFFSET
  )
    throw ioError(E.EFBIG);
  const table = new Float64Array(tableClusters * perCluster);
  table.set(s.refcountTable);
  const area = Buffer.alloc(used * s.clusterBytes);
  countFirst(s, area, blocks, used);
  for (let block = 0; block < blocks; block++) table[index + block] = (start + block) * s.clusterBytes;
  const view = viewOf(area);
  const tableAt = blocks * s.clusterBytes;
  for (const [entry, offset] of table.entries()) writeU64(view, tableAt + entry * 8, offset);
  const areaOffset = start * s.clusterBytes;
  claim(node, areaOffset, used);
  await debugEvent(node, guard, 'reftable_grow');
  await debugEvent(node, guard, 'refblock_alloc_write_blocks');
  await debugEvent(node, guard, 'refblock_alloc_write_table');
  await writeMetadata(node, guard, areaOffset, area, null);
  await barrier(node, guard);
  await debugEvent(node, guard, 'refblock_alloc_switch_table');
  const old = { offset: s.header.refcountTableOffset, clusters: s.header.refcountTableClusters };
  await changeHeader(node, guard, {
    refcountTableOffset: areaOffset + tableAt,
    refcountTableClusters: tableClusters,
  });
  for (let block = 0; block < blocks; block++) s.refcountCache.drop((start + block) * s.clusterBytes);
  s.refcountTable = table;
  rebuildMetadata(s);
  deferFree(node, old.offset, old.clusters, 'other');
}
