/** The life of jobs: work, pauses, cancellation, ready and complete, transactions, the end of the daemon. */

import { describe, expect, test } from 'vitest';
import { BlockError } from '../../src/errors/error.ts';
import { endAllJobs } from '../../src/jobs/end-all.ts';
import { createTransaction, type Job, type JobLock, withJobLock } from '../../src/jobs/job-common.ts';
import {
  addProgress,
  becomeReady,
  increaseRemainingProgress,
  isCancelled,
  isCancelRequested,
  isReady,
  letCommandReturn,
  pausePoint,
  setRemainingProgress,
  sleepJob,
  wakeJob,
} from '../../src/jobs/job-driver.ts';
import {
  completeJob,
  createJob,
  dismissJob,
  finalizeJob,
  pauseJob,
  queryJobs,
  resumeJob,
  userCancel,
  userPause,
  userResume,
} from '../../src/jobs/job-monitor.ts';
import { addJob, settle, start, steeredWork, testTable } from './job-table.ts';

function act(job: Job, action: (job: Job, lock: JobLock) => void): void {
  withJobLock(job.table, (lock) => action(job, lock));
}

const cancel = (job: Job): void => act(job, (each, lock) => userCancel(each, true, lock));

describe('one job', () => {
  test('success', async () => {
    const { table, events } = testTable();
    const order: string[] = [];
    const note = (name: string) => async () => void order.push(name);
    const work = steeredWork({
      prepare: note('prepare'),
      commit: note('commit'),
      abort: note('abort'),
      clean: note('clean'),
    });
    const job = addJob(table, { driver: work.driver });
    start(job);
    expect(events).toEqual(['j created', 'j running']);
    work.finish();
    await settle();
    expect(events.slice(2)).toEqual(['j waiting', 'j pending', 'j concluded']);
    expect(order).toEqual(['prepare', 'commit', 'clean']);
    act(job, dismissJob);
    expect(events.at(-1)).toBe('j null');
    expect(table.jobs).toEqual([]);
  });

  test('failure, with its text', async () => {
    const { table, events } = testTable();
    const order: string[] = [];
    const note = (name: string) => async () => void order.push(name);
    const work = steeredWork({ commit: note('commit'), abort: note('abort'), clean: note('clean') });
    start(addJob(table, { driver: work.driver }));
    work.fail(new BlockError('it broke'));
    await settle();
    expect(events.slice(2)).toEqual(['j aborting', 'j concluded']);
    expect(order).toEqual(['abort', 'clean']);
    expect(withJobLock(table, (lock) => queryJobs(table, lock))).toMatchObject([
      { id: 'j', status: 'concluded', error: 'it broke' },
    ]);
  });

  test('a bug in the work fails the job and is reported', async () => {
    const { table, bugs } = testTable();
    const bug = new TypeError('x is not a function');
    const job = addJob(table, { driver: { type: 'create', run: () => Promise.reject(bug) } });
    start(job);
    await settle();
    expect(bugs).toEqual([bug]);
    expect(job.error?.message).toMatch(/^Internal error in job 'j'\. This is a bug: please report it/);
    expect(job.status).toBe('concluded');
  });

  test('a failing prepare aborts; failing callbacks that cannot fail do not keep it from ending', async () => {
    const { table, events, bugs } = testTable();
    const work = steeredWork({
      prepare: () => Promise.reject(new BlockError('no')),
      abort: () => Promise.reject(new Error('bug 1')),
      clean: () => Promise.reject(new Error('bug 2')),
    });
    start(addJob(table, { driver: work.driver }));
    work.finish();
    await settle();
    expect(events.slice(2)).toEqual(['j waiting', 'j pending', 'j aborting', 'j concluded']);
    expect(bugs.map(String)).toEqual(['Error: bug 1', 'Error: bug 2']);
  });

  test('auto-dismiss takes it out of the list', async () => {
    const { table, events } = testTable();
    const work = steeredWork();
    start(addJob(table, { driver: work.driver, autoDismiss: true }));
    work.finish();
    await settle();
    expect(events.slice(-2)).toEqual(['j concluded', 'j null']);
    expect(table.jobs).toEqual([]);
  });

  test('without auto-finalize it waits for job-finalize, and can still be cancelled', async () => {
    for (const verb of ['finalize', 'cancel'] as const) {
      const { table, events } = testTable();
      const work = steeredWork();
      const job = addJob(table, { driver: work.driver, autoFinalize: false });
      start(job);
      work.finish();
      await settle();
      expect(events.at(-1)).toBe('j pending');
      if (verb === 'finalize') act(job, finalizeJob);
      else cancel(job);
      await job.transaction.ending;
      const tail = verb === 'finalize' ? ['j concluded'] : ['j aborting', 'j concluded'];
      expect(events.slice(4)).toEqual(tail);
      expect(job.error?.message).toBe(verb === 'finalize' ? undefined : 'Operation canceled');
    }
  });

  test('a cancellation while it prepares, or later, comes too late unless that fails', async () => {
    for (const end of ['well', 'badly', 'late'] as const) {
      const { table, events } = testTable();
      let go: () => void = () => undefined;
      let fail: (error: Error) => void = () => undefined;
      const going = new Promise<void>((resolve, reject) => {
        go = resolve;
        fail = reject;
      });
      const work = steeredWork(end === 'late' ? { clean: () => going } : { prepare: () => going });
      const job = addJob(table, { driver: work.driver });
      start(job);
      work.finish();
      await settle();
      cancel(job);
      await settle();
      expect(events.at(-1)).toBe('j pending');
      if (end === 'badly') fail(new BlockError('no'));
      else go();
      await settle();
      expect(events.slice(-2)).toEqual([end === 'badly' ? 'j aborting' : 'j pending', 'j concluded']);
      expect([job.forceCancel, job.error === null]).toEqual([end === 'badly', end !== 'badly']);
    }
  });

  test('progress', () => {
    const { table } = testTable();
    const job = addJob(table, { driver: steeredWork().driver });
    setRemainingProgress(job, 10);
    addProgress(job, 4);
    increaseRemainingProgress(job, 5);
    expect(job.progress).toEqual({ current: 4, total: 15 });
    setRemainingProgress(job, 1);
    expect(job.progress).toEqual({ current: 4, total: 5 });
  });

  test('the command is answered at the first wait, or when the job has ended', async () => {
    const { table } = testTable();
    let order: string[] = [];
    const run = async (job: Job): Promise<void> => {
      order.push('checked');
      await letCommandReturn(job);
      order.push('worked');
    };
    const waiting = addJob(table, { driver: { type: 'create', run } });
    start(waiting);
    await waiting.whenDetached;
    expect(order).toEqual(['checked']);
    await settle();
    expect(order).toEqual(['checked', 'worked']);
    order = [];
    const failing = addJob(table, {
      id: 'k',
      driver: { type: 'create', run: () => Promise.reject(new BlockError('no')) },
    });
    start(failing);
    await failing.whenDetached;
    expect(failing.status).toBe('concluded');
  });

  test('ids', () => {
    const { table } = testTable();
    const { driver } = steeredWork();
    for (const id of ['', '1', '-a', 'a b', 'ä', 'a/b']) {
      expect(() => addJob(table, { id, driver })).toThrow(`Invalid job ID '${id}'`);
    }
    addJob(table, { id: 'a1-._Z', driver });
    expect(() => addJob(table, { id: 'a1-._Z', driver })).toThrow("Job ID 'a1-._Z' already in use");
    expect(() => withJobLock(table, (lock) => createJob(table, { id: 'b', driver }, lock))).not.toThrow();
  });
});

