/** Every cell of the transition table and of the verb table, and what the compiler makes of the job lock. */

import { describe, expect, test } from 'vitest';
import type { JobStatus, JobVerb } from '../../schema/generated/types.ts';
import { InvariantError } from '../../src/errors/error.ts';
import { setBlockJobSpeed } from '../../src/jobs/block-job.ts';
import {
  checkVerb,
  type Job,
  type JobLock,
  TRANSITIONS,
  transition,
  unlocked,
  VERBS,
  withJobLock,
} from '../../src/jobs/job-common.ts';
import { becomeReady, isCancelled } from '../../src/jobs/job-driver.ts';
import { findJob, pauseJob, userCancel } from '../../src/jobs/job-monitor.ts';
import { addJob, force, steeredWork, testTable } from './job-table.ts';

/** Columns of the tables below: the first letters of the states, `U` and `N` for undefined and null. */
const STATES: readonly (readonly [letters: string, status: JobStatus])[] = [
  ['U', 'undefined'],
  ['C', 'created'],
  ['R', 'running'],
  ['P', 'paused'],
  ['Y', 'ready'],
  ['S', 'standby'],
  ['W', 'waiting'],
  ['D', 'pending'],
  ['X', 'aborting'],
  ['E', 'concluded'],
  ['N', 'null'],
];

/** Written out by hand from the reference, so that the tables of the code are not compared with themselves. */
const TRANSITION_CELLS: Readonly<Record<JobStatus, string>> = {
  //          UCRPYSWDXEN
  undefined: '.x.........',
  created: '..x.....x.x',
  running: '...xx.x.x..',
  paused: '..x........',
  ready: '.....xx.x..',
  standby: '....x......',
  waiting: '.......xx..',
  pending: '........xx.',
  aborting: '........xx.',
  concluded: '..........x',
  null: '...........',
};

const VERB_CELLS: Readonly<Record<JobVerb, string>> = {
  //            UCRPYSWDXEN
  cancel: '.xxxxxxx...',
  pause: '.xxxxx.....',
  resume: '.xxxxx.....',
  'set-speed': '.xxxxx.....',
  complete: '....xx.....',
  finalize: '.......x...',
  dismiss: '.........x.',
  change: '..xxxx.....',
};

function jobIn(status: JobStatus): { job: Job; events: string[] } {
  const { table, events } = testTable();
  const job = addJob(table, { driver: steeredWork().driver });
  force(job, status);
  events.length = 0;
  return { job, events };
}

describe('transitions', () => {
  for (const [, from] of STATES) {
    for (const [column, [, to]] of STATES.entries()) {
      const allowed = TRANSITION_CELLS[from][column] === 'x';
      test(`${from} -> ${to}: ${allowed ? 'allowed' : 'a bug'}`, () => {
        const { job, events } = jobIn(from);
        const go = (): void => withJobLock(job.table, (lock) => transition(job, to, lock));
        if (allowed) {
          go();
          expect(events).toEqual([`j ${to}`]);
          expect(job.status).toBe(to);
        } else {
          expect(go).toThrow(InvariantError);
          expect(events).toEqual([]);
          expect(job.status).toBe(from);
        }
        expect(TRANSITIONS[from].includes(to)).toBe(allowed);
      });
    }
  }
});

describe('verbs', () => {
  for (const verb of Object.keys(VERB_CELLS) as JobVerb[]) {
    for (const [column, [, status]] of STATES.entries()) {
      const allowed = VERB_CELLS[verb][column] === 'x';
      test(`${verb} in ${status}: ${allowed ? 'taken' : 'refused'}`, () => {
        const { job } = jobIn(status);
        const check = (): void => withJobLock(job.table, (lock) => checkVerb(job, verb, lock));
        if (allowed) check();
        else expect(check).toThrow(`Job 'j' in state '${status}' cannot accept command verb '${verb}'`);
        expect(VERBS[verb].includes(status)).toBe(allowed);
      });
    }
  }

  test('the tables name every state and verb once', () => {
    expect(Object.keys(TRANSITIONS).sort()).toEqual(STATES.map(([, status]) => status).sort());
    expect(Object.keys(VERBS).sort()).toEqual(Object.keys(VERB_CELLS).sort());
  });
});

describe('the job lock', () => {
  const { table } = testTable();
  const job = addJob(table, { driver: steeredWork().driver });

  test('is checked by the compiler', () => {
    // Never run: tsc proves that each of these is an error (an unused ts-expect-error is one too).
    const proof = (): void => {
      // @ts-expect-error a monitor function cannot be called without the lock
      pauseJob(job);
      // @ts-expect-error nor one of block jobs
      setBlockJobSpeed(job.block!, 0);
      // @ts-expect-error nor with something that is no token
      pauseJob(job, {});
      // @ts-expect-error nor can a token be made by hand
      const forged: JobLock = { held: 'job lock' };
      void forged;
      // @ts-expect-error a section cannot be asynchronous, so there is no await in it
      withJobLock(table, async () => undefined);
      // @ts-expect-error nor return a promise of something else
      withJobLock(table, () => Promise.resolve(5));
    };
    expect(proof).toBeTypeOf('function');
  });

  test('a section in a section is a bug', () => {
    expect(() => withJobLock(table, () => isCancelled(job))).toThrow('job lock taken twice');
    expect(() => withJobLock(table, () => becomeReady(job))).toThrow('job lock taken twice');
  });

  test('a token that outlived its section proves nothing', () => {
    let kept: JobLock | null = null;
    withJobLock(table, (lock) => {
      kept = lock;
    });
    expect(() => findJob(table, 'j', kept as unknown as JobLock)).toThrow('job lock is not held');
    withJobLock(table, () => {
      expect(() => userCancel(job, true, kept as unknown as JobLock)).toThrow('job lock is not held');
    });
  });

  test('it is given up for callbacks, and taken again whatever they do', () => {
    withJobLock(table, (lock) => {
      expect(unlocked(table, lock, () => isCancelled(job))).toBe(false);
      expect(() =>
        unlocked(table, lock, () => {
          throw new Error('x');
        }),
      ).toThrow('x');
      expect(findJob(table, 'j', lock)).toBe(job);
    });
  });
});
