/**
 * The mirror job: from its start by a command to its end, over the block-job layer.
 *
 * The work itself is loop.ts, what it does to the graph graph.ts. A job that is completed lets the target take the
 * source's place, one that is cancelled when it is ready leaves a consistent copy, and in any case its filter and its
 * hold on the nodes are gone afterwards.
 */

import { totalmem } from 'node:os';
import type { BlockdevOnError } from '../../../schema/generated/types.ts';
import { nextTurn } from '../../aio/host/turns.ts';
import type { BlockBackend } from '../../block/backend.ts';
import {
  createBitmap,
  type DirtyBitmap,
  defaultGranularity,
  releaseBitmap,
} from '../../block/bitmaps/dirty-bitmap.ts';
import { type PermissionPair, Req } from '../../block/contract/request.ts';
import { createMover } from '../../block/copy/mover.ts';
import { cowChild, showsContentOf, skipFilters } from '../../block/graph/chain.ts';
import { asMonitor } from '../../block/graph/debug.ts';
import type { DrainedSection } from '../../block/graph/drain.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { infoOrNull } from '../../block/io/callbacks.ts';
import { backingNameOf, writeBackingName } from '../../block/open/backing-image.ts';
import { changeOptions } from '../../block/open/reopen.ts';
import type { MirrorTopNode } from '../../drivers/filters/mirror-top.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, ioError } from '../../errors/error.ts';
import {
  type BlockJob,
  createBlockJob,
  discardBlockJob,
  handleError,
  removeJobNodes,
  startBlockJob,
} from '../block-job.ts';
import { cancelRequests } from '../cancel-requests.ts';
import { takeAllSteps } from '../clean-up.ts';
import { type Job, type JobDriver, type JobTable, withJobLock } from '../job-common.ts';
import {
  addProgress,
  becomeReady,
  isCancelled,
  isCancelRequested,
  isReady,
  letCommandReturn,
  pausePoint,
  setRemainingProgress,
  sleepJob,
  wakeJob,
} from '../job-driver.ts';
import { countWork, delayMs } from '../rate-limit.ts';
import { dismantle, insertFilter, jobNodes, pivot, setCopyMode, TARGET_USE } from './graph.ts';
import { type FirstRound, firstRound } from './init.ts';
import { changeCopyMode, type LoopControl, mirrorLoop, settle } from './loop.ts';
import { type CopyMode, createMirror, type Mirror, remainingBytes } from './state.ts';

/** Bytes that are under way at most, when the user does not say. */
const DEFAULT_BUFFER_BYTES = 16 * 1024 * 1024;
/** Data one copy moves at most: what stays in the processor's cache from the read to the write. */
const COPY_MAX_BYTES = 256 * 1024;
const COPIES_MAX = 16;
/** Turns of the event loop in which a command that woke the job is answered. */
const COMMAND_TURNS = 4;

/** What is to be below the target when it has taken its place. */
export interface TargetBacking {
  /** Asked when nothing in the graph can change any more. */
  readonly find: () => BlockNode | null;
  /** The image names it already. */
  readonly isNamed: boolean;
}

export interface MirrorOptions {
  readonly id: string;
  /** `commit`: the target is below the source, in its chain. Default: mirror. */
  readonly type?: 'mirror' | 'commit';
  /** What the job takes of the target. Default: nobody else may even read it. */
  readonly targetUse?: PermissionPair;
  /** With a commit: the nodes between source and target. */
  readonly between?: readonly BlockNode[];
  /** With a commit: makes the target large enough. */
  readonly begin?: () => Promise<void>;
  /** Undoes what was done for the job before; when the target has taken its place, and when not. */
  readonly end?: (isPivoted: boolean) => Promise<void>;
  readonly source: BlockNode;
  readonly target: BlockNode;
  /** What is copied in the first place; null: nothing. */
  readonly round: FirstRound | null;
  /** Node whose place the target takes; null: the source. */
  readonly replaces: BlockNode | null;
  /** What is below the target once it is in its place; undefined: what is there now. Asked at the end. */
  readonly backing?: () => Promise<TargetBacking>;
  /** Bytes; 0: as fits the target. */
  readonly granularityBytes: number;
  /** Bytes; 0: a default. */
  readonly bufferBytes: number;
  readonly speed: number;
  readonly unmap: boolean;
  readonly copyMode: CopyMode;
  readonly filterName: string | null;
  readonly onSourceError: BlockdevOnError;
  readonly onTargetError: BlockdevOnError;
  readonly autoFinalize: boolean;
  readonly autoDismiss: boolean;
}

