/**
 * Write-back: how changed metadata reaches the disk so that the file is consistent at every instant.
 *
 *   1. refcount blocks
 *   2. barrier: those, and all data and new tables written so far, are on stable storage
 *   3. L2 tables and L1 entries
 *   4. barrier: now the mapping is durable, and old references are gone from the disk
 *   5. refcounts of freed clusters go down (in memory; written by the next round, or when the node is closed)
 *
 * So data and refcounts come before the mapping, and the mapping before a refcount decrease: a crash loses at most
 * what was not flushed, and leaks clusters at most. Contents are copied when a round begins: what changes meanwhile
 * depends on data that this round's barrier does not cover, and waits for the next.
 * Rounds run under the metadata lock, one at a time. With lazy refcounts step 1 leaves refcounts out; the dirty bit
 * in the header tells the next user of the image.
 */

import { setTimeout as pause } from 'node:timers/promises';
import { plug, unplug } from '../../../../aio/defer.ts';
import { allocateIoMemory, vectorOf } from '../../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { co } from '../../../../block/io/callbacks.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError } from '../../../../errors/error.ts';
import type { CachedTable } from '../../shared/table-cache.ts';
import { Incompat } from '../layout/layout.ts';
import type { OverlapKind } from '../layout/overlap.ts';
import type { DeferredFree, Qcow2Node, Qcow2State } from '../layout/state.ts';
import { toRequestError } from './corruption.ts';
import { debugEvent, isDebugged } from './debug.ts';
import { barrier, checkOverlap, settleHeader, writeHeader } from './metadata-io.ts';
import { retryLocked } from './needs.ts';
import { changeRefcount, getRefcount } from './refcount.ts';

/** Freed clusters that wait for a write-back before one is started for their sake. */
const MAX_WAITING_FREES = 1024;
/** How long freed clusters wait otherwise on a node nobody flushes. */
const IDLE_WRITE_BACK_MS = 1000;
const SECTOR_BYTES = 512;
/** How often a request on a full disk looks for clusters that come free, and how long it waits in between. */
const RECLAIM_ATTEMPTS = 10;
const RECLAIM_PAUSE_MS = 20;
const MAX_RECLAIMS = 16;

/**
 * Whether a flush has nothing to do. A round under way counts as something: its tables are marked clean already, and
 * not on the disk yet.
 */
export function isClean(s: Qcow2State): boolean {
  return s.metadataLock.holder === null && !hasChanges(s);
}

function hasChanges(s: Qcow2State): boolean {
  return (
    s.l2Cache.dirtyCount > 0 ||
    s.l1Dirty.size > 0 ||
    s.refcountCache.dirtyCount > 0 ||
    s.frees.length > 0 ||
    s.headerUndo.length > 0
  );
}

/** All metadata is on stable storage afterwards, and freed clusters are free as far as requests in flight allow. */
export async function flushMetadata(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  if (isClean(node.state)) return;
  await reporting(node, guard, () =>
    node.state.metadataLock.with('write-back', async () => {
      // Whoever held the lock before may have done it all.
      if (hasChanges(node.state)) await flushMetadataLocked(node, guard);
    }),
  );
}

/** Damage that `step` meets is reported. */
async function reporting(node: Qcow2Node, guard: GraphReadGuard, step: () => Promise<void>): Promise<void> {
  try {
    await step();
  } catch (error) {
    throw await toRequestError(node, guard, error);
  }
}

/** As flushMetadata, for callers that hold the metadata lock. */
export async function flushMetadataLocked(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  await settleHeader(node, guard);
  // What is free already must not wait for a write that may fail.
  await applyFrees(node, guard);
  const generation = ++s.generation;
  await writeRound(node, guard, !s.lazyRefcounts);
  await barrier(node, guard);
  s.durable = generation;
  await applyFrees(node, guard);
}

/**
 * Whether another try may find space: freed clusters waited for a write-back, and some of them are free now. For
 * requests that have met a full disk.
 */
export async function reclaim(node: Qcow2Node, guard: GraphReadGuard): Promise<boolean> {
  const s = node.state;
  for (let attempt = 0; attempt < RECLAIM_ATTEMPTS && s.frees.length > 0; attempt++) {
    const before = s.frees.length;
    try {
      await flushMetadata(node, guard);
    } catch {
      return false;
    }
    if (s.frees.length < before) return true;
    // Requests that began before the clusters were freed may still use them.
    await pause(RECLAIM_PAUSE_MS);
  }
  return false;
}

/** Runs `step`, and again as long as it meets a full disk and clusters come free. */
export async function withSpace<T>(
  node: Qcow2Node,
  guard: GraphReadGuard,
  step: () => Promise<T>,
): Promise<T> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await step();
    } catch (error) {
      if (!isFull(error) || attempt === MAX_RECLAIMS || !(await reclaim(node, guard))) throw error;
    }
  }
}

