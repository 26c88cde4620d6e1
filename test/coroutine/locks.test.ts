/** CoMutex, CoQueue, CoRwlock: fairness, hand-over, and that exclusion holds under any schedule. */

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { CoMutex } from '../../src/coroutine/co-mutex.ts';
import { CoQueue } from '../../src/coroutine/co-queue.ts';
import { CoRwlock } from '../../src/coroutine/co-rwlock.ts';

const tick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

test('a queue wakes in order, and nobody twice', async () => {
  const queue = new CoQueue();
  const order: string[] = [];
  const wait = async (name: string): Promise<void> => {
    await queue.wait();
    order.push(name);
  };
  void wait('a');
  void wait('b').then(() => wait('again'));
  expect(queue.wakeNext()).toBe(true);
  await tick();
  expect(order).toEqual(['a']);
  queue.wakeAll();
  await tick();
  expect(order).toEqual(['a', 'b']);
  expect(queue.empty).toBe(false);
  queue.wakeAll();
  await tick();
  expect(order).toEqual(['a', 'b', 'again']);
  expect(queue.wakeNext()).toBe(false);
});

test('a mutex is handed over in order; who releases and takes again queues behind', async () => {
  const mutex = new CoMutex();
  const order: string[] = [];
  const run = async (name: string): Promise<void> => {
    const release = await mutex.lock(name);
    expect(mutex.holder).toBe(name);
    order.push(name);
    await tick();
    release();
    release();
  };
  await Promise.all([run('a').then(() => run('a2')), run('b'), run('c')]);
  expect(order).toEqual(['a', 'b', 'c', 'a2']);
  expect(mutex.holder).toBeNull();
});

test('a waiting writer holds back later readers', async () => {
  const lock = new CoRwlock();
  await lock.readLock();
  const order: string[] = [];
  const writer = lock.writeLock().then(() => order.push('writer'));
  expect(lock.tryReadLock()).toBe(false);
  const reader = lock.readLock().then(() => order.push('reader'));
  await tick();
  expect(order).toEqual([]);
  lock.readUnlock();
  await writer;
  await tick();
  expect(order).toEqual(['writer']);
  lock.writeUnlock();
  await reader;
  expect(order).toEqual(['writer', 'reader']);
  lock.readUnlock();
});

test('readers and one writer never meet, and everybody gets a turn', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.record({ write: fc.boolean(), start: fc.nat(5), hold: fc.nat(3) }), { maxLength: 30 }),
      async (coroutines) => {
        const lock = new CoRwlock();
        let readers = 0;
        let writers = 0;
        const run = async ({
          write,
          start,
          hold,
        }: {
          write: boolean;
          start: number;
          hold: number;
        }): Promise<void> => {
          for (let i = 0; i < start; i++) await tick();
          if (write) await lock.writeLock();
          else if (!lock.tryReadLock()) await lock.readLock();
          if (write) writers++;
          else readers++;
          for (let i = 0; i <= hold; i++) {
            expect(writers === 0 || (writers === 1 && readers === 0)).toBe(true);
            await tick();
          }
          if (write) writers--;
          else readers--;
          if (write) lock.writeUnlock();
          else lock.readUnlock();
        };
        await Promise.all(coroutines.map(run));
        expect(lock.readers).toBe(0);
        expect(lock.writing).toBe(false);
        expect(lock.tryReadLock()).toBe(true);
      },
    ),
    { numRuns: 60 },
  );
});
