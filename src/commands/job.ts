/** Commands of schema/job.json: what the user does with jobs. Each finds its job and acts in one section of the lock. */

import { nextTurn } from '../aio/host/turns.ts';
import { type Job, type JobLock, type JobTable, withJobLock } from '../jobs/job-common.ts';
import {
  completeJob,
  dismissJob,
  finalizeJob,
  findJob,
  queryJobs,
  userCancel,
  userPause,
  userResume,
} from '../jobs/job-monitor.ts';
import type { Handlers } from '../qmp/dispatch.ts';
import type { CommandContext } from './context.ts';

/** Turns of the event loop a job that was asleep gets before the command is answered. */
const TURNS = 3;

/**
 * Finds a job and acts on it in one section of the lock. A job that slept goes on at once: what it does then comes before
 * the answer, as with the original. When it comes to its end by that, the answer waits for it.
 */
export async function acted(
  jobs: JobTable,
  find: (lock: JobLock) => { readonly job: Job; act(): void },
): Promise<Record<string, never>> {
  const { job, slept } = withJobLock(jobs, (lock) => {
    const found = find(lock);
    const asleep = found.job.wakeUp !== null;
    found.act();
    return { job: found.job, slept: asleep };
  });
  for (let turn = 0; slept && turn < TURNS && !job.workDone; turn++) await nextTurn();
  await job.transaction.ending;
  return {};
}

function withJob(
  jobs: JobTable,
  id: string,
  action: (job: Job, lock: JobLock) => void,
): Promise<Record<string, never>> {
  return acted(jobs, (lock) => {
    const job = findJob(jobs, id, lock);
    return { job, act: () => action(job, lock) };
  });
}

export const jobCommands = {
  'job-pause': ({ jobs }, { id }) => withJob(jobs, id, userPause),
  'job-resume': ({ jobs }, { id }) => withJob(jobs, id, userResume),
  'job-cancel': ({ jobs }, { id }) => withJob(jobs, id, (job, lock) => userCancel(job, true, lock)),
  'job-complete': ({ jobs }, { id }) => withJob(jobs, id, completeJob),
  'job-dismiss': ({ jobs }, { id }) => withJob(jobs, id, dismissJob),
  'job-finalize': ({ jobs }, { id }) => withJob(jobs, id, finalizeJob),
  'query-jobs': ({ jobs }) => withJobLock(jobs, (lock) => queryJobs(jobs, lock)),
} satisfies Handlers<
  CommandContext,
  'job-pause' | 'job-resume' | 'job-cancel' | 'job-complete' | 'job-dismiss' | 'job-finalize' | 'query-jobs'
>;
