/**
 * The backup job: copies a node to another one as it is at the moment the job is made, while its users go on.
 *
 * A copy-before-write filter on the source sees to it that nothing is overwritten before it has been copied; the job
 * copies the rest. `prepareBackup` makes filter and job while the source is drained: that is the moment. Either
 * `start` or `discard` follows; both may wait until other jobs are prepared (a transaction).
 * How copying works is block/copy; what the arguments may be is commands/backup.ts.
 */

import type {
  BitmapSyncMode,
  BlockdevOnError,
  MirrorSyncMode,
  OnCbwError,
} from '../../schema/generated/types.ts';
import { nextTurn } from '../aio/host/turns.ts';
import { type DirtyBitmap, nextDirty, setDirty } from '../block/bitmaps/dirty-bitmap.ts';
import { beginSuccession, endSuccession } from '../block/bitmaps/successor.ts';
import { Perm } from '../block/contract/request.ts';
import { type BlockCopy, remainingBytes } from '../block/copy/block-copy.ts';
import { type RunOptions, runCopy } from '../block/copy/run.ts';
import { dropFilter, replaceNode } from '../block/graph/change.ts';
import type { BlockNode } from '../block/graph/node.ts';
import { openFromOptions } from '../block/open/open.ts';
import { copyOfFilter } from '../drivers/filters/copy-before-write.ts';
import { BlockError, errnoOf, ioError } from '../errors/error.ts';
import {
  type BlockJob,
  createBlockJob,
  handleError,
  limitRate,
  removeJobNodes,
  startBlockJob,
} from './block-job.ts';
import { cancelRequests } from './cancel-requests.ts';
import { takeAllSteps } from './clean-up.ts';
import { type Job, type JobDriver, type JobTable, type JobTransaction, withJobLock } from './job-common.ts';
import {
  addProgress,
  isCancelled,
  pausePoint,
  setRemainingProgress,
  sleepJob,
  wakeJob,
} from './job-driver.ts';
import { cancelJob } from './job-monitor.ts';

/** A job without work of its own looks at its state this often; what changes it wakes the job. */
const IDLE_MS = 2 ** 30;
const TURNS_BEFORE_ANSWER = 3;
/** Others of the same transaction may be a little behind. */
const TURNS_AFTER_ANSWER = 3;
/** Between two attempts when errors are to be ignored. */
const RETRY_MS = 100;
/** The server of the target of a cancelled job may take so long to answer. */
const PATIENCE_MS = 1000;

export interface BackupOptions {
  readonly id: string;
  readonly source: BlockNode;
  readonly target: BlockNode;
  readonly sync: MirrorSyncMode;
  readonly speed: number;
  /** With what becomes of it at the end. */
  readonly bitmap: { readonly bitmap: DirtyBitmap; readonly mode: BitmapSyncMode } | null;
  readonly compress: boolean;
  /** What has been copied is discarded on the source. */
  readonly discardSource: boolean;
  readonly onSourceError: BlockdevOnError;
  readonly onTargetError: BlockdevOnError;
  readonly autoFinalize: boolean;
  readonly autoDismiss: boolean;
  readonly filterName: string | null;
  readonly useCopyRange: boolean;
  readonly maxWorkers: number;
  /** 0: no limit. */
  readonly maxChunkBytes: number;
  /** Least unit of copying; 0: as fits the target. */
  readonly minClusterBytes: number;
  /** What is given up when something cannot be copied before it is overwritten. */
  readonly onCbwError: OnCbwError;
  readonly transaction?: JobTransaction;
}

export interface PreparedBackup {
  readonly job: Job;
  /** Starts the work; call it while the source is drained still. */
  start(): void;
  /** Takes everything back. */
  discard(): Promise<void>;
  /** To be awaited when the drained section is over: the command may be answered. */
  answered(): Promise<void>;
}

interface Backup {
  readonly options: BackupOptions;
  readonly filter: BlockNode;
  readonly copy: BlockCopy;
  block: BlockJob | null;
  /** Has begun to copy, or has nothing to copy by itself. */
  underWay: boolean;
  /** To be called when it is. */
  readonly begin: () => void;
  /** The command that made the job has been answered: what copies ends after that. */
  readonly replied: Promise<void>;
}

