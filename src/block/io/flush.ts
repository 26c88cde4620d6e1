/**
 * The I/O path of requests without data: discards and flushes.
 *
 * As in io/read-write.ts, all functions run under the graph read lock and take the guard.
 */

import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import { recordWrite } from '../bitmaps/dirty-bitmap.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import { roundDown, roundUp } from '../contract/rounding.ts';
import type { BlockNode } from '../graph/node.ts';
import { waitSerialising } from '../graph/tracked.ts';
import { begin, checkRange, checkWritable, end } from './common.ts';
import { coDebugEvent } from './debug.ts';

/** Tells the node that the content of the range is of no interest. A hint: what cannot be done is skipped. */
export async function coPdiscard(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<void> {
  checkWritable(node);
  checkRange(offset, bytes);
  const { driver, limits } = node;
  if (!node.settings.discardUnmap || driver.pdiscard === undefined || bytes === 0) return;
  const request = begin(node, offset, bytes, 'discard');
  try {
    if (node.tracked.serialising > 0) await waitSerialising(node.tracked, request);
    const align = Math.max(limits.pdiscardAlignment, limits.requestAlignment);
    const from = roundUp(offset, align);
    // The last block of a node whose length is no multiple of the alignment may be discarded as a whole.
    const to =
      offset + bytes >= node.totalBytes
        ? Math.min(offset + bytes, node.totalBytes)
        : roundDown(offset + bytes, align);
    const max = limits.maxPdiscard || to - from;
    for (let at = from; at < to; ) {
      const length = Math.min(to - at, max);
      try {
        await driver.pdiscard(node, guard, at, length);
      } catch (error) {
        if (!(error instanceof BlockError && error.errno === E.ENOTSUP)) throw error;
      }
      at += length;
    }
    node.writeGeneration++;
  } finally {
    // Also what a failed discard has left undone may be gone.
    recordWrite(node.dirtyBitmaps, offset, bytes);
    end(node, request);
  }
}

/**
 * Everything that completed before this call is on stable storage afterwards. Concurrent flushes of a node share
 * work: one runs, the others wait and run only if something was written meanwhile.
 */
export async function coFlush(node: BlockNode, guard: GraphReadGuard): Promise<void> {
  if (node.readOnly) return;
  node.inFlight++;
  const generation = node.writeGeneration;
  try {
    while (node.flushing) await node.flushQueue.wait();
    if (node.flushedGeneration >= generation && node.children.length === 0) return;
    node.flushing = true;
    try {
      const debugged = node.children.length === 0 ? null : debuggedChild(node);
      if (debugged !== null) await coDebugEvent(debugged, guard, 'flush_to_os');
      // What is being written by the time the driver's flush runs may or may not be covered; claim only what was
      // complete on entry.
      if (!node.settings.cache.noFlush || node.children.length > 0) await node.driver.flush?.(node, guard);
      if (debugged !== null) await coDebugEvent(debugged, guard, 'flush_to_disk');
      const below = node.driver.flushesChildren === true ? [] : node.children;
      for (const edge of below) await coFlush(edge.node, guard);
      if (generation > node.flushedGeneration) node.flushedGeneration = generation;
    } finally {
      node.flushing = false;
      node.flushQueue.wakeAll();
    }
  } finally {
    node.inFlight--;
    if (node.inFlight === 0) node.idle.wakeAll();
  }
}

/** The primary child, if it wants to hear of debug events. */
function debuggedChild(node: BlockNode): BlockNode | null {
  const child = node.primaryChild?.node;
  return child?.takesDebugEvents === true ? child : null;
}
