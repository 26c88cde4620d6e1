/**
 * Block jobs: what jobs that work on nodes have besides the life of a job.
 *
 * - The nodes: each is held by a root edge of its own, with permissions, and all operations on it are blocked.
 *   A drained section of one of them is a reason to pause; it waits until the job sleeps or rests. The job's own
 *   requests go on meanwhile, or it would never get to its pause point.
 * - Speed, I/O status, error policies, and the BLOCK_JOB_* events beside JOB_STATUS_CHANGE.
 *
 * How a command starts one: `createBlockJob`, graph changes that may fail, `startBlockJob` (or `discardBlockJob`). What
 * the work uses: `limitRate`, `handleError`, and job-driver.ts. Graph changes belong into `prepare`, `commit`, `abort` and
 * `clean`, when the work is over: a running job that drained its own node would wait for itself.
 * Everything here locks inside, but for the functions that take a `JobLock`.
 */

import type {
  BlockDeviceIoStatus,
  BlockdevOnError,
  BlockErrorAction,
  BlockJobInfo,
} from '../../schema/generated/types.ts';
import type { BlockBackend } from '../block/backend.ts';
import type { BackendOwner } from '../block/contract/backend-io.ts';
import type { PermissionPair } from '../block/contract/request.ts';
import type { BlockNode } from '../block/graph/node.ts';
import { blockOperations } from '../block/graph/op-blockers.ts';
import { E } from '../errors/errno.ts';
import { BlockError } from '../errors/error.ts';
import { takeAllSteps } from './clean-up.ts';
import {
  checkVerb,
  isBusy,
  type Job,
  type JobDriver,
  type JobLock,
  type JobObserver,
  type JobOptions,
  type JobTable,
  withJobLock,
} from './job-common.ts';
import { isCancelled, sleepJob } from './job-driver.ts';
import { createJob, discardJob, pauseJob, resumeJob, startJob } from './job-monitor.ts';
import { countWork, createRateLimit, delayMs, type RateLimit, setRate } from './rate-limit.ts';

/** A node a job works on. */
export interface JobNode {
  /** Names the edge in permission errors: "main node", "target". */
  readonly name: string;
  readonly node: BlockNode;
  readonly permissions: PermissionPair;
  /** Errors name the user of this edge as "an unnamed block device": it stands for the job's requests. */
  readonly isAnonymous?: boolean;
}

export interface BlockJob {
  readonly job: Job;
  /** Changed under the job lock. */
  readonly rate: RateLimit;
  /** Changed under the job lock. */
  ioStatus: BlockDeviceIoStatus;
  /** The job's hold on its nodes, in the order they were added; given up when the job has ended. */
  readonly backends: BlockBackend[];
  readonly unblock: (() => void)[];
}

export interface BlockJobOptions extends Omit<JobOptions, 'observer'> {
  /** Bytes a second; 0: no limit. */
  readonly speed?: number;
  readonly nodes: readonly JobNode[];
}

/**
 * Enters a block job into the table and takes its nodes. Throws when the id is malformed or taken, the speed is
 * negative, or permissions conflict; then there is no job.
 */
export async function createBlockJob(table: JobTable, options: BlockJobOptions): Promise<BlockJob> {
  const { speed = 0, nodes, driver } = options;
  const hooks: { block: BlockJob | null } = { block: null };
  const job = withJobLock(table, (lock) =>
    createJob(table, { ...options, driver: withNodes(driver, hooks), observer: observer(hooks) }, lock),
  );
  const block: BlockJob = {
    job,
    rate: createRateLimit(Math.max(0, speed)),
    ioStatus: 'ok',
    backends: [],
    unblock: [],
  };
  hooks.block = block;
  job.block = block;
  try {
    if (speed < 0) throw negativeSpeed();
    for (const node of nodes) await addJobNode(block, node);
  } catch (error) {
    await discardBlockJob(block);
    throw error;
  }
  return block;
}

/** Gives up a job that was created but cannot be started. */
export async function discardBlockJob(block: BlockJob): Promise<void> {
  await removeJobNodes(block);
  withJobLock(block.job.table, (lock) => discardJob(block.job, lock));
}

/** Starts the work. */
export function startBlockJob({ job }: BlockJob): void {
  withJobLock(job.table, (lock) => startJob(job, lock));
}

/** Takes one more node: others may do nothing with it but I/O. Throws a permission conflict. */
export async function addJobNode(
  block: BlockJob,
  { name, node, permissions, isAnonymous = false }: JobNode,
): Promise<BlockBackend> {
  const { job } = block;
  const backend = await node.layer.createBackend(node, permissions, nodeOwner(job, isAnonymous), name);
  block.backends.push(backend);
  block.unblock.push(blockOperations(node, `block device is in use by block job: ${job.driver.type}`));
  return backend;
}

/** Gives up one node of those the job has taken; other operations on it stay blocked. */
export async function giveUpNode(block: BlockJob, backend: BlockBackend): Promise<void> {
  const at = block.backends.indexOf(backend);
  if (at >= 0) block.backends.splice(at, 1);
  await backend.close();
}

/** Gives up all nodes; called when the job has ended, and earlier by jobs that change the graph then. Idempotent. */
export async function removeJobNodes(block: BlockJob): Promise<void> {
  for (const unblock of block.unblock.splice(0)) unblock();
  for (const backend of block.backends.splice(0).reverse()) await backend.close();
}

