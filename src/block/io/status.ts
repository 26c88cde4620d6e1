/**
 * Block status of one node: what its driver says of a range, in extents that fit the node's request alignment.
 *
 * An extent never says more than was reported. Where a driver, a server or a child ends an extent within one of the
 * node's blocks, the extent is cut back to the block's start, and the block itself is a hole or zeroes only if all of
 * it is: whoever reads or writes it does so as a whole. Through chains of backing images status-chain.ts does the same.
 * As in io/read-write.ts, all functions run under the graph read lock and take the guard.
 */

import type { GraphReadGuard } from '../contract/guard.ts';
import { type BlockStatus, Status } from '../contract/request.ts';
import { roundDown, roundUp } from '../contract/rounding.ts';
import type { BlockNode } from '../graph/node.ts';

/** First extent of equal status at `offset`, at most `bytes` long. `wantZero` false: allocation is enough. */
export async function coBlockStatus(
  node: BlockNode,
  guard: GraphReadGuard,
  wantZero: boolean,
  offset: number,
  bytes: number,
): Promise<BlockStatus> {
  const first = await exactBlockStatus(node, guard, wantZero, offset, bytes);
  return inWholeBlocks(node, offset, bytes, first, (at, length) =>
    exactBlockStatus(node, guard, wantZero, at, length),
  );
}

/**
 * The extent `first` at `offset`, so that it ends with one of the node's blocks, with the range of `bytes` asked for, or
 * with the node. `next` finds the extents behind it, if its block has several.
 */
export async function inWholeBlocks<S extends BlockStatus>(
  node: BlockNode,
  offset: number,
  bytes: number,
  first: S,
  next: (offset: number, bytes: number) => Promise<BlockStatus>,
): Promise<S> {
  const align = node.limits.requestAlignment;
  const limit = Math.min(offset + bytes, node.totalBytes);
  const end = offset + first.bytes;
  if (align === 1 || end >= limit || end % align === 0) return first;
  const whole = roundDown(end, align);
  if (whole > offset) return { ...first, bytes: whole - offset };
  const blockEnd = Math.min(roundUp(end, align), limit);
  let isZero = (first.flags & Status.zero) !== 0;
  let any = first.flags;
  for (let at = end; at < blockEnd; ) {
    const status = await next(at, blockEnd - at);
    if (status.bytes === 0) break;
    isZero &&= (status.flags & Status.zero) !== 0;
    any |= status.flags;
    at += status.bytes;
  }
  let flags = any & (Status.data | Status.allocated);
  if (isZero) flags |= Status.zero;
  // Of what is not all zeroes, any part that this layer decides makes the block its own.
  else if ((flags & Status.allocated) !== 0) flags |= Status.data;
  if (blockEnd >= node.totalBytes) flags |= Status.eof;
  return { ...first, bytes: blockEnd - offset, flags, map: 0, file: null };
}

/** As coBlockStatus, whatever the node's alignment, to be looked at only. At least a byte, unless `offset` is at the end or behind it. */
export async function exactBlockStatus(
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
    const own = await driverStatus(node, guard, wantZero, offset, length);
    const { bytes: extent, map } = own;
    if ((own.flags & Status.recurse) !== 0 && own.file !== null) {
      const below = await coBlockStatus(own.file, guard, wantZero, map, extent);
      // Past the end of the child this node still has bytes, which read as zeroes.
      if (below.bytes === 0)
        return {
          bytes: extent,
          flags: Status.zero | Status.allocated | Status.offsetValid | atEnd(extent),
          map,
          file: own.file,
        };
      return { ...below, flags: (below.flags & ~Status.eof) | atEnd(below.bytes) };
    }
    const isFinal = (own.flags & Status.final) !== 0;
    let flags = own.flags & ~Status.final;
    if ((flags & (Status.data | Status.zero)) !== 0) flags |= Status.allocated;
    // Mapped to a child that knows of zeroes this layer cannot see.
    if (
      wantZero &&
      !isFinal &&
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

/** The driver's answer for the extent at `offset`. The driver is asked for whole blocks. */
async function driverStatus(
  node: BlockNode,
  guard: GraphReadGuard,
  wantZero: boolean,
  offset: number,
  length: number,
): Promise<BlockStatus> {
  const align = node.limits.requestAlignment;
  const to = roundUp(offset + length, align);
  for (let at = roundDown(offset, align); ; ) {
    const own = await node.driver.blockStatus!(node, guard, wantZero, at, to - at);
    const end = at + own.bytes;
    if (end > offset) {
      return { ...own, bytes: Math.min(end - offset, length), map: own.map + (offset - at) };
    }
    // An extent that ends before `offset` says nothing of it. A driver that gets nowhere knows nothing: data.
    if (own.bytes <= 0) return { bytes: length, flags: Status.data, map: 0, file: null };
    at = end;
  }
}
