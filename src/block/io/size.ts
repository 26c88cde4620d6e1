/**
 * The I/O path beside the data: length and truncation. Block status is io/status.ts.
 *
 * As in io/read-write.ts, all functions run under the graph read lock and take the guard.
 */

import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import { resizeBitmaps } from '../bitmaps/dirty-bitmap.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import type { PreallocMode } from '../contract/image.ts';
import { roundUp } from '../contract/rounding.ts';
import { coRefreshLength, MAX_LENGTH_BYTES } from '../graph/length.ts';
import type { BlockNode } from '../graph/node.ts';
import { markSerialising, waitSerialising } from '../graph/tracked.ts';
import { begin, end } from './common.ts';

/**
 * Sets the length. `exact` false: the node may end up longer. Requests in the part that goes are waited for. `growOnly`:
 * a node that is longer by then, since a write has gone behind its end meanwhile, stays as it is.
 */
export async function coTruncate(
  node: BlockNode,
  guard: GraphReadGuard,
  length: number,
  exact: boolean,
  prealloc: PreallocMode,
  zeroFill: boolean,
  growOnly = false,
): Promise<void> {
  if (length < 0) throw new BlockError('Image size cannot be negative', { errno: E.EINVAL });
  if (length > MAX_LENGTH_BYTES) {
    // 2^63 is what the largest int64 was rounded to.
    const told = length === 2 ** 63 ? 2n ** 63n - 1n : BigInt(length);
    throw new BlockError(`offset(${told}) exceeds maximum(${BigInt(MAX_LENGTH_BYTES)})`, { errno: E.EIO });
  }
  if (node.readOnly) throw new BlockError('Image is read-only', { errno: E.EACCES });
  const everything = growOnly || node.driver.exclusiveTruncate === true;
  const from = everything ? 0 : Math.min(length, node.totalBytes);
  const to = everything ? Number.POSITIVE_INFINITY : Math.max(length, node.totalBytes);
  const request = begin(node, from, to - from, 'truncate');
  try {
    markSerialising(node.tracked, request, 1);
    await waitSerialising(node.tracked, request);
    if (growOnly && node.totalBytes >= length) return;
    if (node.driver.truncate === undefined)
      throw new BlockError('Image format driver does not support resize', { errno: E.ENOTSUP });
    // A longer backing image would show in what is added.
    const backing = node.child('backing')?.node;
    const covered = length > node.totalBytes && backing !== undefined && backing.totalBytes > node.totalBytes;
    if (covered && node.driver.growsZeroed !== true)
      throw new BlockError('Block driver does not support requested flags', { errno: E.ENOTSUP });
    await node.driver.truncate(node, guard, length, exact, prealloc, zeroFill || covered);
    await coRefreshLength(node, guard);
    node.writeGeneration++;
  } finally {
    end(node, request);
  }
  await tellParentsResized(node, guard);
}

/**
 * Cuts off the end of a node that nobody else uses at once, for drivers that must do so where nothing can be waited
 * for. False: it cannot be done this way.
 */
export function truncateNow(node: BlockNode, length: number): boolean {
  const { driver } = node;
  const below = driver.kind === 'filter' ? node.primaryChild : null;
  const done =
    below !== null ? truncateNow(below.node, length) : (driver.truncateNow?.(node, length) ?? false);
  if (!done) return false;
  node.totalBytes = roundUp(length, 512);
  node.writeGeneration++;
  resizeBitmaps(node);
  return true;
}

/** Everything above a resized node looks at its own length again. */
async function tellParentsResized(node: BlockNode, guard: GraphReadGuard): Promise<void> {
  for (const { parent } of node.parents) {
    if (parent.kind === 'root') {
      parent.root.resized();
    } else {
      await coRefreshLength(parent.node, guard);
      await tellParentsResized(parent.node, guard);
    }
  }
}
