/**
 * Several host clusters in a row, for tables that must lie in one piece. Data is allocated run by run instead
 * (refcount.ts).
 */

import { createTurns } from '../../../../aio/host/turns.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import { MAX_HOST_OFFSET } from '../layout/layout.ts';
import type { Qcow2Node, Qcow2State } from '../layout/state.ts';
import { retryLocked } from './needs.ts';
import { getRefcount, type HostRun, takeClusters } from './refcount.ts';
import { makeRoomBehind } from './refcount-blocks.ts';

/** Tries between the tables that there are, before a place is made behind everything. */
const MAX_ATTEMPTS = 16;
/** Refcounts looked at before the clock is. */
const SCAN_CLUSTERS = 64 * 1024;

/** Takes `wanted` free clusters in a row, refcount 1. The caller holds the metadata lock. */
export async function allocateContiguous(
  node: Qcow2Node,
  guard: GraphReadGuard,
  wanted: number,
): Promise<HostRun> {
  const s = node.state;
  let first = s.freeHint;
  for (let attempt = 0; ; attempt++) {
    first = await findFree(node, guard, first, wanted);
    // A new block lies at the start of its range: what is as long as a range never fits in between.
    if (attempt >= MAX_ATTEMPTS || (wanted >= s.refcountsPerBlock && !isCounted(s, first, wanted)))
      first = await makeRoomBehind(node, guard, wanted);
    const run = await take(node, guard, first, wanted);
    if (run !== null) return run;
    if (attempt > MAX_ATTEMPTS) throw ioError(E.EAGAIN);
    // Somebody took part of it while blocks were read or made.
    first++;
  }
}

/** Whether there are refcount blocks for all of the clusters. */
function isCounted(s: Qcow2State, first: number, wanted: number): boolean {
  const last = Math.floor((first + wanted - 1) / s.refcountsPerBlock);
  for (let block = Math.floor(first / s.refcountsPerBlock); block <= last; block++)
    if ((s.refcountTable[block] ?? 0) === 0) return false;
  return true;
}

async function take(
  node: Qcow2Node,
  guard: GraphReadGuard,
  first: number,
  wanted: number,
): Promise<HostRun | null> {
  const s = node.state;
  const { refcountCache } = s;
  const { capacity } = refcountCache;
  // All blocks of the run have to be in memory at once for the step that takes it.
  refcountCache.capacity = Math.max(capacity, Math.ceil(wanted / s.refcountsPerBlock) + 5);
  try {
    return await retryLocked(node, guard, () => takeClusters(s, first, wanted));
  } finally {
    refcountCache.capacity = capacity;
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
  const turns = createTurns();
  let first = from;
  for (let cluster = from; cluster - first < wanted; cluster++) {
    if ((cluster + 1) * s.clusterBytes > MAX_HOST_OFFSET) throw ioError(E.EFBIG);
    if ((cluster - from) % SCAN_CLUSTERS === SCAN_CLUSTERS - 1) await turns.next();
    const at = cluster;
    const known = getRefcount(s, at);
    const refcount =
      typeof known === 'number' ? known : await retryLocked(node, guard, () => getRefcount(s, at));
    if (refcount !== 0) first = cluster + 1;
  }
  return first;
}
