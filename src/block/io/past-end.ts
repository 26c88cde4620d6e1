/**
 * Requests that reach behind the end of an image whose header says how long it is (BlockDriver.fixedLength): an image
 * that lies in it takes it for a file, which grows with what is written and reads as zeroes behind its end.
 *
 * As in io/read-write.ts, all functions run under the graph read lock and take the guard.
 */

import { fillVector, type IoVector, sliceVector } from '../../aio/memory.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, ioError } from '../../errors/error.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import { roundUp } from '../contract/rounding.ts';
import type { BlockNode } from '../graph/node.ts';
import { checkRange, checkWritable } from './common.ts';
import { coTruncate } from './size.ts';

const SECTOR_BYTES = 512;

/** Whether the driver must not see the request as it is. */
export function isPastEnd(node: BlockNode, offset: number, bytes: number): boolean {
  return offset + bytes > node.totalBytes && node.driver.fixedLength === true;
}

/**
 * Makes the image as long as what is about to be written needs. Not while a request of the same node is tracked. ENOSPC
 * where the format cannot.
 */
export async function growFor(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<void> {
  checkWritable(node);
  checkRange(offset, bytes);
  const length = roundUp(offset + bytes, Math.max(SECTOR_BYTES, node.limits.requestAlignment));
  try {
    await coTruncate(node, guard, length, false, 'off', false, true);
  } catch (error) {
    if (error instanceof BlockError && error.errno === E.ENOTSUP) throw ioError(E.ENOSPC);
    throw error;
  }
  if (node.totalBytes < offset + bytes) throw ioError(E.ENOSPC);
}

/** Reads by `read` what is there of an aligned range; what is behind the end are zeroes. */
export async function readUpToEnd(
  node: BlockNode,
  offset: number,
  bytes: number,
  vec: IoVector,
  read: (bytes: number, part: IoVector) => Promise<void>,
): Promise<void> {
  const there = Math.max(0, roundUp(node.totalBytes, node.limits.requestAlignment) - offset);
  // The last block may end behind the image: that is the driver's own.
  if (there >= bytes) return read(bytes, vec);
  fillVector(sliceVector(vec, there, bytes - there), 0);
  if (there > 0) await read(there, sliceVector(vec, 0, there));
}
