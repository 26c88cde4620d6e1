/**
 * file and host_device: a regular file or a block/character device of the host.
 *
 * No format of their own. Options (QMP reference, BlockdevOptionsFile): filename, locking=auto|on|off,
 * aio=threads|native|io_uring, drop-cache, cache.direct (O_DIRECT), cache.no-flush; aio-max-batch and
 * x-check-cache-dropped are accepted and have nothing to act on.
 *
 * Buffered writes are made inline with pwrite: the kernel cannot do them without blocking and would hand each to a
 * worker, which costs more than the copy. An inline write that was slow (the kernel throttles dirty pages) sends
 * writes through the engine for a while, so that the loop never waits for the disk.
 * Holes: block status asks SEEK_DATA/SEEK_HOLE; discards and unmapping zero writes punch holes.
 */

import { closeSync, constants, fstatSync, ftruncateSync, openSync, type Stats } from 'node:fs';
import type { AioEngine, EngineKind } from '../../aio/engine.ts';
import * as ffi from '../../aio/ffi.ts';
import { allocateIoMemory, copyFromVector, copyToVector, fillVector, type IoVector, isAlignedVector, sliceVector, vectorOf } from '../../aio/memory.ts';
import { type BlockDriver, type BlockLimits, type BlockStatus, type OpenContext, type PreallocMode, Req, Status } from '../../block/driver.ts';
import type { BlockNode } from '../../block/node.ts';
import { BlockError, errnoError, errnoOf, ioError } from '../../errors/error.ts';
import { E } from '../../errors/errno.ts';
import { FileLocks, probeOfdLocks } from './file-locks.ts';

/** An inline write that takes longer has met dirty-page throttling. */
const SLOW_WRITE_MS = 2;
/** How long writes then go through the engine. */
const AVOID_INLINE_MS = 100;
/** A larger copy would hold up the loop for too long. */
const INLINE_WRITE_MAX_BYTES = 512 * 1024;
const FULL_PREALLOC_CHUNK_BYTES = 1024 * 1024;

export interface FileStats {
  discardOk: number;
  discardFailed: number;
  discardBytesOk: number;
}

export interface FileState {
  readonly fd: number;
  readonly filename: string;
  readonly engine: AioEngine;
  readonly isDevice: boolean;
  readonly direct: boolean;
  readonly locks: FileLocks | null;
  readonly inlineWrites: boolean;
  /** Cleared when the file system refuses; not asked again. */
  canPunchHole: boolean;
  canZeroRange: boolean;
  /** performance.now() until which writes avoid the inline path. */
  avoidInlineUntilMs: number;
  /** Alignment of O_DIRECT requests and memory in bytes; 1 for buffered I/O. */
  readonly alignment: number;
  readonly stats: FileStats;
}

interface FileOptions {
  readonly filename: string;
  readonly 'pr-manager'?: string;
  readonly locking?: 'auto' | 'on' | 'off';
  readonly aio?: 'threads' | 'native' | 'io_uring';
}

type FileNode = BlockNode<FileState>;

// ---- open, close ---------------------------------------------------------------------------------------------

