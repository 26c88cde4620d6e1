/**
 * Block copy: the parts of one node that are still to be copied to another one, and who is copying them.
 *
 * Backup and image fleecing share it. A bitmap says which clusters have not been copied yet. Whoever copies
 * claims clusters first: claimed clusters are clean and belong to a task, so a cluster is never copied twice at a time.
 * A task that fails makes its clusters dirty again. Two users work on one record: copyBeforeWrite, which must have
 * clusters copied before they change, and runCopy (run.ts), which copies everything there is. A cluster that is clean
 * and belongs to no task has been copied; one that is dirty has not changed since the copy was begun, so its block
 * status may be kept.
 *
 * Here: the record, claims, copying before a write. How data gets from here to there is mover.ts. All that does I/O runs under
 * the graph read lock, and within a node that counts it as in flight.
 */

import { CoQueue } from '../../coroutine/co-queue.ts';
import { assert } from '../../errors/error.ts';
import type { HierarchicalBitmap } from '../bitmaps/hierarchical-bitmap.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import { co } from '../io/callbacks.ts';
import {
  type CopyFailure,
  clustersAt,
  createMover,
  type Extent,
  type Mover,
  type MoverSettings,
  moveExtent,
  moveOneTurn,
} from './mover.ts';

/** Clusters [first, end) that somebody is copying. */
export interface CopyTask {
  readonly first: number;
  end: number;
  readonly done: CoQueue;
}

export interface CopySettings
  extends Pick<MoverSettings, 'source' | 'target' | 'clusterBytes' | 'writeFlags'> {
  /** Length of the source; the target is at least as long. */
  readonly totalBytes: number;
  /** Clusters still to be copied, one bit each. */
  readonly dirty: HierarchicalBitmap;
}

export interface BlockCopy extends CopySettings {
  readonly mover: Mover;
  readonly tasks: Set<CopyTask>;
  /** What has been copied is discarded on the source. */
  discardSource: boolean;
  /** Nobody needs the copy any more: nothing is copied for the sake of a write. */
  isGivenUp: boolean;
  /** Errno of a copy that failed before its cluster was overwritten: what is copied is no point in time. 0: none has. */
  brokenBy: number;
  /** Bytes copied so far, whole clusters. */
  copiedBytes: number;
  /** Called whenever bytes have been copied or there is less to copy. */
  onProgress: (() => void) | null;
}

export function createBlockCopy(settings: CopySettings): BlockCopy {
  return {
    ...settings,
    mover: createMover(settings),
    tasks: new Set(),
    discardSource: false,
    isGivenUp: false,
    brokenBy: 0,
    copiedBytes: 0,
    onProgress: null,
  };
}

/** Bytes still to be copied, whole clusters, what is being copied included. */
export function remainingBytes(copy: BlockCopy): number {
  let clusters = copy.dirty.count;
  for (const { first, end } of copy.tasks) clusters += end - first;
  return clusters * copy.clusterBytes;
}

/** Bytes of clusters [first, end); the last one is cut by the end of the source. */
export function bytesOf(copy: BlockCopy, first: number, end: number): number {
  return Math.min(end * copy.clusterBytes, copy.totalBytes) - first * copy.clusterBytes;
}

/** The task that has a cluster in [first, end); null: nobody is copying there. */
export function findTask({ tasks }: BlockCopy, first: number, end: number): CopyTask | null {
  for (const task of tasks) if (task.first < end && first < task.end) return task;
  return null;
}

/** Claims the first dirty clusters within [first, end), at most `max`; null: none is dirty. */
export function claim(copy: BlockCopy, first: number, end: number, max: number): CopyTask | null {
  const from = copy.dirty.nextSet(first, end);
  if (from < 0) return null;
  const limit = Math.min(end, from + max);
  const clear = copy.dirty.nextClear(from, limit);
  const task: CopyTask = { first: from, end: clear < 0 ? limit : clear, done: new CoQueue() };
  copy.dirty.reset(task.first, task.end);
  copy.tasks.add(task);
  return task;
}

/** Gives clusters [end, task.end) back: they are dirty again. */
function shrink(copy: BlockCopy, task: CopyTask, end: number): void {
  assert(end > task.first && end <= task.end, 'task made longer');
  if (end === task.end) return;
  copy.dirty.set(end, task.end);
  task.end = end;
  // Who waits for the part that was given back copies it himself.
  task.done.wakeAll();
}

