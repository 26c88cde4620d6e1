/** The end of all jobs, when the daemon ends. */

import { type JobTable, withJobLock } from './job-common.ts';
import { cancelJob } from './job-monitor.ts';

/** Refuses new jobs; cancels those there are, newest first, waits for each, and dismisses it. Locks inside. */
export async function endAllJobs(table: JobTable): Promise<void> {
  table.closing = true;
  for (;;) {
    const job = table.jobs.at(-1);
    if (job === undefined) return;
    withJobLock(table, (lock) => cancelJob(job, true, lock));
    while (!job.workDone) await job.whenWorkDone.wait();
    await job.transaction.ending;
    // What is still there has concluded and is dismissed by the next turn.
  }
}
