/** A job table whose events are collected, and jobs whose work the test steers. */

import type { JobStatus } from '../../schema/generated/types.ts';
import {
  type Job,
  type JobDriver,
  type JobOptions,
  JobTable,
  withJobLock,
} from '../../src/jobs/job-common.ts';
import { createJob, startJob } from '../../src/jobs/job-monitor.ts';

export interface TestTable {
  readonly table: JobTable;
  /** "ID STATUS" of each event, in order. */
  readonly events: string[];
  /** Errors that are bugs. */
  readonly bugs: unknown[];
}

export function testTable(): TestTable {
  const events: string[] = [];
  const bugs: unknown[] = [];
  const sink = {
    emit: (name: string, data: unknown): void => {
      const { id, status } = data as { id: string; status: string };
      events.push(name === 'JOB_STATUS_CHANGE' ? `${id} ${status}` : name);
    },
  };
  return { table: new JobTable(sink, (error) => bugs.push(error)), events, bugs };
}

/** Work that ends when the test says so. */
export interface Work {
  readonly driver: JobDriver;
  finish(): void;
  fail(error: Error): void;
}

export function steeredWork(callbacks: Partial<JobDriver> = {}): Work {
  let finish: () => void = () => undefined;
  let fail: (error: Error) => void = () => undefined;
  const end = new Promise<void>((resolve, reject) => {
    finish = resolve;
    fail = reject;
  });
  return { driver: { type: 'create', run: () => end, ...callbacks }, finish, fail };
}

export function addJob(table: JobTable, options: Partial<JobOptions> & { readonly driver: JobDriver }): Job {
  return withJobLock(table, (lock) => createJob(table, { id: 'j', autoDismiss: false, ...options }, lock));
}

export function start(job: Job): void {
  withJobLock(job.table, (lock) => startJob(job, lock));
}

/** Lets everything run that waits for nothing but its turn. */
export function settle(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}

/** Puts a job into a state, whatever way leads there. */
export function force(job: Job, status: JobStatus): void {
  job.status = status;
}
