/**
 * The io_uring engine: file I/O on one ring (ring.ts). Results follow AioEngine: counts or -errno.
 */

import { E } from '../errors/errno.ts';
import { BlockError } from '../errors/error.ts';
import type { AioEngine } from './engine.ts';
import { SYNC_FILE_RANGE_WRITE } from './ffi.ts';
import { IovArray } from './iov-array.ts';
import type { IoVector } from './memory.ts';
import { Op, Ring } from './ring.ts';
import { adoptSocket } from './socket-stream.ts';

/** Entries of one iovec array; IOV_MAX on Linux. Longer vectors complete short and the caller goes on. */
const IOV_MAX = 1024;
/** Vectors up to this many segments use a pooled iovec array. */
const SMALL_IOV = 16;
const FSYNC_DATASYNC = 1;

/** Creates the engine; throws BlockError with the errno when the kernel or a sandbox forbids io_uring. */
export function createUringEngine(): AioEngine {
  let ring: Ring;
  try {
    ring = new Ring();
  } catch (errno) {
    throw new BlockError('io_uring is not available', {
      errno: typeof errno === 'number' ? errno : E.ENOSYS,
    });
  }
  const smallArrays: IovArray[] = [];

  async function vectored(op: number, fd: number, vec: IoVector, offset: number): Promise<number> {
    const small = vec.segments.length <= SMALL_IOV;
    const array =
      (small ? smallArrays.pop() : undefined) ??
      new IovArray(small ? SMALL_IOV : Math.min(vec.segments.length, IOV_MAX));
    const count = array.fill(vec.segments, 0);
    const result = await ring.submit(op, fd, array.memory.addr, count, offset, 0, [array, vec]);
    if (small) smallArrays.push(array);
    return result;
  }

  return {
    kind: 'io_uring',
    get inFlight() {
      return ring.inFlight;
    },
    readv(fd, vec, offset) {
      if (vec.segments.length !== 1) return vectored(Op.readv, fd, vec, offset);
      const { mem, start, length } = vec.segments[0]!;
      return ring.submit(Op.read, fd, mem.addr + start, length, offset, 0, mem);
    },
    writev(fd, vec, offset) {
      if (vec.segments.length !== 1) return vectored(Op.writev, fd, vec, offset);
      const { mem, start, length } = vec.segments[0]!;
      return ring.submit(Op.write, fd, mem.addr + start, length, offset, 0, mem);
    },
    startRead: (fd, mem, start, length, offset, done) =>
      ring.start(Op.read, fd, mem.addr + start, length, offset, 0, mem, done),
    startWrite: (fd, mem, start, length, offset, done) =>
      ring.start(Op.write, fd, mem.addr + start, length, offset, 0, mem, done),
    fdatasync: (fd) => ring.submit(Op.fsync, fd, 0, 0, 0, FSYNC_DATASYNC, null),
    startWriteback: (fd, offset, length) =>
      ring.submit(Op.syncFileRange, fd, 0, length, offset, SYNC_FILE_RANGE_WRITE, null),
    // IORING_OP_FALLOCATE carries the length in `addr` and the mode in `len`.
    fallocate: (fd, mode, offset, length) => ring.submit(Op.fallocate, fd, length, mode, offset, 0, null),
    adoptSocket,
    close: () => ring.close(),
  };
}
