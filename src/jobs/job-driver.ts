/**
 * What the code of a job uses. These functions know nothing of the job lock: **they lock inside**, and must not be
 * called by anybody who holds it. None of them keeps the lock while it waits.
 */

import { nextTurn } from '../aio/host/turns.ts';
import { assert } from '../errors/error.ts';
import { type Job, transition, withJobLock } from './job-common.ts';

/** Sets the work there is left, in the job's own unit; what is done stays. */
export function setRemainingProgress(job: Job, remaining: number): void {
  withJobLock(job.table, () => {
    job.progress.total = job.progress.current + remaining;
  });
}

/** More work has turned up. */
export function increaseRemainingProgress(job: Job, more: number): void {
  withJobLock(job.table, () => {
    job.progress.total += more;
  });
}

/** Work has been done. */
export function addProgress(job: Job, done: number): void {
  withJobLock(job.table, () => {
    job.progress.current += done;
  });
}

/** Whether the job is to stop, whatever state its work is in. */
export function isCancelled(job: Job): boolean {
  return withJobLock(job.table, () => job.forceCancel);
}

/** Whether a cancellation was asked for, by force or not. */
export function isCancelRequested(job: Job): boolean {
  return withJobLock(job.table, () => job.cancelRequested);
}

/** Whether there is a reason for the job to rest: it is to come to its next pause point soon. */
export function mustPause(job: Job): boolean {
  return withJobLock(job.table, () => job.pauseCount > 0 && !job.forceCancel);
}

/** Whether the job is in one of the two states of a job that only waits for its completion. */
export function isReady(job: Job): boolean {
  return withJobLock(job.table, () => job.status === 'ready' || job.status === 'standby');
}

/** The bulk of the work is done; from now on the job keeps its result up to date until it is completed. */
export function becomeReady(job: Job): void {
  withJobLock(job.table, (lock) => transition(job, 'ready', lock));
  job.observer.ready?.(job);
}

/**
 * Rests here while there is a reason to. A job without pause points cannot be paused: place them where the job
 * has no request under way. Costs nothing when there is no reason.
 */
export async function pausePoint(job: Job): Promise<void> {
  while (mustPause(job)) {
    job.driver.pause?.(job);
    const before = withJobLock(job.table, (lock) => {
      const status = job.status;
      assert(status === 'running' || status === 'ready', `job '${job.id}' rests in state ${status}`);
      transition(job, status === 'ready' ? 'standby' : 'paused', lock);
      job.paused = true;
      return status;
    });
    job.detach();
    while (mustPause(job)) await untilWoken(job, null);
    withJobLock(job.table, (lock) => {
      job.paused = false;
      transition(job, before, lock);
    });
    job.driver.resume?.(job);
  }
}

/** Sleeps for `milliseconds`, or until wakeJob, a pause or a cancellation; then a pause point. */
export async function sleepJob(job: Job, milliseconds: number): Promise<void> {
  if (!withJobLock(job.table, () => job.forceCancel || job.pauseCount > 0)) {
    job.detach();
    await untilWoken(job, milliseconds);
  }
  await pausePoint(job);
}

/** Waits for a wake-up; only the job's own coroutine may. */
function untilWoken(job: Job, timeoutMs: number | null): Promise<void> {
  assert(job.wakeUp === null, `job '${job.id}' sleeps twice`);
  return new Promise((resolve) => {
    const timer = timeoutMs === null ? undefined : setTimeout(() => job.wakeUp?.(), timeoutMs);
    job.wakeUp = () => {
      clearTimeout(timer);
      job.wakeUp = null;
      resolve();
    };
    job.whenRests.wakeAll();
  });
}

/** Ends the job's sleep. */
export function wakeJob(job: Job): void {
  withJobLock(job.table, () => job.wakeUp?.());
}

/**
 * To be awaited once, after the checks that need no I/O: the command that started the job is answered here. A job
 * that fails before has ended when the command is answered, so that clients see the same order as with the original.
 */
export async function letCommandReturn(job: Job): Promise<void> {
  job.detach();
  await nextTurn();
}
