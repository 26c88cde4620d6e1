/**
 * The engine: asynchronous file and socket I/O under one interface, with two implementations.
 *
 * - uring-engine.ts: one io_uring for everything, woken through libuv's loop.
 * - threads-engine.ts: libuv's thread pool and node:net, for hosts that forbid io_uring.
 *
 * Results are byte counts, or a negative errno: a rejected promise per failed request would cost more than the
 * request. Callers turn negative results into errors that name their object.
 */

import type { Socket } from 'node:net';
import type { IoSegment, IoVector } from './memory.ts';

export type EngineKind = 'io_uring' | 'threads';

export interface AioEngine {
  readonly kind: EngineKind;
  /** Reads at `offset` into `vec`; may be short at end of file. Bytes read, or -errno. */
  readv(fd: number, vec: IoVector, offset: number): Promise<number>;
  /** Writes `vec` at `offset`; may be short. Bytes written, or -errno. */
  writev(fd: number, vec: IoVector, offset: number): Promise<number>;
  /** fdatasync. 0, or -errno. */
  fdatasync(fd: number): Promise<number>;
  /** Has the kernel begin to write dirty pages of the range to the disk. 0, or -errno. Nothing is waited for or safe. */
  startWriteback(fd: number, offset: number, length: number): Promise<number>;
  /** fallocate(2) with FALLOC_FL_* `mode`. 0, or -errno. */
  fallocate(fd: number, mode: number, offset: number, length: number): Promise<number>;
  /**
   * Takes over a connected socket from node:net (accepted with pauseOnConnect, nothing read yet). The node socket
   * must not be used afterwards; the stream owns the connection.
   */
  adoptSocket(socket: Socket): ByteStream;
  /** Operations submitted and not yet completed. */
  readonly inFlight: number;
  /** Releases the ring and its hold on the loop. Pending operations must be finished before. */
  close(): void;
}

/**
 * A connected byte stream with explicit reads: nothing is read ahead of `read`, so not calling it is backpressure.
 * At most one `read` and one `write` may be pending at a time.
 */
export interface ByteStream {
  /** Reads 1..segment.length bytes into `segment`. Bytes read, 0 at end of stream, or -errno. */
  read(segment: IoSegment): Promise<number>;
  /** Sends all segments in order. Total bytes, or -errno. Their memory must stay untouched until then. */
  write(segments: readonly IoSegment[]): Promise<number>;
  /** Ends both directions at once; pending operations complete with a negative errno or 0. Idempotent. */
  close(): void;
  readonly closed: boolean;
}