/** Makes the job; the source is drained. Throws as the original does; then everything is as it was. */
export async function prepareBackup(jobs: JobTable, options: BackupOptions): Promise<PreparedBackup> {
  const { source, target, bitmap } = options;
  const { layer } = source;
  let filter: BlockNode;
  // Writes are recorded apart from now on.
  if (bitmap !== null) beginSuccession(bitmap.bitmap);
  try {
    filter = await insertFilter(options);
  } catch (error) {
    if (bitmap !== null) endSuccession(bitmap.bitmap, true);
    throw error;
  }
  const reply = createSignal();
  const begun = createSignal();
  const backup: Backup = {
    options,
    filter,
    copy: copyOfFilter(filter),
    block: null,
    underWay: false,
    begin: begun.fire,
    replied: reply.promise,
  };
  try {
    setUpCopy(backup);
    backup.block = await createBlockJob(jobs, {
      ...options,
      driver: driverOf(backup),
      nodes: [
        { name: 'main node', node: filter, permissions: { perm: 0, shared: Perm.all } },
        { name: 'target', node: target, permissions: { perm: 0, shared: Perm.all } },
      ],
    });
  } catch (error) {
    await removeFilter(backup);
    if (bitmap !== null) endSuccession(bitmap.bitmap, true);
    throw error;
  }
  const { block } = backup;
  reportProgress(backup);
  layer.hold(source);
  return {
    job: block.job,
    start: () => startBlockJob(block),
    async discard() {
      withJobLock(jobs, (lock) => cancelJob(block.job, true, lock));
      await block.job.transaction.ending;
    },
    async answered() {
      // A job that somebody's drained section pauses at once may rest for long.
      if (!block.job.workDone)
        await Promise.race([begun.promise, block.job.whenWorkDone.wait(), block.job.whenDetached]);
      // An error that needs no I/O comes before the answer, as does the end of a job that has nothing to do.
      await turns(TURNS_BEFORE_ANSWER);
      if (!backup.underWay && block.job.workDone) await block.job.transaction.ending;
      void turns(TURNS_AFTER_ANSWER).then(reply.fire);
    },
  };
}

function createSignal(): { readonly promise: Promise<void>; readonly fire: () => void } {
  let fire = (): void => undefined;
  const promise = new Promise<void>((resolve) => {
    fire = resolve;
  });
  return { promise, fire };
}

async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn++) await nextTurn();
}

// ---- the filter ----------------------------------------------------------------------------------------------

/** Opens the filter and puts it on the source. The caller has a hold on it. */
async function insertFilter({
  source,
  target,
  filterName,
  discardSource,
  minClusterBytes,
  onCbwError,
}: BackupOptions): Promise<BlockNode> {
  const { layer } = source;
  let filter: BlockNode;
  try {
    filter = await openFromOptions(layer, {
      driver: 'copy-before-write',
      ...(filterName === null ? {} : { 'node-name': filterName }),
      file: source.name,
      target: target.name,
      'on-cbw-error': onCbwError,
      'min-cluster-size': minClusterBytes,
      'read-only': source.readOnly,
      discard: source.settings.discardUnmap ? 'unmap' : 'ignore',
      cache: { direct: source.settings.cache.direct, 'no-flush': source.settings.cache.noFlush },
    });
  } catch (error) {
    throw prefixed('Could not create node: ', error);
  }
  layer.hold(filter);
  // Looked at when permissions are worked out: it is a kind of writing.
  copyOfFilter(filter).discardSource = discardSource;
  try {
    await replaceNode(source, filter);
  } catch (error) {
    await layer.release(filter);
    throw prefixed('Could not replace node: ', error);
  }
  return filter;
}

function prefixed(prefix: string, error: unknown): unknown {
  return error instanceof BlockError ? new BlockError(prefix + error.message, { errno: error.errno }) : error;
}

async function removeFilter({ filter }: Backup): Promise<void> {
  await dropFilter(filter);
  await filter.layer.release(filter);
}

function setUpCopy({ options, copy }: Backup): void {
  const { maxChunkBytes, bitmap, sync } = options;
  if (maxChunkBytes > 0 && maxChunkBytes < copy.clusterBytes) {
    throw new BlockError(
      `Required max-chunk (${maxChunkBytes}) is less than backup cluster size (${copy.clusterBytes})`,
    );
  }
  copy.mover.compress = options.compress;
  copy.mover.useCopyRange = options.useCopyRange;
  copy.mover.skipUnallocated = sync === 'top';
  if (sync !== 'bitmap' && sync !== 'incremental') return;
  copy.dirty.clear();
  const source = bitmap!.bitmap;
  for (let extent = nextDirty(source, 0); extent !== null; ) {
    const end = extent.offset + extent.bytes;
    copy.dirty.set(
      Math.floor(extent.offset / copy.clusterBytes),
      Math.ceil(Math.min(end, copy.totalBytes) / copy.clusterBytes),
    );
    extent = nextDirty(source, end);
  }
}

