/**
 * The threads engine: file I/O on libuv's thread pool, sockets through node:net.
 *
 * For hosts where io_uring is forbidden (containers, kernel.io_uring_disabled) and for aio=threads. Same results as
 * the ring: counts or -errno.
 */

import { fdatasync, type NoParamCallback, read, readv, write, writev } from 'node:fs';
import type { Socket } from 'node:net';
import { E } from '../errors/errno.ts';
import { errnoOf } from '../errors/error.ts';
import type { AioEngine, ByteStream } from './engine.ts';
import { fallocateAsync, startWritebackAsync } from './ffi.ts';
import type { IoSegment, IoVector } from './memory.ts';

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
    fdatasync: (fd) => run((done) => fdatasync(fd, ((error) => done(error, 0)) as NoParamCallback)),
    startWriteback: (fd, offset, length) => counted(startWritebackAsync(fd, offset, length)),
    fallocate: (fd, mode, offset, length) => counted(fallocateAsync(fd, mode, offset, length)),
    adoptSocket: (socket) => new NodeStream(socket),
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

/** A node:net socket behind explicit reads. Node reads ahead by at most the socket's highWaterMark. */
class NodeStream implements ByteStream {
  readonly #socket: Socket;
  #failure: number | undefined;
  #ended = false;
  /** Called on any change a pending read may wait for. */
  #wakeReader: (() => void) | undefined;

  constructor(socket: Socket) {
    this.#socket = socket;
    const wake = (): void => this.#wakeReader?.();
    socket.on('error', (error) => {
      this.#failure = -errnoOf(error);
      wake();
    });
    socket.on('end', () => {
      this.#ended = true;
      wake();
    });
    socket.on('close', () => {
      this.#ended = true;
      wake();
    });
    socket.on('readable', wake);
  }

  get closed(): boolean {
    return this.#socket.destroyed;
  }

  async read(segment: IoSegment): Promise<number> {
    for (;;) {
      if (this.#socket.destroyed) return this.#failure ?? -E.ECONNRESET;
      const available = this.#socket.readableLength;
      const chunk: Buffer | null =
        available > 0 ? this.#socket.read(Math.min(available, segment.length)) : this.#socket.read();
      if (chunk !== null) {
        // read() without a size may hand out more than fits when data arrived in between.
        if (chunk.length > segment.length) this.#socket.unshift(chunk.subarray(segment.length));
        return chunk.copy(segment.mem.buf, segment.start, 0, Math.min(chunk.length, segment.length));
      }
      if (this.#failure !== undefined) return this.#failure;
      if (this.#ended) return 0;
      await new Promise<void>((resolve) => {
        this.#wakeReader = resolve;
      });
      this.#wakeReader = undefined;
    }
  }

  write(segments: readonly IoSegment[]): Promise<number> {
    const socket = this.#socket;
    if (socket.destroyed) return Promise.resolve(-E.EPIPE);
    return new Promise((resolve) => {
      let total = 0;
      let settled = false;
      const finish = (result: number): void => {
        if (settled) return;
        settled = true;
        socket.off('close', onClose);
        resolve(result);
      };
      // A socket destroyed while a write is queued may never call the write's callback.
      const onClose = (): void => finish(this.#failure ?? -E.EPIPE);
      // Node reports success for a write that its socket's destruction cut short.
      const onWritten = (error: Error | null | undefined): void => {
        if (socket.destroyed) onClose();
        else finish(error ? -errnoOf(error) : total);
      };
      socket.once('close', onClose);
      socket.cork();
      segments.forEach((segment, index) => {
        total += segment.length;
        const last = index === segments.length - 1;
        socket.write(viewOf(segment), last ? onWritten : undefined);
      });
      socket.uncork();
      if (segments.length === 0) finish(0);
    });
  }

  close(): void {
    this.#socket.destroy();
  }
}