/** What a job has from its start to its end. */
interface Work {
  readonly options: MirrorOptions;
  readonly filter: MirrorTopNode;
  readonly block: BlockJob;
  /** Keeps others away from the target. */
  readonly targetUse: BlockBackend;
  readonly mirror: Mirror;
  readonly control: LoopControl;
  /** The user wants the target to take the source's place. */
  shouldComplete: boolean;
  /** Source and target are the same, and nobody writes. */
  section: DrainedSection | null;
  dismantled: boolean;
  isPivoted: boolean;
}

/** Starts a job; nodes and options are checked as far as commands do. Throws when it cannot start; then all is as before. */
export async function startMirror(table: JobTable, options: MirrorOptions): Promise<Job> {
  const { source, target, id } = options;
  const { layer } = source;
  const clusterBytes = (await infoOrNull(target))?.clusterSizeBytes ?? 0;
  const granularityBytes = options.granularityBytes || defaultGranularity(clusterBytes);
  const filter = await insertFilter(source, options.filterName, options.type === 'commit');
  const top = filter as unknown as BlockNode;
  for (const node of [source, target, top]) layer.hold(node);
  const box: { work: Work | null } = { work: null };
  const releaseNodes = (): Promise<void> =>
    takeAllSteps(...[top, target, source].map((node) => () => layer.release(node)));
  let block: BlockJob | null = null;
  let bitmap: DirtyBitmap | null = null;
  let targetUse: BlockBackend | null = null;
  try {
    block = await createBlockJob(table, {
      id,
      driver: mirrorDriver(options, () => box.work!, releaseNodes),
      speed: options.speed,
      autoFinalize: options.autoFinalize,
      autoDismiss: options.autoDismiss,
      nodes: jobNodes(source, target, filter, options.between),
    });
    targetUse = await layer.createBackend(target, options.targetUse ?? TARGET_USE, TARGET_OWNER);
    bitmap = createBitmap(source, { name: null, granularityBytes });
    const mirror = buildMirror(options, block, filter, bitmap, clusterBytes);
    if (options.copyMode === 'write-blocking') await setCopyMode(mirror, options.copyMode);
    box.work = {
      options,
      filter,
      block,
      targetUse,
      mirror,
      control: controlOf(block, () => box.work!),
      shouldComplete: false,
      section: null,
      dismantled: false,
      isPivoted: false,
    };
  } catch (error) {
    if (bitmap !== null) releaseBitmap(bitmap);
    await targetUse?.close();
    if (block !== null) await discardBlockJob(block);
    await dismantle(source, filter);
    await releaseNodes();
    throw error;
  }
  startBlockJob(block);
  return block.job;
}

/** The target as others see it in permission errors. Drained sections reach the job by its own edges. */
const TARGET_OWNER = {
  describe: () => 'an unnamed block device',
  drainedBegin: () => undefined,
  drainedEnd: () => undefined,
  staysAtNode: true,
} as const;

