/**
 * The mover: brings data from one node to the same place of another one, in the best way there is.
 *
 * Block copy (backup), mirror, commit and convert move data with it; which range is next, and who may do what to it
 * meanwhile, is theirs. Zeroes are written as zeroes, data is copied by the kernel where that shares blocks or has a server
 * copy (io/copy-range.ts), else read and written. Functions run under the graph read lock.
 */

import { allocateIoMemory, type IoMemory, type IoVector, isZero, vectorOf } from '../../aio/memory.ts';
import { E } from '../../errors/errno.ts';
import { ioError } from '../../errors/error.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import { Req, Status } from '../contract/request.ts';
import { skipFilters } from '../graph/chain.ts';
import type { BlockNode } from '../graph/node.ts';
import { co, sync } from '../io/callbacks.ts';
import { coCopyRange, copiesByKernel, MIN_KERNEL_BYTES } from '../io/copy-range.ts';
import { backingOf, blockStatusAbove } from '../io/status-chain.ts';
import { beginsWithZeroes } from '../io/zero-peek.ts';
import { createHoldOff, type HoldOff, holdOff, worked } from './hold-off.ts';
import { createRequestSize, learn, type RequestSize } from './request-size.ts';
import { createTurnTaking, takeTurn } from './turn-taking.ts';
import { countWritten, type Written } from './written.ts';

/** `skip`: the source's top layer does not hold it, and that is not wanted. */
export type ExtentKind = 'data' | 'zero' | 'skip';

export interface Extent {
  readonly kind: ExtentKind;
  readonly bytes: number;
}

/** Where moving failed, and on which side. */
export interface CopyFailure {
  readonly error: unknown;
  readonly isRead: boolean;
  readonly offset: number;
}

/** Request sizes at the start and at most. A guest's write may have to wait for one request. */
const FIRST_DATA_BYTES = 1024 * 1024;
/** What a processor's cache holds twice; the event loop is not held up for longer than by a few guests' requests. */
const BUFFER_BYTES = 256 * 1024;
const MAX_KERNEL_BYTES = 1024 * 1024;
const FIRST_ZERO_BYTES = 1024 * 1024;
const MAX_ZERO_BYTES = 256 * 1024 * 1024;
/**
 * When the kernel has refused so many times in a row it is not asked for some pieces, and for more of them each time:
 * pieces that do not fit come together, and what it never can it is soon hardly asked for.
 */
const MAX_REFUSALS = 4;
const FIRST_PAUSE_PIECES = 16;
const MAX_PAUSE_PIECES = 1024;
/** Copies by the kernel at once: more would only wait for each other at the target's file. */
export const MAX_KERNEL_REQUESTS = 2;

export interface MoverSettings {
  /** Looked at under the graph read lock for every request. */
  readonly source: () => BlockNode;
  readonly target: () => BlockNode;
  /** Unit of copying in bytes: request sizes are multiples of it. */
  readonly clusterBytes: number;
  /** Where the source's first byte goes in the target. Default: 0. */
  readonly targetStart?: number;
  /** Flags of writes to the target. Default: none. */
  readonly writeFlags?: number;
  /** Flags of zero writes besides. Default: Req.mayUnmap. */
  readonly zeroFlags?: number;
  /** Zeroes in data are looked for and written as zeroes; null: they are not. Default: null. */
  readonly findZeroes?: ZeroFinder | null;
  /** Data that begins with zeroes is looked at, instead of the kernel being told to copy it. */
  readonly peeks?: boolean;
  /** Where zeroes are not written: nowhere; where the target shows that it has a hole; everywhere. Default: nowhere. */
  readonly leavesZeroes?: 'never' | 'holes' | 'always';
  /** The target is flushed when all has been moved: what has been written begins to go to the disk before. Default: false. */
  readonly isFlushed?: boolean;
  /** Size of a buffer. Default: what fits the processor's cache, at least a cluster. */
  readonly bufferBytes?: number;
}

/** The run at the start of `data`, which goes to `offset` of the target: nothing but zeroes, or data. */
export type ZeroFinder = (
  data: Buffer,
  offset: number,
) => { readonly bytes: number; readonly isData: boolean };

/** All of it, or nothing. */
export const allZeroes: ZeroFinder = (data) => ({ bytes: data.length, isData: !isZero(data) });

/** Whose turn it is to write, among several moves at once. */
export interface WriteOrder {
  /** Resolves when writing may begin. */
  readonly turn: Promise<unknown>;
  /** The last write has been begun. */
  begun(): void;
}