function makeOpen(driverName: string, accepts: (stat: Stats) => boolean, requirement: string) {
  return async function open(node: FileNode, context: OpenContext): Promise<FileState> {
    const options = context.options as unknown as FileOptions;
    const { filename } = options;
    if (filename === '') throw new BlockError(`The '${driverName}' block driver requires a file name`);
    if (options['pr-manager'] !== undefined) {
      throw new BlockError(`No persistent reservation manager with id '${options['pr-manager']}'`);
    }
    const { direct } = node.settings.cache;
    if (options.aio === 'native' && !direct) {
      throw new BlockError('aio=native was specified, but it requires cache.direct=on, which was not specified.');
    }
    const kind: EngineKind = options.aio === 'threads' ? 'threads' : options.aio === undefined ? context.engine.kind : 'io_uring';
    const engine = context.engineOf(kind);
    const fd = openFile(node, filename, direct);
    try {
      const stat = fstatSync(fd);
      if (!accepts(stat)) throw new BlockError(`'${driverName}' driver requires '${filename}' to be ${requirement}`);
      const isDevice = !stat.isFile();
      return {
        fd,
        filename,
        engine,
        isDevice,
        direct,
        locks: openLocks(fd, filename, options.locking ?? 'auto'),
        inlineWrites: !direct && options.aio !== 'threads',
        canPunchHole: true,
        canZeroRange: true,
        avoidInlineUntilMs: 0,
        alignment: direct ? directAlignment(fd, isDevice) : 1,
        stats: { discardOk: 0, discardFailed: 0, discardBytesOk: 0 },
      };
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  };
}

/** Opens as the node's options say; with auto-read-only a file that cannot be written is opened read-only. */
function openFile(node: FileNode, filename: string, direct: boolean): number {
  const flags = direct ? constants.O_DIRECT : 0;
  const tryOpen = (access: number): number => {
    try {
      return openSync(filename, access | flags | O_CLOEXEC);
    } catch (error) {
      return -errnoOf(error);
    }
  };
  let fd = tryOpen(node.readOnly ? constants.O_RDONLY : constants.O_RDWR);
  if (!node.readOnly && node.settings.autoReadOnly && (fd === -E.EACCES || fd === -E.EROFS || fd === -E.EPERM)) {
    fd = tryOpen(constants.O_RDONLY);
    if (fd >= 0) node.readOnly = true;
  }
  if (fd < 0) throw errnoError(`Could not open '${filename}'`, -fd);
  return fd;
}

const O_CLOEXEC = 0o2000000;

function openLocks(fd: number, filename: string, locking: 'auto' | 'on' | 'off'): FileLocks | null {
  if (locking === 'off') return null;
  const probe = probeOfdLocks(fd);
  if (probe === 0) return new FileLocks(fd, filename);
  if (locking === 'auto') return null;
  throw errnoError(`Image locking of '${filename}' is not possible`, -probe);
}

/** The smallest request O_DIRECT takes here: the device's block size, or what a read accepts. */
function directAlignment(fd: number, isDevice: boolean): number {
  if (isDevice) {
    const sector = ffi.ioctlGetI32(fd, ffi.BLKSSZGET);
    if (sector > 0) return sector;
  }
  const memory = allocateIoMemory(4096);
  for (const alignment of [512, 1024, 2048, 4096]) {
    if (ffi.pread(fd, memory.addr, alignment, 0) !== -E.EINVAL) return alignment;
  }
  return 4096;
}

async function close(node: FileNode): Promise<void> {
  // Closing the description drops its locks.
  ffi.closeFd(node.state.fd);
}

// ---- reads and writes ----------------------------------------------------------------------------------------

async function preadv(node: FileNode, _guard: unknown, offset: number, bytes: number, vec: IoVector): Promise<void> {
  const { state } = node;
  if (state.direct && !isAlignedVector(vec, state.alignment)) {
    const bounce = vectorOf(allocateIoMemory(bytes), 0, bytes);
    await readFully(state, offset, bounce);
    copyToVector(vec, bounce.segments[0]!.mem.buf.subarray(0, bytes));
    return;
  }
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

function pwritev(node: FileNode, _guard: unknown, offset: number, bytes: number, vec: IoVector): Promise<void> {
  const { state } = node;
  if (state.inlineWrites && vec.segments.length === 1 && bytes <= INLINE_WRITE_MAX_BYTES) {
    const startMs = performance.now();
    if (startMs >= state.avoidInlineUntilMs) {
      const { mem, start } = vec.segments[0]!;
      const result = ffi.pwrite(state.fd, mem.addr + start, bytes, offset);
      const endMs = performance.now();
      if (endMs - startMs > SLOW_WRITE_MS) state.avoidInlineUntilMs = endMs + AVOID_INLINE_MS;
      if (result === bytes) return DONE;
      return finishWrite(state, offset, vec, result);
    }
  }
  return writeThroughEngine(state, offset, bytes, vec);
}

const DONE = Promise.resolve();

async function writeThroughEngine(state: FileState, offset: number, bytes: number, vec: IoVector): Promise<void> {
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

async function flush(node: FileNode): Promise<void> {
  const result = await node.state.engine.fdatasync(node.state.fd);
  if (result < 0) throw ioError(-result);
}

// ---- zeroes, discard -----------------------------------------------------------------------------------------

function isUnsupported(errno: number): boolean {
  return errno === E.ENOTSUP || errno === E.ENOTTY || errno === E.ENOSYS || errno === E.ENODEV;
}

async function pwriteZeroes(node: FileNode, _guard: unknown, offset: number, bytes: number, flags: number): Promise<void> {
  const { state } = node;
  const keepSize = state.isDevice ? ffi.FALLOC_FL_KEEP_SIZE : 0;
  const inside = offset + bytes <= node.totalBytes;
  if ((flags & Req.mayUnmap) !== 0 && state.canPunchHole && inside) {
    const result = await state.engine.fallocate(state.fd, ffi.FALLOC_FL_PUNCH_HOLE | ffi.FALLOC_FL_KEEP_SIZE, offset, bytes);
    if (result === 0) return;
    if (!isUnsupported(-result)) throw ioError(-result);
    state.canPunchHole = false;
  }
  if (state.canZeroRange) {
    const result = await state.engine.fallocate(state.fd, ffi.FALLOC_FL_ZERO_RANGE | keepSize, offset, bytes);
    if (result === 0) return;
    // EINVAL: a device that cannot, or a range that is not aligned to its blocks.
    if (!isUnsupported(-result) && result !== -E.EINVAL) throw ioError(-result);
    if (isUnsupported(-result)) state.canZeroRange = false;
  }
  throw ioError(E.ENOTSUP);
}

async function pdiscard(node: FileNode, _guard: unknown, offset: number, bytes: number): Promise<void> {
  const { state } = node;
  const result = state.isDevice
    ? await ffi.ioctlRangeAsync(state.fd, ffi.BLKDISCARD, offset, bytes)
    : await state.engine.fallocate(state.fd, ffi.FALLOC_FL_PUNCH_HOLE | ffi.FALLOC_FL_KEEP_SIZE, offset, bytes);
  if (result === 0) {
    state.stats.discardOk++;
    state.stats.discardBytesOk += bytes;
    return;
  }
  state.stats.discardFailed++;
  throw ioError(isUnsupported(-result) ? E.ENOTSUP : -result);
}

// ---- status --------------------------------------------------------------------------------------------------

async function blockStatus(node: FileNode, _guard: unknown, wantZero: boolean, offset: number, bytes: number): Promise<BlockStatus> {
  const extent = (flags: number, end: number): BlockStatus => ({
    bytes: Math.min(end - offset, bytes),
    flags: flags | Status.offsetValid,
    map: offset,
    file: node,
  });
  const everything = offset + bytes;
  const { fd, isDevice } = node.state;
  if (!wantZero || isDevice) return extent(Status.data, everything);
  const data = ffi.lseek(fd, offset, ffi.SEEK_DATA);
  if (data === -E.ENXIO) return extent(Status.zero, everything);
  if (data < 0) return extent(Status.data, everything);
  if (data > offset) return extent(Status.zero, data);
  const hole = ffi.lseek(fd, offset, ffi.SEEK_HOLE);
  // No progress: the file changed in between, or the file system guesses. Data is the safe answer.
  return extent(Status.data, hole > offset ? hole : everything);
}

async function getLength(node: FileNode): Promise<number> {
  const { fd, isDevice } = node.state;
  if (!isDevice) return fstatSync(fd).size;
  const bytes = ffi.ioctlGetU64(fd, ffi.BLKGETSIZE64);
  if (bytes >= 0) return bytes;
  const end = ffi.lseek(fd, 0, ffi.SEEK_END);
  if (end < 0) throw ioError(-end);
  return end;
}

// ---- resize --------------------------------------------------------------------------------------------------

async function truncate(node: FileNode, _guard: unknown, length: number, exact: boolean, prealloc: PreallocMode): Promise<void> {
  const { state } = node;
  if (state.isDevice) {
    const current = await getLength(node);
    if (prealloc !== 'off') throw new BlockError(`Preallocation mode '${prealloc}' unsupported for this non-regular file`, { errno: E.ENOTSUP });
    if (length !== current && exact) throw new BlockError('Cannot resize device files', { errno: E.ENOTSUP });
    if (length > current) throw new BlockError('Cannot grow device files', { errno: E.EINVAL });
    return;
  }
  const current = fstatSync(state.fd).size;
  if (prealloc === 'off') {
    setLength(state, length);
    return;
  }
  if (length < current) throw new BlockError("Preallocation can't be used for shrinking files", { errno: E.ENOTSUP });
  if (prealloc !== 'falloc' && prealloc !== 'full') throw new BlockError(`Unsupported preallocation mode '${prealloc}'`, { errno: E.ENOTSUP });
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

async function preallocate(state: FileState, from: number, to: number, mode: 'falloc' | 'full'): Promise<void> {
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

// ---- the drivers ---------------------------------------------------------------------------------------------

function fileDriver(name: 'file' | 'host_device', accepts: (stat: Stats) => boolean, requirement: string): BlockDriver<FileState> {
  return {
    name,
    kind: 'protocol',
    supportedWriteFlags: 0,
    supportedZeroFlags: Req.mayUnmap | Req.noFallback,
    strongOptions: ['filename'],
    open: makeOpen(name, accepts, requirement),
    close,
    checkPermissions: (node, wanted) => node.state?.locks?.acquire(wanted),
    setPermissions: (node, wanted) => node.state?.locks?.settle(wanted),
    abortPermissions: (node) => node.state?.locks?.rollback(),
    refreshLimits(node, limits: BlockLimits) {
      limits.requestAlignment = node.state.alignment;
      limits.minMemAlignment = node.state.direct ? node.state.alignment : 1;
    },
    exactFilename: (node) => node.state.filename,
    statistics: ({ state: { stats } }) => ({
      driver: name,
      'discard-nb-ok': stats.discardOk,
      'discard-nb-failed': stats.discardFailed,
      'discard-bytes-ok': stats.discardBytesOk,
    }),
    preadv,
    pwritev,
    pwriteZeroes,
    pdiscard,
    flush,
    blockStatus,
    getLength,
    getAllocatedFileSize: async (node) => fstatSync(node.state.fd).blocks * 512,
    getInfo: async () => ({ clusterSizeBytes: 0, isDirty: false }),
    truncate,
  };
}

export const file = fileDriver('file', (stat) => stat.isFile(), 'a regular file');
export const hostDevice = fileDriver(
  'host_device',
  (stat) => stat.isBlockDevice() || stat.isCharacterDevice(),
  'either a character or block device',
);