function isFull(error: unknown): boolean {
  return error instanceof BlockError && (error.errno === E.ENOSPC || error.errno === E.EDQUOT);
}

/** Like flushMetadata, and no refcount is left in memory: for closing and for looking at the file from outside. */
export async function settleMetadata(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  await reporting(node, guard, () => node.state.metadataLock.with('settle', () => settleLocked(node, guard)));
}

/** As settleMetadata, for the only request in the node: what has been freed waits for nobody. */
export async function settleAlone(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  s.frees = s.frees.map((free) => ({ ...free, stamp: 0 }));
  await settleMetadata(node, guard);
}

/** As settleMetadata, for callers that hold the metadata lock. */
export async function settleLocked(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  await flushMetadataLocked(node, guard);
  if (s.refcountCache.dirtyCount > 0) {
    await writeRound(node, guard, true);
    await barrier(node, guard);
  }
}

interface Write {
  readonly offset: number;
  readonly data: Buffer;
  readonly table: CachedTable | null;
  readonly kind: OverlapKind;
}

/** Steps 1 to 3. */
async function writeRound(node: Qcow2Node, guard: GraphReadGuard, withRefcounts: boolean): Promise<void> {
  const s = node.state;
  const early: Write[] = [];
  const late: Write[] = [];
  const copyOf = (table: CachedTable, kind: OverlapKind): Write => ({
    offset: table.offset,
    data: Buffer.from(table.mem.buf),
    table,
    kind,
  });
  for (const table of s.l2Cache.dirtyTables()) {
    late.push(copyOf(table, 'active-l2'));
    s.l2Cache.markClean(table);
  }
  // Far more refcount blocks than the cache should hold are written even when they may be late.
  if (withRefcounts || s.refcountCache.dirtyCount > s.refcountCache.capacity) {
    for (const table of s.refcountCache.dirtyTables()) {
      early.push(copyOf(table, 'refcount-block'));
      s.refcountCache.markClean(table);
    }
  }
  const sectors = [...s.l1Dirty];
  s.l1Dirty.clear();
  for (const sector of sectors) {
    const at = sector * SECTOR_BYTES;
    const bytes = Math.min(SECTOR_BYTES, s.l1.byteLength - at);
    const data = Buffer.from(new Uint8Array(s.l1.buffer, s.l1.byteOffset + at, bytes));
    late.push({ offset: s.header.l1Offset + at, data, table: null, kind: 'active-l1' });
  }
  // A table that is being written must not be dropped: it would be read again as it was.
  for (const { table } of [...early, ...late]) if (table !== null) table.pins++;
  try {
    if (late.length > 0 && s.lazyRefcounts) await setDirtyBit(node, guard);
    await writeAll(node, guard, early);
    if (late.length > 0) await barrier(node, guard);
    await writeAll(node, guard, late);
  } catch (error) {
    for (const { table, kind } of [...early, ...late]) {
      if (table !== null) (kind === 'active-l2' ? s.l2Cache : s.refcountCache).markDirty(table);
    }
    for (const sector of sectors) s.l1Dirty.add(sector);
    throw error;
  } finally {
    for (const { table } of [...early, ...late]) if (table !== null) table.pins--;
  }
}

/** Writes in order of offset, neighbours together. */
async function writeAll(node: Qcow2Node, guard: GraphReadGuard, writes: Write[]): Promise<void> {
  writes.sort((a, b) => a.offset - b.offset);
  for (const { offset, data, kind } of writes) checkOverlap(node, offset, data.length, kind);
  if (isDebugged(node)) await announce(node, guard, writes);
  const results = await Promise.allSettled(startWrites(node, guard, writes));
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}

/** Starts all writes, which go to the kernel together. */
function startWrites(node: Qcow2Node, guard: GraphReadGuard, writes: readonly Write[]): Promise<void>[] {
  const pending: Promise<void>[] = [];
  plug();
  for (let i = 0; i < writes.length; ) {
    const { offset } = writes[i]!;
    let end = offset;
    let j = i;
    for (; j < writes.length && writes[j]!.offset === end && end - offset < 1024 * 1024; j++) {
      end += writes[j]!.data.length;
    }
    const mem = allocateIoMemory(end - offset);
    for (let k = i; k < j; k++) writes[k]!.data.copy(mem.buf, writes[k]!.offset - offset);
    pending.push(co.pwritev(node.state.file.node, guard, offset, end - offset, vectorOf(mem), 0));
    i = j;
  }
  unplug();
  return pending;
}

