/**
 * Copying everything a block copy has on its list, in the background, in the order of the offsets: as much in a turn of the
 * event loop as can be done without waiting in a short time, or else one request begun in a turn, and several at once.
 *
 * How fast, and whether at all, the caller says before every request.
 */

import { nextTurn } from '../../aio/host/turns.ts';
import { CoQueue } from '../../coroutine/co-queue.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import { type BlockCopy, bytesOf, type CopyTask, claim, perform, performNow, skip } from './block-copy.ts';
import {
  asksKernel,
  type CopyFailure,
  clustersAt,
  type Extent,
  MAX_KERNEL_REQUESTS,
  requestBytes,
  updateUseOfKernel,
} from './mover.ts';

/** Requests at once; more take memory and make others wait, without being faster. */
const MAX_REQUESTS = 16;
/** Longest part whose block status is asked for at once. */
const STATUS_BYTES = 1024 ** 3;

export interface RunOptions {
  /** Requests at once at most; at least 1. */
  readonly maxRequests: number;
  /** Longest request in bytes, a multiple of the cluster size; 0: no limit. */
  readonly maxChunkBytes: number;
  /** Takes the graph read lock and counts a request of whoever is responsible for the copy; and the end of that. */
  enter(): Promise<GraphReadGuard>;
  leave(guard: GraphReadGuard): void;
  /** There is a limit of speed: requests are made one by one. */
  isLimited(): boolean;
  /** Waits until a request may be made, `lastBytes` bytes after the one before; false: no more requests. */
  mayGoOn(lastBytes: number): Promise<boolean>;
}

interface Run {
  readonly copy: BlockCopy;
  readonly options: RunOptions;
  /** Clusters before have been given out, in this round. */
  position: number;
  /** Block status that was looked up; a cluster that is still dirty has not changed since. */
  known: { readonly first: number; readonly end: number; readonly kind: Extent['kind'] } | null;
  failure: CopyFailure | null;
  running: number;
  readonly ended: CoQueue;
}

/**
 * Copies until nothing is left, the caller says stop, or a request fails; null: no failure. All requests have ended
 * when it resolves.
 */
export async function runCopy(copy: BlockCopy, options: RunOptions): Promise<CopyFailure | null> {
  const run: Run = {
    copy,
    options,
    position: 0,
    known: null,
    failure: null,
    running: 0,
    ended: new CoQueue(),
  };
  try {
    await dispatch(run);
  } finally {
    while (run.running > 0) await run.ended.wait();
  }
  return run.failure;
}

async function dispatch(run: Run): Promise<void> {
  const { copy, options } = run;
  const guard = await options.enter();
  // Told at the start: every request looks again.
  updateUseOfKernel(copy.mover, guard);
  options.leave(guard);
  let lastBytes = 0;
  for (;;) {
    await nextTurn();
    if (copy.dirty.nextSet(0) < 0) {
      // What is being copied at present may fail, and then it is on the list again.
      const task = copy.tasks.values().next();
      if (task.done === true) return;
      await task.value.done.wait();
      continue;
    }
    if (!(await options.mayGoOn(lastBytes))) return;
    lastBytes = run.failure === null ? copyNow(run) : 0;
    if (lastBytes > 0) continue;
    while (run.running >= maxRequests(run)) await run.ended.wait();
    if (run.failure !== null) return;
    lastBytes = await startNext(run);
  }
}

/** Copies what comes next within this turn, if it is known to be data; bytes, 0: it cannot be, or there is a limit of speed. */
function copyNow(run: Run): number {
  const { copy, known, options } = run;
  const { dirty } = copy;
  if (known === null || known.kind !== 'data' || options.maxChunkBytes > 0 || options.isLimited()) return 0;
  // What is dirty there has not changed since somebody looked.
  const first = dirty.nextSet(run.position, known.end);
  if (first < known.first) return 0;
  const clear = dirty.nextClear(first, known.end);
  const end = clear < 0 ? known.end : clear;
  const { graphLock } = copy.source().layer;
  const clusters = graphLock.readNow((guard) => performNow(copy, guard, first, end)) ?? 0;
  if (clusters > 0) run.position = first + clusters;
  return bytesOf(copy, first, first + clusters);
}

function maxRequests({ copy: { mover }, options }: Run): number {
  const max = asksKernel(mover) ? MAX_KERNEL_REQUESTS : MAX_REQUESTS;
  return Math.max(1, Math.min(max, options.maxRequests));
}

/** Starts the next request and returns its length in bytes; 0: there is none to make. */
async function startNext(run: Run): Promise<number> {
  const { copy, options } = run;
  const guard = await options.enter();
  let task: CopyTask | null = null;
  try {
    task = await pick(run, guard);
  } finally {
    if (task === null) options.leave(guard);
  }
  if (task === null) return 0;
  const bytes = bytesOf(copy, task.first, task.end);
  const { kind } = run.known!;
  run.running++;
  void perform(copy, guard, task, { kind, bytes }).then((failure) => {
    options.leave(guard);
    run.failure ??= failure;
    run.running--;
    run.ended.wakeAll();
  });
  return bytes;
}

/** Claims the next clusters, which have the status `run.known`; null: none is dirty. */
async function pick(run: Run, guard: GraphReadGuard): Promise<CopyTask | null> {
  const { copy, options } = run;
  const { dirty, clusterBytes } = copy;
  for (;;) {
    let first = dirty.nextSet(run.position);
    if (first < 0) first = dirty.nextSet(0);
    if (first < 0) return null;
    const { known } = run;
    if (known === null || first < known.first || first >= known.end) {
      const limit = first + Math.max(1, Math.floor(STATUS_BYTES / clusterBytes));
      const clear = dirty.nextClear(first, limit);
      const end = clear < 0 ? Math.min(limit, dirty.length) : clear;
      const extent = await clustersAt(copy.mover, guard, first * clusterBytes, bytesOf(copy, first, end));
      const clusters = Math.ceil(extent.bytes / clusterBytes);
      run.known = { first, end: first + clusters, kind: extent.kind };
      // Others have been at work meanwhile.
      continue;
    }
    if (known.kind === 'skip') {
      skip(copy, first, known.end);
      continue;
    }
    let bytes = requestBytes(copy.mover, known.kind);
    if (options.maxChunkBytes > 0) bytes = Math.min(bytes, options.maxChunkBytes);
    const task = claim(copy, first, known.end, Math.max(1, Math.floor(bytes / clusterBytes)));
    run.position = task!.end;
    return task;
  }
}
