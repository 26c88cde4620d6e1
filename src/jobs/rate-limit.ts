/** A speed limit for the work of a job: how long to wait after so many bytes. Nothing here knows of jobs or timers. */

/** Work may be so far ahead of the limit. Then it goes on piece by piece: a burst would make others wait. */
const SLICE_MS = 100;

export interface RateLimit {
  /** Bytes a second; 0: no limit. */
  bytesPerSecond: number;
  /** The moment at which all work done so far is paid for. */
  paidUntilMs: number;
}

export function createRateLimit(bytesPerSecond: number): RateLimit {
  return { bytesPerSecond, paidUntilMs: 0 };
}

/** Changes the limit; what was done before counts no more. */
export function setRate(limit: RateLimit, bytesPerSecond: number): void {
  limit.bytesPerSecond = bytesPerSecond;
  limit.paidUntilMs = 0;
}

/** Counts `bytes` of work done at `nowMs`. */
export function countWork(limit: RateLimit, bytes: number, nowMs: number): void {
  if (limit.bytesPerSecond === 0) return;
  // Time in which nothing was done is not saved up.
  limit.paidUntilMs = Math.max(limit.paidUntilMs, nowMs) + (bytes * 1000) / limit.bytesPerSecond;
}

/** How long the next work has to wait at `nowMs`, in milliseconds; up to a slice may be done ahead of time. */
export function delayMs(limit: RateLimit, nowMs: number): number {
  if (limit.bytesPerSecond === 0) return 0;
  const ahead = limit.paidUntilMs - nowMs;
  return Math.max(0, ahead - SLICE_MS);
}
