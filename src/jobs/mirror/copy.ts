/**
 * Copies of a mirror: which range is next, and how it gets from the source to the target. See state.ts for the rules.
 *
 * Block status decides: data is copied by the kernel where both ends are plain files, else read and written; what reads as zeroes is written as zeroes, which costs nothing where
 * the target has a hole already.
 */

import { allocateIoMemory, type IoMemory, vectorOf } from '../../aio/memory.ts';
import { co } from '../../block/callbacks.ts';
import { nextDirty, resetDirty } from '../../block/dirty-bitmap.ts';
import { Req, Status } from '../../block/driver.ts';
import type { GraphReadGuard } from '../../block/graph-lock.ts';
import { coCopyRange } from '../../block/io-copy-range.ts';
import { blockStatusAbove } from '../../block/status-chain.ts';
import { BlockError, errnoOf, ioError } from '../../errors/error.ts';
import { beginOp, endOp, type Mirror, type MirrorOp, opFailed, opIn, shrinkOp } from './state.ts';

/** Zeroes that one copy writes at most. */
const ZEROES_MAX_BYTES = 64 * 1024 * 1024;

/** Data that the kernel copies at once, at most; and what is not worth the way through a thread. */
const KERNEL_BYTES = 1024 * 1024;
const KERNEL_MIN_BYTES = 64 * 1024;

export interface CopyRange {
  readonly offset: number;
  readonly bytes: number;
}

/** A dirty range nobody works on, from the cursor on and then from the start; null when there is none. */
export function nextRange(mirror: Mirror): CopyRange | null {
  const { cursor, lengthBytes } = mirror;
  return rangeIn(mirror, cursor, lengthBytes) ?? (cursor > 0 ? rangeIn(mirror, 0, cursor) : null);
}

function rangeIn(mirror: Mirror, start: number, limit: number): CopyRange | null {
  const { bitmap, alignBytes, lengthBytes } = mirror;
  for (let at = start; at < limit; ) {
    const extent = nextDirty(bitmap, at, limit);
    if (extent === null) return null;
    const from = Math.floor(extent.offset / alignBytes) * alignBytes;
    const to = Math.min(
      Math.ceil((extent.offset + extent.bytes) / alignBytes) * alignBytes,
      from + ZEROES_MAX_BYTES,
      lengthBytes,
    );
    const free = freeEnd(mirror, from, to);
    if (free > from) return { offset: from, bytes: free - from };
    const { end } = opIn(mirror, from, from + 1) ?? { end: from + alignBytes };
    at = Math.max(at + 1, Math.ceil(end / alignBytes) * alignBytes);
  }
  return null;
}

/** The end of the part of [from, to), beginning at `from`, in which no operation is under way; whole blocks. */
function freeEnd(mirror: Mirror, from: number, to: number): number {
  let end = to;
  for (const op of mirror.ops) {
    if (op.offset < end && from < op.end)
      end = Math.max(from, Math.floor(op.offset / mirror.alignBytes) * mirror.alignBytes);
  }
  return end;
}

/**
 * Starts a copy of what lies at the start of the range. Resolves, while it is under way, to the bytes it takes: as much
 * as one copy can.
 */
export function startCopy(mirror: Mirror, { offset, bytes }: CopyRange): Promise<number> {
  const op = beginOp(mirror, offset, offset + bytes, false);
  resetDirty(mirror.bitmap, offset, bytes);
  mirror.cursor = offset + bytes;
  if (mirror.copies++ === 0) mirror.busySinceMs = performance.now();
  return new Promise((resolve) => void runCopy(mirror, op, resolve));
}

async function runCopy(mirror: Mirror, op: MirrorOp, sized: (bytes: number) => void): Promise<void> {
  const { graphLock } = mirror.source.layer;
  const guard = graphLock.tryRead() ?? (await graphLock.read());
  try {
    await copyOp(mirror, guard, op, sized);
    const bytes = op.end - op.offset;
    mirror.copiedBytes += bytes;
    mirror.host.copied(bytes);
  } catch (error) {
    const { offset, end } = op;
    opFailed(mirror, offset, end - offset, isSourceError(error), asError(error));
  } finally {
    graphLock.readDone(guard);
    if (--mirror.copies === 0) mirror.busyMs += performance.now() - mirror.busySinceMs;
    endOp(mirror, op);
    sized(op.end - op.offset);
  }
}