function buildMirror(
  options: MirrorOptions,
  block: BlockJob,
  filter: MirrorTopNode,
  bitmap: DirtyBitmap,
  clusterBytes: number,
): Mirror {
  const { source, target, onSourceError, onTargetError } = options;
  const image = skipFilters(target);
  const namesBacking = (image.driver.backingName?.(image) ?? null) !== null;
  const { granularityBytes } = bitmap;
  // What a partial write leaves of a cluster would hide what is to show through it later.
  const whole = namesBacking && cowChild(image) === null;
  const alignBytes = whole ? Math.max(granularityBytes, clusterBytes) : granularityBytes;
  const bufferBytes = options.bufferBytes || DEFAULT_BUFFER_BYTES;
  const wanted = Math.min(bufferBytes / COPIES_MAX, COPY_MAX_BYTES);
  const copyBytes = Math.max(Math.floor(wanted / alignBytes), 1) * alignBytes;
  return createMirror({
    source,
    target,
    filter,
    bitmap,
    alignBytes,
    mover: createMover({
      source: () => source,
      target: () => target,
      clusterBytes: alignBytes,
      bufferBytes: copyBytes,
      isFlushed: true,
      zeroFlags: options.unmap ? Req.mayUnmap : 0,
      // There is no backing image that could show through a hole.
      leavesZeroes:
        image.driver.supportsBacking === true || image.driver.freshIsNoise === true ? 'never' : 'holes',
    }),
    maxCopies: Math.min(Math.max(Math.floor(bufferBytes / copyBytes), 1), COPIES_MAX),
    copyMode: 'background',
    host: {
      onError: (isRead, error) =>
        // What fails because the job is cancelled is no news.
        isCancelled(block.job)
          ? 'ignore'
          : handleError(block, isRead ? onSourceError : onTargetError, isRead ? 'read' : 'write', error),
      copied: (bytes) => addProgress(block.job, bytes),
    },
  });
}

function controlOf({ job, rate }: BlockJob, work: () => Work): LoopControl {
  return {
    isCancelled: () => isCancelled(job),
    mustPause: () => withJobLock(job.table, () => job.pauseCount > 0 && !job.forceCancel),
    pausePoint: () => pausePoint(job),
    sleep: (milliseconds) => sleepJob(job, milliseconds),
    count: (bytes) => countWork(rate, bytes, performance.now()),
    bytesPerSecond: () => rate.bytesPerSecond,
    delayMs: () => delayMs(rate, performance.now()),
    setRemaining: (bytes) => setRemainingProgress(job, bytes),
    isReady: () => isReady(job),
    becomeReady: () => becomeReady(job),
    mustEnd: () => work().shouldComplete || isCancelRequested(job),
    letCommandReturn: async () => {
      for (let turn = 0; turn < COMMAND_TURNS; turn++) await nextTurn();
    },
  };
}

function mirrorDriver(
  options: MirrorOptions,
  work: () => Work,
  releaseNodes: () => Promise<void>,
): JobDriver {
  const { type = 'mirror', end } = options;
  return {
    type,
    run: (job) => run(work(), job),
    prepare: () => prepare(work()),
    abort: () => tearDown(work()),
    clean: async () => {
      await takeAllSteps(
        () => tearDown(work()),
        () => end?.(work().isPivoted),
        () => releaseNodes(),
      );
    },
    // In a drained section of its own the job has come to rest before it begins.
    isBusy: () => work().mirror.drain !== 'begins',
    userResume() {
      work().mirror.retryAtMs = 0;
    },
    complete(job) {
      work().shouldComplete = true;
      wakeJob(job);
    },
    details: (job) => ({
      'actively-synced':
        (job.status === 'ready' || job.status === 'standby') &&
        work().mirror.copyMode === 'write-blocking' &&
        remainingBytes(work().mirror) === 0,
    }),
    change: async (job, options) => {
      if (options.type === 'mirror') await change(work().mirror, job, options['copy-mode']);
    },
    cancel(job, force) {
      const atOnce = force || !isReady(job);
      // A job that is to stop does not wait for a server that may never answer.
      if (atOnce) cancelRequests(options.target);
      return atOnce;
    },
  };
}

/** Changes the copy mode: at once when the job rests, else when it next comes to rest. */
async function change(mirror: Mirror, job: Job, to: CopyMode): Promise<void> {
  if (mirror.change !== null) throw new BlockError('Another change of the copy mode is under way');
  const done = new Promise<unknown>((resolve) => {
    mirror.change = { to, done: resolve };
  });
  if (job.paused) await changeCopyMode(mirror);
  else wakeJob(job);
  const failure = await done;
  if (failure !== null) throw failure;
}

