/** A clock for tests: time passes when the test says so, and promises settle in between. */

import type { Clock } from '../../../src/aio/clock.ts';

interface Timer {
  readonly atMs: number;
  readonly action: () => void;
}

export interface VirtualClock extends Clock {
  /** Lets time pass; timers go off at their moments, `lateMs` late each. */
  pass(ms: number): Promise<void>;
}

/** `lateMs`: how late every timer is, as on a busy machine. */
export function virtualClock(lateMs = 0): VirtualClock {
  let nowMs = 1000;
  const timers = new Set<Timer>();
  // Whoever was woken runs, and whom that wakes.
  const settle = () => new Promise((resolve) => setImmediate(resolve));
  return {
    nowMs: () => nowMs,
    after(delayMs, action) {
      const timer = { atMs: nowMs + Math.max(1, Math.ceil(delayMs)) + lateMs, action };
      timers.add(timer);
      return () => timers.delete(timer);
    },
    async pass(ms) {
      const until = nowMs + ms;
      for (;;) {
        await settle();
        const [next] = [...timers].sort((a, b) => a.atMs - b.atMs);
        if (next === undefined || next.atMs > until) break;
        nowMs = next.atMs;
        timers.delete(next);
        next.action();
      }
      nowMs = until;
      await settle();
    },
  };
}
