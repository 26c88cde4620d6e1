/**
 * The turn: from libuv's telling that a descriptor is ready to the loop's going back to sleep.
 *
 * What can be done without waiting is done in one turn: requests are received, parsed, answered from the page cache and
 * the answers sent, all by plain calls inside one plugged section. What promises and ticks are left is run at the end of
 * it, by the turn itself: node does that for callbacks of its own only. Before the loop sleeps again the turn looks
 * once more at what was busy, where that pays: a client that sends its next request when it has seen the reply is back
 * within some tens of microseconds, and would wait for a sleeping loop for as long. Where many requests come at once the
 * loop sleeps at once: then still more come at once, which costs least of all.
 *
 * A client with many requests under way that is slower than we are would be answered one by one, each for the price of a
 * turn. While it has answers enough to keep it busy the turn naps, for as long as it has: what the client sends meanwhile
 * is taken in together. It waits for nothing, since we are ahead of it, and is quicker for being left alone.
 *
 * The same where a server has many requests of ours to answer (storage that is elsewhere): its answers, and what clients
 * ask for next, are gathered for a moment and taken in together, if everybody who is busy waits for many things and so
 * for throughput. Measured with 16 requests of 4 KiB under way at an iSCSI target on the same machine: 21 us of processor
 * time a request in place of 44, and a fifth more requests a second, because the server is woken less often, too.
 *
 * Not here: what a turn is about (ring.ts, socket-stream.ts, poller.ts).
 */

import { plug, unplug } from '../defer.ts';
import { nap } from './nap.ts';

/** How long one look lasts at most. */
const LOOK_MAX_MS = 0.05;
/** A turn gives the loop back after this long: timers, QMP and other descriptors have their turn too. */
const TURN_MAX_MS = 0.5;
/** Sleeps that follow a look in vain, doubled with each, before the next one. */
const HOLD_OFF_MIN = 4;
const HOLD_OFF_MAX = 1024;
/** So many things at once come one by one: the next look pays. */
const FEW = 2;
/** A client takes about so much in a microsecond, and a nap is not longer than what it has to take lasts. */
const LEAD_BYTES_A_US = 1024;
/** With less on its way to the clients together, they would run dry before the nap ends, however short it is: measured
 *  with 16 requests of 4 KiB under way, naps then cost a third of the requests and save nothing. */
const LEAD_MIN_BYTES = 96 * 1024;
/** A shorter nap saves nothing; a longer one saves no more. */
const NAP_MIN_US = 10;
const NAP_MAX_US = 50;
/** So many answers that are to come, or are waited for, are many. */
const MANY = 8;
/** Servers that answer so often are near; of one that is far away nothing comes within a moment. Looked at so often. */
const QUICK_ANSWERS_A_MS = 5;
const RATE_MS = 1;
/** How long answers are gathered. Measured: half of it saves a quarter less, twice as much no more. */
const GATHER_US = 100;
/** A moment that brought fewer things was in vain. */
const WORTH = 2;
/** A nap that lasts so much longer than it should was slept through, as is usual under load; after some in a row none is
 *  taken any more: such a kernel cannot nap. */
const OVERSLEPT_MS = 0.5;
const MAX_OVERSLEPT = 50;
/** Sources looked at; with more the loop has enough to do and does not sleep. */
const MAX_BUSY = 4;
/** Rounds in a row in which another source had something and this one had not: it is not busy any more. */
const IDLE_LOOKS = 64;

/** Something that may have work at any moment: a ring, a socket. */
export interface Source {
  /** Does what there is to do; how many things there were. Called within a turn. */
  look(): number;
  /** Whether more work can come. A source without is not looked at. */
  readonly isWaiting: boolean;
  /** Bytes that the peer has been sent and has not taken yet. */
  readonly leadBytes: number;
  /** Answers to our requests that are to come from here. */
  readonly due: number;
  /** Answers to the peer's requests that we have not given yet; null: not known. */
  readonly owed: (() => number) | null;
}

interface Busy {
  readonly source: Source;
  /** Had something in this round. */
  hit: boolean;
  /** Rounds in a row in which only others had something. */
  misses: number;
}

const busy: Busy[] = [];
let isRunning = false;
/** When the loop was last left to sleep without a look; 0: it looked. */
let asleepSinceMs = 0;
/** Short sleeps still to be seen before the next look, and how many that will be after the next one in vain. */
let holdOff = HOLD_OFF_MIN;
let backoff = HOLD_OFF_MIN;
/** Naps in a row that lasted too long. */
let overslept = 0;
/** Turns in which nothing is gathered any more, and how many that will be after the next time in vain. */
let gatherHoldOff = 0;
let gatherBackoff = HOLD_OFF_MIN;
/** Answers of servers so far, and how many it had been when their rate was last looked at. */
let answers = 0;
let rateSinceMs = 0;
let rateSinceAnswers = 0;
let isQuick = false;

/** Runs what ticks and microtasks there are. Not documented, but node's own way, and much cheaper than an immediate. */
const runTicks = (process as unknown as { readonly _tickCallback?: () => void })._tickCallback;

/** Errors are the process's, as those of any callback: nobody above would see them. */
function raise(error: unknown): void {
  setImmediate(() => {
    throw error;
  });
}

function settle(): void {
  if (runTicks === undefined) {
    // Immediates run after the poll phase, and node runs ticks and microtasks after each.
    setImmediate(() => undefined);
    return;
  }
  try {
    runTicks.call(process);
  } catch (error) {
    raise(error);
  }
}

