/** A job as a script sees it: its state, what can be done to it, and waiting for its end. */

import type { JobInfo, JobStatus } from '../schema/generated/types.ts';
import type { ClientBase } from './client.ts';
import { JobError } from './errors.ts';

export interface WaitOptions {
  /** Gives up waiting; the job goes on. */
  readonly signal?: AbortSignal;
}

export interface Job {
  readonly id: string;
  /** What query-jobs tells of it; null when there is no such job. */
  info(): Promise<JobInfo | null>;
  /**
   * Waits for the job's end and dismisses it where it waits for that. Rejects with JobError when it failed or was
   * cancelled, or when there is no such job. A job made with auto-finalize=false ends only after `finalize`.
   */
  finished(options?: WaitOptions): Promise<void>;
  /** Waits until a mirror or an active commit has caught up. Rejects with JobError when the job ends before. */
  ready(options?: WaitOptions): Promise<void>;
  /** Waits until a job made with auto-finalize=false waits for `finalize`. */
  pending(options?: WaitOptions): Promise<void>;
  pause(): Promise<void>;
  resume(): Promise<void>;
  cancel(): Promise<void>;
  complete(): Promise<void>;
  finalize(): Promise<void>;
  /** Bytes a second; 0: no limit. */
  setSpeed(speed: number): Promise<void>;
}

const EVENTS = ['JOB_STATUS_CHANGE', 'BLOCK_JOB_COMPLETED', 'BLOCK_JOB_CANCELLED'] as const;

export function createJob(client: ClientBase, id: string): Job {
  const info = async (): Promise<JobInfo | null> =>
    (await client.execute('query-jobs')).find((job) => job.id === id) ?? null;
  const verb =
    (command: 'job-pause' | 'job-resume' | 'job-cancel' | 'job-complete' | 'job-finalize') =>
    async (): Promise<void> => {
      await client.execute(command, { id });
    };
  return {
    id,
    info,
    finished: (options) => waitFor(client, id, info, null, options),
    ready: (options) => waitFor(client, id, info, ['ready', 'standby'], options),
    pending: (options) => waitFor(client, id, info, ['pending'], options),
    pause: verb('job-pause'),
    resume: verb('job-resume'),
    cancel: verb('job-cancel'),
    complete: verb('job-complete'),
    finalize: verb('job-finalize'),
    setSpeed: async (speed) => {
      await client.execute('block-job-set-speed', { device: id, speed });
    },
  };
}

/** Waits for one of the states; null: for the end, which is an error for all others. */
async function waitFor(
  client: ClientBase,
  id: string,
  info: () => Promise<JobInfo | null>,
  wanted: readonly JobStatus[] | null,
  { signal }: WaitOptions = {},
): Promise<void> {
  const events = client.eventsAndReconnects(EVENTS, signal === undefined ? {} : { signal });
  let outcome: { readonly error: string | null; readonly cancelled: boolean } | null = null;
  const conclude = async (job: JobInfo | null): Promise<void> => {
    if (job !== null && wanted === null) await client.execute('job-dismiss', { id });
    const error = job?.error ?? outcome?.error ?? null;
    if (error !== null) throw new JobError(id, error, outcome?.cancelled === true);
    if (outcome?.cancelled === true) throw new JobError(id, 'It was cancelled', true);
    if (wanted !== null) throw new JobError(id, 'It has ended', false);
  };
  /** Whether the waiting is over. */
  const look = async (): Promise<boolean> => {
    const job = await info();
    if (job === null) {
      if (outcome === null) throw new JobError(id, 'There is no such job (any more)', false);
      await conclude(null);
      return true;
    }
    if (wanted?.includes(job.status)) return true;
    if (job.status !== 'concluded') return false;
    await conclude(job);
    return true;
  };
  try {
    if (await look()) return;
    for await (const event of events) {
      if (event.name === 'reconnected') {
        if (await look()) return;
      } else if (event.name === 'JOB_STATUS_CHANGE') {
        if (event.data.id !== id) continue;
        if (wanted?.includes(event.data.status)) return;
        if (event.data.status === 'concluded') {
          const job = await info();
          // Jobs that dismiss themselves are gone by now.
          outcome ??= { error: null, cancelled: false };
          await conclude(job?.status === 'concluded' ? job : null);
          return;
        }
      } else if (event.data.device === id) {
        const cancelled = event.name === 'BLOCK_JOB_CANCELLED';
        outcome = { error: cancelled ? null : (event.data.error ?? null), cancelled };
      }
    }
    throw new JobError(id, 'The client was closed', false);
  } finally {
    await events.return?.();
  }
}
