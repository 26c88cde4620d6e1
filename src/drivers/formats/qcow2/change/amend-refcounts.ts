/**
 * Changing the width of refcounts: new refcount blocks and a new table are written behind everything in use, counting
 * what will be in use once the header points to them; the old ones are then free without anybody having to say so.
 * Until the header is written the image is the old one, from then on it is the new one.
 */

import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError, ioError } from '../../../../errors/error.ts';
import { MAX_HOST_OFFSET, MAX_REFTABLE_BYTES, viewOf, writeU64 } from '../layout/layout.ts';
import { rebuildMetadata } from '../layout/overlap.ts';
import type { Qcow2Node, Qcow2State } from '../layout/state.ts';
import { exclusive } from '../metadata/exclusive.ts';
import { barrier, writeHeader, writeMetadata } from '../metadata/metadata-io.ts';
import { retryLocked } from '../metadata/needs.ts';
import { getRefcount, writeRefcount } from '../metadata/refcount.ts';
import type { StageProgress } from './amend-progress.ts';

/** Where the new structures go and what they have to count. */
interface Plan {
  readonly order: number;
  readonly perBlock: number;
  /** Numbers of the blocks that are needed, in order: block i counts clusters from i * perBlock on. */
  readonly blocks: readonly number[];
  readonly tableClusters: number;
  /** First cluster of the new area: the blocks, then the table. */
  readonly start: number;
  readonly end: number;
  /** Clusters of the old table and blocks. */
  readonly old: ReadonlySet<number>;
}

/** Gives the image refcounts of 2^order bits. Throws when one of the refcounts there are does not fit. */
export async function changeRefcountWidth(
  node: Qcow2Node,
  guard: GraphReadGuard,
  order: number,
  progress: StageProgress,
): Promise<void> {
  await exclusive(node, guard, async () => {
    const size = node.state.refcountTable.length;
    // The original walks over the table three times, and shows every entry.
    let shown = 0;
    const show = (until: number): void => {
      for (; shown < until; shown++) progress(shown, 3 * size);
    };
    show(1);
    const plan = await makePlan(node, guard, order);
    show(2 * size);
    await writeBlocks(node, guard, plan, (done, total) => show(Math.floor((2 + done / total) * size)));
    show(3 * size);
    await switchOver(node, guard, plan);
    progress(3 * size, 3 * size);
  });
}

/** Calls `visit` for every cluster with a refcount. */
async function eachRefcount(
  node: Qcow2Node,
  guard: GraphReadGuard,
  from: number,
  to: number,
  visit: (cluster: number, refcount: number) => void,
): Promise<void> {
  const s = node.state;
  for (let cluster = from; cluster < to; ) {
    const block = Math.floor(cluster / s.refcountsPerBlock);
    const end = Math.min(to, (block + 1) * s.refcountsPerBlock);
    if ((s.refcountTable[block] ?? 0) !== 0) {
      for (let at = cluster; at < end; at++) {
        const known = getRefcount(s, at);
        const current = at;
        const count =
          typeof known === 'number' ? known : await retryLocked(node, guard, () => getRefcount(s, current));
        if (count !== 0) visit(at, count);
      }
    }
    cluster = end;
  }
}

function oldStructures(s: Qcow2State): ReadonlySet<number> {
  const clusters = new Set<number>();
  const first = s.header.refcountTableOffset / s.clusterBytes;
  for (let i = 0; i < s.header.refcountTableClusters; i++) clusters.add(first + i);
  for (const offset of s.refcountTable) if (offset !== 0) clusters.add(offset / s.clusterBytes);
  return clusters;
}

