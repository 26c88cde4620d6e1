/**
 * New refcount blocks and a larger refcount table. All of it runs under the metadata lock.
 *
 * A new block lies at the start of the range it counts, so it counts itself: nothing in that range is in use yet.
 * Order on the disk: the block, then the pointer to it. A pointer to a block that is not there would make free space
 * of everything counted by whatever is there instead.
 */

import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import { MAX_REFTABLE_BYTES, viewOf, writeU64 } from '../layout/layout.ts';
import { rebuildMetadata } from '../layout/overlap.ts';
import type { Qcow2Node } from '../layout/state.ts';
import { debugEvent } from './debug.ts';
import { barrier, checkTablePlace, writeHeader, writeMetadata } from './metadata-io.ts';
import { deferFree, writeRefcount } from './refcount.ts';

/** Makes refcount block `index`, unless somebody else has. */
export async function addRefcountBlock(node: Qcow2Node, guard: GraphReadGuard, index: number): Promise<void> {
  const s = node.state;
  if (index < s.refcountTable.length && s.refcountTable[index] !== 0) return;
  await debugEvent(node, guard, 'refblock_alloc');
  if (index >= s.refcountTable.length) {
    await growRefcountTable(node, guard, index);
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
  const entry = Buffer.alloc(8);
  writeU64(viewOf(entry), 0, offset);
  await writeMetadata(node, guard, s.header.refcountTableOffset + index * 8, entry, 'refcount-table');
  s.refcountCache.drop(offset);
  s.refcountTable[index] = offset;
  s.metadata.add(offset / s.clusterBytes);
  s.refcountBlocks.add(offset / s.clusterBytes);
}

/** The clusters are in use from now on, as far as freshness is concerned. */
function claim(node: Qcow2Node, offset: number, clusters: number): void {
  const s = node.state;
  s.freshFrom = Math.max(s.freshFrom, offset / s.clusterBytes + clusters);
}

/**
 * Moves the refcount table to a larger place behind everything counted so far. The new area starts with the blocks
 * that count it, then comes the table; nothing points there until the header does.
 */
async function growRefcountTable(node: Qcow2Node, guard: GraphReadGuard, index: number): Promise<void> {
  const s = node.state;
  // Before anything is computed from it: in a damaged image the index may be anything.
  if (index * 8 >= MAX_REFTABLE_BYTES) throw ioError(E.EFBIG);
  const perCluster = s.clusterBytes / 8;
  const start = index * s.refcountsPerBlock;
  let blocks = 1;
  let tableClusters: number;
  for (;;) {
    const entries = Math.max(index + blocks, Math.ceil(s.refcountTable.length * 1.5));
    tableClusters = Math.ceil(entries / perCluster);
    if (blocks * s.refcountsPerBlock >= blocks + tableClusters) break;
    blocks++;
  }
  if (tableClusters * s.clusterBytes > MAX_REFTABLE_BYTES) throw ioError(E.EFBIG);
  const table = new Float64Array(tableClusters * perCluster);
  table.set(s.refcountTable);
  const used = blocks + tableClusters;
  const area = Buffer.alloc(used * s.clusterBytes);
  for (let block = 0; block < blocks; block++) {
    const view = viewOf(area.subarray(block * s.clusterBytes, (block + 1) * s.clusterBytes));
    const counted = Math.min(s.refcountsPerBlock, used - block * s.refcountsPerBlock);
    for (let i = 0; i < counted; i++) writeRefcount(view, s.refcountOrder, i, 1);
    table[index + block] = (start + block) * s.clusterBytes;
  }
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
  s.header.refcountTableOffset = areaOffset + tableAt;
  s.header.refcountTableClusters = tableClusters;
  await writeHeader(node, guard);
  await barrier(node, guard);
  for (let block = 0; block < blocks; block++) s.refcountCache.drop((start + block) * s.clusterBytes);
  s.refcountTable = table;
  rebuildMetadata(s);
  deferFree(node, old.offset, old.clusters, 'other');
}
