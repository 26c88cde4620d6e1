/**
 * The engine: asynchronous file and socket I/O under one interface, with two implementations.
 *
 * - uring-engine.ts: one io_uring, woken through libuv's loop.
 * - threads-engine.ts: libuv's thread pool, for hosts that forbid io_uring.
 *
 * Sockets are the same in both: socket-stream.ts.
 *
 * Results are byte counts, or a negative errno: a rejected promise per failed request would cost more than the
 * request. Callers turn negative results into errors that name their object.
 */

import type { Socket } from 'node:net';
import { E } from '../errors/errno.ts';
import type { IoMemory, IoSegment, IoVector } from './memory.ts';

export type EngineKind = 'io_uring' | 'threads';

export interface AioEngine {
  readonly kind: EngineKind;
  /** Reads at `offset` into `vec`; may be short at end of file. Bytes read, or -errno. */
  readv(fd: number, vec: IoVector, offset: number): Promise<number>;
  /** Writes `vec` at `offset`; may be short. Bytes written, or -errno. */
  writev(fd: number, vec: IoVector, offset: number): Promise<number>;
  /**
   * Reads `length` bytes at `offset` into `mem` at `start`, and calls `done` with bytes read, or -errno: by a plain call in
   * the turn in which the loop learns of it, inside a plugged section, never within this call. No promise is made.
   */
  startRead(
    fd: number,
    mem: IoMemory,
    start: number,
    length: number,
    offset: number,
    done: (result: number) => void,
  ): void;
  /** Writes; as startRead. */
  startWrite(
    fd: number,
    mem: IoMemory,
    start: number,
    length: number,
    offset: number,
    done: (result: number) => void,
  ): void;
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
 * A connected byte stream. Nothing is read ahead of `receive`, so not calling it is backpressure. All but `read` and
 * `write` act within the current turn and never wait: that is what the short way of a request is made of. Results are
 * byte counts, or a negative errno; -EAGAIN: nothing can be done now.
 */
export interface ByteStream {
  /** Receives what is there, at most `length` bytes, into `mem` at `start`. 0: the end of the stream. */
  receive(mem: IoMemory, start: number, length: number): number;
  /**
   * Has `onReadable` called, within a turn, whenever receive() may have something to say, until told otherwise, and once
   * when the stream is closed. It says how many things there were (requests, replies). Null: nobody wants to know.
   */
  watchReadable(onReadable: (() => number) | null): void;
  /** Sends from segment `first` on what is taken at once, which may end anywhere. */
  send(segments: readonly IoSegment[], first: number): number;
  /** Calls `onWritable` once, within a turn, when send() may get further, or the stream has been closed. */
  whenWritable(onWritable: () => void): void;
  /**
   * Sends bytes of a file by its pages themselves, which the socket keeps until the peer has taken them; not copied, so
   * what is written to them meanwhile is what the peer gets. As many as are taken at once; 0: the file ends at `offset`.
   * Only streams that send by system calls of their own within the turn have it.
   */
  sendPages?(fd: number, offset: number, length: number): number;
  /** Whether send() would take so many bytes at once. */
  hasRoomFor(bytes: number): boolean;
  /** Reads 1..segment.length bytes into `segment`. Bytes read, 0 at end of stream, or -errno. Not with watchReadable. */
  read(segment: IoSegment): Promise<number>;
  /** Sends all segments in order. Total bytes, or -errno. Their memory must stay untouched until then. */
  write(segments: readonly IoSegment[]): Promise<number>;
  /** Ends both directions at once; who waits is told, and gets 0 or a negative errno. Idempotent. */
  close(): void;
  readonly closed: boolean;
  /** Answers that the peer waits for, as the user of the stream tells; null: he does not tell. See loop/turn.ts. */
  owed: (() => number) | null;
}

/** ByteStream.read by means of the other functions of a stream. */
export function readSome(stream: ByteStream, { mem, start, length }: IoSegment): Promise<number> {
  const received = stream.receive(mem, start, length);
  if (received !== -E.EAGAIN) return Promise.resolve(received);
  return new Promise((resolve) => {
    stream.watchReadable(() => {
      const result = stream.receive(mem, start, length);
      if (result === -E.EAGAIN) return 0;
      stream.watchReadable(null);
      resolve(result);
      return 1;
    });
  });
}

/** ByteStream.write by means of the other functions of a stream. */
export function writeAll(stream: ByteStream, segments: readonly IoSegment[]): Promise<number> {
  return new Promise((resolve) => sendAll(stream, segments, 0, resolve));
}

/**
 * Sends the segments but for their first `skipBytes`, waiting where that is needed, and calls `done` with the sum of their
 * lengths or -errno: within this call if nothing had to wait.
 */
export function sendAll(
  stream: ByteStream,
  segments: readonly IoSegment[],
  skipBytes: number,
  done: (result: number) => void,
): void {
  let left = segments;
  let skip = skipBytes;
  let total = 0;
  for (const { length } of segments) total += length;
  const go = (): void => {
    for (;;) {
      // What went out is cut off: a segment that went out in part is the first of the rest.
      let first = 0;
      while (first < left.length && skip >= left[first]!.length) skip -= left[first++]!.length;
      if (first === left.length) {
        done(total);
        return;
      }
      if (skip > 0) {
        const { mem, start, length } = left[first]!;
        left = [{ mem, start: start + skip, length: length - skip }, ...left.slice(first + 1)];
        first = 0;
        skip = 0;
      }
      const sent = stream.send(left, first);
      if (first > 0) left = left.slice(first);
      if (sent === -E.EAGAIN) {
        stream.whenWritable(go);
        return;
      }
      if (sent <= 0) {
        done(sent === 0 ? -E.EPIPE : sent);
        return;
      }
      skip = sent;
    }
  };
  go();
}
