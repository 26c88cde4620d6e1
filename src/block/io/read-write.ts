/**
 * The I/O path: what happens around a driver's data callbacks. Discards and flushes are io/flush.ts.
 *
 * Per request: bounds, tracking, waiting for serialising requests, alignment (read-modify-write), splitting to the
 * driver's limits, zero detection, FUA emulation, write bookkeeping. All functions run under the graph read lock and
 * take the guard. A request that is aligned and within limits costs one tracked record and one await per node.
 */

import {
  allocateIoMemory,
  concatVectors,
  copyFromVector,
  copyToVector,
  type IoVector,
  isZeroVector,
  sliceVector,
  vectorOf,
} from '../../aio/memory.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, ioError } from '../../errors/error.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import { Req } from '../contract/request.ts';
import { roundDown, roundUp } from '../contract/rounding.ts';
import type { BlockNode } from '../graph/node.ts';
import { markSerialising, waitSerialising } from '../graph/tracked.ts';
import { begin, checkRange, checkWritable, end, wrote, wroteInPart } from './common.ts';
import { copiesOnRead, coReadOwn } from './copy-on-read.ts';
import { coDebugEvent } from './debug.ts';
import { debuggedWrite } from './debugged-write.ts';
import { coFlush } from './flush.ts';
import { growFor, isPastEnd, readUpToEnd } from './past-end.ts';
import { checkWriteThreshold } from './write-threshold.ts';

/** Bounce buffers for emulated zero writes. */
const BOUNCE_BYTES = 64 * 1024;

// ---- reads ---------------------------------------------------------------------------------------------------

/** Reads [offset, offset+bytes) of `node` into `vec`; bytes past the end of a growable node read as zeroes. */
export async function coPreadv(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  checkRange(offset, bytes);
  if ((flags & Req.copyOnRead) !== 0 && copiesOnRead(node)) {
    await coReadOwn(node, guard, offset, bytes, flags, () =>
      coPreadv(node, guard, offset, bytes, vec, flags & ~Req.copyOnRead),
    );
    return;
  }
  const request = begin(node, offset, bytes, 'read');
  try {
    if ((flags & Req.serialising) !== 0) markSerialising(node.tracked, request, node.limits.requestAlignment);
    if (node.tracked.serialising > 0) await waitSerialising(node.tracked, request);
    await paddedRead(node, guard, offset, bytes, vec, flags);
  } finally {
    end(node, request);
  }
}

function paddedRead(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  const align = node.limits.requestAlignment;
  if (align === 1 || (offset % align === 0 && bytes % align === 0))
    return alignedRead(node, guard, offset, bytes, vec, flags);
  const from = roundDown(offset, align);
  const to = roundUp(offset + bytes, align);
  const head = vectorOf(allocateIoMemory(align), 0, offset - from);
  const tail = vectorOf(allocateIoMemory(align), 0, to - offset - bytes);
  return alignedRead(node, guard, from, to - from, concatVectors(head, vec, tail), flags);
}

function alignedRead(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  return isPastEnd(node, offset, bytes)
    ? readUpToEnd(node, offset, bytes, vec, (length, part) =>
        readInside(node, guard, offset, length, part, flags),
      )
    : readInside(node, guard, offset, bytes, vec, flags);
}

function readInside(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  if (node.driver.preadv === undefined) throw ioError(E.ENOTSUP);
  const max = node.limits.maxTransfer;
  if ((max === 0 || bytes <= max) && vec.segments.length <= node.limits.maxIov)
    return node.driver.preadv(node, guard, offset, bytes, vec, flags);
  return splitRequest(node, bytes, vec, 'read', (at, length, part) =>
    node.driver.preadv!(node, guard, offset + at, length, part, flags),
  );
}

/** Runs `run` over pieces of at most maxTransfer bytes and maxIov segments, one after another. */
async function splitRequest(
  node: BlockNode,
  bytes: number,
  vec: IoVector,
  direction: 'read' | 'write',
  run: (at: number, length: number, part: IoVector) => Promise<void>,
): Promise<void> {
  const { maxTransfer, maxIov, requestAlignment } = node.limits;
  for (let at = 0; at < bytes; ) {
    let length = Math.min(bytes - at, maxTransfer || bytes);
    let part = sliceVector(vec, at, length);
    if (part.segments.length > maxIov) {
      length = part.segments.slice(0, maxIov).reduce((sum, segment) => sum + segment.length, 0);
      length = roundDown(length, requestAlignment);
      if (length === 0) {
        // More than maxIov segments within one aligned block: through a buffer, which has one segment.
        length = requestAlignment;
        await bounce(sliceVector(vec, at, length), direction, (part) => run(at, length, part));
        at += length;
        continue;
      }
      part = sliceVector(vec, at, length);
    }
    await run(at, length, part);
    at += length;
  }
}