describe('pauses', () => {
  /** Goes round pause points until told to stop. */
  function looping(): { run: (job: Job) => Promise<void>; stop: () => void; turns: () => number } {
    let stopped = false;
    let turns = 0;
    return {
      run: async (job) => {
        while (!stopped && !isCancelled(job)) {
          await pausePoint(job);
          turns++;
          await settle();
        }
      },
      stop: () => {
        stopped = true;
      },
      turns: () => turns,
    };
  }

  test('the user pauses once, others count', async () => {
    const { table, events } = testTable();
    const loop = looping();
    const job = addJob(table, { driver: { type: 'create', run: loop.run } });
    start(job);
    act(job, userPause);
    expect(() => act(job, userPause)).toThrow('Job is already paused');
    act(job, pauseJob);
    await settle();
    await settle();
    expect(events.at(-1)).toBe('j paused');
    const before = loop.turns();
    act(job, userResume);
    expect(() => act(job, userResume)).toThrow("Can't resume a job that was not paused");
    await settle();
    expect(job.paused).toBe(true);
    act(job, resumeJob);
    await settle();
    expect(events.at(-1)).toBe('j running');
    expect(loop.turns()).toBeGreaterThan(before);
    loop.stop();
    await settle();
    await settle();
    expect(job.status).toBe('concluded');
  });

  test('cancelled while paused', async () => {
    const { table, events } = testTable();
    const job = addJob(table, { driver: { type: 'create', run: looping().run } });
    start(job);
    act(job, userPause);
    await settle();
    await settle();
    cancel(job);
    await settle();
    await settle();
    expect(events.slice(2)).toEqual(['j paused', 'j running', 'j aborting', 'j concluded']);
    expect(job.error?.message).toBe('Operation canceled');
  });

  test('a ready job goes to standby and back', async () => {
    const { table, events } = testTable();
    let completed = false;
    const job = addJob(table, {
      driver: {
        type: 'mirror',
        run: async (self) => {
          becomeReady(self);
          while (!completed) {
            await pausePoint(self);
            await settle();
          }
        },
        complete: () => {
          completed = true;
        },
      },
    });
    start(job);
    await settle();
    expect(isReady(job)).toBe(true);
    act(job, userPause);
    await settle();
    await settle();
    expect(events.at(-1)).toBe('j standby');
    expect(isReady(job)).toBe(true);
    act(job, userResume);
    await settle();
    expect(events.at(-1)).toBe('j ready');
    act(job, completeJob);
    await settle();
    await settle();
    expect(events.slice(-3)).toEqual(['j waiting', 'j pending', 'j concluded']);
  });

  test('sleep ends early when woken, paused or cancelled', async () => {
    for (const wake of [wakeJob, (job: Job) => act(job, pauseJob), cancel]) {
      const { table } = testTable();
      let awake = false;
      const job = addJob(table, {
        driver: {
          type: 'create',
          run: async (self) => {
            await sleepJob(self, 3_600_000);
            awake = true;
          },
        },
      });
      start(job);
      await job.whenDetached;
      expect(awake).toBe(false);
      wake(job);
      await settle();
      if (job.paused) act(job, resumeJob);
      await settle();
      expect(awake).toBe(true);
      expect(job.status).toBe('concluded');
    }
  });

  test('a timed sleep leaves nothing behind', async () => {
    const { table } = testTable();
    const job = addJob(table, {
      driver: {
        type: 'create',
        run: async (self) => {
          for (let i = 0; i < 5; i++) await sleepJob(self, 1);
        },
      },
    });
    start(job);
    while (job.status !== 'concluded') await new Promise((resolve) => setTimeout(resolve, 1));
    expect(job.wakeUp).toBe(null);
  });

  test('soft cancel is the choice of the job', () => {
    const { table } = testTable();
    const { driver } = steeredWork({ cancel: (_job, force) => force });
    const job = addJob(table, { driver });
    start(job);
    act(job, (each, lock) => userCancel(each, false, lock));
    expect([isCancelRequested(job), isCancelled(job)]).toEqual([true, false]);
    cancel(job);
    expect([isCancelRequested(job), isCancelled(job)]).toEqual([true, true]);
  });
});

