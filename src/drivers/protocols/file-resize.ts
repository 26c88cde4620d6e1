/** Length, resizing and preallocation of the file driver. */

import { fstatSync, ftruncateSync } from 'node:fs';
import * as ffi from '../../aio/ffi.ts';
import { allocateIoMemory, vectorOf } from '../../aio/memory.ts';
import type { PreallocMode } from '../../block/driver.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, errnoError, errnoOf, ioError } from '../../errors/error.ts';
import { type FileNode, type FileState, writeThroughEngine } from './file-io.ts';

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
  const current = fstatSync(state.fd).size;
  if (prealloc === 'off') {
    setLength(state, length);
    return;
  }
  if (length < current)
    throw new BlockError("Preallocation can't be used for shrinking files", { errno: E.ENOTSUP });
  if (prealloc !== 'falloc' && prealloc !== 'full')
    throw new BlockError(`Unsupported preallocation mode '${prealloc}'`, { errno: E.ENOTSUP });
  try {
    await preallocate(state, current, length, prealloc);
  } catch (error) {
    setLength(state, current);
    throw error;
  }
}

function setLength(state: FileState, length: number): void {
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
    const result = await state.engine.fallocate(state.fd, 0, from, to - from);
    if (result < 0) throw errnoError('Could not preallocate data for the new file', -result);
    return;
  }
  setLength(state, to);
  const zeroes = allocateIoMemory(FULL_PREALLOC_CHUNK_BYTES);
  zeroes.buf.fill(0);
  for (let at = from; at < to; ) {
    const bytes = Math.min(FULL_PREALLOC_CHUNK_BYTES, to - at);
    await writeThroughEngine(state, at, bytes, vectorOf(zeroes, 0, bytes));
    at += bytes;
  }
  const synced = await state.engine.fdatasync(state.fd);
  if (synced < 0) throw errnoError('Could not flush file to disk', -synced);
}