/** The debug events of the writes: one of each kind, in an order of their own. */
async function announce(node: Qcow2Node, guard: GraphReadGuard, writes: readonly Write[]): Promise<void> {
  const has = (kind: OverlapKind): boolean => writes.some((write) => write.kind === kind);
  if (has('refcount-block')) await debugEvent(node, guard, 'refblock_update_part');
  if (has('active-l2')) await debugEvent(node, guard, 'l2_update');
  if (has('active-l1')) await debugEvent(node, guard, 'l1_update');
}

async function setDirtyBit(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const { header } = node.state;
  if ((header.incompatible & Incompat.dirty) !== 0) return;
  header.incompatible |= Incompat.dirty;
  await writeHeader(node, guard);
}

/** Step 5, for every free whose time has come. */
async function applyFrees(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  if (s.frees.length === 0) return;
  const oldest = node.tracked.last?.id ?? Number.POSITIVE_INFINITY;
  const ready: DeferredFree[] = [];
  const waiting: DeferredFree[] = [];
  for (const free of s.frees) {
    (free.generation <= s.durable && free.stamp < oldest ? ready : waiting).push(free);
  }
  s.frees = waiting;
  for (const free of ready) {
    try {
      await applyFree(node, guard, free);
    } catch {
      // Refcounts that are wrong, or cannot be read: the rest of these clusters stay counted. A leak harms nobody, and
      // a check finds it; the request that is waiting for its data to be safe has nothing to do with it.
    }
  }
}

async function applyFree(node: Qcow2Node, guard: GraphReadGuard, free: DeferredFree): Promise<void> {
  const s = node.state;
  await debugEvent(node, guard, 'cluster_free');
  const end = free.cluster + free.count;
  for (let cluster = free.cluster; cluster < end; ) {
    const first = cluster;
    let last = 0;
    // Clusters that are about to become free are discarded while nobody can be given them.
    while (cluster < end) {
      const refcount = await retryLocked(node, guard, () => getRefcount(s, cluster));
      last = refcount;
      if (refcount !== 1) break;
      cluster++;
    }
    if (cluster > first && s.passDiscard[free.reason]) {
      // Nor packed with more compressed data meanwhile.
      const tail = Math.floor(s.compressedTail / s.clusterBytes);
      if (tail >= first && tail < cluster) s.compressedTail = 0;
      const bytes = (cluster - first) * s.clusterBytes;
      await co.pdiscard(s.file.node, guard, first * s.clusterBytes, bytes).catch(() => undefined);
    }
    if (cluster < end) {
      cluster++;
      // A refcount of 0 here is damage done before; there is nothing left to give back.
      if (last === 0) await decrement(node, guard, first, cluster - 1);
      else await decrement(node, guard, first, cluster);
    } else {
      await decrement(node, guard, first, cluster);
    }
  }
}

async function decrement(node: Qcow2Node, guard: GraphReadGuard, from: number, to: number): Promise<void> {
  for (let cluster = from; cluster < to; cluster++) {
    await retryLocked(node, guard, () => changeRefcount(node.state, cluster, -1));
  }
}

/**
 * Sees to it that metadata is written when it should not wait for the next flush: at once when more has changed than
 * the caches should hold or many freed clusters wait, some time later when any do.
 */
export function scheduleWriteBack(node: Qcow2Node): void {
  const s = node.state;
  const { l2Cache } = s;
  const much =
    s.frees.length > MAX_WAITING_FREES ||
    (l2Cache.size > l2Cache.capacity && l2Cache.dirtyCount > l2Cache.capacity / 2);
  if (s.writeBackPending && !(much && s.writeBackTimer !== null)) return;
  if (!much && s.frees.length === 0) return;
  if (s.writeBackTimer !== null) clearTimeout(s.writeBackTimer);
  s.writeBackTimer = null;
  s.writeBackPending = true;
  const run = (): void => {
    s.writeBackTimer = null;
    void writeBackInBackground(node);
  };
  if (much) setImmediate(run);
  else {
    s.writeBackTimer = setTimeout(run, IDLE_WRITE_BACK_MS);
    s.writeBackTimer.unref();
  }
}

async function writeBackInBackground(node: Qcow2Node): Promise<void> {
  const s = node.state;
  if (s.closing || s.dead) return;
  // Counted like a request, so that draining the node waits for it.
  node.inFlight++;
  try {
    await node.layer.graphLock.withRead((guard) => flushMetadata(node, guard));
  } catch {
    // Nothing is lost: the tables are dirty again, and the next flush reports what is wrong.
  } finally {
    s.writeBackPending = false;
    node.inFlight--;
    if (node.inFlight === 0) node.idle.wakeAll();
  }
}