async function makePlan(node: Qcow2Node, guard: GraphReadGuard, order: number): Promise<Plan> {
  const s = node.state;
  const bits = 2 ** order;
  const perBlock = (s.clusterBytes * 8) / bits;
  const most = bits >= 53 ? Number.MAX_SAFE_INTEGER : 2 ** bits - 1;
  const needed = new Set<number>();
  let start = 0;
  await eachRefcount(node, guard, 0, s.refcountTable.length * s.refcountsPerBlock, (cluster, count) => {
    if (count > most) {
      const at = (cluster * s.clusterBytes).toString(16);
      throw new BlockError(
        `Cannot decrease refcount entry width to ${bits} bits: Cluster at offset 0x${at} has a refcount of ${count}`,
        { errno: E.EINVAL },
      );
    }
    needed.add(Math.floor(cluster / perBlock));
    start = cluster + 1;
  });
  // The new area is counted by the new blocks too, which may make it larger.
  let tableClusters = 0;
  for (let end = start + 1; ; end = start + needed.size + tableClusters) {
    const before = needed.size + tableClusters;
    for (let block = Math.floor(start / perBlock); block * perBlock < end; block++) needed.add(block);
    const last = Math.floor((end - 1) / perBlock);
    tableClusters = Math.ceil(((last + 1) * 8) / s.clusterBytes);
    if (tableClusters * s.clusterBytes > MAX_REFTABLE_BYTES) throw ioError(E.EFBIG);
    if (needed.size + tableClusters === before && end === start + before) break;
  }
  const end = start + needed.size + tableClusters;
  if (end * s.clusterBytes > MAX_HOST_OFFSET) throw ioError(E.EFBIG);
  const blocks = [...needed].sort((a, b) => a - b);
  return { order, perBlock, blocks, tableClusters, start, end, old: oldStructures(s) };
}

async function writeBlocks(
  node: Qcow2Node,
  guard: GraphReadGuard,
  plan: Plan,
  progress: StageProgress,
): Promise<void> {
  const s = node.state;
  const { order, perBlock, blocks, start, end, old } = plan;
  const content = Buffer.alloc(s.clusterBytes);
  const view = viewOf(content);
  for (const [position, block] of blocks.entries()) {
    content.fill(0);
    const first = block * perBlock;
    await eachRefcount(node, guard, first, first + perBlock, (cluster, count) => {
      if (!old.has(cluster)) writeRefcount(view, order, cluster - first, count);
    });
    for (let at = Math.max(start, first); at < Math.min(end, first + perBlock); at++)
      writeRefcount(view, order, at - first, 1);
    await writeMetadata(node, guard, (start + position) * s.clusterBytes, content, null);
    progress(position + 1, blocks.length);
  }
}

/** Writes the table, then the header, then takes both over. */
async function switchOver(node: Qcow2Node, guard: GraphReadGuard, plan: Plan): Promise<void> {
  const s = node.state;
  const { order, perBlock, blocks, tableClusters, start, end } = plan;
  const content = Buffer.alloc(tableClusters * s.clusterBytes);
  const table = new Float64Array(content.length / 8);
  for (const [position, block] of blocks.entries()) {
    const offset = (start + position) * s.clusterBytes;
    table[block] = offset;
    writeU64(viewOf(content), block * 8, offset);
  }
  const tableOffset = (start + blocks.length) * s.clusterBytes;
  await writeMetadata(node, guard, tableOffset, content, null);
  await barrier(node, guard);
  const { refcountOrder, refcountTableOffset, refcountTableClusters } = s.header;
  s.header.refcountOrder = order;
  s.header.refcountTableOffset = tableOffset;
  s.header.refcountTableClusters = tableClusters;
  try {
    await writeHeader(node, guard);
    await barrier(node, guard);
  } catch (error) {
    Object.assign(s.header, { refcountOrder, refcountTableOffset, refcountTableClusters });
    throw error;
  }
  for (const offset of s.refcountTable) if (offset !== 0) s.refcountCache.drop(offset);
  s.refcountTable = table;
  s.refcountOrder = order;
  s.refcountsPerBlock = perBlock;
  s.maxRefcount = Math.min(2 ** (2 ** order) - 1, Number.MAX_SAFE_INTEGER);
  s.freeHint = 0;
  s.freshFrom = Math.max(s.freshFrom, end);
  rebuildMetadata(s);
}
