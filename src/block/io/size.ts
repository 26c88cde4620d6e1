/**
 * The I/O path beside the data: block status, length, truncation.
 *
 * As in io/read-write.ts, all functions run under the graph read lock and take the guard.
 */

import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import { resizeBitmaps } from '../bitmaps/dirty-bitmap.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import type { PreallocMode } from '../contract/image.ts';
import { type BlockStatus, Status } from '../contract/request.ts';
import { roundDown, roundUp } from '../contract/rounding.ts';
import { coRefreshLength, MAX_LENGTH_BYTES } from '../graph/length.ts';
import type { BlockNode } from '../graph/node.ts';
import { markSerialising, waitSerialising } from '../graph/tracked.ts';
import { begin, end } from './common.ts';

/** First extent of equal status at `offset`, at most `bytes` long. `wantZero` false: allocation is enough. */
export async function coBlockStatus(
  node: BlockNode,
  guard: GraphReadGuard,
  wantZero: boolean,
  offset: number,
  bytes: number,
): Promise<BlockStatus> {
  if (offset >= node.totalBytes) return { bytes: 0, flags: Status.eof, map: 0, file: null };
  const length = Math.min(bytes, node.totalBytes - offset);
  const atEnd = (extent: number): number => (offset + extent >= node.totalBytes ? Status.eof : 0);
  if (node.driver.blockStatus === undefined) {
    const valid = node.driver.kind === 'protocol' ? Status.offsetValid : 0;
    return {
      bytes: length,
      flags: Status.data | Status.allocated | valid | atEnd(length),
      map: offset,
      file: node,
    };
  }
  node.inFlight++;
  try {
    const align = node.limits.requestAlignment;
    const from = roundDown(offset, align);
    const to = roundUp(offset + length, align);
    const own = await node.driver.blockStatus(node, guard, wantZero, from, to - from);
    const extent = Math.min(own.bytes - (offset - from), length);
    const map = own.map + (offset - from);
    if ((own.flags & Status.recurse) !== 0 && own.file !== null) {
      const below = await coBlockStatus(own.file, guard, wantZero, map, extent);
      // Past the end of the child this node still has bytes, which read as zeroes.
      if (below.bytes === 0)
        return { bytes: extent, flags: Status.zero | Status.allocated | atEnd(extent), map: 0, file: null };
      return { ...below, flags: (below.flags & ~Status.eof) | atEnd(below.bytes) };
    }
    let flags = own.flags;
    if ((flags & (Status.data | Status.zero)) !== 0) flags |= Status.allocated;
    // Mapped to a child that knows of zeroes this layer cannot see.
    if (
      wantZero &&
      (flags & Status.data) !== 0 &&
      (flags & (Status.zero | Status.offsetValid)) === Status.offsetValid &&
      own.file !== null &&
      own.file !== node
    ) {
      const below = await coBlockStatus(own.file, guard, wantZero, map, extent);
      if (below.bytes > 0 && (below.flags & Status.zero) !== 0) {
        return { bytes: below.bytes, flags: flags | Status.zero | atEnd(below.bytes), map, file: own.file };
      }
      if (below.bytes > 0)
        return { bytes: below.bytes, flags: flags | atEnd(below.bytes), map, file: own.file };
    }
    return { bytes: extent, flags: flags | atEnd(extent), map, file: own.file };
  } finally {
    node.inFlight--;
    if (node.inFlight === 0) node.idle.wakeAll();
  }
}

/** Sets the length. `exact` false: the node may end up longer. Requests in the part that goes are waited for. */
export async function coTruncate(
  node: BlockNode,
  guard: GraphReadGuard,
  length: number,
  exact: boolean,
  prealloc: PreallocMode,
  zeroFill: boolean,
): Promise<void> {
  if (length < 0) throw new BlockError('Image size cannot be negative', { errno: E.EINVAL });
  if (length > MAX_LENGTH_BYTES)
    throw new BlockError(`offset(${BigInt(length)}) exceeds maximum(${BigInt(MAX_LENGTH_BYTES)})`, {
      errno: E.EIO,
    });
  if (node.readOnly) throw new BlockError('Image is read-only', { errno: E.EACCES });
  const everything = node.driver.exclusiveTruncate === true;
  const from = everything ? 0 : Math.min(length, node.totalBytes);
  const to = everything ? Number.POSITIVE_INFINITY : Math.max(length, node.totalBytes);
  const request = begin(node, from, to - from);
  try {
    markSerialising(node.tracked, request, 1);
    await waitSerialising(node.tracked, request);
    if (node.driver.truncate === undefined)
      throw new BlockError('Image format driver does not support resize', { errno: E.ENOTSUP });
    // A longer backing image would show in what is added.
    const backing = node.child('backing')?.node;
    const covered = length > node.totalBytes && backing !== undefined && backing.totalBytes > node.totalBytes;
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
