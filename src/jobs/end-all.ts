/** The end of all jobs, when the daemon ends. */

import { isBusy, type JobTable, withJobLock } from './job-common.ts';
import { cancelJob, pauseJob, resumeJob } from './job-monitor.ts';

/** Refuses new jobs; cancels those there are, newest first, waits for each, and dismisses it. Locks inside. */
export async function endAllJobs(table: JobTable): Promise<void> {
  table.closing = true;
  await restOnce(table);
  for (;;) {
    const job = table.jobs.at(-1);
    if (job === undefined) return;
    withJobLock(table, (lock) => cancelJob(job, true, lock));
    while (!job.workDone) await job.whenWorkDone.wait();
    await job.transaction.ending;
    // What is still there has concluded and is dismissed by the next turn.
  }
}

/** Lets all block jobs come to rest and go on again: the original drains all nodes first, which shows in the events. */
async function restOnce(table: JobTable): Promise<void> {
  const jobs = table.jobs.filter(({ block, workDone }) => block !== null && !workDone).reverse();
  for (const job of jobs) withJobLock(table, (lock) => pauseJob(job, lock));
  for (const job of jobs) while (withJobLock(table, (lock) => isBusy(job, lock))) await job.whenRests.wait();
  for (const job of jobs) withJobLock(table, (lock) => resumeJob(job, lock));
}
