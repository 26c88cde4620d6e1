/**
 * Copy on read: what a node shows of its backing image is written into the node itself.
 *
 * As in io/read-write.ts, all functions run under the graph read lock and take the guard. A copy is a serialising request over
 * whole clusters: no other request of the node can come between reading what is below and writing it here.
 */

import { allocateIoMemory, type IoMemory, isZeroVector, sliceVector, vectorOf } from '../../aio/memory.ts';
import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import { Req, Status } from '../contract/request.ts';
import { roundDown, roundUp } from '../contract/rounding.ts';
import type { BlockNode } from '../graph/node.ts';
import { hasRequestIn, markSerialising, waitSerialising } from '../graph/tracked.ts';
import { begin, checkRange, checkWritable, end } from './common.ts';
import { makeControlForm } from './control.ts';
import { areShared, coCopyRangeFrom, MIN_KERNEL_BYTES } from './copy-range.ts';
import { coDebugEvent } from './debug.ts';
import { isPlain } from './in-turn.ts';
import { coBlockStatus } from './status.ts';
import { backingOf } from './status-chain.ts';
import { beginsWithZeroes, PEEK_BYTES } from './zero-peek.ts';

const getInfo = makeControlForm('getInfo');

/** Most that is held in memory by one copy, in bytes; a multiple of every cluster size. */
const MAX_BOUNCE_BYTES = 2 * 1024 * 1024;

/** The unit in which `node` allocates, in bytes. */
export async function coClusterBytes(node: BlockNode, guard: GraphReadGuard): Promise<number> {
  try {
    const { clusterSizeBytes } = await getInfo(node, guard);
    return Math.max(clusterSizeBytes, node.limits.requestAlignment);
  } catch (error) {
    if (error instanceof BlockError && error.errno === E.ENOTSUP) return node.limits.requestAlignment;
    throw error;
  }
}

/** Whether reads with Req.copyOnRead copy into this node; other nodes pass the flag on. */
export function copiesOnRead({ driver, readOnly }: BlockNode): boolean {
  return driver.supportsBacking === true && driver.pwritev !== undefined && !readOnly;
}

/** Runs `read` when the node holds all of [offset, offset+bytes). Req.prefetch in `flags`: the copy is all that is wanted. */
export async function coReadOwn(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  flags: number,
  read: () => Promise<void>,
): Promise<void> {
  // In flight throughout, not only in the copy and in the read.
  node.inFlight++;
  try {
    const status = await coBlockStatus(node, guard, false, offset, bytes);
    const isOwn = status.bytes >= bytes && (status.flags & Status.allocated) !== 0;
    if (!isOwn) await coCopyOnRead(node, guard, offset, bytes);
    // Should a part be discarded now, it is read as it is then.
    if ((flags & Req.prefetch) === 0) await read();
  } finally {
    node.inFlight--;
    if (node.inFlight === 0) node.idle.wakeAll();
  }
}

/**
 * Copies what [offset, offset+bytes) reads as into the node, as far as the node does not hold it yet, in whole clusters.
 * What the node's users see does not change, so its dirty bitmaps do not either. Zeroes are written as zeroes.
 */