function lookAt(source: Source): number {
  plug();
  try {
    return source.look();
  } catch (error) {
    raise(error);
    return 0;
  } finally {
    try {
      unplug();
    } catch (error) {
      raise(error);
    }
  }
}

function remember(source: Source): void {
  for (const each of busy) {
    if (each.source !== source) continue;
    each.misses = 0;
    return;
  }
  if (busy.length === MAX_BUSY) busy.shift();
  busy.push({ source, hit: false, misses: 0 });
}

/** Forgets a source, which must not be looked at any more. */
export function forgetSource(source: Source): void {
  const index = busy.findIndex((each) => each.source === source);
  if (index >= 0) busy.splice(index, 1);
}

/** One round over the busy sources; how much there was to do. */
function lookAround(): number {
  let found = 0;
  for (let i = 0; i < busy.length; i++) {
    const each = busy[i]!;
    const here = each.source.isWaiting ? lookAt(each.source) : 0;
    each.hit = here > 0;
    found += here;
    if (here > 0 && each.source.due > 0) answers += here;
  }
  if (found === 0) return 0;
  for (let i = busy.length - 1; i >= 0; i--) {
    const each = busy[i]!;
    if (each.hit) each.misses = 0;
    else if (++each.misses > IDLE_LOOKS) busy.splice(i, 1);
  }
  return found;
}

/** Naps if all that is busy has enough to do for as long; whether it did. */
function napWhileAhead(): boolean {
  if (overslept > MAX_OVERSLEPT) return false;
  let us = NAP_MAX_US;
  let leadBytes = 0;
  for (const { source } of busy) {
    if (!source.isWaiting) continue;
    const lead = source.leadBytes;
    us = Math.min(us, lead / LEAD_BYTES_A_US);
    if (us < NAP_MIN_US) return false;
    leadBytes += lead;
  }
  if (leadBytes < LEAD_MIN_BYTES) return false;
  timedNap(Math.floor(us));
  return true;
}

/** Whether it was no longer than it should be. */
function timedNap(us: number): boolean {
  const startMs = performance.now();
  nap(us);
  const isInTime = performance.now() - startMs <= OVERSLEPT_MS;
  overslept = isInTime ? 0 : overslept + 1;
  return isInTime;
}

/** Whether a server has many answers to give, and everybody else that is busy waits for many. */
function areManyDue(): boolean {
  let isServed = false;
  for (const { source } of busy) {
    if (!source.isWaiting) continue;
    if (source.due >= MANY) isServed = true;
    else if ((source.owed?.() ?? 0) < MANY) return false;
  }
  return isServed;
}

/** Whether servers have been answering quickly of late. */
function areQuick(nowMs: number): boolean {
  const ms = nowMs - rateSinceMs;
  if (ms < RATE_MS) return isQuick;
  isQuick = answers - rateSinceAnswers >= ms * QUICK_ANSWERS_A_MS;
  rateSinceMs = nowMs;
  rateSinceAnswers = answers;
  return isQuick;
}

/** Gathers what servers answer, as long as that is much. */
function gather(startMs: number): void {
  if (overslept > MAX_OVERSLEPT) return;
  if (gatherHoldOff > 0) {
    gatherHoldOff--;
    return;
  }
  do {
    const isInTime = timedNap(GATHER_US);
    const found = lookAround();
    settle();
    // Where others want the processor a moment costs a turn of theirs.
    if (found < WORTH || !isInTime) {
      gatherHoldOff = gatherBackoff;
      gatherBackoff = Math.min(gatherBackoff * 2, HOLD_OFF_MAX);
      break;
    }
    gatherBackoff = HOLD_OFF_MIN;
  } while (performance.now() - startMs < TURN_MAX_MS && areManyDue());
}

function isAnyWaiting(): boolean {
  for (const { source } of busy) if (source.isWaiting) return true;
  return false;
}

/** Looks for more work until there has been none for a while, or the loop must have its turn. */
function lookOn(startMs: number): void {
  let nowMs = performance.now();
  let untilMs = nowMs + LOOK_MAX_MS;
  let hasFound = false;
  while (nowMs < untilMs) {
    const found = lookAround();
    if (found > 0) {
      settle();
      hasFound = true;
      if (!napWhileAhead() && found > FEW) break;
      nowMs = performance.now();
      if (nowMs - startMs > TURN_MAX_MS) break;
      untilMs = nowMs + LOOK_MAX_MS;
    } else {
      if (!isAnyWaiting()) return;
      nowMs = performance.now();
    }
  }
  if (hasFound) {
    // It has paid, if not to the end.
    backoff = HOLD_OFF_MIN;
    return;
  }
  holdOff = backoff;
  backoff = Math.min(backoff * 2, HOLD_OFF_MAX);
}

/** A turn, called from libuv's poll phase: `source` has something to do. Never throws. */
export function runTurn(source: Source): void {
  if (isRunning) return;
  isRunning = true;
  const startMs = performance.now();
  if (holdOff > 0 && asleepSinceMs > 0 && startMs - asleepSinceMs < 2 * LOOK_MAX_MS) holdOff--;
  asleepSinceMs = 0;
  const found = lookAt(source);
  if (found > 0) remember(source);
  settle();
  if (found > 0 && source.due > 0) answers += found;
  if (areManyDue() && areQuick(startMs)) gather(startMs);
  else if (!napWhileAhead() && (holdOff > 0 || found > FEW)) asleepSinceMs = performance.now();
  else lookOn(startMs);
  isRunning = false;
}
