/** Calls of functions that wait: on libuv's thread pool, so many at a time. */

import koffi from 'koffi';
import { E } from '../../errors/errno.ts';

/** What a call of libc's comes to: its result, or -errno. */
export function negErrno(result: number): number {
  return result < 0 ? -koffi.errno() : result;
}

/** A function of a library. */
export type Callable = ReturnType<ReturnType<typeof koffi.load>['func']>;

/** Calls under way at once; the others wait for their turn. */
interface Lane {
  readonly max: number;
  running: number;
  readonly waiting: (() => void)[];
}

/** Calls of the kernel's: koffi refuses more than 256 under way. */
const ownLane: Lane = { max: 64, running: 0, waiting: [] };
/** Calls of foreign libraries may wait for ever: one of the pool's four threads is left to files and host names. */
const foreignLane: Lane = { max: 3, running: 0, waiting: [] };

/** Calls a function of libc on libuv's thread pool. What it returns, or -errno. */
export function callAsync(fn: Callable, ...args: unknown[]): Promise<number> {
  // koffi keeps errno per thread and copies it to the caller's before the callback runs.
  return pooled(ownLane, fn, args, negErrno);
}

/** Calls a function of a foreign library on libuv's thread pool. What it returns, or -EIO when it cannot be called. */
export function callPooled(fn: Callable, ...args: unknown[]): Promise<number> {
  return pooled(foreignLane, fn, args, Number);
}

/** As callPooled, for a function that sets errno: its result, or -errno when that is negative (of pointers: null). */
export function callPooledErrno(fn: Callable, isPointer: boolean, ...args: unknown[]): Promise<number> {
  const failed = isPointer ? 0 : -1;
  return pooled(foreignLane, fn, args, (result) => negErrno(Number(result) === failed ? -1 : Number(result)));
}

/** Calls that libuv's threads are in. process.exit would wait for them. */
export function pooledCalls(): number {
  return ownLane.running + foreignLane.running;
}

function pooled(lane: Lane, fn: Callable, args: unknown[], finish: (result: number) => number) {
  return new Promise<number>((resolve) => {
    const start = (): void => {
      lane.running++;
      fn.async(...args, (error: Error | null, result: number) => {
        lane.running--;
        resolve(error ? -E.EIO : finish(result));
        lane.waiting.shift()?.();
      });
    };
    if (lane.running < lane.max) start();
    else lane.waiting.push(start);
  });
}
