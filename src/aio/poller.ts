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

/** May say how many things there were, for the turn to judge whether more is to be expected at once; otherwise it was one. */
export type OnReadable = (() => void) | (() => number);

/** A descriptor that had nothing in so many rounds is idle. */
const IDLE_ROUNDS = 64;

interface Watched {
  readonly onReadable: OnReadable;
  /** See Source.due; null: always 0. */
  readonly due: (() => number) | null;
  /** The last round in which it had something. */
  seenIn: number;
}

interface Poller {
  readonly epoll: number;
  readonly watch: PollHandle;
}

let poller: Poller | null = null;
let lastId = 0;
const watched = new Map<number, Watched>();
/** Rounds in which there was something, so far. */
let rounds = 0;

const source: Source = {
  get isWaiting() {
    return poller !== null;
  },
  leadBytes: 0,
  owed: null,
  /** Of those that had something of late, the fewest: none of them is to be kept waiting. */
  get due() {
    let least = Number.POSITIVE_INFINITY;
    for (const { due, seenIn } of watched.values())
      if (rounds - seenIn < IDLE_ROUNDS) least = Math.min(least, due?.() ?? 0);
    return least === Number.POSITIVE_INFINITY ? 0 : least;
  },
  look() {
    if (poller === null) return 0;
    const ids = pollEpoll(poller.epoll);
    if (ids.length === 0) return 0;
    rounds++;
    let found = 0;
    for (const id of ids) {
      const one = watched.get(id);
      if (one === undefined) continue;
      one.seenIn = rounds;
      try {
        found += one.onReadable() ?? 1;
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
  if (poller === null || watched.size > 0) return;
  const { epoll, watch } = poller;
  poller = null;
  forgetSource(source);
  watch.close();
  // The handle leaves libuv's own epoll in this turn; only then may the descriptor go.
  setImmediate(() => closeFd(epoll));
}

/**
 * A watch on `fd`, not started: `onReadable` is called in libuv's poll phase while there is something to read. `due`: how
 * many answers are to come from there.
 */
export function createWatch(
  fd: number,
  onReadable: OnReadable,
  due: (() => number) | null = null,
): ReadableWatch {
  const id = ++lastId;
  return {
    start: () => {
      if (watched.has(id)) return;
      const { epoll } = thePoller();
      const result = changeEpoll(epoll, fd, true, id);
      if (result < 0) throw new BlockError('Cannot watch a descriptor', { errno: -result });
      watched.set(id, { onReadable, due, seenIn: rounds });
    },
    stop: () => {
      if (!watched.delete(id) || poller === null) return;
      changeEpoll(poller.epoll, fd, false, id);
      // Often another watch follows at once.
      setImmediate(endPoller);
    },
  };
}
