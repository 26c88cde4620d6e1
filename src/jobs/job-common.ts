/**
 * Jobs: the record of a job, the tables that say what it may do, and the lock that guards it.
 *
 * Who may touch what of a job is said at each field. Everything under "the job lock" is changed in a section of
 * `withJobLock` only. The lock is a proof, not a wait: a section is synchronous, so nothing can come between finding
 * a job and acting on it, and JavaScript runs one section at a time by itself. What the token adds is that the
 * compiler knows: a function that takes a `JobLock` acts for a caller who is inside a section (job-monitor.ts), one
 * that takes none enters a section of its own (job-driver.ts). A section inside a section is a bug and is caught.
 *
 * Not here: what the monitor does with jobs (job-monitor.ts), what the code of a job uses (job-driver.ts), how a job
 * runs and ends (job-run.ts).
 * Source of the facts: QMP reference, JobStatus and JobVerb.
 */

import type {
  BlockJobChangeOptions,
  JobInfo,
  JobStatus,
  JobType,
  JobVerb,
} from '../../schema/generated/types.ts';
import type { EventSink } from '../block/events.ts';
import type { CoQueue } from '../coroutine/co-queue.ts';
import { assert, BlockError } from '../errors/error.ts';
import type { BlockJob } from './block-job.ts';

/** To which states a job may go from each. */
export const TRANSITIONS: { readonly [S in JobStatus]: readonly JobStatus[] } = {
  undefined: ['created'],
  created: ['running', 'aborting', 'null'],
  running: ['paused', 'ready', 'waiting', 'aborting'],
  paused: ['running'],
  ready: ['standby', 'waiting', 'aborting'],
  standby: ['ready'],
  waiting: ['pending', 'aborting'],
  pending: ['aborting', 'concluded'],
  aborting: ['aborting', 'concluded'],
  concluded: ['null'],
  null: [],
};

/** In which states a job takes each verb. */
export const VERBS: { readonly [V in JobVerb]: readonly JobStatus[] } = {
  cancel: ['created', 'running', 'paused', 'ready', 'standby', 'waiting', 'pending'],
  pause: ['created', 'running', 'paused', 'ready', 'standby'],
  resume: ['created', 'running', 'paused', 'ready', 'standby'],
  'set-speed': ['created', 'running', 'paused', 'ready', 'standby'],
  complete: ['ready', 'standby'],
  finalize: ['pending'],
  dismiss: ['concluded'],
  change: ['running', 'paused', 'ready', 'standby'],
};

/**
 * What a kind of job does. All callbacks run outside the job lock; only `run` has to be there.
 * After `run` the job ends by `prepare` and `commit`, or by `abort`, and in any case by `clean`.
 */
export interface JobDriver {
  readonly type: JobType;
  /** The work. An error makes the job fail with that message. */
  run(job: Job): Promise<void>;
  /** The last step that may fail; all jobs of the transaction have done their work. */
  prepare?(job: Job): Promise<void>;
  /** Makes the result valid; cannot fail. */
  commit?(job: Job): Promise<void>;
  /** Undoes what `run` and `prepare` did; cannot fail. */
  abort?(job: Job): Promise<void>;
  /** Gives up what the job holds, after commit or abort. */
  clean?(job: Job): Promise<void>;
  /** The job comes to rest at a pause point, and goes on from it. */
  pause?(job: Job): void;
  resume?(job: Job): void;
  /** The user ends a pause. */
  userResume?(job: Job): void;
  /** The user wants a job that is ready to end; without it no job can be completed. */
  complete?(job: Job): void;
  /**
   * Whether a job that runs is to be waited for by a drained section of its nodes. Default: yes, until its next pause
   * point; a job that drains a node of its own while it runs is asked here instead.
   */
  isBusy?(job: Job): boolean;
  /** What query-block-jobs tells of this kind of job alone; called under the job lock. */
  details?(job: Job): { readonly 'actively-synced': boolean };
  /** Changes how the job works; options as of block-job-change. Throws what cannot be changed. */
  change?(job: Job, options: BlockJobChangeOptions): Promise<void>;
  /** A cancellation was asked for; returns whether the job is to be cancelled by force. Default: always by force. */
  cancel?(job: Job, force: boolean): boolean;
}

/** Is told of the steps of a job's life; called outside the job lock. */
export interface JobObserver {
  ready?(job: Job): void;
  /** The job waits for job-finalize. */
  pending?(job: Job): void;
  /** The job has ended, well or with `job.error`; its last events come after this. */
  ended?(job: Job): void;
  /** The job is gone from the table. */
  gone?(job: Job): void;
}

/** Jobs that end together: all succeed, or none. Changed under the job lock. */
export interface JobTransaction {
  readonly jobs: Job[];
  /** `finalizing`: the last changes that may fail; `committing` and `aborting` are final. */
  phase: 'working' | 'finalizing' | 'committing' | 'aborting';
  /** Resolves when all jobs have concluded; null while the end has not begun. Never rejects. */
  ending: Promise<void> | null;
}

export interface JobOptions {
  readonly id: string;
  readonly driver: JobDriver;
  /** False: a job without errors waits for job-finalize before its last changes. */
  readonly autoFinalize?: boolean;
  /** False: a job that has concluded stays in the list until job-dismiss. */
  readonly autoDismiss?: boolean;
  /** Default: a transaction of its own. */
  readonly transaction?: JobTransaction;
  readonly observer?: JobObserver;
}

