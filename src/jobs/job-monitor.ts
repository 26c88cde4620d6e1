/**
 * Jobs as the monitor uses them. **The caller holds the job lock**: every function takes the token that only
 * `withJobLock` hands out, so finding a job and acting on it is one step.
 *
 * What the code of a job uses is in job-driver.ts.
 */

import type { JobInfo } from '../../schema/generated/types.ts';
import { CoQueue } from '../coroutine/co-queue.ts';
import { assert, BlockError } from '../errors/error.ts';
import {
  checkVerb,
  createTransaction,
  type Job,
  type JobLock,
  type JobOptions,
  type JobTable,
  jobInfo,
  removeJob,
  transition,
  unlocked,
} from './job-common.ts';
import { abortTransaction, finalizeTransaction, runJob } from './job-run.ts';

/** A letter, then letters, digits, '-', '.', '_'. */
const WELL_FORMED_ID = /^[A-Za-z][A-Za-z0-9._-]*$/;

/** Enters a job into the table, in state `created`. Throws when the id is malformed or taken. */
export function createJob(table: JobTable, options: JobOptions, lock: JobLock): Job {
  table.assertHeld(lock);
  const {
    id,
    driver,
    autoFinalize = true,
    autoDismiss = true,
    transaction = createTransaction(),
    observer = {},
  } = options;
  if (!WELL_FORMED_ID.test(id)) throw new BlockError(`Invalid job ID '${id}'`);
  if (table.jobs.some((other) => other.id === id)) throw new BlockError(`Job ID '${id}' already in use`);
  if (table.closing) throw new BlockError('The daemon is shutting down');
  let detach: () => void = () => undefined;
  const whenDetached = new Promise<void>((resolve) => {
    detach = resolve;
  });
  const job: Job = {
    table,
    id,
    driver,
    autoFinalize,
    autoDismiss,
    transaction,
    observer,
    status: 'undefined',
    pauseCount: 0,
    userPaused: false,
    paused: false,
    cancelRequested: false,
    forceCancel: false,
    error: null,
    started: false,
    block: null,
    workDone: false,
    isPrepared: false,
    progress: { current: 0, total: 0 },
    wakeUp: null,
    whenWorkDone: new CoQueue(),
    whenRests: new CoQueue(),
    whenDetached,
    detach,
  };
  table.jobs.push(job);
  transaction.jobs.push(job);
  transition(job, 'created', lock);
  return job;
}

/** Starts the work. The lock is given up while the job runs its first steps. */
export function startJob(job: Job, lock: JobLock): void {
  assert(job.status === 'created', `job '${job.id}' started twice`);
  job.started = true;
  transition(job, 'running', lock);
  unlocked(job.table, lock, () => void runJob(job));
}

/** Gives up a job that was created but cannot be started. */
export function discardJob(job: Job, lock: JobLock): void {
  assert(job.status === 'created', `job '${job.id}' discarded after its start`);
  const { jobs } = job.transaction;
  jobs.splice(jobs.indexOf(job), 1);
  removeJob(job, lock);
}

/** The job with that id. Throws when there is none. */
export function findJob(table: JobTable, id: string, lock: JobLock): Job {
  table.assertHeld(lock);
  const job = table.jobs.find((candidate) => candidate.id === id);
  if (job === undefined) throw new BlockError('Job not found');
  return job;
}

/** What is known of every job, newest first. */
export function queryJobs(table: JobTable, lock: JobLock): JobInfo[] {
  table.assertHeld(lock);
  return table.jobs.map((job) => jobInfo(job, lock)).reverse();
}

/** A reason for the job to rest at its next pause point. */
export function pauseJob(job: Job, lock: JobLock): void {
  job.table.assertHeld(lock);
  job.pauseCount++;
  // A sleeping job comes to its pause point at once.
  if (!job.paused) job.wakeUp?.();
}

/** Takes back a reason; the job goes on when none is left. */
export function resumeJob(job: Job, lock: JobLock): void {
  job.table.assertHeld(lock);
  assert(job.pauseCount > 0, `job '${job.id}' resumed too often`);
  job.pauseCount--;
  if (job.pauseCount === 0) job.wakeUp?.();
}

/** job-pause. */
export function userPause(job: Job, lock: JobLock): void {
  checkVerb(job, 'pause', lock);
  if (job.userPaused) throw new BlockError('Job is already paused');
  job.userPaused = true;
  pauseJob(job, lock);
}

/** job-resume. */
export function userResume(job: Job, lock: JobLock): void {
  if (!job.userPaused) throw new BlockError("Can't resume a job that was not paused");
  checkVerb(job, 'resume', lock);
  unlocked(job.table, lock, () => job.driver.userResume?.(job));
  job.userPaused = false;
  resumeJob(job, lock);
}

/** job-cancel and, with `force` false, block-job-cancel: a job that is ready may then end in its own way. */
export function userCancel(job: Job, force: boolean, lock: JobLock): void {
  checkVerb(job, 'cancel', lock);
  cancelJob(job, force, lock);
}

/**
 * Cancels a job in any state; one that has concluded is dismissed. A job at work ends when it comes to it; for one
 * whose work is over, `transaction.ending` resolves when it has ended. While it makes its last changes, a cancellation
 * counts only if these fail.
 */
export function cancelJob(job: Job, force: boolean, lock: JobLock): void {
  job.table.assertHeld(lock);
  if (job.status === 'concluded') dismissJob(job, lock);
  if (job.status === 'null' || job.status === 'aborting') return;
  // Too late: what it was to do is done.
  if (job.transaction.phase === 'committing') return;
  if (job.userPaused) {
    unlocked(job.table, lock, () => job.driver.userResume?.(job));
    job.userPaused = false;
    job.pauseCount--;
  }
  const byForce = unlocked(job.table, lock, () => job.driver.cancel?.(job, force) ?? true);
  job.cancelRequested = true;
  job.forceCancel ||= byForce;
  job.wakeUp?.();
  if (job.status === 'created') job.workDone = true;
  // Without work under way nobody else would notice. While others prepare, the end of that looks at the mark.
  const { transaction } = job;
  if (job.workDone && job.forceCancel && transaction.phase === 'working')
    unlocked(job.table, lock, () => void abortTransaction(transaction));
}

/** job-complete. */
export function completeJob(job: Job, lock: JobLock): void {
  checkVerb(job, 'complete', lock);
  const { driver } = job;
  if (job.cancelRequested || driver.complete === undefined) {
    throw new BlockError(`The active block job '${job.id}' cannot be completed`);
  }
  unlocked(job.table, lock, () => driver.complete?.(job));
}

/**
 * job-finalize: the jobs of the transaction make their last changes; `transaction.ending` resolves when they have
 * ended. The lock is given up while they begin.
 */
export function finalizeJob(job: Job, lock: JobLock): void {
  checkVerb(job, 'finalize', lock);
  unlocked(job.table, lock, () => void finalizeTransaction(job.transaction));
}

/** job-dismiss. */
export function dismissJob(job: Job, lock: JobLock): void {
  checkVerb(job, 'dismiss', lock);
  removeJob(job, lock);
}
