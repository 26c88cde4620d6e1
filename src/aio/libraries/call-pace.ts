/**
 * Whether calls of a library are made within the turn or on the thread pool: within the turn while they are short, since
 * handing one over and back costs some 40 us. Calls that take long hold up everybody, and are worth another thread.
 */

/** The mean of calls within the turn may be so long. */
const SHORT_MS = 0.1;
/** Share of the last call in the mean. */
const WEIGHT = 1 / 16;
/** A longer call says that the processor had something else to do. */
const LONGEST_MS = 0.6;
/** After calls that took too long so many are not made within the turn; then it is tried again. */
const PAUSE_CALLS = 200;

export interface CallPace {
  meanMs: number;
  pauseCalls: number;
}

export function createCallPace(): CallPace {
  return { meanMs: 0, pauseCalls: 0 };
}

/** Whether the next call is to be made within the turn. */
export function mayCallNow(pace: CallPace): boolean {
  if (pace.pauseCalls === 0) return true;
  pace.pauseCalls--;
  return false;
}

/** Takes into account how long a call within the turn took. */
export function callTook(pace: CallPace, ms: number): void {
  pace.meanMs += (Math.min(ms, LONGEST_MS) - pace.meanMs) * WEIGHT;
  if (pace.meanMs <= SHORT_MS) return;
  // One short call alone does not bring it back.
  pace.meanMs = SHORT_MS;
  pace.pauseCalls = PAUSE_CALLS;
}