/** Ends a task; the clusters of one that has failed are dirty again. */
function finish(copy: BlockCopy, task: CopyTask, end: 'copied' | 'skipped' | 'failed'): void {
  copy.tasks.delete(task);
  if (end === 'copied') copy.copiedBytes += (task.end - task.first) * copy.clusterBytes;
  if (end === 'failed') copy.dirty.set(task.first, task.end);
  task.done.wakeAll();
  copy.onProgress?.();
}

/** The point in time is lost for the sake of a write. */
export function breakCopy(copy: BlockCopy, errno: number): void {
  copy.brokenBy = errno;
  copy.onProgress?.();
}

/** Takes clusters that belong to no task off the list without copying them. */
export function skip(copy: BlockCopy, first: number, end: number): void {
  copy.dirty.reset(first, end);
  copy.onProgress?.();
}

/**
 * Does a task's work. `known`: the block status at its start, when the caller has looked. A task may be cut to the
 * part that has one status.
 */
export async function perform(
  copy: BlockCopy,
  guard: GraphReadGuard,
  task: CopyTask,
  known: Extent | null,
): Promise<CopyFailure | null> {
  const offset = task.first * copy.clusterBytes;
  let failure: CopyFailure | null = null;
  let copied = true;
  try {
    const extent =
      known ?? (await clustersAt(copy.mover, guard, offset, bytesOf(copy, task.first, task.end)));
    shrink(copy, task, Math.min(task.end, Math.ceil((offset + extent.bytes) / copy.clusterBytes)));
    const bytes = bytesOf(copy, task.first, task.end);
    if (extent.kind === 'skip') copied = false;
    else failure = await moveExtent(copy.mover, guard, offset, bytes, extent.kind);
  } catch (error) {
    failure = { error, isRead: true, offset };
  }
  if (copy.discardSource && failure === null && copied) await discard(copy, guard, task);
  finish(copy, task, failure !== null ? 'failed' : copied ? 'copied' : 'skipped');
  return failure;
}

/**
 * Copies data of [first, end), which are dirty clusters of that kind that nobody has claimed, within this turn and as far as one
 * turn goes; how many clusters. 0: it takes a task.
 */
export function performNow(copy: BlockCopy, guard: GraphReadGuard, first: number, end: number): number {
  if (copy.discardSource || copy.isGivenUp) return 0;
  const offset = first * copy.clusterBytes;
  const moved = moveOneTurn(copy.mover, guard, offset, bytesOf(copy, first, end));
  if (moved === 0) return 0;
  const clusters = Math.ceil(moved / copy.clusterBytes);
  copy.dirty.reset(first, first + clusters);
  copy.copiedBytes += clusters * copy.clusterBytes;
  copy.onProgress?.();
  return clusters;
}

/** Tells the source that what the task has copied is not needed any more. It may keep it all the same. */
async function discard(copy: BlockCopy, guard: GraphReadGuard, { first, end }: CopyTask): Promise<void> {
  try {
    await co.pdiscard(copy.source(), guard, first * copy.clusterBytes, bytesOf(copy, first, end));
  } catch {
    // The copy is whole.
  }
}

/** Whether [offset, offset+bytes) has clusters that are not copied yet. */
export function needsCopy(copy: BlockCopy, offset: number, bytes: number): boolean {
  const first = Math.floor(offset / copy.clusterBytes);
  const end = Math.ceil((offset + bytes) / copy.clusterBytes);
  if (copy.dirty.nextSet(first, end) >= 0) return true;
  return copy.tasks.size > 0 && findTask(copy, first, end) !== null;
}

/**
 * Has every cluster of [offset, offset+bytes) copied before it resolves. The failure of a copy is returned; what
 * others failed to copy is tried again. `goOn` false ends it between two requests, as does giving the copy up.
 */
export async function copyBeforeWrite(
  copy: BlockCopy,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  goOn: () => boolean = () => true,
): Promise<CopyFailure | null> {
  const first = Math.floor(offset / copy.clusterBytes);
  const end = Math.ceil((offset + bytes) / copy.clusterBytes);
  const { graphLock } = copy.source().layer;
  const max = Math.max(1, Math.floor(copy.mover.bufferBytes / copy.clusterBytes));
  while (goOn() && !copy.isGivenUp) {
    const task = claim(copy, first, end, max);
    if (task !== null) {
      const failure = await perform(copy, guard, task, null);
      if (failure !== null) return failure;
      continue;
    }
    const other = findTask(copy, first, end);
    if (other === null) return null;
    // Its I/O may have to take the lock again, behind a graph change that waits for us.
    await graphLock.suspended(guard, () => other.done.wait());
  }
  return null;
}
