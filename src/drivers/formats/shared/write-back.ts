/**
 * Write-back: how changed tables reach the disk.
 *
 *   1. what must be there before a table says so: the file's length, counts in headers (the format's `prepare`),
 *      and tables that nothing on the disk points to yet
 *   2. barrier: those, and all data written so far, are on stable storage
 *   3. the other tables (in the format's own way, where it has one)
 * The flush of the files that follows makes them durable. So a block is on the disk before it is mapped, and a crash
 * leaks blocks at most. Contents are copied when a round begins: what changes meanwhile waits for the next.
 */

import { allocateIoMemory, vectorOf } from '../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { co } from '../../../block/io/callbacks.ts';
import { CoMutex } from '../../../coroutine/co-mutex.ts';
import type { BlockMap, MappedState, TableFile, TableWrite, WriteBackState } from './mapped-image.ts';
import type { CachedTable } from './table-cache.ts';
import { tableBytes } from './table-io.ts';

/**
 * On a node that nobody flushes changes are written when there have been no others for so long. A round makes all data
 * durable that has been written until then, which is work that a guest who writes on has not asked for.
 */
const IDLE_WRITE_BACK_MS = 1000;
/** So long at most, since a daemon that is killed loses it: what ext4 lets its own metadata wait (mount option commit). */
const MAX_WAIT_MS = 5000;
/** Neighbouring tables are written together up to this length. */
const MAX_WRITE_BYTES = 1024 * 1024;

export function createWriteBack(): WriteBackState {
  return { lock: new CoMutex(), pending: false, timer: null, changes: 0, closing: false };
}

function hasChanges<S extends MappedState>(map: BlockMap<S>, state: S): boolean {
  const steps = map.writeBack;
  if (steps === undefined) return false;
  return steps.tableFiles(state).some(({ cache }) => cache.dirtyCount > 0) || steps.hasMore?.(state) === true;
}

/** All tables are written afterwards, in order; the flush of the files that makes them durable is the caller's. */
export async function flushMapped<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  guard: GraphReadGuard,
): Promise<void> {
  const s = node.state;
  if (s.writeBack.lock.holder === null && !hasChanges(map, s)) return;
  await s.writeBack.lock.with('write-back', async () => {
    // Whoever held the lock before may have done it all.
    if (hasChanges(map, s)) await writeRound(map, node, guard);
  });
}

interface Taken extends TableWrite {
  readonly table: CachedTable;
  readonly early: boolean;
}

async function writeRound<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  guard: GraphReadGuard,
): Promise<void> {
  const steps = map.writeBack!;
  const files = steps.tableFiles(node.state);
  const taken = files.flatMap(takeDirty);
  // A table that is being written must not be dropped: it would be read again as it was.
  for (const { table } of taken) table.pins++;
  try {
    await steps.prepare?.(node, guard);
    await writeTables(
      guard,
      taken.filter(({ early }) => early),
    );
    for (const child of new Set(node.children.filter(({ name }) => name !== 'backing')))
      await co.flush(child.node, guard);
    const late = taken.filter(({ early }) => !early);
    if (steps.write === undefined) await writeTables(guard, late);
    else await steps.write(node, guard, late);
    await steps.finish?.(node, guard);
  } catch (error) {
    for (const { table, tables, early } of taken) {
      tables.cache.markDirty(table);
      if (early) table.unlinked = true;
    }
    throw error;
  } finally {
    for (const { table } of taken) table.pins--;
  }
}

function takeDirty(tables: TableFile): Taken[] {
  const { cache } = tables;
  return cache.dirtyTables().map((table) => {
    const early = table.unlinked;
    table.unlinked = false;
    cache.markClean(table);
    const data = Buffer.from(table.mem.buf.subarray(0, tableBytes(tables, table.offset)));
    return { tables, offset: table.offset, data, table, early };
  });
}

/** Writes tables where they are, neighbours together. */
export async function writeTables(guard: GraphReadGuard, writes: readonly TableWrite[]): Promise<void> {
  const sorted = [...writes].sort((a, b) => a.offset - b.offset);
  const runs: Promise<void>[] = [];
  for (const { child } of new Set(sorted.map(({ tables }) => tables))) {
    const own = sorted.filter(({ tables }) => tables.child === child);
    for (let i = 0; i < own.length; ) {
      const { offset } = own[i]!;
      let end = offset;
      let j = i;
      for (; j < own.length && own[j]!.offset === end && end - offset < MAX_WRITE_BYTES; j++)
        end += own[j]!.data.length;
      const memory = allocateIoMemory(end - offset);
      for (let k = i; k < j; k++) own[k]!.data.copy(memory.buf, own[k]!.offset - offset);
      runs.push(co.pwritev(child.node, guard, offset, end - offset, vectorOf(memory), 0));
      i = j;
    }
  }
  const results = await Promise.allSettled(runs);
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}

/** Sees to it that changes do not wait for ever: at once when the cache is full of them, else some time later. */
export function scheduleWriteBack<S extends MappedState>(map: BlockMap<S>, node: BlockNode<S>): void {
  const state = node.state.writeBack;
  state.changes++;
  // Asked for, and under way.
  if (state.pending && state.timer === null) return;
  const files = map.writeBack?.tableFiles(node.state) ?? [];
  const much = files.some(({ cache }) => cache.dirtyCount > cache.capacity / 2);
  if (state.pending && !much) return;
  if (state.closing || !hasChanges(map, node.state)) return;
  if (state.timer !== null) clearTimeout(state.timer);
  state.timer = null;
  state.pending = true;
  const run = (): void => {
    state.timer = null;
    void writeInBackground(map, node);
  };
  if (much) setImmediate(run);
  else runWhenIdle(state, run, MAX_WAIT_MS);
}

/** Calls `run` when nothing has changed for IDLE_WRITE_BACK_MS, or `leftMs` from now. */
function runWhenIdle(state: WriteBackState, run: () => void, leftMs: number): void {
  const seen = state.changes;
  state.timer = setTimeout(() => {
    if (state.changes === seen || leftMs <= IDLE_WRITE_BACK_MS) run();
    else runWhenIdle(state, run, leftMs - IDLE_WRITE_BACK_MS);
  }, IDLE_WRITE_BACK_MS);
  state.timer.unref();
}

async function writeInBackground<S extends MappedState>(map: BlockMap<S>, node: BlockNode<S>): Promise<void> {
  const state = node.state.writeBack;
  if (state.closing) return;
  // Counted like a request, so that draining the node waits for it.
  node.inFlight++;
  let isWritten = false;
  try {
    await node.layer.graphLock.withRead((guard) => flushMapped(map, node, guard));
    isWritten = true;
  } catch {
    // Nothing is lost: the tables are changed still, and the next flush reports what is wrong.
  } finally {
    state.pending = false;
    node.inFlight--;
    if (node.inFlight === 0) node.idle.wakeAll();
  }
  // What changed meanwhile is next.
  if (isWritten) scheduleWriteBack(map, node);
}

/** Writes what is left and stops what runs in the background. */
export async function closeMapped<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
): Promise<void> {
  const state = node.state.writeBack;
  state.closing = true;
  if (state.timer !== null) clearTimeout(state.timer);
  state.timer = null;
  if (node.readOnly) return;
  await node.layer.graphLock.withRead((guard) => flushMapped(map, node, guard));
}
