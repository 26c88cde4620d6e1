/**
 * The short way of the I/O path: requests that are done within the current turn of the event loop, or not at all.
 *
 * Nobody else runs meanwhile, so nothing is tracked and nothing can conflict; what needs waiting, alignment or
 * splitting goes the long way (io/read-write.ts). This is what small requests to data in the page cache cost least.
 */

import type { IoVector } from '../../aio/memory.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import type { BlockNode } from '../graph/node.ts';
import { wrote } from './common.ts';

/** Whether a request can go to the driver as it is, without waiting for anybody. */
function isPlain(node: BlockNode, offset: number, bytes: number, vec: IoVector): boolean {
  const { requestAlignment: align, maxTransfer, maxIov } = node.limits;
  return (
    node.tracked.serialising === 0 &&
    (align === 1 || (offset % align === 0 && bytes % align === 0)) &&
    (maxTransfer === 0 || bytes <= maxTransfer) &&
    vec.segments.length <= maxIov
  );
}

/** Reads within this turn of the event loop, or does nothing and says so. */
export function tryPreadv(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): boolean {
  const { driver } = node;
  return (
    driver.tryPreadv !== undefined &&
    isPlain(node, offset, bytes, vec) &&
    driver.tryPreadv(node, guard, offset, bytes, vec)
  );
}

/** Writes within this turn of the event loop, or does nothing and says so. */
export function tryPwritev(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): boolean {
  const { driver } = node;
  if (
    driver.tryPwritev === undefined ||
    bytes === 0 ||
    node.readOnly ||
    node.settings.detectZeroes !== 'off' ||
    node.writeThreshold !== 0 ||
    !isPlain(node, offset, bytes, vec) ||
    !driver.tryPwritev(node, guard, offset, bytes, vec)
  )
    return false;
  wrote(node, offset, bytes);
  return true;
}
