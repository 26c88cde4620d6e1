/**
 * Several host clusters in a row, for tables that must lie in one piece. Data is allocated run by run instead
 * (refcount.ts).
 */

import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import { MAX_HOST_OFFSET } from '../layout/layout.ts';
import type { Qcow2Node } from '../layout/state.ts';
import { retryLocked } from './needs.ts';
import { getRefcount, type HostRun, takeClusters } from './refcount.ts';

/** Takes `wanted` free clusters in a row, refcount 1. The caller holds the metadata lock. */
export async function allocateContiguous(
  node: Qcow2Node,
  guard: GraphReadGuard,
  wanted: number,
): Promise<HostRun> {
  const s = node.state;
  const { refcountCache } = s;
  const blocks = Math.ceil(wanted / s.refcountsPerBlock) + 1;
  const capacity = refcountCache.capacity;
  let first = s.freeHint;
  for (;;) {
    first = await findFree(node, guard, first, wanted);
    // All blocks of the run have to be in memory at once for the step that takes it.
    refcountCache.capacity = Math.max(capacity, blocks + 4);
    try {
      const from = first;
      const run = await retryLocked(node, guard, () => takeClusters(s, from, wanted));
      if (run !== null) return run;
    } finally {
      refcountCache.capacity = capacity;
    }
    // Somebody took part of it while blocks were read or made: a new block lies at the start of its range.
    first++;
  }
}

/** The first cluster of `wanted` free ones in a row, at or behind `from`. */
async function findFree(
  node: Qcow2Node,
  guard: GraphReadGuard,
  from: number,
  wanted: number,
): Promise<number> {
  const s = node.state;
  let first = from;
  for (let cluster = from; cluster - first < wanted; cluster++) {
    if ((cluster + 1) * s.clusterBytes > MAX_HOST_OFFSET) throw ioError(E.EFBIG);
    const at = cluster;
    const known = getRefcount(s, at);
    const refcount =
      typeof known === 'number' ? known : await retryLocked(node, guard, () => getRefcount(s, at));
    if (refcount !== 0) first = cluster + 1;
  }
  return first;
}
