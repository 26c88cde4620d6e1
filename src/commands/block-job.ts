/** Commands of schema/block-job.json: what the user does with block jobs, by their older names. */

import { BlockError } from '../errors/error.ts';
import { type BlockJob, findBlockJob, queryBlockJobs, setBlockJobSpeed } from '../jobs/block-job.ts';
import { type JobLock, type JobTable, withJobLock } from '../jobs/job-common.ts';
import {
  completeJob,
  dismissJob,
  finalizeJob,
  userCancel,
  userPause,
  userResume,
} from '../jobs/job-monitor.ts';
import type { Handlers } from '../qmp/dispatch.ts';
import type { CommandContext } from './context.ts';
import { acted } from './job.ts';

function withBlockJob(
  jobs: JobTable,
  id: string,
  action: (block: BlockJob, lock: JobLock) => void,
): Promise<Record<string, never>> {
  return acted(jobs, (lock) => {
    const block = findBlockJob(jobs, id, lock);
    return { job: block.job, act: () => action(block, lock) };
  });
}

export const blockJobCommands = {
  'query-block-jobs': ({ jobs }) => withJobLock(jobs, (lock) => queryBlockJobs(jobs, lock)),
  'block-job-set-speed': ({ jobs }, { device, speed }) => {
    // A job that slept goes on after the answer, as with the original.
    withJobLock(jobs, (lock) => setBlockJobSpeed(findBlockJob(jobs, device, lock), speed, lock));
    return {};
  },
  'block-job-cancel': ({ jobs }, { device, force = false }) =>
    withBlockJob(jobs, device, ({ job }, lock) => {
      if (job.userPaused && !force)
        throw new BlockError(`The block job for device '${device}' is currently paused`);
      userCancel(job, force, lock);
    }),
  'block-job-pause': ({ jobs }, { device }) =>
    withBlockJob(jobs, device, ({ job }, lock) => userPause(job, lock)),
  'block-job-resume': ({ jobs }, { device }) =>
    withBlockJob(jobs, device, ({ job }, lock) => userResume(job, lock)),
  'block-job-complete': ({ jobs }, { device }) =>
    withBlockJob(jobs, device, ({ job }, lock) => completeJob(job, lock)),
  'block-job-dismiss': ({ jobs }, { id }) => withBlockJob(jobs, id, ({ job }, lock) => dismissJob(job, lock)),
  'block-job-finalize': ({ jobs }, { id }) =>
    withBlockJob(jobs, id, ({ job }, lock) => finalizeJob(job, lock)),
} satisfies Pick<
  Handlers<CommandContext>,
  | 'query-block-jobs'
  | 'block-job-set-speed'
  | 'block-job-cancel'
  | 'block-job-pause'
  | 'block-job-resume'
  | 'block-job-complete'
  | 'block-job-dismiss'
  | 'block-job-finalize'
>;