export interface Mover extends Required<MoverSettings> {
  /** What the top layer of the source does not hold is left out. */
  skipUnallocated: boolean;
  /** Data is written compressed. */
  compress: boolean;
  /** Let the kernel copy; cleared when it cannot. */
  useCopyRange: boolean;
  /** Times the kernel has refused since it last copied, or was last left alone. */
  refusals: number;
  /** Pieces for which it is not asked. */
  readonly kernelPause: HoldOff;
  readonly written: Written;
  /** Pieces that are not tried within a turn. */
  readonly turns: HoldOff;
  /** Idle buffers, each of `bufferBytes`; the one used last is the next, and in the processor's cache. */
  readonly buffers: IoMemory[];
  readonly sizes: {
    readonly kernel: RequestSize;
    readonly buffered: RequestSize;
    readonly zero: RequestSize;
  };
}

export function createMover(settings: MoverSettings): Mover {
  const { clusterBytes } = settings;
  const bufferBytes = settings.bufferBytes ?? Math.max(BUFFER_BYTES, clusterBytes);
  const size = (first: number, max: number): RequestSize => createRequestSize(clusterBytes, first, max);
  return {
    writeFlags: 0,
    zeroFlags: Req.mayUnmap,
    targetStart: 0,
    findZeroes: null,
    peeks: false,
    leavesZeroes: 'never',
    isFlushed: false,
    ...settings,
    bufferBytes,
    skipUnallocated: false,
    compress: false,
    useCopyRange: true,
    refusals: 0,
    kernelPause: createHoldOff(FIRST_PAUSE_PIECES, MAX_PAUSE_PIECES),
    written: { bytes: 0 },
    turns: createTurnTaking(),
    buffers: [],
    sizes: {
      kernel: size(FIRST_DATA_BYTES, MAX_KERNEL_BYTES),
      buffered: size(bufferBytes, bufferBytes),
      zero: size(FIRST_ZERO_BYTES, MAX_ZERO_BYTES),
    },
  };
}

