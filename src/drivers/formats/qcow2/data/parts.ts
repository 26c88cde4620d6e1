/**
 * Requests part by part: several parts of one at the same time, and the loop in front of every change of the mapping,
 * which waits for what is in the way.
 */

import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { checkAlive } from '../layout/damage.ts';
import type { Allocation, Need, Qcow2Node, Qcow2State } from '../layout/state.ts';
import { satisfy } from '../metadata/needs.ts';
import { isNeed } from '../metadata/refcount.ts';
import { withSpace } from '../metadata/writeback.ts';
import { findAllocation } from './allocation.ts';

/** The parts of one request that are under way. */
export interface Parts {
  readonly max: number;
  readonly pending: Set<Promise<void>>;
  /** The first that went wrong; no more are begun then. */
  failure: { readonly error: unknown } | null;
}

/** `max`: parts at the same time. */
export function createParts(max: number): Parts {
  return { max, pending: new Set(), failure: null };
}

/** One more part is under way. Resolves when the next may be begun. */
export async function addPart(parts: Parts, part: Promise<void>): Promise<void> {
  const { pending } = parts;
  const settled: Promise<void> = part
    .catch((error: unknown) => {
      parts.failure ??= { error };
    })
    .finally(() => pending.delete(settled));
  pending.add(settled);
  if (pending.size >= parts.max) await Promise.race(pending);
}

/** Begins parts one after another until `next` says there are none left; throws what went wrong when all have ended. */
export async function runParts(max: number, next: (parts: Parts) => Promise<boolean>): Promise<void> {
  const parts = createParts(max);
  try {
    while (parts.failure === null && (await next(parts))) {
      // Until there is nothing left to begin.
    }
  } catch (error) {
    parts.failure ??= { error };
  }
  // The buffers belong to the caller again when we return: nothing may still be using them.
  await Promise.all(parts.pending);
  if (parts.failure !== null) throw parts.failure.error;
}

/**
 * How much of [start, start+bytes) can be planned now: up to the next cluster that is being allocated; or the
 * allocation to wait for when that is the first one. The answer holds until something is awaited.
 */
function freeOfAllocations(s: Qcow2State, start: number, bytes: number): number | Allocation {
  if (s.allocations.length === 0) return bytes;
  const from = start - (start % s.clusterBytes);
  const to = Math.ceil((start + bytes) / s.clusterBytes) * s.clusterBytes;
  const conflict = findAllocation(s, from, to);
  if (conflict === null) return bytes;
  return conflict.start > start ? conflict.start - start : conflict;
}

/**
 * Runs `step` on as much of [start, start+bytes) as nobody is allocating, after waiting for what is in its way and
 * for the tables it needs. `step` is synchronous and has changed nothing when it returns a Need.
 */
export async function planOn<T>(
  node: Qcow2Node,
  guard: GraphReadGuard,
  start: number,
  bytes: number,
  step: (bytes: number) => T | Need,
): Promise<T> {
  for (;;) {
    checkAlive(node);
    const length = freeOfAllocations(node.state, start, bytes);
    if (typeof length !== 'number') {
      await length.waiters.wait();
      continue;
    }
    const planned = step(length);
    if (!isNeed(planned)) return planned;
    await withSpace(node, guard, () => satisfy(node, guard, planned));
  }
}
