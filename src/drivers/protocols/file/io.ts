/**
 * Reads and writes of the file driver, and the state they work on.
 *
 * Buffered writes are made inline with pwrite: the kernel cannot do them without blocking and would hand each to a
 * worker, which costs more than the copy. An inline write that was slow (the kernel throttles dirty pages) sends
 * writes through the engine for a while, so that the loop never waits for the disk.
 */

import type { AioEngine } from '../../../aio/engine.ts';
import * as ffi from '../../../aio/ffi.ts';
import {
  allocateIoMemory,
  copyFromVector,
  copyToVector,
  fillVector,
  type IoVector,
  isAlignedVector,
  sliceVector,
  vectorOf,
} from '../../../aio/memory.ts';
import type { LentPages } from '../../../block/contract/backend-io.ts';
import type { LocalFile } from '../../../block/contract/copy-range.ts';
import type { ShortRequest } from '../../../block/contract/short-request.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { E } from '../../../errors/errno.ts';
import { ioError } from '../../../errors/error.ts';
import type { NewDescription } from './access.ts';
import type { FileLocks } from './locks.ts';
import { Residency } from './residency.ts';

/** How long writes then go through the engine. */
const AVOID_INLINE_MS = 100;
/** A read of what is not in the page cache makes this many reads go through the engine at once. */
const READS_AFTER_MISS = 16;
/** A larger copy would hold up the loop for too long. */
const INLINE_MAX_BYTES = 512 * 1024;

export interface FileStats {
  discardOk: number;
  discardFailed: number;
  discardBytesOk: number;
}

export interface FileState extends LocalFile {
  readonly fd: number;
  readonly filename: string;
  readonly engine: AioEngine;
  readonly isDevice: boolean;
  /** How the file is open at present, and how it is about to be; owned by file/access.ts. */
  writable: boolean;
  direct: boolean;
  next: NewDescription | null;
  readonly locks: FileLocks | null;
  /** The user's `aio` option allows requests within the turn. */
  readonly mayInline: boolean;
  inlineWrites: boolean;
  /** An inline write that takes longer has met dirty-page throttling. */
  readonly slowWriteMs: number;
  /** Reads may be tried without waiting; cleared when the file system cannot. */
  inlineReads: boolean;
  /** Reads that are not tried inline: the last one that was found the page cache empty. */
  skipInlineReads: number;
  /** Cleared when the file system refuses; not asked again. */
  canPunchHole: boolean;
  canZeroRange: boolean;
  /** performance.now() until which writes avoid the inline path. */
  avoidInlineUntilMs: number;
  /** Alignment of O_DIRECT requests and memory in bytes; 1 for buffered I/O. */
  alignment: number;
  readonly stats: FileStats;
  /** Made by the first large read that may be lent pages; ends with the description. */
  residency: Residency | null;
  /** Owned by file-copy-range.ts. */
  readonly writeback: Writeback;
}

/** Copies by the kernel and the disk. */
export interface Writeback {
  /** Copied since the kernel was last told to begin to write to the disk. */
  bytes: number;
  /** The kernel is being told; it uses the descriptor. */
  running: Promise<unknown> | null;
}

export type FileNode = BlockNode<FileState>;

// ---- reads and writes ----------------------------------------------------------------------------------------

export async function preadv(
  node: FileNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const { state } = node;
  if (state.direct && !isAlignedVector(vec, state.alignment)) {
    const bounce = vectorOf(allocateIoMemory(bytes), 0, bytes);
    await readFully(state, offset, bounce);
    copyToVector(vec, bounce.segments[0]!.mem.buf.subarray(0, bytes));
    return;
  }
  if (tryPreadv(node, _guard, offset, bytes, vec, null)) return;
  const result = await state.engine.readv(state.fd, vec, offset);
  if (result === bytes) return;
  await finishRead(state, offset, vec, result);
}

/** Goes on after a short read; what lies past the end of the file reads as zeroes. */
async function finishRead(state: FileState, offset: number, vec: IoVector, first: number): Promise<void> {
  let result = first;
  let done = 0;
  for (;;) {
    if (result === -E.EINTR || result === -E.EAGAIN) result = 0;
    else if (result < 0) throw ioError(-result);
    else if (result === 0) {
      fillVector(sliceVector(vec, done, vec.bytes - done), 0);
      return;
    }
    done += result;
    if (done === vec.bytes) return;
    result = await state.engine.readv(state.fd, sliceVector(vec, done, vec.bytes - done), offset + done);
  }
}

async function readFully(state: FileState, offset: number, vec: IoVector): Promise<void> {
  await finishRead(state, offset, vec, await state.engine.readv(state.fd, vec, offset));
}