/** The first extent at `offset`, at most `bytes` long. A source that cannot tell has data. */
export async function extentAt(
  mover: Mover,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<Extent> {
  const source = mover.source();
  const base = mover.skipUnallocated ? backingOf(skipFilters(source)) : null;
  try {
    const status = await blockStatusAbove(source, guard, base, true, offset, bytes);
    if (status.bytes === 0) return { kind: 'data', bytes };
    return { kind: kindOf(mover, status.flags), bytes: status.bytes };
  } catch {
    // The read that follows tells what is wrong.
    return { kind: 'data', bytes: Math.min(mover.clusterBytes, bytes) };
  }
}

/** As extentAt, in whole clusters, unless the source ends before. `offset` is a multiple of the cluster size. */
export async function clustersAt(
  mover: Mover,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<Extent> {
  const { clusterBytes } = mover;
  const extent = await extentAt(mover, guard, offset, bytes);
  if (extent.bytes >= bytes) return { kind: extent.kind, bytes };
  // A cluster with any data in it is all data.
  if (extent.kind === 'data') {
    const whole = Math.ceil(extent.bytes / clusterBytes) * clusterBytes;
    return { kind: 'data', bytes: Math.min(whole, bytes) };
  }
  const whole = extent.bytes - (extent.bytes % clusterBytes);
  if (whole > 0) return { kind: extent.kind, bytes: whole };
  return { kind: 'data', bytes: Math.min(clusterBytes, bytes) };
}

function kindOf({ skipUnallocated }: Mover, flags: number): ExtentKind {
  if (skipUnallocated && (flags & Status.allocated) === 0) return 'skip';
  return (flags & Status.zero) !== 0 ? 'zero' : 'data';
}

/** Bytes to move with one request of that kind. */
export function requestBytes(mover: Mover, kind: ExtentKind): number {
  if (kind === 'skip') return Number.MAX_SAFE_INTEGER;
  if (kind === 'zero') return mover.sizes.zero.bytes;
  if (mover.compress) return mover.clusterBytes;
  return (asksKernel(mover) ? mover.sizes.kernel : mover.sizes.buffered).bytes;
}

/** Whether the kernel is asked to copy data: it takes no flags, and does not compress. */
export function asksKernel({ useCopyRange, compress, writeFlags, kernelPause }: Mover): boolean {
  return useCopyRange && kernelPause.left === 0 && !compress && writeFlags === 0;
}

/** Looks whether the kernel is to copy between the nodes as they are now, and stops asking it if not. */
export function updateUseOfKernel(mover: Mover, guard: GraphReadGuard): void {
  if (asksKernel(mover)) mover.useCopyRange = copiesByKernel(mover.source(), mover.target(), guard);
}

/** Moves [offset, offset+bytes) of the source, which is of that kind; null: done. */
export async function moveExtent(
  mover: Mover,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  kind: 'data' | 'zero',
  order: WriteOrder = ANY_ORDER,
): Promise<CopyFailure | null> {
  // Nobody has asked for the target to grow.
  if (mover.targetStart + offset + bytes > mover.target().totalBytes)
    return { error: ioError(E.ENOSPC), isRead: false, offset };
  if (kind === 'zero') return moveZeroes(mover, guard, offset, bytes, order);
  if (bytes >= MIN_KERNEL_BYTES && asksKernel(mover)) {
    if (await throughKernel(mover, guard, offset, bytes, order)) return null;
  } else if (mover.kernelPause.left > 0) {
    mover.kernelPause.left--;
  }
  const early = order === ANY_ORDER ? order : { turn: order.turn, begun: () => undefined };
  for (let at = 0; at < bytes; ) {
    const length = Math.min(bytes - at, mover.bufferBytes);
    const isLast = at + length === bytes;
    const failure = await throughBuffer(mover, guard, offset + at, length, isLast ? order : early);
    if (failure !== null) return failure;
    at += length;
  }
  return null;
}

/**
 * Pieces of what is moved within a turn end at multiples of this in the target. One stays in the processor's cache between
 * being read and being written.
 */
export const IN_TURN_BYTES = 256 * 1024;

/**
 * Moves as much of the data in [offset, offset+bytes) as can be moved within this turn, and returns how much that was;
 * 0 where the kernel copies, data is compressed, or anything would have to wait. Errors are left to moveExtent. `goesOn` is
 * asked after every piece.
 */
export function moveInTurn(
  mover: Mover,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  goesOn: (done: number) => boolean = () => true,
): number {
  const { writeFlags, compress, findZeroes, leavesZeroes, targetStart, bufferBytes } = mover;
  const [source, target] = [mover.source(), mover.target()];
  if (writeFlags !== 0 || compress || asksKernel(mover)) return 0;
  if (targetStart + offset + bytes > target.totalBytes) return 0;
  const memory = takeBuffer(mover);
  const pieceBytes = Math.min(bufferBytes, IN_TURN_BYTES);
  let done = 0;
  while (done < bytes) {
    const start = targetStart + offset + done;
    const length = Math.min(pieceBytes - (start % pieceBytes), bytes - done);
    const vector = vectorOf(memory, 0, length);
    if (!sync.tryPreadv(source, guard, offset + done, length, vector)) break;
    let at = 0;
    while (at < length) {
      const to = start + at;
      const run = findZeroes?.(memory.buf.subarray(at, length), to) ?? { bytes: length - at, isData: true };
      const part = at === 0 && run.bytes === length ? vector : vectorOf(memory, at, run.bytes);
      const moved = run.isData
        ? sync.tryPwritev(target, guard, to, run.bytes, part)
        : leavesZeroes === 'always';
      if (!moved) break;
      at += run.bytes;
    }
    done += at;
    if (at < length || !goesOn(done)) break;
  }
  mover.buffers.push(memory);
  if (mover.isFlushed) countWritten(mover.written, done, target);
  return done;
}

/** As moveInTurn, as much as a job has time for in one turn, in whole clusters; 0: it has to be moved by waiting. */
export function moveOneTurn(mover: Mover, guard: GraphReadGuard, offset: number, bytes: number): number {
  return takeTurn(mover.turns, bytes, mover.clusterBytes, (goesOn) =>
    moveInTurn(mover, guard, offset, bytes, goesOn),
  );
}

const ANY_ORDER: WriteOrder = { turn: Promise.resolve(), begun: () => undefined };

async function throughKernel(
  mover: Mover,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  order: WriteOrder,
): Promise<boolean> {
  const source = mover.source();
  if (mover.peeks && peek(mover, guard, offset)) return false;
  if (order !== ANY_ORDER) await order.turn;
  const startMs = performance.now();
  const copied = coCopyRange(source, guard, offset, mover.target(), mover.targetStart + offset, bytes);
  order.begun();
  if (await copied) {
    learn(mover.sizes.kernel, bytes, performance.now() - startMs);
    mover.refusals = 0;
    worked(mover.kernelPause);
    return true;
  }
  // A compressed cluster on the way, a piece that is not whole clusters, or file systems that do not go together.
  if (++mover.refusals >= MAX_REFUSALS) {
    mover.refusals = 0;
    holdOff(mover.kernelPause);
  }
  return false;
}

function peek(mover: Mover, guard: GraphReadGuard, offset: number): boolean {
  const memory = takeBuffer(mover);
  const isZero = beginsWithZeroes(mover.source(), guard, offset, memory);
  mover.buffers.push(memory);
  return isZero;
}

function takeBuffer({ buffers, bufferBytes }: Mover): IoMemory {
  return buffers.pop() ?? allocateIoMemory(bufferBytes);
}

async function moveZeroes(
  mover: Mover,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  order: WriteOrder,
): Promise<CopyFailure | null> {
  const { leavesZeroes, targetStart } = mover;
  const target = mover.target();
  if (order !== ANY_ORDER) await order.turn;
  if (leavesZeroes === 'holes' && (await isHole(target, guard, targetStart + offset, bytes))) return null;
  const startMs = performance.now();
  try {
    await writeZeroes(mover, guard, targetStart + offset, bytes);
  } catch (error) {
    return { error, isRead: false, offset };
  }
  learn(mover.sizes.zero, bytes, performance.now() - startMs);
  return null;
}

function writeZeroes(mover: Mover, guard: GraphReadGuard, offset: number, bytes: number): Promise<void> {
  if (mover.leavesZeroes === 'always') return DONE;
  return co.pwriteZeroes(mover.target(), guard, offset, bytes, mover.writeFlags | mover.zeroFlags);
}

const DONE = Promise.resolve();

/** Whether the node reads as zeroes in the range as far as it can tell. */
async function isHole(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<boolean> {
  try {
    const { flags, bytes: length } = await blockStatusAbove(node, guard, null, true, offset, bytes);
    return length === bytes && (flags & Status.zero) !== 0;
  } catch {
    return false;
  }
}

async function throughBuffer(
  mover: Mover,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  order: WriteOrder,
): Promise<CopyFailure | null> {
  const startMs = performance.now();
  const memory = takeBuffer(mover);
  const vector = vectorOf(memory, 0, bytes);
  let isRead = true;
  try {
    const source = mover.source();
    if (!sync.tryPreadv(source, guard, offset, bytes, vector))
      await co.preadv(source, guard, offset, bytes, vector, 0);
    isRead = false;
    await writeBuffer(mover, guard, offset, vector, order);
  } catch (error) {
    return { error, isRead, offset };
  } finally {
    mover.buffers.push(memory);
  }
  if (mover.isFlushed) countWritten(mover.written, bytes, mover.target());
  learn(mover.sizes.buffered, bytes, performance.now() - startMs);
  return null;
}

/** Writes what has been read from `offset` of the source. `vector` has one segment. Throws what went wrong. */
export async function writeBuffer(
  mover: Mover,
  guard: GraphReadGuard,
  offset: number,
  vector: IoVector,
  order: WriteOrder = ANY_ORDER,
): Promise<void> {
  if (order !== ANY_ORDER) await order.turn;
  const { mem, start } = vector.segments[0]!;
  const { findZeroes, targetStart } = mover;
  for (let at = 0; at < vector.bytes; ) {
    const to = targetStart + offset + at;
    const data = mem.buf.subarray(start + at, start + vector.bytes);
    const { bytes, isData } = findZeroes?.(data, to) ?? { bytes: data.length, isData: true };
    const written = isData
      ? writeData(mover, guard, to, vectorOf(mem, start + at, bytes))
      : writeZeroes(mover, guard, to, bytes);
    at += bytes;
    // What comes first gets its place first; it need not be there yet when the next move starts.
    if (at === vector.bytes) order.begun();
    await written;
  }
}

function writeData(mover: Mover, guard: GraphReadGuard, offset: number, vector: IoVector): Promise<void> {
  const { writeFlags, compress } = mover;
  const target = mover.target();
  if (compress) return co.pwritevCompressed(target, guard, offset, vector.bytes, vector);
  if (writeFlags === 0 && sync.tryPwritev(target, guard, offset, vector.bytes, vector)) return DONE;
  return co.pwritev(target, guard, offset, vector.bytes, vector, writeFlags);
}
