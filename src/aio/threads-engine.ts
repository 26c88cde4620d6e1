/**
 * The threads engine: file I/O on libuv's thread pool.
 *
 * For hosts where io_uring is forbidden (containers, kernel.io_uring_disabled) and for aio=threads. Same results as
 * the ring: counts or -errno.
 */

import { fdatasync, type NoParamCallback, read, readv, write, writev } from 'node:fs';
import { errnoOf } from '../errors/error.ts';
import { plug, unplug } from './defer.ts';
import type { AioEngine } from './engine.ts';
import { fallocateAsync, startWritebackAsync } from './ffi.ts';
import type { IoMemory, IoSegment, IoVector } from './memory.ts';
import { adoptSocket } from './socket-stream.ts';

/** Segments per call; IOV_MAX on Linux. Longer vectors complete short and the caller goes on. */
const IOV_MAX = 1024;

function viewOf({ mem, start, length }: IoSegment): Buffer {
  return mem.buf.subarray(start, start + length);
}

/** Creates the engine. It holds nothing open by itself. */
export function createThreadsEngine(): AioEngine {
  let inFlight = 0;

  function run(start: (done: (error: Error | null, count: number) => void) => void): Promise<number> {
    inFlight++;
    return new Promise((resolve) => {
      start((error, count) => {
        inFlight--;
        resolve(error === null ? count : -errnoOf(error));
      });
    });
  }

  /** A request that ends by a plain call; what is done then is one plugged section. */
  function start(
    call: SingleCall,
    fd: number,
    mem: IoMemory,
    from: number,
    length: number,
    offset: number,
    done: (result: number) => void,
  ): void {
    inFlight++;
    call(fd, mem.buf, from, length, offset, (error, count) => {
      inFlight--;
      plug();
      try {
        done(error === null ? count : -errnoOf(error));
      } finally {
        unplug();
      }
    });
  }

  async function counted(call: Promise<number>): Promise<number> {
    inFlight++;
    const result = await call;
    inFlight--;
    return result;
  }

  return {
    kind: 'threads',
    get inFlight() {
      return inFlight;
    },
    readv: (fd, vec, offset) => run((done) => submitVector(read, readv, fd, vec, offset, done)),
    writev: (fd, vec, offset) => run((done) => submitVector(write, writev, fd, vec, offset, done)),
    startRead: (fd, mem, from, length, offset, done) => start(read, fd, mem, from, length, offset, done),
    startWrite: (fd, mem, from, length, offset, done) => start(write, fd, mem, from, length, offset, done),
    fdatasync: (fd) => run((done) => fdatasync(fd, ((error) => done(error, 0)) as NoParamCallback)),
    startWriteback: (fd, offset, length) => counted(startWritebackAsync(fd, offset, length)),
    fallocate: (fd, mode, offset, length) => counted(fallocateAsync(fd, mode, offset, length)),
    adoptSocket,
    close: () => {},
  };
}

type SingleCall = (
  fd: number,
  buf: Buffer,
  at: number,
  length: number,
  position: number,
  done: FsCallback,
) => void;
type VectorCall = (fd: number, bufs: Buffer[], position: number, done: FsCallback) => void;
type FsCallback = (error: NodeJS.ErrnoException | null, count: number) => void;

function submitVector(
  single: SingleCall,
  vectored: VectorCall,
  fd: number,
  vec: IoVector,
  offset: number,
  done: FsCallback,
): void {
  if (vec.segments.length === 1) {
    const { mem, start, length } = vec.segments[0]!;
    single(fd, mem.buf, start, length, offset, done);
  } else {
    vectored(fd, vec.segments.slice(0, IOV_MAX).map(viewOf), offset, done);
  }
}
