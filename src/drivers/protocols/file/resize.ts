/** Length, resizing and preallocation of the file driver. */

import { fstatSync, ftruncateSync } from 'node:fs';
import * as ffi from '../../../aio/ffi.ts';
import { allocateIoMemory, vectorOf } from '../../../aio/memory.ts';
import type { PreallocMode } from '../../../block/contract/image.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, errnoError, errnoOf, ioError } from '../../../errors/error.ts';
import { type FileNode, type FileState, writeThroughEngine } from './io.ts';

const SECTOR_BYTES = 512;
const FIRST_BLOCK_BYTES = 4096;
const FULL_PREALLOC_CHUNK_BYTES = 1024 * 1024;

export async function getLength(node: FileNode): Promise<number> {
  const { fd, isDevice } = node.state;
  if (!isDevice) return fstatSync(fd).size;
  const bytes = ffi.ioctlGetU64(fd, ffi.BLKGETSIZE64);
  if (bytes >= 0) return bytes;
  const end = ffi.lseek(fd, 0, ffi.SEEK_END);
  if (end < 0) throw ioError(-end);
  return end;
}

export async function truncate(
  node: FileNode,
  _guard: unknown,
  length: number,
  exact: boolean,
  prealloc: PreallocMode,
): Promise<void> {
  const { state } = node;
  if (state.isDevice) {
    const current = await getLength(node);
    if (prealloc !== 'off')
      throw new BlockError(`Preallocation mode '${prealloc}' unsupported for this non-regular file`, {
        errno: E.ENOTSUP,
      });
    if (length !== current && exact) throw new BlockError('Cannot resize device files', { errno: E.ENOTSUP });
    if (length > current) throw new BlockError('Cannot grow device files', { errno: E.EINVAL });
    return;
  }
  await resizeFile(state, length, prealloc);
}

/** Cuts off the end of a regular file; false where that cannot be done. */
export function truncateNow({ state }: FileNode, length: number): boolean {
  if (state.isDevice || length > fstatSync(state.fd).size) return false;
  try {
    setLength(state, length);
    return true;
  } catch {
    return false;
  }
}

/** Sets the length of a regular file and allocates its new space as `prealloc` says. */
export async function resizeFile(state: FileState, length: number, prealloc: PreallocMode): Promise<void> {
  const current = fstatSync(state.fd).size;
  if (prealloc === 'off') {
    setLength(state, length);
    if (current === 0 && length > 0) await allocateFirstBlock(state, length);
    return;
  }
  if (prealloc !== 'falloc' && prealloc !== 'full')
    throw new BlockError(`Unsupported preallocation mode: ${prealloc}`, { errno: E.ENOTSUP });
  if (length < current)
    throw new BlockError('Cannot use preallocation for shrinking files', { errno: E.ENOTSUP });
  try {
    await preallocate(state, current, length, prealloc);
  } catch (error) {
    setLength(state, current);
    throw error;
  }
}

/**
 * Writes zeroes to the start of a file that was empty: the original does so, which shows in the space a new file takes,
 * and in the least length a file of some bytes gets (a sector). Only advice; errors do not count.
 */
async function allocateFirstBlock(state: FileState, length: number): Promise<void> {
  const bytes = length < FIRST_BLOCK_BYTES ? SECTOR_BYTES : FIRST_BLOCK_BYTES;
  const zeroes = allocateIoMemory(bytes);
  zeroes.buf.fill(0);
  await writeThroughEngine(state, 0, bytes, vectorOf(zeroes)).catch(() => undefined);
}

function setLength(state: FileState, length: number): void {
  // What QMP's unsigned sizes wrap to is negative to the system.
  if (length < 0 || length >= 2 ** 63) throw errnoError('Could not resize file', E.EINVAL);
  if (!Number.isSafeInteger(length)) throw errnoError('Could not resize file', E.EFBIG);
  try {
    ftruncateSync(state.fd, length);
  } catch (error) {
    throw errnoError('Could not resize file', errnoOf(error));
  }
}

async function preallocate(
  state: FileState,
  from: number,
  to: number,
  mode: 'falloc' | 'full',
): Promise<void> {
  if (to === from) return;
  if (mode === 'falloc') {
    if (!Number.isSafeInteger(to)) throw errnoError('Could not preallocate new data', E.EFBIG);
    const result = await state.engine.fallocate(state.fd, 0, from, to - from);
    if (result < 0) throw errnoError('Could not preallocate new data', -result);
    if (from === 0) await allocateFirstBlock(state, to);
    return;
  }
  setLength(state, to);
  const zeroes = allocateIoMemory(FULL_PREALLOC_CHUNK_BYTES);
  zeroes.buf.fill(0);
  for (let at = from; at < to; ) {
    const bytes = Math.min(FULL_PREALLOC_CHUNK_BYTES, to - at);
    try {
      await writeThroughEngine(state, at, bytes, vectorOf(zeroes, 0, bytes));
    } catch (error) {
      throw errnoError('Could not write zeros for preallocation', errnoOf(error));
    }
    at += bytes;
  }
  const synced = await state.engine.fdatasync(state.fd);
  if (synced < 0) throw errnoError('Could not flush file to disk', -synced);
}
