/**
 * Copying one piece: what there is to copy, and the best way to do it.
 *
 * Zeroes are written as zeroes, what is left out is not looked at further, data is copied by the kernel where both ends are
 * plain files, else read and written. Functions run under the graph read lock.
 */

import { allocateIoMemory, vectorOf } from '../../aio/memory.ts';
import { E } from '../../errors/errno.ts';
import { ioError } from '../../errors/error.ts';
import { co, sync } from '../callbacks.ts';
import { skipFilters } from '../chain.ts';
import { Req, Status } from '../driver.ts';
import type { GraphReadGuard } from '../graph-lock.ts';
import { canCopyRange, coCopyRange } from '../io-copy-range.ts';
import { backingOf, blockStatusAbove } from '../status-chain.ts';
import type { BlockCopy, CopyFailure } from './block-copy.ts';
import { learn } from './request-size.ts';

/** `skip`: the source's top layer does not hold it, and that is not wanted. */
export type ExtentKind = 'data' | 'zero' | 'skip';

export interface Extent {
  readonly kind: ExtentKind;
  /** Whole clusters, unless the source ends before. */
  readonly bytes: number;
}

/** Less is not worth the way through a thread. */
const MIN_KERNEL_BYTES = 128 * 1024;

/** The first extent at `offset`, a multiple of the cluster size, at most `bytes` long. */
export async function statusAt(
  copy: BlockCopy,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<Extent> {
  const { clusterBytes } = copy;
  const source = copy.source();
  const base = copy.skipUnallocated ? backingOf(skipFilters(source)) : null;
  let status: { readonly bytes: number; readonly flags: number };
  try {
    status = await blockStatusAbove(source, guard, base, true, offset, bytes);
  } catch {
    // The read that follows tells what is wrong.
    return { kind: 'data', bytes: Math.min(clusterBytes, bytes) };
  }
  const kind = kindOf(copy, status.flags);
  if (status.bytes >= bytes) return { kind, bytes };
  // A cluster with any data in it is all data.
  if (kind === 'data') {
    const whole = Math.ceil(status.bytes / clusterBytes) * clusterBytes;
    return { kind, bytes: Math.min(Math.max(whole, clusterBytes), bytes) };
  }
  const whole = status.bytes - (status.bytes % clusterBytes);
  return whole > 0 ? { kind, bytes: whole } : { kind: 'data', bytes: Math.min(clusterBytes, bytes) };
}

function kindOf({ skipUnallocated }: BlockCopy, flags: number): ExtentKind {
  if (skipUnallocated && (flags & Status.allocated) === 0) return 'skip';
  return (flags & Status.zero) !== 0 ? 'zero' : 'data';
}

/** Bytes to copy with one request of that kind. */
export function requestBytes(copy: BlockCopy, kind: ExtentKind): number {
  if (kind === 'skip') return Number.MAX_SAFE_INTEGER;
  if (kind === 'zero') return copy.sizes.zero.bytes;
  if (copy.compress) return copy.clusterBytes;
  return (copy.useCopyRange ? copy.sizes.kernel : copy.sizes.buffered).bytes;
}

/** Whether data is copied by the kernel as far as can be told. */
export function usesKernel(copy: BlockCopy, guard: GraphReadGuard): boolean {
  if (copy.compress || !copy.useCopyRange) return false;
  copy.useCopyRange = canCopyRange(copy.source(), copy.target(), guard);
  return copy.useCopyRange;
}

/** Copies [offset, offset+bytes), which is of that kind. */
export async function copyPiece(
  copy: BlockCopy,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  kind: 'data' | 'zero',
): Promise<CopyFailure | null> {
  // Nobody has asked for the target to grow.
  if (offset + bytes > copy.target().totalBytes) return { error: ioError(E.ENOSPC), isRead: false, offset };
  if (kind === 'zero') return writeZeroes(copy, guard, offset, bytes);
  if (bytes >= MIN_KERNEL_BYTES && copy.useCopyRange && !copy.compress) {
    const startMs = performance.now();
    if (await coCopyRange(copy.source(), guard, offset, copy.target(), offset, bytes)) {
      learn(copy.sizes.kernel, bytes, performance.now() - startMs);
      return null;
    }
    copy.useCopyRange = false;
  }
  for (let at = 0; at < bytes; ) {
    const length = Math.min(bytes - at, copy.bufferBytes);
    const failure = await throughBuffer(copy, guard, offset + at, length);
    if (failure !== null) return failure;
    at += length;
  }
  return null;
}

async function writeZeroes(
  copy: BlockCopy,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<CopyFailure | null> {
  const startMs = performance.now();
  try {
    await co.pwriteZeroes(copy.target(), guard, offset, bytes, copy.writeFlags | Req.mayUnmap);
  } catch (error) {
    return { error, isRead: false, offset };
  }
  learn(copy.sizes.zero, bytes, performance.now() - startMs);
  return null;
}

async function throughBuffer(
  copy: BlockCopy,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<CopyFailure | null> {
  const { writeFlags } = copy;
  const startMs = performance.now();
  const memory = copy.buffers.pop() ?? allocateIoMemory(copy.bufferBytes);
  const vector = vectorOf(memory, 0, bytes);
  let isRead = true;
  try {
    const source = copy.source();
    if (!sync.tryPreadv(source, guard, offset, bytes, vector))
      await co.preadv(source, guard, offset, bytes, vector, 0);
    isRead = false;
    const target = copy.target();
    if (copy.compress) await co.pwritevCompressed(target, guard, offset, bytes, vector);
    else if (writeFlags !== 0 || !sync.tryPwritev(target, guard, offset, bytes, vector))
      await co.pwritev(target, guard, offset, bytes, vector, writeFlags);
  } catch (error) {
    return { error, isRead, offset };
  } finally {
    copy.buffers.push(memory);
  }
  learn(copy.sizes.buffered, bytes, performance.now() - startMs);
  return null;
}