export interface Job {
  // Set at creation.
  readonly table: JobTable;
  readonly id: string;
  readonly driver: JobDriver;
  readonly autoFinalize: boolean;
  readonly autoDismiss: boolean;
  readonly transaction: JobTransaction;
  readonly observer: JobObserver;

  // Under the job lock.
  status: JobStatus;
  /** Reasons to be paused: the user's and each drained section's. The job rests while it is not 0. */
  pauseCount: number;
  /** One of them is the user's. */
  userPaused: boolean;
  /** The job is at rest at a pause point. */
  paused: boolean;
  /** A cancellation was asked for, and by force: the job is to stop, whatever state its work is in. */
  cancelRequested: boolean;
  forceCancel: boolean;
  /** Why it failed. */
  error: BlockError | null;
  /** The work has begun. */
  started: boolean;
  /** What it has as a block job; null for other jobs. Set once, when the job is created. */
  block: BlockJob | null;
  /** The work is over; what follows is the end of the transaction. */
  workDone: boolean;
  /** Its last change is made, and cannot be taken back. */
  isPrepared: boolean;
  /** Work done and work there is, in a unit of the job's choice. */
  readonly progress: { current: number; total: number };

  // For coroutines, which wait outside the lock.
  /** Set while the job rests or sleeps: makes it look at its state again. */
  wakeUp: (() => void) | null;
  /** The job's work is over. */
  readonly whenWorkDone: CoQueue;
  /** The job has begun to sleep or rest, or its work is over: drained sections look again. */
  readonly whenRests: CoQueue;
  /** Resolves when the command that started the job may be answered: see letCommandReturn. */
  readonly whenDetached: Promise<void>;
  readonly detach: () => void;
}

declare const held: unique symbol;

/** Proof that the holder is inside a section of `withJobLock`. Nobody else can make one. */
export interface JobLock {
  readonly [held]: 'job lock';
}

/** A result that is no promise: a section of the lock cannot be asynchronous. */
export type Sync<T> = T extends PromiseLike<unknown> ? never : T;

/** The jobs of one block layer, oldest first, and their lock. */
export class JobTable {
  readonly events: EventSink;
  /** Told of errors in the code of jobs that are no BlockErrors: bugs. */
  readonly reportBug: (error: unknown) => void;
  /** Changed under the job lock. */
  readonly jobs: Job[] = [];
  /** No new jobs: the daemon ends. */
  closing = false;
  #token: JobLock | null = null;

  constructor(events: EventSink, reportBug: (error: unknown) => void = () => undefined) {
    this.events = events;
    this.reportBug = reportBug;
  }

  /** Called by withJobLock and unlocked only. */
  enter<T>(section: (lock: JobLock) => T): T {
    assert(this.#token === null, 'job lock taken twice');
    const token = {} as JobLock;
    this.#token = token;
    try {
      return section(token);
    } finally {
      this.#token = null;
    }
  }

  /** Called by withJobLock and unlocked only. */
  leave<T>(lock: JobLock, section: () => T): T {
    this.assertHeld(lock);
    this.#token = null;
    try {
      return section();
    } finally {
      assert(this.#token === null, 'job lock kept');
      this.#token = lock;
    }
  }

  /** A token that outlived its section proves nothing. */
  assertHeld(lock: JobLock): void {
    assert(this.#token === lock, 'job lock is not held');
  }
}

/** Runs `section` with the job lock. It must not be asynchronous, and the compiler refuses one that is. */
export function withJobLock<T>(table: JobTable, section: (lock: JobLock) => Sync<T>): Sync<T> {
  return table.enter(section);
}

/** Gives up the lock for a callback of a job's driver; what was looked at before may have changed afterwards. */
export function unlocked<T>(table: JobTable, lock: JobLock, callback: () => T): T {
  return table.leave(lock, callback);
}

export function createTransaction(): JobTransaction {
  return { jobs: [], phase: 'working', ending: null };
}

/** Moves a job to another state and tells everybody. A transition that is not in the table is a bug. */
export function transition(job: Job, status: JobStatus, lock: JobLock): void {
  job.table.assertHeld(lock);
  assert(
    TRANSITIONS[job.status].includes(status),
    `job '${job.id}' cannot go from ${job.status} to ${status}`,
  );
  job.status = status;
  job.table.events.emit('JOB_STATUS_CHANGE', { id: job.id, status });
}

/** Throws unless the job takes the verb in its state. */
export function checkVerb(job: Job, verb: JobVerb, lock: JobLock): void {
  job.table.assertHeld(lock);
  if (VERBS[verb].includes(job.status)) return;
  throw new BlockError(`Job '${job.id}' in state '${job.status}' cannot accept command verb '${verb}'`);
}

export function jobInfo(job: Job, lock: JobLock): JobInfo {
  job.table.assertHeld(lock);
  return {
    id: job.id,
    type: job.driver.type,
    status: job.status,
    'current-progress': job.progress.current,
    'total-progress': job.progress.total,
    ...(job.error !== null && { error: job.error.message }),
  };
}

/** Takes a job that has concluded, or was never started, out of the table. */
export function removeJob(job: Job, lock: JobLock): void {
  transition(job, 'null', lock);
  job.table.jobs.splice(job.table.jobs.indexOf(job), 1);
  unlocked(job.table, lock, () => job.observer.gone?.(job));
}

/** Whether the job runs code at present: it neither sleeps nor rests, and its work is not over. */
export function isBusy(job: Job, lock: JobLock): boolean {
  job.table.assertHeld(lock);
  return job.status !== 'created' && !job.workDone && job.wakeUp === null;
}
