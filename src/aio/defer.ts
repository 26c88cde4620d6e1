/**
 * Deferred calls: batch work inside a plugged section.
 *
 * Between plug() and the matching unplug() a call given to deferCall() waits; each (fn, opaque) pair runs once, at
 * the outermost unplug. Outside a plugged section it runs at once. A call made by B while A's section is open waits
 * for A's unplug. State is per thread (per module instance in a Worker) and knows nothing of the block layer.
 */

import { assert } from '../errors/error.ts';

type DeferredFn<T> = (opaque: T) => void;

interface DeferredCall {
  readonly fn: DeferredFn<never>;
  readonly opaque: unknown;
}

let depth = 0;
let calls: DeferredCall[] = [];

/** Opens a plugged section; sections nest. */
export function plug(): void {
  depth++;
}

/** Whether a plugged section is open. */
export function isPlugged(): boolean {
  return depth > 0;
}

/** Closes a plugged section; the outermost one runs the deferred calls, including those they defer themselves. */
export function unplug(): void {
  assert(depth > 0, 'unplug without plug');
  if (depth > 1) {
    depth--;
    return;
  }
  // Still plugged while the calls run, so that what they defer joins the same batch instead of recursing.
  let failure: { readonly error: unknown } | undefined;
  while (calls.length > 0) {
    const batch = calls;
    calls = [];
    for (const call of batch) {
      try {
        call.fn(call.opaque as never);
      } catch (error) {
        // One failing call must not lose the others of the batch.
        failure ??= { error };
      }
    }
  }
  depth--;
  if (failure !== undefined) throw failure.error;
}

/** Runs `fn(opaque)` at the outermost unplug, once per pair; at once when nothing is plugged. */
export function deferCall<T>(fn: DeferredFn<T>, opaque: T): void {
  if (depth === 0) {
    fn(opaque);
    return;
  }
  // Few distinct pairs are pending at a time (one per ring, connection or image): a scan beats a hash.
  for (const call of calls) if (call.fn === (fn as DeferredFn<never>) && call.opaque === opaque) return;
  calls.push({ fn: fn as DeferredFn<never>, opaque });
}
