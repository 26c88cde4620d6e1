/** The length of a node, taken over from its driver. */

import { E } from '../../errors/errno.ts';
import { ioError } from '../../errors/error.ts';
import { resizeBitmaps } from '../bitmaps/dirty-bitmap.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import { roundUp } from '../contract/rounding.ts';
import type { BlockNode } from './node.ts';

/** Largest image: the original's BDRV_MAX_LENGTH, INT64_MAX rounded down to 1 GiB. As a double it is exact. */
export const MAX_LENGTH_BYTES = 2 ** 63 - 2 ** 30;

/** Asks the driver for the length and takes it over; a length that is no multiple of 512 is rounded up. */
export async function coRefreshLength(node: BlockNode, guard: GraphReadGuard): Promise<void> {
  const below = node.primaryChild;
  const bytes =
    node.driver.getLength !== undefined
      ? await node.driver.getLength(node, guard)
      : (below?.node.totalBytes ?? 0);
  if (bytes > MAX_LENGTH_BYTES) throw ioError(E.EFBIG);
  node.totalBytes = roundUp(bytes, 512);
  resizeBitmaps(node);
}
