/**
 * The short way of the I/O path: requests that are done within the current turn of the event loop, or wait for nothing
 * but the disk, or are not begun at all.
 *
 * What is done in this turn is not tracked: nobody else runs meanwhile. What waits for the disk is tracked in every node
 * it has passed, and ends by a plain call (short-io.ts). What needs other waiting, alignment or splitting goes the long
 * way (io/read-write.ts).
 */

import type { IoVector } from '../../aio/memory.ts';
import type { LentPages } from '../contract/backend-io.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import type { BlockNode } from '../graph/node.ts';
import { wrote } from './common.ts';
import { isPastEnd } from './past-end.ts';
import type { ShortIo } from './short-io.ts';

/** Whether a request can go to the driver as it is, without waiting for anybody or being split. */
export function isPlain(node: BlockNode, offset: number, bytes: number, segments: number): boolean {
  const { requestAlignment: align, maxTransfer, maxIov } = node.limits;
  return (
    node.tracked.serialising === 0 &&
    !isPastEnd(node, offset, bytes) &&
    (align === 1 || (offset % align === 0 && bytes % align === 0)) &&
    (maxTransfer === 0 || bytes <= maxTransfer) &&
    segments <= maxIov
  );
}

/** Reads within this turn, or, with `short`, begins to; else does nothing and says so. */
export function tryPreadv(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  short: ShortIo | null = null,
): boolean {
  const { driver } = node;
  if (
    driver.tryPreadv === undefined ||
    !isPlain(node, offset, bytes, vec.segments.length) ||
    !driver.tryPreadv(node, guard, offset, bytes, vec, short)
  )
    return false;
  if (short?.isWaiting) short.track(node, offset, bytes, false);
  return true;
}

/** Writes; as tryPreadv. */
export function tryPwritev(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  short: ShortIo | null = null,
): boolean {
  const { driver } = node;
  if (
    driver.tryPwritev === undefined ||
    bytes === 0 ||
    node.readOnly ||
    node.settings.detectZeroes !== 'off' ||
    node.writeThreshold !== 0 ||
    !isPlain(node, offset, bytes, vec.segments.length) ||
    !driver.tryPwritev(node, guard, offset, bytes, vec, short)
  )
    return false;
  if (short?.isWaiting) short.track(node, offset, bytes, true);
  else wrote(node, offset, bytes);
  return true;
}

/** The pages that hold the bytes; see BackendIo.lendPages. */
export function lendPages(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): LentPages | null {
  const { driver } = node;
  if (driver.lendPages === undefined || !isPlain(node, offset, bytes, 1)) return null;
  return driver.lendPages(node, guard, offset, bytes);
}