async function bounce(
  vec: IoVector,
  direction: 'read' | 'write',
  run: (part: IoVector) => Promise<void>,
): Promise<void> {
  const mem = allocateIoMemory(vec.bytes);
  if (direction === 'write') copyFromVector(vec, mem.buf);
  await run(vectorOf(mem));
  if (direction === 'read') copyToVector(vec, mem.buf);
}

// ---- writes --------------------------------------------------------------------------------------------------

/**
 * What every write is inside of: bounds, the tracked record, waiting for those that must not overlap, and the note that a
 * failed one may have changed something. `alone`: nobody may change the blocks in between (they are read and written back).
 */
async function trackedWrite(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  alone: boolean,
  run: () => Promise<void>,
): Promise<void> {
  checkWritable(node);
  checkRange(offset, bytes);
  if (isPastEnd(node, offset, bytes)) await growFor(node, guard, offset, bytes);
  const request = begin(node, offset, bytes, 'write');
  try {
    if (alone) markSerialising(node.tracked, request, node.limits.requestAlignment);
    if (node.tracked.serialising > 0) await waitSerialising(node.tracked, request);
    await run();
  } catch (error) {
    wroteInPart(node, offset, bytes);
    throw error;
  } finally {
    end(node, request);
  }
}

function isAligned(
  { limits: { requestAlignment: align } }: BlockNode,
  offset: number,
  bytes: number,
): boolean {
  return align === 1 || (offset % align === 0 && bytes % align === 0);
}

/** Writes `vec` to [offset, offset+bytes). Req.fua: the data is on stable storage afterwards. */
export function coPwritev(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  // A driver would take a write of no bytes for one to the block that the offset is in.
  if (bytes === 0) return emptyWrite(node, guard, offset, flags);
  const aligned = isAligned(node, offset, bytes);
  return trackedWrite(node, guard, offset, bytes, !aligned || (flags & Req.serialising) !== 0, () =>
    aligned
      ? alignedWrite(node, guard, offset, bytes, vec, flags)
      : paddedWrite(node, guard, offset, bytes, vec, flags),
  );
}

async function emptyWrite(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  flags: number,
): Promise<void> {
  checkWritable(node);
  checkRange(offset, 0);
  if ((flags & Req.fua) !== 0) await coFlush(node, guard);
}

async function paddedWrite(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  const align = node.limits.requestAlignment;
  const from = roundDown(offset, align);
  const to = roundUp(offset + bytes, align);
  const headBytes = offset - from;
  const tailBytes = to - offset - bytes;
  const head = allocateIoMemory(align);
  const tail = to - from === align ? head : allocateIoMemory(align);
  const debug = node.takesDebugEvents;
  if (debug && headBytes > 0) await coDebugEvent(node, guard, 'pwritev_rmw_head');
  if (debug && tailBytes > 0 && tail === head) await coDebugEvent(node, guard, 'pwritev_rmw_tail');
  if (headBytes > 0 || tail === head)
    await alignedRead(node, guard, from, align, vectorOf(head, 0, align), 0);
  if (debug && headBytes > 0) await coDebugEvent(node, guard, 'pwritev_rmw_after_head');
  if (tailBytes > 0 && tail !== head) {
    if (debug) await coDebugEvent(node, guard, 'pwritev_rmw_tail');
    await alignedRead(node, guard, to - align, align, vectorOf(tail, 0, align), 0);
  }
  if (debug && tailBytes > 0) await coDebugEvent(node, guard, 'pwritev_rmw_after_tail');
  const padded = concatVectors(
    vectorOf(head, 0, headBytes),
    vec,
    vectorOf(tail, align - tailBytes, tailBytes),
  );
  await alignedWrite(
    node,
    guard,
    from,
    to - from,
    { segments: padded.segments.filter((s) => s.length > 0), bytes: to - from },
    flags,
  );
}

function alignedWrite(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  if (node.writeThreshold !== 0) checkWriteThreshold(node, offset, bytes);
  if (!node.takesDebugEvents) return plainWrite(node, guard, offset, bytes, vec, flags);
  const isZero = node.settings.detectZeroes !== 'off' && isZeroVector(vec);
  return debuggedWrite(node, guard, isZero ? 'pwritev_zero' : 'pwritev', flags, (left) =>
    plainWrite(node, guard, offset, bytes, vec, left),
  );
}

async function plainWrite(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  const { driver } = node;
  if (node.settings.detectZeroes !== 'off' && bytes > 0 && isZeroVector(vec)) {
    const unmap = node.settings.detectZeroes === 'unmap' ? Req.mayUnmap : 0;
    await plainZeroes(node, guard, offset, bytes, flags | unmap);
    return;
  }
  if (driver.pwritev === undefined) throw ioError(E.ENOTSUP);
  const passed = flags & (driver.supportedWriteFlags | ~Req.fua);
  const max = node.limits.maxTransfer;
  if ((max === 0 || bytes <= max) && vec.segments.length <= node.limits.maxIov) {
    await driver.pwritev(node, guard, offset, bytes, vec, passed);
  } else {
    await splitRequest(node, bytes, vec, 'write', (at, length, part) =>
      driver.pwritev!(node, guard, offset + at, length, part, passed),
    );
  }
  wrote(node, offset, bytes);
  if ((flags & ~driver.supportedWriteFlags & Req.fua) !== 0) await coFlush(node, guard);
}