// ---- the job -------------------------------------------------------------------------------------------------

function driverOf(backup: Backup): JobDriver {
  return {
    type: 'backup',
    run: (job) => run(backup, job),
    commit: async () => endBitmap(backup, true),
    abort: async () => endBitmap(backup, false),
    cancel(job) {
      giveUp(backup, job);
      return true;
    },
    async clean() {
      const { options, copy } = backup;
      copy.onProgress = null;
      await takeAllSteps(
        // The job's own hold would keep the filter in place.
        () => removeJobNodes(backup.block!),
        () => removeFilter(backup),
        () => options.source.layer.release(options.source),
      );
    },
  };
}

/** A target that does not answer keeps neither the job from ending nor, from now on, the source's users from writing. */
function giveUp({ options, copy }: Backup, job: Job): void {
  copy.isGivenUp = true;
  const timer = setTimeout(() => {
    if (job.status !== 'concluded' && job.status !== 'null') cancelRequests(options.target);
  }, PATIENCE_MS);
  timer.unref();
}

/** What becomes of the bitmap: clean where copied, or as it was, with what was written since. */
function endBitmap({ options, copy }: Backup, success: boolean): void {
  if (options.bitmap === null) return;
  const { bitmap, mode } = options.bitmap;
  const clears = mode === 'always' || (mode === 'on-success' && success);
  endSuccession(bitmap, !clears);
  if (!clears || success) return;
  // What was not copied is still to be copied the next time.
  for (let first = copy.dirty.nextSet(0); first >= 0; ) {
    const clear = copy.dirty.nextClear(first);
    const end = clear < 0 ? copy.dirty.length : clear;
    setDirty(
      bitmap,
      first * copy.clusterBytes,
      Math.min(end * copy.clusterBytes, copy.totalBytes) - first * copy.clusterBytes,
    );
    first = copy.dirty.nextSet(end);
  }
}

function reportProgress({ copy, block }: Backup): void {
  const { job } = block!;
  let reported = 0;
  copy.onProgress = () => {
    addProgress(job, copy.copiedBytes - reported);
    reported = copy.copiedBytes;
    setRemainingProgress(job, remainingBytes(copy));
    if (copy.brokenBy !== 0) wakeJob(job);
  };
  copy.onProgress();
}

async function run(backup: Backup, job: Job): Promise<void> {
  const { options, copy } = backup;
  const block = backup.block!;
  if (options.sync === 'none') {
    backup.underWay = true;
    backup.begin();
    while (!isCancelled(job)) {
      checkNotBroken(copy);
      await sleepJob(job, IDLE_MS);
    }
    return;
  }
  while (remainingBytes(copy) > 0) {
    const failure = await runCopy(copy, runOptions(backup, job));
    if (isCancelled(job)) return;
    checkNotBroken(copy);
    if (failure === null) continue;
    const error = failure.error instanceof BlockError ? failure.error : ioError(errnoOf(failure.error));
    // A write comes after a read, which took its time.
    if (!failure.isRead) await backup.replied;
    const policy = failure.isRead ? options.onSourceError : options.onTargetError;
    const action = handleError(block, policy, failure.isRead ? 'read' : 'write', error);
    if (action === 'report') {
      await backup.replied;
      throw error;
    }
    if (action === 'ignore') await sleepJob(job, RETRY_MS);
    await pausePoint(job);
  }
  checkNotBroken(copy);
  if (backup.underWay) await backup.replied;
}

/** Throws when a guest's write went on without its copy: the backup is of no moment. */
function checkNotBroken({ brokenBy }: BlockCopy): void {
  if (brokenBy !== 0) throw ioError(brokenBy);
}

function runOptions(backup: Backup, job: Job): RunOptions {
  const { options, filter } = backup;
  const block = backup.block!;
  const { graphLock } = filter.layer;
  return {
    maxRequests: options.maxWorkers,
    maxChunkBytes: options.maxChunkBytes,
    async enter() {
      const guard = graphLock.tryRead() ?? (await graphLock.read());
      filter.inFlight++;
      return guard;
    },
    leave(guard) {
      filter.inFlight--;
      if (filter.inFlight === 0) filter.idle.wakeAll();
      graphLock.readDone(guard);
    },
    isLimited: () => block.rate.bytesPerSecond > 0,
    async mayGoOn(lastBytes) {
      if (lastBytes > 0) await limitRate(block, lastBytes);
      await pausePoint(job);
      backup.underWay = true;
      backup.begin();
      return !isCancelled(job) && backup.copy.brokenBy === 0;
    },
  };
}
