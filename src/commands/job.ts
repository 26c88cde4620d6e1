/** Commands of schema/job.json: what the user does with jobs. Each finds its job and acts in one section of the lock. */

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

function withJob(jobs: JobTable, id: string, action: (job: Job, lock: JobLock) => void): Job {
  return withJobLock(jobs, (lock) => {
    const job = findJob(jobs, id, lock);
    action(job, lock);
    return job;
  });
}

export const jobCommands = {
  'job-pause': ({ jobs }, { id }) => {
    withJob(jobs, id, userPause);
    return {};
  },
  'job-resume': ({ jobs }, { id }) => {
    withJob(jobs, id, userResume);
    return {};
  },
  'job-cancel': async ({ jobs }, { id }) => {
    const job = withJob(jobs, id, (found, lock) => userCancel(found, true, lock));
    // A job whose work is over has ended when the command is answered; one at work ends later.
    await job.transaction.ending;
    return {};
  },
  'job-complete': ({ jobs }, { id }) => {
    withJob(jobs, id, completeJob);
    return {};
  },
  'job-dismiss': ({ jobs }, { id }) => {
    withJob(jobs, id, dismissJob);
    return {};
  },
  'job-finalize': async ({ jobs }, { id }) => {
    const job = withJob(jobs, id, finalizeJob);
    await job.transaction.ending;
    return {};
  },
  'query-jobs': ({ jobs }) => withJobLock(jobs, (lock) => queryJobs(jobs, lock)),
} satisfies Handlers<
  CommandContext,
  'job-pause' | 'job-resume' | 'job-cancel' | 'job-complete' | 'job-dismiss' | 'job-finalize' | 'query-jobs'
>;
