/**
 * Copies of a mirror: which range is next, and how it gets from the source to the target. See state.ts for the rules.
 *
 * Moving the data is the mover's (block/copy/mover.ts).
 */

import { nextDirty, resetDirty } from '../../block/bitmaps/dirty-bitmap.ts';
import type { GraphReadGuard } from '../../block/contract/guard.ts';
import {
  asksKernel,
  type CopyFailure,
  extentAt,
  MAX_KERNEL_REQUESTS,
  moveExtent,
  moveOneTurn,
  requestBytes,
  updateUseOfKernel,
} from '../../block/copy/mover.ts';
import { type BlockError, errnoOf, ioError } from '../../errors/error.ts';
import { beginOp, endOp, type Mirror, type MirrorOp, opFailed, opIn, shrinkOp } from './state.ts';

/** Zeroes that one copy writes at most. */
const ZEROES_MAX_BYTES = 64 * 1024 * 1024;

/** How long what was found to be data is taken for data. */
const KNOWN_MS = 100;

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
 * Copies the data at the start of the range within this turn; how much it was. 0: startCopy has to be asked, which also finds
 * out where there are data. Nobody else runs meanwhile, so this is no operation on the list.
 */
export function copyInTurn(mirror: Mirror, { offset, bytes }: CopyRange): number {
  const { knownData, mover, bitmap, alignBytes, source } = mirror;
  if (knownData === null || offset < knownData.offset || offset >= knownData.end) return 0;
  const startMs = performance.now();
  if (startMs >= knownData.untilMs) return 0;
  // Whole blocks: the last one may end behind what is known to be data.
  const end = Math.floor(knownData.end / alignBytes) * alignBytes;
  const most = knownData.end === mirror.lengthBytes ? bytes : Math.min(bytes, end - offset);
  if (most <= 0) return 0;
  const moved = source.layer.graphLock.readNow((guard) => moveOneTurn(mover, guard, offset, most)) ?? 0;
  if (moved === 0) return 0;
  resetDirty(bitmap, offset, moved);
  mirror.cursor = offset + moved;
  mirror.copiedBytes += moved;
  mirror.host.copied(moved);
  if (mirror.copies === 0) mirror.busyMs += performance.now() - startMs;
  return moved;
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
    const failure = await copyOp(mirror, guard, op, sized);
    const bytes = op.end - op.offset;
    if (failure !== null) {
      opFailed(mirror, op.offset, bytes, failure.isRead, asError(failure.error));
    } else {
      mirror.copiedBytes += bytes;
      mirror.host.copied(bytes);
    }
  } catch (error) {
    opFailed(mirror, op.offset, op.end - op.offset, true, asError(error));
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
): Promise<CopyFailure | null> {
  const { alignBytes, mover } = mirror;
  updateUseOfKernel(mover, guard);
  // What the range begins with tells how much of it this copy takes.
  const { kind, bytes: length } = await extentAt(mover, guard, op.offset, op.end - op.offset);
  // What follows may be copied within a turn. Should it become zeroes, it is copied as data none the less.
  const untilMs = performance.now() + KNOWN_MS;
  mirror.knownData = kind === 'zero' ? null : { offset: op.offset, end: op.offset + length, untilMs };
  const take = kind === 'zero' ? length : Math.min(length, requestBytes(mover, 'data'));
  const end = op.offset + Math.ceil(take / alignBytes) * alignBytes;
  if (end < op.end) {
    shrinkOp(mirror, op, end);
    mirror.cursor = end;
  }
  const bytes = op.end - op.offset;
  sized(bytes);
  const failure = await moveExtent(mover, guard, op.offset, take, kind === 'zero' ? 'zero' : 'data');
  if (failure !== null || take >= bytes) return failure;
  return copyRange(mirror, guard, op.offset + take, bytes - take);
}

/** Copies a range of which nothing is known yet; null: done. */
export async function copyRange(
  { mover }: Mirror,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<CopyFailure | null> {
  for (let at = offset; at < offset + bytes; ) {
    const extent = await extentAt(mover, guard, at, offset + bytes - at);
    const failure = await moveExtent(
      mover,
      guard,
      at,
      extent.bytes,
      extent.kind === 'zero' ? 'zero' : 'data',
    );
    if (failure !== null) return failure;
    at += extent.bytes;
  }
  return null;
}

/** Whether one more copy may be begun. */
export function mayCopy({ mover, copies, maxCopies }: Mirror): boolean {
  return copies < (asksKernel(mover) ? Math.min(MAX_KERNEL_REQUESTS, maxCopies) : maxCopies);
}

/** What a request failed with, as the error that the user gets to see: the text of its errno. */
export function asError(thrown: unknown): BlockError {
  return ioError(errnoOf(thrown), thrown);
}
