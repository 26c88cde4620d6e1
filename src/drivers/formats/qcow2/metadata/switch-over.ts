/**
 * Changing many refcounts, and what the header points to, in one step: the write of the header's first sector.
 *
 * Refcounts, COPIED flags and the references themselves lie in different clusters, so changed in place they cannot agree
 * at every instant. Here nothing is changed in place. New tables go to clusters that are free, the refcount blocks that
 * change get new places too, and so does the refcount table. Before the header's write the image is the old one, after
 * it the new one; what only one of them uses is free space of the other. A crash leaves either, whole, in all versions
 * of the format. Runs in exclusive sections, with the metadata settled.
 *
 * In the meantime a cluster that loses its last reference keeps the count of one, so that nobody takes it while the
 * image on the disk still uses it: see RefcountSwitch.
 */

import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { co } from '../../../../block/io/callbacks.ts';
import type { CachedTable } from '../../shared/table-cache.ts';
import { ClusterSet } from '../layout/cluster-set.ts';
import type { Header } from '../layout/header.ts';
import { viewOf, writeU64 } from '../layout/layout.ts';
import { rebuildMetadata } from '../layout/overlap.ts';
import type { Qcow2Node, Qcow2State, RefcountSwitch } from '../layout/state.ts';
import { allocateContiguous } from './contiguous.ts';
import { barrier, changeHeader, writeMetadata } from './metadata-io.ts';
import { retryLocked } from './needs.ts';
import { allocateRun, changeRefcount, giveBack, writeRefcount } from './refcount.ts';
import { settleLocked } from './writeback.ts';

/** What `prepare` has made: fields of the header, all in its first sector, and what to do once they are on the disk. */
export interface Switched {
  readonly header: Partial<Header>;
  readonly apply: () => void;
}

/**
 * Runs `prepare`, which writes new tables to clusters it takes and changes refcounts in memory, and then changes over.
 * When anything fails the image is as it was, and what was taken is free.
 */
export async function switchOver(
  node: Qcow2Node,
  guard: GraphReadGuard,
  prepare: (change: RefcountSwitch) => Promise<Switched>,
): Promise<void> {
  const s = node.state;
  await settleLocked(node, guard);
  const { freeHint, refcountsPerBlock } = s;
  const change: RefcountSwitch = {
    released: new ClusterSet(refcountsPerBlock),
    discarded: new ClusterSet(refcountsPerBlock),
    taken: [],
    isSnapshot: false,
  };
  s.switching = change;
  let isOld = true;
  try {
    const { header, apply } = await prepare(change);
    const moved = await moveRefcounts(node, guard);
    await writeMoved(node, guard, change, moved);
    isOld = false;
    const { tableOffset, tableClusters } = moved;
    const table = { refcountTableOffset: tableOffset, refcountTableClusters: tableClusters };
    await changeHeader(node, guard, { ...header, ...table }, () => {
      isOld = true;
      if (s.switching !== change) giveBackTaken(node, change);
    });
    takeOver(s, moved);
    apply();
  } catch (error) {
    revert(s, freeHint);
    if (!isOld) await keepTaken(node, guard, change);
    throw error;
  }
  s.switching = null;
  s.l2Cache.clear();
  s.compressedTail = 0;
  for (const [first] of change.released.runs()) {
    s.freeHint = Math.min(s.freeHint, first);
    break;
  }
  rebuildMetadata(s);
  await discardReleased(node, guard, change);
}

// ---- new places for refcounts --------------------------------------------------------------------------------

interface MovedRefcounts {
  /** New host offset of each block that has one, by the block's number. */
  readonly blocks: ReadonlyMap<number, number>;
  readonly tableOffset: number;
  readonly tableClusters: number;
}

/** Finds places for the refcount blocks that have changed and for the table. That changes refcounts too. */
async function moveRefcounts(node: Qcow2Node, guard: GraphReadGuard): Promise<MovedRefcounts> {
  const s = node.state;
  const blocks = new Map<number, number>();
  let table = { offset: 0, clusters: 0 };
  let left = { offset: 0, clusters: 0 };
  for (let again = true; again; ) {
    again = false;
    const { refcountTableOffset: offset, refcountTableClusters: clusters } = s.header;
    // It may have been moved meanwhile to make room: then it was given back already.
    if (offset !== left.offset) {
      await changeAll(node, guard, left, 1);
      await changeAll(node, guard, { offset, clusters }, -1);
      left = { offset, clusters };
      again = true;
    }
    if (clusters !== table.clusters) {
      await changeAll(node, guard, table, -1);
      table = { ...(await allocateContiguous(node, guard, clusters)), clusters };
      again = true;
    }
    for (const [index, old] of changedBlocks(s)) {
      if (blocks.has(index)) continue;
      const run = await retryLocked(node, guard, () => allocateRun(s, 1));
      blocks.set(index, run.offset);
      await changeAll(node, guard, { offset: old.offset, clusters: 1 }, -1);
      again = true;
    }
  }
  return { blocks, tableOffset: table.offset, tableClusters: table.clusters };
}