/** The job as the user of its nodes. */
function nodeOwner(job: Job, isAnonymous: boolean): BackendOwner {
  return {
    describe: () => (isAnonymous ? 'an unnamed block device' : `${job.driver.type} job '${job.id}'`),
    drainedBegin: () => withJobLock(job.table, (lock) => pauseJob(job, lock)),
    drainedEnd: () => withJobLock(job.table, (lock) => resumeJob(job, lock)),
    waitForRest: () => {
      const busy = withJobLock(job.table, (lock) => isBusy(job, lock)) && (job.driver.isBusy?.(job) ?? true);
      return busy ? job.whenRests.wait() : null;
    },
    sendsWhileDrained: true,
    staysAtNode: true,
    ...(!isAnonymous && { jobId: job.id }),
  };
}

/** The driver of the job, which gives up the nodes in the end and forgets I/O errors when it is resumed. */
function withNodes(driver: JobDriver, hooks: { readonly block: BlockJob | null }): JobDriver {
  return {
    ...driver,
    clean: async (job) => {
      await takeAllSteps(
        () => driver.clean?.(job),
        () => (hooks.block === null ? undefined : removeJobNodes(hooks.block)),
      );
    },
    userResume: (job) => {
      if (hooks.block !== null) hooks.block.ioStatus = 'ok';
      driver.userResume?.(job);
    },
  };
}

function observer(hooks: { readonly block: BlockJob | null }): JobObserver {
  const numbers = ({ progress }: Job) => ({
    len: progress.total,
    offset: progress.current,
    speed: hooks.block?.rate.bytesPerSecond ?? 0,
  });
  return {
    ready: (job) =>
      job.table.events.emit('BLOCK_JOB_READY', { type: job.driver.type, device: job.id, ...numbers(job) }),
    pending: (job) => job.table.events.emit('BLOCK_JOB_PENDING', { type: job.driver.type, id: job.id }),
    ended: (job) => {
      if (!job.started) return;
      const data = { type: job.driver.type, device: job.id, ...numbers(job) };
      if (job.forceCancel) job.table.events.emit('BLOCK_JOB_CANCELLED', data);
      else {
        const error = job.error === null ? {} : { error: job.error.message };
        job.table.events.emit('BLOCK_JOB_COMPLETED', { ...data, ...error });
      }
    },
  };
}

// ---- for the work of a job -----------------------------------------------------------------------------------

/** Counts `bytes` of work and sleeps as long as the speed limit wants it; also a pause point. Ends early when cancelled. */
export async function limitRate({ job, rate }: BlockJob, bytes: number): Promise<void> {
  countWork(rate, bytes, performance.now());
  for (;;) {
    const delay = delayMs(rate, performance.now());
    if (delay === 0 || isCancelled(job)) return;
    await sleepJob(job, delay);
  }
}

/**
 * What is to be done about an I/O error: tells the user, and with 'stop' pauses the job, which is to go to its next
 * pause point and try again then.
 */
export function handleError(
  block: BlockJob,
  policy: BlockdevOnError,
  operation: 'read' | 'write',
  error: BlockError,
): BlockErrorAction {
  const { job } = block;
  const action = actionFor(policy, error.errno);
  job.table.events.emit('BLOCK_JOB_ERROR', { device: job.id, operation, action });
  if (action === 'stop') {
    withJobLock(job.table, (lock) => {
      if (!job.userPaused) {
        job.userPaused = true;
        pauseJob(job, lock);
      }
      if (block.ioStatus === 'ok') block.ioStatus = error.errno === E.ENOSPC ? 'nospace' : 'failed';
    });
  }
  return action;
}

function actionFor(policy: BlockdevOnError, errno: number): BlockErrorAction {
  switch (policy) {
    case 'enospc':
    case 'auto':
      return errno === E.ENOSPC ? 'stop' : 'report';
    default:
      return policy;
  }
}

// ---- for the monitor -----------------------------------------------------------------------------------------

/** The block job with that id. Throws when there is none. */
export function findBlockJob(table: JobTable, id: string, lock: JobLock): BlockJob {
  table.assertHeld(lock);
  const block = table.jobs.find((job) => job.id === id)?.block ?? null;
  if (block === null) {
    throw new BlockError(`Block job '${id}' not found`, { errorClass: 'DeviceNotActive' });
  }
  return block;
}

/** What is known of every block job, newest first. */
export function queryBlockJobs(table: JobTable, lock: JobLock): BlockJobInfo[] {
  table.assertHeld(lock);
  return table.jobs.flatMap(({ block }) => (block === null ? [] : [blockJobInfo(block, lock)])).reverse();
}

function blockJobInfo({ job, rate, ioStatus }: BlockJob, lock: JobLock): BlockJobInfo {
  const info = {
    device: job.id,
    len: job.progress.total,
    offset: job.progress.current,
    busy: isBusy(job, lock),
    paused: job.pauseCount > 0,
    speed: rate.bytesPerSecond,
    'io-status': ioStatus,
    ready: job.status === 'ready' || job.status === 'standby',
    status: job.status,
    'auto-finalize': job.autoFinalize,
    'auto-dismiss': job.autoDismiss,
    ...(job.error !== null && { error: job.error.message }),
  };
  const { type } = job.driver;
  if (type !== 'mirror') return { type, ...info };
  return { type, ...info, 'actively-synced': job.driver.details?.(job)['actively-synced'] ?? false };
}

/** block-job-set-speed: a job that sleeps because of the old limit goes on by the new one. */
export function setBlockJobSpeed({ job, rate }: BlockJob, speed: number, lock: JobLock): void {
  checkVerb(job, 'set-speed', lock);
  if (speed < 0) throw negativeSpeed();
  setRate(rate, speed);
  if (!job.paused) job.wakeUp?.();
}

function negativeSpeed(): BlockError {
  return new BlockError("Parameter 'speed' expects a non-negative value");
}