describe('transactions', () => {
  test('all succeed, or none', async () => {
    const { table, events } = testTable();
    const transaction = createTransaction();
    const [a, b] = [steeredWork(), steeredWork()];
    const jobs = [a, b].map(({ driver }, i) => addJob(table, { id: `j${i}`, driver, transaction }));
    for (const job of jobs) start(job);
    a.finish();
    await settle();
    expect(events.at(-1)).toBe('j0 waiting');
    b.finish();
    await settle();
    expect(events.slice(5)).toEqual([
      'j1 waiting',
      'j1 pending',
      'j0 pending',
      'j1 concluded',
      'j0 concluded',
    ]);
  });

  test('the failure of one cancels the others and waits for them', async () => {
    const { table, events } = testTable();
    const transaction = createTransaction();
    const [a, b, c] = [steeredWork(), steeredWork(), steeredWork()];
    const jobs = [a, b, c].map(({ driver }, i) => addJob(table, { id: `j${i}`, driver, transaction }));
    for (const job of jobs.slice(0, 2)) start(job);
    a.fail(new BlockError('broken'));
    await settle();
    expect(isCancelled(jobs[1]!)).toBe(true);
    expect(events).not.toContain('j0 aborting');
    b.finish();
    await settle();
    expect(events.slice(-6)).toEqual([
      'j2 aborting',
      'j2 concluded',
      'j1 aborting',
      'j1 concluded',
      'j0 aborting',
      'j0 concluded',
    ]);
    expect(jobs.map((job) => job.error?.message)).toEqual([
      'broken',
      'Operation canceled',
      'Operation canceled',
    ]);
  });

  test('a waiting job that is cancelled takes the others along', async () => {
    const { table } = testTable();
    const transaction = createTransaction();
    const [a, b] = [steeredWork(), steeredWork()];
    const jobs = [a, b].map(({ driver }, i) => addJob(table, { id: `j${i}`, driver, transaction }));
    for (const job of jobs) start(job);
    a.finish();
    await settle();
    cancel(jobs[0]!);
    expect(isCancelled(jobs[1]!)).toBe(true);
    b.finish();
    await transaction.ending;
    expect(jobs.map((job) => job.status)).toEqual(['concluded', 'concluded']);
  });

  test.each(['cancelled', 'failing'])(
    'one that has changed the graph has completed; the other is %s',
    async (how) => {
      const { table } = testTable();
      const transaction = createTransaction();
      let go: (error: Error | null) => void = () => undefined;
      const going = new Promise<void>((resolve, reject) => {
        go = (error) => (error === null ? resolve() : reject(error));
      });
      const calls: string[] = [];
      const note = (name: string) => async (): Promise<void> => void calls.push(name);
      // The last one prepares first.
      const works = [
        steeredWork({ prepare: () => going, commit: note('0 commit'), abort: note('0 abort') }),
        steeredWork({ prepare: note('1 prepare'), commit: note('1 commit'), abort: note('1 abort') }),
      ];
      const jobs = works.map(({ driver }, i) =>
        addJob(table, { id: `j${i}`, driver, transaction, autoDismiss: false }),
      );
      for (const job of jobs) start(job);
      for (const work of works) work.finish();
      await settle();
      expect(calls).toEqual(['1 prepare']);
      cancel(jobs[0]!);
      cancel(jobs[1]!);
      go(how === 'failing' ? new BlockError('no') : null);
      await transaction.ending;
      // Too late to cancel; and what fails does not undo what has been done.
      expect(jobs.map(({ error }) => error?.message ?? null)).toEqual([
        how === 'failing' ? 'no' : null,
        null,
      ]);
      expect(calls).toEqual(
        how === 'failing' ? ['1 prepare', '1 commit', '0 abort'] : ['1 prepare', '1 commit', '0 commit'],
      );
    },
  );

  test('one that waits for job-finalize holds all', async () => {
    const { table, events } = testTable();
    const transaction = createTransaction();
    const works = [steeredWork(), steeredWork()];
    const jobs = works.map(({ driver }, i) =>
      addJob(table, { id: `j${i}`, driver, transaction, autoFinalize: i === 0 }),
    );
    for (const job of jobs) start(job);
    for (const work of works) work.finish();
    await settle();
    expect(events.slice(-2)).toEqual(['j1 pending', 'j0 pending']);
    act(jobs[0]!, finalizeJob);
    await transaction.ending;
    expect(events.slice(-2)).toEqual(['j1 concluded', 'j0 concluded']);
  });
});

