/** Time as the things that wait for it see it: a clock and a timer, which tests put their own in the place of. */

export interface Clock {
  /** Milliseconds from some fixed moment; never goes back. */
  nowMs(): number;
  /** Calls `action` once, not before so many milliseconds have passed; the result prevents it. */
  after(delayMs: number, action: () => void): () => void;
}

export const systemClock: Clock = {
  nowMs: () => performance.now(),
  after(delayMs, action) {
    // Whole milliseconds, and never early: who waits looks at the clock again.
    const timer = setTimeout(action, Math.min(Math.ceil(delayMs), 2 ** 31 - 1));
    return () => clearTimeout(timer);
  },
};
