/**
 * How a job runs and ends: its work, then the end of its transaction.
 *
 * A job whose work succeeds waits until all of its transaction got there; then all are `pending`, and are finalized
 * (at once, or by job-finalize when one of them wants that): prepare for all, then commit for all. The first failure,
 * a cancellation included, aborts all but those that have prepared, which cannot take it back. Whatever happened, each
 * ends with clean, and is `concluded`.
 * Everything here locks inside.
 */

import { E } from '../errors/errno.ts';
import { BlockError, ioError, userText } from '../errors/error.ts';
import { type Job, type JobTransaction, removeJob, transition, withJobLock } from './job-common.ts';
import { pausePoint } from './job-driver.ts';

/** The life of a job from its start to its end. Never rejects. */
export async function runJob(job: Job): Promise<void> {
  let error: BlockError | null = null;
  try {
    await pausePoint(job);
    await job.driver.run(job);
  } catch (thrown) {
    error = asBlockError(job, thrown);
  }
  const { transaction } = job;
  withJobLock(job.table, () => {
    job.workDone = true;
    // What became of a job that was cancelled by force does not count.
    job.error = job.forceCancel ? cancelled() : error;
    job.whenWorkDone.wakeAll();
    job.whenRests.wakeAll();
  });
  if (job.error !== null) await abortTransaction(transaction);
  else if (allReady(job, transaction)) await finalizeTransaction(transaction);
  else job.detach();
}

function asBlockError(job: Job, thrown: unknown): BlockError {
  if (thrown instanceof BlockError) return thrown;
  job.table.reportBug(thrown);
  return new BlockError(userText(thrown, `job '${job.id}'`));
}

function cancelled(): BlockError {
  return ioError(E.ECANCELED);
}

/** The job's work succeeded: it waits for the others. True when it was the last one and nobody finalizes by hand. */
function allReady(job: Job, { phase, jobs }: JobTransaction): boolean {
  const all = withJobLock(job.table, (lock) => {
    if (phase !== 'working') return false;
    transition(job, 'waiting', lock);
    return jobs.every((other) => other.status === 'waiting');
  });
  if (!all) return false;
  for (const each of newestFirst(jobs)) {
    withJobLock(job.table, (lock) => transition(each, 'pending', lock));
    if (!each.autoFinalize) each.observer.pending?.(each);
  }
  return jobs.every((each) => each.autoFinalize);
}

/** The order in which jobs of a transaction end, as with the original. */
function newestFirst(jobs: readonly Job[]): readonly Job[] {
  return jobs.toReversed();
}

/** Prepares and commits all jobs of a transaction; all are pending. Called again, it waits for the same end. */
export function finalizeTransaction(transaction: JobTransaction): Promise<void> {
  transaction.ending ??= finalize(transaction);
  return transaction.ending;
}

async function finalize(transaction: JobTransaction): Promise<void> {
  const { jobs } = transaction;
  transaction.phase = 'finalizing';
  let left = jobs.length;
  for (const job of newestFirst(jobs)) {
    try {
      await job.driver.prepare?.(job);
      // What has changed the graph cannot take that back: from now on it is too late to cancel any of them.
      if (job.driver.prepare !== undefined) {
        job.isPrepared = true;
        transaction.phase = 'committing';
      }
    } catch (thrown) {
      job.error = asBlockError(job, thrown);
    }
    left--;
    const isCancelled =
      left > 0 && transaction.phase === 'finalizing' && jobs.some((each) => each.forceCancel);
    if (job.error !== null || isCancelled) return abort(transaction);
  }
  // What has been prepared is done, as the graph shows: nobody may be told that it was cancelled.
  transaction.phase = 'committing';
  for (const job of jobs) {
    withJobLock(job.table, () => {
      job.forceCancel = false;
    });
  }
  for (const job of newestFirst(jobs)) {
    await callback(job, 'commit');
    await callback(job, 'clean');
    conclude(job);
  }
}

/** Cancels what is still at work, waits for it, then undoes everything. Called again, it waits for the same end. */
export function abortTransaction(transaction: JobTransaction): Promise<void> {
  transaction.ending ??= abort(transaction);
  return transaction.ending;
}

async function abort(transaction: JobTransaction): Promise<void> {
  const { jobs } = transaction;
  transaction.phase = 'aborting';
  for (const job of jobs) {
    if (job.isPrepared) continue;
    if (!job.workDone) cancelForOthers(job);
    // One that has done its work is cancelled with the others all the same.
    else if (job.error === null) job.forceCancel = true;
  }
  for (const job of newestFirst(jobs)) {
    if (job.isPrepared) {
      // It has done all it was to do, whatever became of the others.
      withJobLock(job.table, () => {
        job.forceCancel = false;
      });
      await callback(job, 'commit');
      await callback(job, 'clean');
      conclude(job);
      continue;
    }
    while (!job.workDone) await job.whenWorkDone.wait();
    withJobLock(job.table, (lock) => {
      // One that has done its work is cancelled because of the others.
      job.forceCancel ||= job.error === null;
      job.error ??= cancelled();
      transition(job, 'aborting', lock);
    });
    await callback(job, 'abort');
    await callback(job, 'clean');
    conclude(job);
  }
}

/** Cancels a job because another one of its transaction failed. */
function cancelForOthers(job: Job): void {
  job.driver.cancel?.(job, true);
  withJobLock(job.table, () => {
    if (job.userPaused) job.pauseCount--;
    job.userPaused = false;
    job.cancelRequested = true;
    job.forceCancel = true;
    // One that has not been started has no work that could end.
    if (job.status === 'created') job.workDone = true;
    job.wakeUp?.();
  });
}

/** Runs a callback that cannot fail; one that does all the same must not keep the others from ending. */
async function callback(job: Job, name: 'commit' | 'abort' | 'clean'): Promise<void> {
  try {
    await job.driver[name]?.(job);
  } catch (error) {
    job.table.reportBug(error);
  }
}

function conclude(job: Job): void {
  job.observer.ended?.(job);
  withJobLock(job.table, (lock) => {
    transition(job, 'concluded', lock);
    if (job.autoDismiss) removeJob(job, lock);
  });
  job.detach();
}