async function changeAll(
  node: Qcow2Node,
  guard: GraphReadGuard,
  { offset, clusters }: { readonly offset: number; readonly clusters: number },
  delta: number,
): Promise<void> {
  const s = node.state;
  const first = offset / s.clusterBytes;
  for (let cluster = first; cluster < first + clusters; cluster++)
    await retryLocked(node, guard, () => changeRefcount(s, cluster, delta));
}

/** The refcount blocks in memory that differ from the disk, by number. */
function changedBlocks(s: Qcow2State): Map<number, CachedTable> {
  const dirty = new Map(s.refcountCache.dirtyTables().map((table) => [table.offset, table]));
  const found = new Map<number, CachedTable>();
  for (const [index, offset] of s.refcountTable.entries()) {
    const table = offset === 0 ? undefined : dirty.get(offset);
    if (table !== undefined) found.set(index, table);
  }
  return found;
}

/** Writes blocks and table to their new places, as they are when the change is complete. */
async function writeMoved(
  node: Qcow2Node,
  guard: GraphReadGuard,
  { released }: RefcountSwitch,
  { blocks, tableOffset, tableClusters }: MovedRefcounts,
): Promise<void> {
  const s = node.state;
  for (const [index, table] of changedBlocks(s)) {
    const content = Buffer.from(table.mem.buf);
    const view = viewOf(content);
    for (const cluster of released.inPage(index))
      writeRefcount(view, s.refcountOrder, cluster % s.refcountsPerBlock, 0);
    await writeMetadata(node, guard, blocks.get(index)!, content, null);
  }
  const content = Buffer.alloc(tableClusters * s.clusterBytes);
  const view = viewOf(content);
  for (const [index, offset] of s.refcountTable.entries())
    writeU64(view, index * 8, blocks.get(index) ?? offset);
  await writeMetadata(node, guard, tableOffset, content, null);
  await barrier(node, guard);
}

// ---- the end -------------------------------------------------------------------------------------------------

function takeOver(s: Qcow2State, { blocks }: MovedRefcounts): void {
  for (const [index, offset] of blocks) {
    s.refcountCache.drop(s.refcountTable[index]!);
    s.refcountCache.drop(offset);
    s.refcountTable[index] = offset;
  }
}

/** Refcounts are as on the disk. */
function revert(s: Qcow2State, freeHint: number): void {
  s.switching = null;
  for (const table of s.refcountCache.dirtyTables()) s.refcountCache.drop(table.offset);
  s.l2Cache.clear();
  s.freeHint = freeHint;
  s.compressedTail = 0;
}

/** Nobody knows which header is on the disk: what the new one would use stays taken. */
async function keepTaken(node: Qcow2Node, guard: GraphReadGuard, { taken }: RefcountSwitch): Promise<void> {
  const s = node.state;
  for (const [first, count] of taken)
    await changeAll(node, guard, { offset: first * s.clusterBytes, clusters: count }, 1).catch(
      () => undefined,
    );
}

function giveBackTaken(node: Qcow2Node, { taken }: RefcountSwitch): void {
  for (const [first, count] of taken) giveBack(node, first * node.state.clusterBytes, count);
}

/**
 * Passes on that clusters have come free, before anybody is given them: what snapshots held, if the user wants that, and
 * the tables that have got new places, which would make files grow.
 */
async function discardReleased(
  node: Qcow2Node,
  guard: GraphReadGuard,
  { released, discarded }: RefcountSwitch,
): Promise<void> {
  const s = node.state;
  const discard = (first: number, end: number): Promise<void> =>
    co
      .pdiscard(s.file.node, guard, first * s.clusterBytes, (end - first) * s.clusterBytes)
      .catch(() => undefined);
  for (const [first, count] of released.runs()) {
    let from = first;
    for (let cluster = first; cluster <= first + count; cluster++) {
      const isKept = cluster === first + count || (discarded.has(cluster) && !s.passDiscard.snapshot);
      if (!isKept) continue;
      if (cluster > from) await discard(from, cluster);
      from = cluster + 1;
    }
  }
}
