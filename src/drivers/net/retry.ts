/**
 * Attempts with a growing pause in between, for failures that may pass.
 *
 * The pause doubles from one attempt to the next and is spread a little, so that the many clients of a server that comes
 * back do not all come at the same moment.
 */

import { E } from '../../errors/errno.ts';
import { ioError } from '../../errors/error.ts';
import type { CancelScope } from './cancel.ts';
import { PassingError } from './failures.ts';

export interface RetryPolicy {
  /** Attempts after the first one; 0: none. */
  readonly retries: number;
  /** Pause before the first of them, in milliseconds. */
  readonly delayMs: number;
}

export const DEFAULT_RETRIES = 5;
export const DEFAULT_RETRY_DELAY_MS = 200;

/** The longest pause between two attempts; a server that asks for a longer one does not get it. */
const MAX_PAUSE_MS = 10_000;
/** A pause lasts between this share of its nominal length and the whole of it. */
const SHORTEST_SHARE = 0.75;

/** The policy that the options `retries` and `retry-delay` (milliseconds) ask for. */
export function retryPolicy(options: Readonly<Record<string, unknown>>): RetryPolicy {
  const { retries, 'retry-delay': delay } = options as { retries?: number; 'retry-delay'?: number };
  return { retries: retries ?? DEFAULT_RETRIES, delayMs: delay ?? DEFAULT_RETRY_DELAY_MS };
}

/** The pause before attempt number `attempt` (1: the first repetition), in milliseconds. */
export function pauseMs({ delayMs }: RetryPolicy, attempt: number, askedMs: number, random: number): number {
  const nominal = Math.min(MAX_PAUSE_MS, delayMs * 2 ** (attempt - 1));
  return Math.min(
    MAX_PAUSE_MS,
    Math.max(askedMs, nominal * (SHORTEST_SHARE + random * (1 - SHORTEST_SHARE))),
  );
}

/** Waits; throws ECANCELED when everything is given up meanwhile. */
export function pause(ms: number, scope: CancelScope): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      leave();
      resolve();
    }, ms);
    const leave = scope.add(() => {
      clearTimeout(timer);
      reject(ioError(E.ECANCELED));
    });
  });
}

/** Runs `attempt` until it succeeds, fails for good, or the policy says enough; throws what failed last. */
export async function repeated<T>(
  policy: RetryPolicy,
  scope: CancelScope,
  attempt: () => Promise<T>,
): Promise<T> {
  const { generation } = scope;
  for (let failed = 0; ; ) {
    if (scope.closed || scope.generation !== generation) throw ioError(E.ECANCELED);
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof PassingError) || failed >= policy.retries) throw error;
      failed++;
      await pause(pauseMs(policy, failed, error.waitMs, Math.random()), scope);
    }
  }
}