/** Writes compressed clusters; ENOTSUP where the format cannot. bytes 0 tells the driver that the image is complete. */
export function coPwritevCompressed(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  return trackedWrite(node, guard, offset, bytes, false, async () => {
    if (node.driver.pwritevCompressed === undefined) throw ioError(E.ENOTSUP);
    await node.driver.pwritevCompressed(node, guard, offset, bytes, vec);
    wrote(node, offset, bytes);
  });
}

/** Makes [offset, offset+bytes) read as zeroes. Req.mayUnmap, Req.noFallback, Req.fua. */
export function coPwriteZeroes(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  flags: number,
): Promise<void> {
  const aligned = isAligned(node, offset, bytes);
  return trackedWrite(node, guard, offset, bytes, !aligned || (flags & Req.serialising) !== 0, () =>
    aligned
      ? alignedZeroes(node, guard, offset, bytes, flags)
      : paddedZeroes(node, guard, offset, bytes, flags),
  );
}

/** Only the ends need reading and writing back; the middle stays a zero write. */
async function paddedZeroes(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  flags: number,
): Promise<void> {
  const align = node.limits.requestAlignment;
  const end = offset + bytes;
  const from = Math.min(roundUp(offset, align), end);
  const to = Math.max(roundDown(end, align), from);
  const zeroes = vectorOf(zeroMemory(align));
  const writeEnd = (at: number, length: number): Promise<void> =>
    paddedWrite(node, guard, at, length, sliceVector(zeroes, 0, length), flags);
  if (from > offset) await writeEnd(offset, from - offset);
  if (to > from) await alignedZeroes(node, guard, from, to - from, flags);
  if (end > to) await writeEnd(to, end - to);
}

function alignedZeroes(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  flags: number,
): Promise<void> {
  if (node.writeThreshold !== 0) checkWriteThreshold(node, offset, bytes);
  if (!node.takesDebugEvents) return plainZeroes(node, guard, offset, bytes, flags);
  return debuggedWrite(node, guard, 'pwritev_zero', flags, (left) =>
    plainZeroes(node, guard, offset, bytes, left),
  );
}

async function plainZeroes(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  flags: number,
): Promise<void> {
  const { driver, limits } = node;
  const mayUnmap = node.settings.discardUnmap ? flags : flags & ~Req.mayUnmap;
  const passed = mayUnmap & (driver.supportedZeroFlags | ~(Req.fua | Req.mayUnmap | Req.noFallback));
  let needFlush = (flags & ~driver.supportedZeroFlags & Req.fua) !== 0;
  const max = limits.maxPwriteZeroes || bytes;
  const align = limits.pwriteZeroesAlignment || 1;
  for (let at = 0; at < bytes; ) {
    let length = Math.min(bytes - at, max);
    // Unaligned ends go as requests of their own, so that the middle is what the driver does best.
    const head = (offset + at) % align;
    if (head !== 0) length = Math.min(length, align - head);
    else if (length > align && (length === max || offset + at + length < node.totalBytes))
      length = roundDown(length, align);
    const written =
      driver.pwriteZeroes !== undefined && (await tryZeroes(node, guard, offset + at, length, passed));
    if (!written) {
      if ((flags & Req.noFallback) !== 0) throw ioError(E.ENOTSUP);
      const fua = flags & Req.fua & driver.supportedWriteFlags;
      if ((flags & Req.fua) !== 0 && fua === 0) needFlush = true;
      await writeZeroBuffer(node, guard, offset + at, length, fua);
    }
    at += length;
  }
  wrote(node, offset, bytes);
  if (needFlush) await coFlush(node, guard);
}

/** False when the driver cannot do this one efficiently. */
async function tryZeroes(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  flags: number,
): Promise<boolean> {
  try {
    await node.driver.pwriteZeroes!(node, guard, offset, bytes, flags);
    return true;
  } catch (error) {
    if (error instanceof BlockError && error.errno === E.ENOTSUP) return false;
    throw error;
  }
}

function zeroMemory(bytes: number): ReturnType<typeof allocateIoMemory> {
  const memory = allocateIoMemory(bytes);
  memory.buf.fill(0);
  return memory;
}

async function writeZeroBuffer(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  flags: number,
): Promise<void> {
  if (node.driver.pwritev === undefined) throw ioError(E.ENOTSUP);
  const size = Math.max(
    node.limits.requestAlignment,
    Math.min(BOUNCE_BYTES, node.limits.maxTransfer || BOUNCE_BYTES),
  );
  const zeroes = vectorOf(zeroMemory(Math.min(size, bytes)));
  for (let at = 0; at < bytes; ) {
    const length = Math.min(zeroes.bytes, bytes - at);
    await node.driver.pwritev(node, guard, offset + at, length, sliceVector(zeroes, 0, length), flags);
    at += length;
  }
}