describe('the end of the daemon', () => {
  test('all jobs end, newest first, in whatever state they are; new ones are refused', async () => {
    const { table, events } = testTable();
    const done = steeredWork();
    start(addJob(table, { id: 'done', driver: done.driver }));
    done.finish();
    const pending = steeredWork();
    start(addJob(table, { id: 'pending', driver: pending.driver, autoFinalize: false }));
    pending.finish();
    await settle();
    addJob(table, { id: 'new', driver: steeredWork().driver });
    const busy = steeredWork();
    start(addJob(table, { id: 'busy', driver: busy.driver }));
    events.length = 0;
    const ended = endAllJobs(table);
    await settle();
    expect(() => addJob(table, { driver: busy.driver })).toThrow('The daemon is shutting down');
    busy.finish();
    await ended;
    expect(table.jobs).toEqual([]);
    expect(events).toEqual([
      'busy aborting',
      'busy concluded',
      'busy null',
      'new aborting',
      'new concluded',
      'new null',
      'pending aborting',
      'pending concluded',
      'pending null',
      'done null',
    ]);
  });

  test('1,000 jobs leave nothing behind', async () => {
    const { table } = testTable();
    for (let i = 0; i < 1000; i++) {
      const job = addJob(table, { id: `j${i}`, driver: { type: 'create', run: async () => undefined } });
      start(job);
      await job.whenDetached;
      await job.transaction.ending;
      act(job, dismissJob);
    }
    expect(table.jobs).toEqual([]);
  });
});
