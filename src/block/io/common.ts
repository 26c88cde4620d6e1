/** What every function of the I/O path starts and ends with: counting, tracking, bounds, rounding. */

import { E } from '../../errors/errno.ts';
import { ioError } from '../../errors/error.ts';
import { recordWrite, resizeBitmaps } from '../bitmaps/dirty-bitmap.ts';
import { roundUp } from '../contract/rounding.ts';
import type { BlockNode } from '../graph/node.ts';
import { beginTracked, endTracked, type TrackedKind, type TrackedRequest } from '../graph/tracked.ts';

export function begin(node: BlockNode, offset: number, bytes: number, kind: TrackedKind): TrackedRequest {
  node.inFlight++;
  return beginTracked(node.tracked, offset, bytes, kind);
}

export function end(node: BlockNode, request: TrackedRequest): void {
  endTracked(node.tracked, request);
  node.inFlight--;
  if (node.inFlight === 0) node.idle.wakeAll();
}

export function checkRange(offset: number, bytes: number): void {
  if (!(offset >= 0 && bytes >= 0 && offset + bytes <= Number.MAX_SAFE_INTEGER)) throw ioError(E.EIO);
}

export function checkWritable(node: BlockNode): void {
  if (node.readOnly) throw ioError(E.EPERM);
}

/** Bookkeeping after a write has changed [offset, offset+bytes). */
export function wrote(node: BlockNode, offset: number, bytes: number): void {
  node.writeGeneration++;
  const limit = offset + bytes;
  if (limit > node.writeHighestOffset) node.writeHighestOffset = limit;
  if (limit > node.totalBytes) {
    node.totalBytes = roundUp(limit, 512);
    resizeBitmaps(node);
  }
  if (node.dirtyBitmaps.all.size > 0) recordWrite(node.dirtyBitmaps, offset, bytes);
}

/** A failed write may have changed part of its range: it counts as written to. */
export function wroteInPart(node: BlockNode, offset: number, bytes: number): void {
  recordWrite(node.dirtyBitmaps, offset, bytes);
}
