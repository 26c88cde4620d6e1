/**
 * The mover: brings data from one node to the same place of another one, in the best way there is.
 *
 * Block copy (backup), mirror, commit and convert move data with it; which range is next, and who may do what to it
 * meanwhile, is theirs. Zeroes are written as zeroes, data is copied by the kernel where it lies in local files on both
 * sides, else read and written. Functions run under the graph read lock.
 */

import { allocateIoMemory, type IoMemory, isZeroVector, vectorOf } from '../../aio/memory.ts';
import { E } from '../../errors/errno.ts';
import { ioError } from '../../errors/error.ts';
import { co, sync } from '../callbacks.ts';
import { skipFilters } from '../chain.ts';
import { Req, Status } from '../driver.ts';
import type { GraphReadGuard } from '../graph-lock.ts';
import { canCopyRange, coCopyRange } from '../io-copy-range.ts';
import type { BlockNode } from '../node.ts';
import { backingOf, blockStatusAbove } from '../status-chain.ts';
import { createRequestSize, learn, type RequestSize } from './request-size.ts';

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
const MAX_KERNEL_BYTES = 4 * 1024 * 1024;
const FIRST_ZERO_BYTES = 1024 * 1024;
const MAX_ZERO_BYTES = 256 * 1024 * 1024;
/** Less is not worth the way through a thread. */
const MIN_KERNEL_BYTES = 128 * 1024;
/** The kernel is not asked any more when it has refused so many times in a row. */
const MAX_REFUSALS = 4;
/** Copies by the kernel at once: more would only wait for each other at the target's file. */
export const MAX_KERNEL_REQUESTS = 2;
/** Data that begins with so many zeroes may be nothing else. */
const PEEK_BYTES = 512;

export interface MoverSettings {
  /** Looked at under the graph read lock for every request. */
  readonly source: () => BlockNode;
  readonly target: () => BlockNode;
  /** Unit of copying in bytes: request sizes are multiples of it. */
  readonly clusterBytes: number;
  /** Flags of writes to the target. Default: none. */
  readonly writeFlags?: number;
  /** Flags of zero writes besides. Default: Req.mayUnmap. */
  readonly zeroFlags?: number;
  /** Data that turns out to be nothing but zeroes is written as zeroes. */
  readonly findZeroes?: boolean;
  /** Zeroes are not written where the target has a hole. */
  readonly keepsHoles?: boolean;
  /** Size of a buffer. Default: what fits the processor's cache, at least a cluster. */
  readonly bufferBytes?: number;
}

export interface Mover extends Required<MoverSettings> {
  /** What the top layer of the source does not hold is left out. */
  skipUnallocated: boolean;
  /** Data is written compressed. */
  compress: boolean;
  /** Let the kernel copy; cleared when it cannot. */
  useCopyRange: boolean;
  /** Times the kernel has refused since it last copied. */
  refusals: number;
  /** Idle buffers, each of `bufferBytes`. */
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
    findZeroes: false,
    keepsHoles: false,
    ...settings,
    bufferBytes,
    skipUnallocated: false,
    compress: false,
    useCopyRange: true,
    refusals: 0,
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
    return { kind: kindOf(mover, status.flags), bytes: status.bytes || bytes };
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
  return (mover.useCopyRange ? mover.sizes.kernel : mover.sizes.buffered).bytes;
}

/** Whether data is copied by the kernel as far as can be told. */
export function usesKernel(mover: Mover, guard: GraphReadGuard): boolean {
  if (mover.compress || !mover.useCopyRange) return false;
  mover.useCopyRange = canCopyRange(mover.source(), mover.target(), guard);
  return mover.useCopyRange;
}

/** Moves [offset, offset+bytes), which is of that kind; null: done. */
export async function moveExtent(
  mover: Mover,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  kind: 'data' | 'zero',
): Promise<CopyFailure | null> {
  // Nobody has asked for the target to grow.
  if (offset + bytes > mover.target().totalBytes) return { error: ioError(E.ENOSPC), isRead: false, offset };
  if (kind === 'zero') return moveZeroes(mover, guard, offset, bytes);
  if (bytes >= MIN_KERNEL_BYTES && mover.useCopyRange && !mover.compress) {
    if (await throughKernel(mover, guard, offset, bytes)) return null;
  }
  for (let at = 0; at < bytes; ) {
    const length = Math.min(bytes - at, mover.bufferBytes);
    const failure = await throughBuffer(mover, guard, offset + at, length);
    if (failure !== null) return failure;
    at += length;
  }
  return null;
}

async function throughKernel(
  mover: Mover,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<boolean> {
  const source = mover.source();
  if (mover.findZeroes && beginsWithZeroes(mover, guard, offset)) return false;
  const startMs = performance.now();
  if (await coCopyRange(source, guard, offset, mover.target(), offset, bytes)) {
    learn(mover.sizes.kernel, bytes, performance.now() - startMs);
    mover.refusals = 0;
    return true;
  }
  // A compressed cluster on the way, or file systems that do not go together.
  mover.refusals++;
  if (mover.refusals >= MAX_REFUSALS) mover.useCopyRange = false;
  return false;
}

/** True also where nobody knows. */
function beginsWithZeroes(mover: Mover, guard: GraphReadGuard, offset: number): boolean {
  const memory = mover.buffers.pop() ?? allocateIoMemory(mover.bufferBytes);
  const vector = vectorOf(memory, 0, PEEK_BYTES);
  const isData = sync.tryPreadv(mover.source(), guard, offset, PEEK_BYTES, vector) && !isZeroVector(vector);
  mover.buffers.push(memory);
  return !isData;
}

async function moveZeroes(
  mover: Mover,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<CopyFailure | null> {
  const { writeFlags, zeroFlags, keepsHoles } = mover;
  const target = mover.target();
  if (keepsHoles && (await isHole(target, guard, offset, bytes))) return null;
  const startMs = performance.now();
  try {
    await co.pwriteZeroes(target, guard, offset, bytes, writeFlags | zeroFlags);
  } catch (error) {
    return { error, isRead: false, offset };
  }
  learn(mover.sizes.zero, bytes, performance.now() - startMs);
  return null;
}

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
): Promise<CopyFailure | null> {
  const { writeFlags, zeroFlags } = mover;
  const startMs = performance.now();
  const memory = mover.buffers.pop() ?? allocateIoMemory(mover.bufferBytes);
  const vector = vectorOf(memory, 0, bytes);
  let isRead = true;
  try {
    const source = mover.source();
    if (!sync.tryPreadv(source, guard, offset, bytes, vector))
      await co.preadv(source, guard, offset, bytes, vector, 0);
    isRead = false;
    const target = mover.target();
    if (mover.compress) await co.pwritevCompressed(target, guard, offset, bytes, vector);
    else if (mover.findZeroes && isZeroVector(vector))
      await co.pwriteZeroes(target, guard, offset, bytes, writeFlags | zeroFlags);
    else if (writeFlags !== 0 || !sync.tryPwritev(target, guard, offset, bytes, vector))
      await co.pwritev(target, guard, offset, bytes, vector, writeFlags);
  } catch (error) {
    return { error, isRead, offset };
  } finally {
    mover.buffers.push(memory);
  }
  learn(mover.sizes.buffered, bytes, performance.now() - startMs);
  return null;
}
