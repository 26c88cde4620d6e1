/** The loop in front of every change of the mapping, which waits for what is in the way. */

import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { checkAlive } from '../layout/damage.ts';
import type { Allocation, Need, Qcow2Node, Qcow2State } from '../layout/state.ts';
import { satisfy } from '../metadata/needs.ts';
import { isNeed } from '../metadata/refcount.ts';
import { withSpace } from '../metadata/writeback.ts';
import { findAllocation } from './allocation.ts';

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
