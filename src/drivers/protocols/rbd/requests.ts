/**
 * Requests on an open image of Ceph: begun by calls that do not wait, and told by an event counter when they are over.
 *
 * Data go through memory of this file's own: librbd may go on with a request that has been given up here, and must not
 * meet memory that is somebody else's by then. Main thread only.
 */

import { clearEventFd, createEventFd } from '../../../aio/descriptors.ts';
import { addressOf, closeFd } from '../../../aio/ffi.ts';
import { cellValue, pointerCell } from '../../../aio/libraries/host-library.ts';
import { EVENT_TYPE_EVENTFD, type Librbd } from '../../../aio/libraries/librbd.ts';
import type { IoMemory } from '../../../aio/memory.ts';
import { createWatch } from '../../../aio/poller.ts';
import { E } from '../../../errors/errno.ts';
import { errnoError, ioError } from '../../../errors/error.ts';
import { createOwnMemory } from '../../net/own-memory.ts';

interface Waiting {
  /** Kept until librbd is through with it; null: the request has no data. */
  readonly memory: IoMemory | null;
  readonly resolve: (result: number) => void;
  readonly reject: (error: Error) => void;
}

export interface RbdRequests {
  /** Begins a request; its result once it is over: 0 or more. */
  run(memory: IoMemory | null, begin: (completion: number) => number): Promise<number>;
  /** Memory for a request, of at least `bytes`; `run` takes it back. */
  take(bytes: number): IoMemory;
  give(memory: IoMemory): void;
  /**
   * A call of the library's that waits on a thread (callPooled). `memory` is what it knows by address, and lives until it
   * has returned, whoever waits for it.
   */
  waitFor(call: Promise<number>, ...memory: readonly Buffer[]): Promise<number>;
  /** Fails what is under way; it may go on in the library. */
  cancel(): void;
  /** Requests that the library has not finished. */
  readonly underWay: number;
  close(): void;
}

const MAX_EVENTS = 64;

export function createRequests(library: Librbd, image: number): RbdRequests {
  const fd = createEventFd();
  if (fd < 0) throw errnoError('Cannot create an event counter', -fd);
  const result = library.setNotification(image, fd, EVENT_TYPE_EVENTFD);
  if (result < 0) {
    closeFd(fd);
    throw errnoError('Cannot watch the image', -result);
  }
  const waiting = new Map<number, Waiting>();
  /** Calls on threads, and what fails those who wait for them. */
  const calls = new Set<(error: Error) => void>();
  const own = createOwnMemory();
  const cell = pointerCell();
  const cellAddr = addressOf(cell);
  const events = Buffer.allocUnsafeSlow(MAX_EVENTS * 8);
  const eventsAddr = addressOf(events);

  function finish(completion: number): void {
    const one = waiting.get(completion);
    if (one === undefined) return;
    waiting.delete(completion);
    const value = Number(library.returnValue(completion));
    library.release(completion);
    if (waiting.size === 0) watch.stop();
    if (value < 0) one.reject(ioError(-value));
    else one.resolve(value);
  }

  function finishAll(): number {
    clearEventFd(fd);
    for (let found = 0; ; ) {
      const count = library.pollEvents(image, eventsAddr, MAX_EVENTS);
      for (let i = 0; i < count; i++) finish(Number(events.readBigUInt64LE(i * 8)));
      found += Math.max(0, count);
      if (count < MAX_EVENTS) return found;
    }
  }

  const watch = createWatch(fd, finishAll, () => waiting.size);

  return {
    run(memory, begin) {
      return new Promise((resolve, reject) => {
        const made = library.createCompletion(0, 0, cellAddr);
        if (made < 0) {
          reject(ioError(-made));
          return;
        }
        const completion = cellValue(cell);
        waiting.set(completion, { memory, resolve, reject });
        if (waiting.size === 1) watch.start();
        const begun = begin(completion);
        if (begun >= 0) return;
        waiting.delete(completion);
        library.release(completion);
        if (waiting.size === 0) watch.stop();
        reject(ioError(-begun));
      });
    },
    take: own.take,
    give: own.give,
    waitFor(call, ...memory) {
      return new Promise((resolve, reject) => {
        calls.add(reject);
        call.then((result) => {
          calls.delete(reject);
          void memory.length;
          resolve(result);
        });
      });
    },
    cancel() {
      for (const { reject } of waiting.values()) reject(ioError(E.ECANCELED));
      for (const reject of calls) reject(ioError(E.ECANCELED));
    },
    get underWay() {
      return waiting.size + calls.size;
    },
    close() {
      watch.stop();
      closeFd(fd);
    },
  };
}