export async function coCopyOnRead(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<void> {
  checkWritable(node);
  checkRange(offset, bytes);
  const cluster = await coClusterBytes(node, guard);
  const from = roundDown(offset, cluster);
  const to = Math.min(roundUp(offset + bytes, cluster), node.totalBytes);
  if (to <= from) return;
  const request = begin(node, from, to - from, 'copy');
  try {
    markSerialising(node.tracked, request, 1);
    await waitSerialising(node.tracked, request);
    for (let at = from; at < to; ) {
      const status = await coBlockStatus(node, guard, false, at, Math.min(to - at, MAX_BOUNCE_BYTES));
      if (status.bytes === 0) return;
      if ((status.flags & Status.allocated) === 0) await copyUp(node, guard, at, status.bytes);
      at += status.bytes;
    }
  } finally {
    end(node, request);
  }
}

/**
 * As coCopyOnRead, for what is done within this turn: as much as can be of [offset, offset+bytes), which is whole clusters, and
 * returns how much that was. Nothing is done where the kernel copies, or where somebody else has a request; zeroes are left to
 * coCopyOnRead. `goesOn` is asked after every piece, which is as long as `memory`, a power of two.
 */
export function copyOnReadNow(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  memory: IoMemory,
  goesOn: (done: number) => boolean,
): number {
  const { driver } = node;
  const pieceBytes = memory.buf.length;
  const below = backingOf(node);
  if (below === null || node.readOnly || node.takesDebugEvents || areShared(below, node)) return 0;
  if (driver.unheldNow === undefined || driver.tryPreadv === undefined || driver.tryPwritev === undefined)
    return 0;
  let done = 0;
  while (done < bytes) {
    const at = offset + done;
    const length = Math.min(pieceBytes - (at % pieceBytes), bytes - done);
    const piece = vectorOf(memory, 0, length);
    const isDone =
      isPlain(node, at, length, 1) &&
      !hasRequestIn(node.tracked, at, at + length) &&
      driver.unheldNow(node, guard, at, length) === length &&
      driver.tryPreadv(node, guard, at, length, piece, null) &&
      !isZeroVector(piece) &&
      driver.tryPwritev(node, guard, at, length, piece, null);
    if (!isDone) break;
    node.writeGeneration++;
    done += length;
    if (!goesOn(done)) break;
  }
  return done;
}

/** Reads and writes past the tracking of requests, which is the caller's. */
async function copyUp(node: BlockNode, guard: GraphReadGuard, offset: number, bytes: number): Promise<void> {
  const isCopied = bytes >= MIN_KERNEL_BYTES && (await copyUpByKernel(node, guard, offset, bytes));
  if (!isCopied) await copyUpThroughMemory(node, guard, offset, bytes);
  // The content is the same as before, where it is kept is not: a flush has work to do.
  node.writeGeneration++;
}

async function copyUpThroughMemory(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<void> {
  const { driver, limits } = node;
  const padded = roundUp(bytes, limits.requestAlignment);
  const vec = vectorOf(allocateIoMemory(padded), 0, padded);
  await split(limits.maxTransfer, padded, (at, length) =>
    driver.preadv!(node, guard, offset + at, length, sliceVector(vec, at, length), 0),
  );
  if (node.takesDebugEvents) await coDebugEvent(node, guard, 'cor_write');
  if (!isZeroVector(vec) || !(await writeZeroes(node, guard, offset, padded))) {
    await split(limits.maxTransfer, padded, (at, length) =>
      driver.pwritev!(
        node,
        guard,
        offset + at,
        length,
        sliceVector(vec, at, length),
        Req.writeUnchanged & driver.supportedWriteFlags,
      ),
    );
  }
}

/** False: it has to be read and written. So has what begins with zeroes: it may be nothing else. */
async function copyUpByKernel(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<boolean> {
  const { driver } = node;
  const below = backingOf(node);
  if (below === null || driver.copyRangeTo === undefined || !areShared(below, node)) return false;
  if (beginsWithZeroes(below, guard, offset, allocateIoMemory(PEEK_BYTES))) return false;
  return coCopyRangeFrom(below, guard, offset, bytes, (place, at, length) =>
    driver.copyRangeTo!(node, guard, offset + at, length, place),
  );
}

/** False when the driver cannot do it efficiently. */
async function writeZeroes(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<boolean> {
  const { driver, limits } = node;
  if (driver.pwriteZeroes === undefined) return false;
  try {
    await split(limits.maxPwriteZeroes, bytes, (at, length) =>
      driver.pwriteZeroes!(node, guard, offset + at, length, Req.writeUnchanged & driver.supportedZeroFlags),
    );
    return true;
  } catch (error) {
    if (error instanceof BlockError && error.errno === E.ENOTSUP) return false;
    throw error;
  }
}

/** Runs `run` over pieces of at most `max` bytes (0: no limit), one after another. */
async function split(
  max: number,
  bytes: number,
  run: (at: number, length: number) => Promise<void>,
): Promise<void> {
  for (let at = 0; at < bytes; ) {
    const length = Math.min(bytes - at, max || bytes);
    await run(at, length);
    at += length;
  }
}
