/** Waiting for something that may never come. Part of what network drivers share. */

import { E } from '../../errors/errno.ts';
import { ioError } from '../../errors/error.ts';

/**
 * What `promise` resolves with; ETIMEDOUT when that takes longer than `ms` (null: it may take for ever), ECANCELED when
 * `signal` is aborted. What is waited for goes on by itself then.
 */
export function within<T>(promise: Promise<T>, ms: number | null, signal: AbortSignal | null): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = (): void => reject(ioError(E.ECANCELED));
    const timer = ms === null ? undefined : setTimeout(() => reject(ioError(E.ETIMEDOUT)), ms);
    if (signal?.aborted === true) abort();
    signal?.addEventListener('abort', abort, { once: true });
    const leave = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', abort);
    };
    promise.then(resolve, reject).then(leave);
  });
}

/** How long a question that may also stay unanswered waits. */
const SOON_MS = 1000;

/** What `promise` resolves with if that is soon; null when it fails or takes longer. */
export function soon<T>(promise: Promise<T>): Promise<T | null> {
  return within(promise, SOON_MS, null).catch(() => null);
}