/** Reads from the page cache within this turn, if everything is there; else begins to read from the disk. */
export function tryPreadv(
  { state }: FileNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  vec: IoVector,
  short: ShortRequest | null,
): boolean {
  if (vec.segments.length !== 1) return false;
  if (readCached(state, offset, bytes, vec)) return true;
  if (short === null || !mayBegin(state, vec)) return false;
  const { mem, start } = vec.segments[0]!;
  short.isWaiting = true;
  short.expectedBytes = bytes;
  state.engine.startRead(state.fd, mem, start, bytes, offset, short.completed);
  return true;
}

function readCached(state: FileState, offset: number, bytes: number, vec: IoVector): boolean {
  if (!state.inlineReads || bytes > INLINE_MAX_BYTES) return false;
  if (state.skipInlineReads > 0) {
    state.skipInlineReads--;
    return false;
  }
  const { mem, start } = vec.segments[0]!;
  const result = ffi.preadNowait(state.fd, mem.addr + start, bytes, offset);
  if (result === bytes) return true;
  if (result === -E.ENOTSUP || result === -E.EINVAL || result === -E.ENOSYS) state.inlineReads = false;
  else state.skipInlineReads = READS_AFTER_MISS;
  return false;
}

/** Whether the engine can be given the vector, of one segment, as it is. */
function mayBegin(state: FileState, vec: IoVector): boolean {
  return !state.direct || isAlignedVector(vec, state.alignment);
}

/**
 * The pages that hold the bytes; see BackendIo.lendPages. Of regular files only: their pages belong to the file and its
 * offset for ever, also when they have been cut off or the file is gone, and what others write into the file themselves
 * is a write beside the read for every reader.
 */
export function lendPages(
  { state }: FileNode,
  _guard: unknown,
  offset: number,
  bytes: number,
): LentPages | null {
  if (!state.inlineReads || state.isDevice) return null;
  state.residency ??= new Residency(state.fd, state.writable);
  return state.residency.has(offset, bytes) ? { fd: state.fd, fileOffset: offset } : null;
}

/** Writes to the page cache within this turn, unless the kernel has been holding up writers; else begins to write. */
export function tryPwritev(
  { state }: FileNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  vec: IoVector,
  short: ShortRequest | null,
): boolean {
  if (vec.segments.length !== 1) return false;
  if (writeCached(state, offset, bytes, vec)) return true;
  if (short === null || !mayBegin(state, vec)) return false;
  const { mem, start } = vec.segments[0]!;
  short.isWaiting = true;
  short.expectedBytes = bytes;
  state.engine.startWrite(state.fd, mem, start, bytes, offset, short.completed);
  return true;
}

function writeCached(state: FileState, offset: number, bytes: number, vec: IoVector): boolean {
  if (!state.inlineWrites || bytes > INLINE_MAX_BYTES) return false;
  const startMs = performance.now();
  if (startMs < state.avoidInlineUntilMs) return false;
  const { mem, start } = vec.segments[0]!;
  const result = ffi.pwrite(state.fd, mem.addr + start, bytes, offset);
  const endMs = performance.now();
  if (endMs - startMs > state.slowWriteMs) state.avoidInlineUntilMs = endMs + AVOID_INLINE_MS;
  // A short or failed write is made again in full by the long way, which reports what is wrong.
  return result === bytes;
}

export function pwritev(
  node: FileNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const { state } = node;
  if (tryPwritev(node, _guard, offset, bytes, vec, null)) return DONE;
  return writeThroughEngine(state, offset, bytes, vec);
}

const DONE = Promise.resolve();

export async function writeThroughEngine(
  state: FileState,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  let source = vec;
  if (state.direct && !isAlignedVector(vec, state.alignment)) {
    const bounce = allocateIoMemory(bytes);
    copyFromVector(vec, bounce.buf);
    source = vectorOf(bounce, 0, bytes);
  }
  const result = await state.engine.writev(state.fd, source, offset);
  if (result !== bytes) await finishWrite(state, offset, source, result);
}

/** Goes on after a short write. */
async function finishWrite(state: FileState, offset: number, vec: IoVector, first: number): Promise<void> {
  let result = first;
  let done = 0;
  for (;;) {
    if (result === -E.EINTR || result === -E.EAGAIN) result = 0;
    else if (result < 0) throw ioError(-result);
    else if (result === 0) throw ioError(E.ENOSPC);
    done += result;
    if (done === vec.bytes) return;
    result = await state.engine.writev(state.fd, sliceVector(vec, done, vec.bytes - done), offset + done);
  }
}

export async function flush(node: FileNode): Promise<void> {
  const result = await node.state.engine.fdatasync(node.state.fd);
  if (result < 0) throw ioError(-result);
}