async function run(work: Work, job: Job): Promise<void> {
  const { mirror } = work;
  try {
    await begin(work, job);
    work.section = await mirrorLoop(mirror, work.control);
  } finally {
    mirror.change?.done(new BlockError(`Job '${job.id}' has ended`));
    mirror.change = null;
  }
  if (mirror.failure !== null) throw mirror.failure;
  // Nobody knows when such a job is finalized. Until then writes go on, and what they change is copied in the end.
  if (!job.autoFinalize) endSection(work);
}

/** Checks what takes I/O to check, and finds out what is to be copied. */
async function begin({ mirror, control, options }: Work, job: Job): Promise<void> {
  const { source, target, round, bufferBytes } = options;
  if (round !== null && source.totalBytes > 0) await letCommandReturn(job);
  await options.begin?.();
  if (options.type !== 'commit' && source.totalBytes !== target.totalBytes)
    throw new BlockError('Source and target image have different sizes');
  if (bufferBytes > totalmem()) throw ioError(E.ENOMEM);
  if (round === null) return;
  await firstRound(mirror, round, async () => {
    await control.pausePoint();
    await nextTurn();
    return !control.isCancelled();
  });
}

function endSection(work: Work): void {
  work.mirror.drain = 'rests';
  work.section?.end();
  work.section = null;
}

/** The last step that may fail: the target takes its place. */
async function prepare(work: Work): Promise<void> {
  const { mirror, control, options, filter, block, targetUse } = work;
  work.section ??= await settle(mirror, control);
  if (work.section === null) throw mirror.failure ?? ioError(E.EIO);
  if (work.shouldComplete) {
    checkReplaced(options);
    const backing = await options.backing?.();
    await removeJobNodes(block);
    await targetUse.close();
    await matchReadOnly(options);
    await pivot(filter, options.replaces ?? options.source, options.target, backing?.find);
    work.dismantled = true;
    work.isPivoted = true;
    if (backing?.isNamed === false) await nameBacking(options.target);
  }
  await tearDown(work);
}

/** The image says what is below it now, which may have changed since it was made. */
async function nameBacking(target: BlockNode): Promise<void> {
  const image = skipFilters(target);
  const below = cowChild(image)?.node ?? null;
  const name = below === null ? null : backingNameOf(below, null);
  const said = image.driver.backingName?.(image) ?? null;
  if (said?.filename === name?.filename || image.readOnly) return;
  try {
    await writeBackingName(image, name);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    image.layer.report(`Node '${image.name}' could not be told its backing file: ${reason}\n`);
  }
}

/** What was a child of the source when the job began may belong to others by now, who would see its content change. */
function checkReplaced({ source, replaces }: MirrorOptions): void {
  if (replaces === null) return;
  if (!asMonitor(() => showsContentOf(source, replaces))) throw ioError(E.EPERM);
}

/** The target is to be read-only as the source is. One that cannot become so does no harm. */
async function matchReadOnly({ source, target, type }: MirrorOptions): Promise<void> {
  if (type === 'commit' || !source.readOnly || target.readOnly) return;
  try {
    await changeOptions(target, { 'read-only': true });
  } catch {
    // It stays writable; nobody who uses it will write.
  }
}

/** Gives up everything; idempotent. The filter goes first: until then users may write to the target through it. */
async function tearDown(work: Work): Promise<void> {
  const { options, filter, block, targetUse, mirror } = work;
  if (!work.dismantled) {
    work.dismantled = true;
    // Without the filter users read the images in between directly, which a commit does not let them.
    if (options.type === 'commit') await removeJobNodes(block);
    await dismantle(options.source, filter);
  }
  await removeJobNodes(block);
  await targetUse.close();
  if (mirror.bitmap.node.dirtyBitmaps.all.has(mirror.bitmap)) releaseBitmap(mirror.bitmap);
  endSection(work);
}
