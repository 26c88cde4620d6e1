/**
 * Descriptors that are read by system calls of their own, in the turn in which they become readable: /dev/fuse,
 * eventfds and sockets of vhost-user.
 *
 * All of them are in one private epoll instance under one handle of libuv's, so that a thousand connects cost libuv
 * nothing and a descriptor may be closed at once. Watches are level-triggered. The poller exists while there are
 * watches, and keeps the process alive for that long. Main thread only.
 */

import { BlockError } from '../errors/error.ts';
import { changeEpoll, createEpoll, pollEpoll } from './descriptors.ts';
import { closeFd } from './ffi.ts';
import { forgetSource, runTurn, type Source } from './loop/turn.ts';
import { openPoll, type PollHandle, Readiness } from './loop/uv-poll.ts';

/** One descriptor's place in the poller. */
export interface ReadableWatch {
  /** Begins to watch, or goes on. */
  start(): void;
  /** Pauses; the descriptor may be closed then. */
  stop(): void;
}

interface Poller {
  readonly epoll: number;
  readonly watch: PollHandle;
}

let poller: Poller | null = null;
let lastId = 0;
const callbacks = new Map<number, () => void>();

const source: Source = {
  get isWaiting() {
    return poller !== null;
  },
  leadBytes: 0,
  look() {
    if (poller === null) return 0;
    let found = 0;
    for (const id of pollEpoll(poller.epoll)) {
      found++;
      try {
        callbacks.get(id)?.();
      } catch (error) {
        // The others have their turn all the same.
        setImmediate(() => {
          throw error;
        });
      }
    }
    return found;
  },
};

function thePoller(): Poller {
  if (poller !== null) return poller;
  const epoll = createEpoll();
  if (epoll < 0) throw new BlockError('Cannot create an epoll instance', { errno: -epoll });
  const watch = openPoll(epoll, () => runTurn(source));
  watch.watch(Readiness.readable);
  poller = { epoll, watch };
  return poller;
}

function endPoller(): void {
  if (poller === null || callbacks.size > 0) return;
  const { epoll, watch } = poller;
  poller = null;
  forgetSource(source);
  watch.close();
  // The handle leaves libuv's own epoll in this turn; only then may the descriptor go.
  setImmediate(() => closeFd(epoll));
}

/** A watch on `fd`, not started: `onReadable` is called in libuv's poll phase while there is something to read. */
export function createWatch(fd: number, onReadable: () => void): ReadableWatch {
  const id = ++lastId;
  return {
    start: () => {
      if (callbacks.has(id)) return;
      const { epoll } = thePoller();
      const result = changeEpoll(epoll, fd, true, id);
      if (result < 0) throw new BlockError('Cannot watch a descriptor', { errno: -result });
      callbacks.set(id, onReadable);
    },
    stop: () => {
      if (!callbacks.delete(id) || poller === null) return;
      changeEpoll(poller.epoll, fd, false, id);
      // Often another watch follows at once.
      setImmediate(endPoller);
    },
  };
}