async function copyOp(
  mirror: Mirror,
  guard: GraphReadGuard,
  op: MirrorOp,
  sized: (bytes: number) => void,
): Promise<void> {
  const { alignBytes } = mirror;
  const mostBytes = mirror.usesKernel ? Math.max(KERNEL_BYTES, mirror.copyBytes) : mirror.copyBytes;
  // What the range begins with tells how much of it this copy takes.
  const extent = await extentAt(mirror, guard, op.offset, op.end - op.offset);
  const take = extent.isZero ? extent.bytes : Math.min(extent.bytes, mostBytes);
  const end = op.offset + Math.ceil(take / alignBytes) * alignBytes;
  if (end < op.end) {
    shrinkOp(mirror, op, end);
    mirror.cursor = end;
  }
  const bytes = op.end - op.offset;
  sized(bytes);
  await copyExtent(mirror, guard, op.offset, take, extent.isZero);
  if (take < bytes) await copyRange(mirror, guard, op.offset + take, bytes - take);
}

/** Copies a range of which nothing is known yet. Throws what went wrong; SourceError: on the source. */
export async function copyRange(
  mirror: Mirror,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<void> {
  for (let at = offset; at < offset + bytes; ) {
    const extent = await extentAt(mirror, guard, at, offset + bytes - at);
    const length = extent.isZero ? extent.bytes : Math.min(extent.bytes, mirror.copyBytes);
    await copyExtent(mirror, guard, at, length, extent.isZero);
    at += length;
  }
}

interface Extent {
  readonly bytes: number;
  readonly isZero: boolean;
}

async function extentAt(
  { source }: Mirror,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<Extent> {
  try {
    const status = await blockStatusAbove(source, guard, null, true, offset, bytes);
    return { bytes: status.bytes || bytes, isZero: (status.flags & Status.zero) !== 0 };
  } catch {
    // A source that cannot tell may still be read.
    return { bytes, isZero: false };
  }
}

async function copyExtent(
  mirror: Mirror,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  isZero: boolean,
): Promise<void> {
  const { source, target, unmap } = mirror;
  if (isZero) {
    if (mirror.keepsHoles && (await isHole(mirror, guard, offset, bytes))) return;
    await co.pwriteZeroes(target, guard, offset, bytes, unmap ? Req.mayUnmap : 0);
    return;
  }
  if (mirror.usesKernel && bytes >= KERNEL_MIN_BYTES) {
    if (await coCopyRange(source, guard, offset, target, offset, bytes)) return;
    // The way through memory tells what is wrong, if anything is.
    mirror.usesKernel = false;
  }
  for (let at = offset; at < offset + bytes; at += mirror.copyBytes)
    await copyThroughMemory(mirror, guard, at, Math.min(mirror.copyBytes, offset + bytes - at));
}

async function copyThroughMemory(
  mirror: Mirror,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<void> {
  const { source, target } = mirror;
  const memory = takeBuffer(mirror);
  try {
    const vec = vectorOf(memory, 0, bytes);
    try {
      await co.preadv(source, guard, offset, bytes, vec, 0);
    } catch (error) {
      throw new SourceError(asError(error));
    }
    await co.pwritev(target, guard, offset, bytes, vec, 0);
  } finally {
    if (mirror.buffers.length < mirror.maxCopies) mirror.buffers.push(memory);
  }
}

/** Whether the target reads as zeroes in the range without having space for it. */
async function isHole(
  { target }: Mirror,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<boolean> {
  try {
    const { flags, bytes: length } = await blockStatusAbove(target, guard, null, true, offset, bytes);
    return length === bytes && (flags & Status.zero) !== 0;
  } catch {
    return false;
  }
}

function takeBuffer({ buffers, copyBytes }: Mirror): IoMemory {
  return buffers.pop() ?? allocateIoMemory(copyBytes);
}

/** What failed is the reading of the source. */
class SourceError extends BlockError {
  constructor(cause: BlockError) {
    super(cause.message, { errno: cause.errno, cause });
  }
}

export function isSourceError(error: unknown): boolean {
  return error instanceof SourceError;
}

/** What a request failed with, as the error that the user gets to see: the text of its errno. */
export function asError(thrown: unknown): BlockError {
  return ioError(errnoOf(thrown), thrown);
}
