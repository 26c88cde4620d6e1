/**
 * How long tests wait: limits for what should come soon, never a measure of speed.
 *
 * Every limit on something that must happen goes through limitMs(), which stretches it by TEST_PATIENCE (a factor, default 1)
 * and by how many times more work this machine has than processors. What a test waits for starts the limit anew
 * with every byte or message that arrives: a limit is for silence, not for the whole. A wait that shows that something
 * does not come is short, and is not a limit.
 */

import { availableParallelism, loadavg } from 'node:os';

/** A machine with more work than this is not waited for any longer. */
const MOST_LOAD = 20;

/** The milliseconds to wait, at the most, for what takes less than `baseMs` on an idle machine. */
export function limitMs(baseMs: number): number {
  const asked = Number(process.env.TEST_PATIENCE ?? 1);
  const load = (loadavg()[0] ?? 0) / availableParallelism();
  return Math.ceil(baseMs * (asked > 0 ? asked : 1) * Math.min(Math.max(load, 1), MOST_LOAD));
}

/** Waits until `done` holds, looking every few milliseconds; throws with `what` when the limit has passed. */
export async function waitUntil(what: string, done: () => boolean, baseMs = 30_000): Promise<void> {
  const limit = limitMs(baseMs);
  for (const start = Date.now(); !done(); ) {
    if (Date.now() - start > limit) throw new Error(`not in ${limit / 1000} s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
