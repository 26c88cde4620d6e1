/**
 * The io_uring engine: file and socket I/O on one ring (ring.ts).
 *
 * Results follow AioEngine: counts or -errno. A socket is taken over from node:net by duplicating its descriptor,
 * because node owns and closes the original.
 */

import type { Socket } from 'node:net';
import { E } from '../errors/errno.ts';
import { BlockError } from '../errors/error.ts';
import type { AioEngine, ByteStream } from './engine.ts';
import { closeFd, dupFd, SYNC_FILE_RANGE_WRITE, setBlocking, shutdownSocket } from './ffi.ts';
import { allocateIoMemory, type IoMemory, type IoSegment, type IoVector } from './memory.ts';
import { Op, Ring } from './ring.ts';

/** Entries of one iovec array; IOV_MAX on Linux. Longer vectors complete short and the caller goes on. */
const IOV_MAX = 1024;
/** Vectors up to this many segments use a pooled iovec array. */
const SMALL_IOV = 16;
/** Segments per sendmsg: 254 of 4 KiB fill any socket buffer; more would only cost memory per connection. */
const IOV_MAX_PER_SEND = 252;
const IOVEC_BYTES = 16;
const MSGHDR_BYTES = 56;
const MSG_NOSIGNAL = 0x4000;
const MSG_WAITALL = 0x100;
const FSYNC_DATASYNC = 1;
const TWO_32 = 4294967296;

/** Room for struct iovec entries in memory the kernel may read. */
class IovArray {
  readonly memory: IoMemory;
  readonly #words: Uint32Array;

  constructor(entries: number) {
    this.memory = allocateIoMemory(entries * IOVEC_BYTES);
    this.#words = new Uint32Array(this.memory.buf.buffer, this.memory.buf.byteOffset, entries * 4);
  }

  set(index: number, addr: number, length: number): void {
    const at = index * 4;
    this.#words[at] = addr >>> 0;
    this.#words[at + 1] = addr / TWO_32;
    this.#words[at + 2] = length;
    this.#words[at + 3] = 0;
  }

  /** Fills in segments from `first` on, as many as fit; returns how many. */
  fill(segments: readonly IoSegment[], first: number): number {
    const count = Math.min(segments.length - first, this.memory.buf.length / IOVEC_BYTES);
    for (let i = 0; i < count; i++) {
      const segment = segments[first + i]!;
      this.set(i, segment.mem.addr + segment.start, segment.length);
    }
    return count;
  }
}

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
    fdatasync: (fd) => ring.submit(Op.fsync, fd, 0, 0, 0, FSYNC_DATASYNC, null),
    startWriteback: (fd, offset, length) =>
      ring.submit(Op.syncFileRange, fd, 0, length, offset, SYNC_FILE_RANGE_WRITE, null),
    // IORING_OP_FALLOCATE carries the length in `addr` and the mode in `len`.
    fallocate: (fd, mode, offset, length) => ring.submit(Op.fallocate, fd, length, mode, offset, 0, null),
    adoptSocket: (socket) => new UringStream(ring, takeSocketFd(socket)),
    close: () => ring.close(),
  };
}

/** A blocking-mode duplicate of the socket's descriptor; the node socket is destroyed. */
function takeSocketFd(socket: Socket): number {
  const handle = (socket as unknown as { readonly _handle: { readonly fd: number } | null })._handle;
  const fd = handle === null ? -E.EBADF : dupFd(handle.fd);
  socket.destroy();
  if (fd < 0) throw new BlockError('Cannot take over the connection', { errno: -fd });
  // io_uring answers EAGAIN at once on O_NONBLOCK sockets instead of waiting.
  setBlocking(fd);
  return fd;
}

class UringStream implements ByteStream {
  readonly #ring: Ring;
  readonly #fd: number;
  readonly #iov = new IovArray(IOV_MAX_PER_SEND);
  readonly #msg = allocateIoMemory(MSGHDR_BYTES);
  readonly #keep: unknown[];
  #pending = 0;
  #closed = false;

  constructor(ring: Ring, fd: number) {
    this.#ring = ring;
    this.#fd = fd;
    this.#keep = [this.#iov, this.#msg, null];
    this.#msg.buf.fill(0);
    this.#msg.buf.writeBigUInt64LE(BigInt(this.#iov.memory.addr), 16);
  }

  get closed(): boolean {
    return this.#closed;
  }

  async read(segment: IoSegment): Promise<number> {
    if (this.#closed) return -E.ECONNRESET;
    this.#pending++;
    const { mem, start, length } = segment;
    const result = await this.#ring.submit(Op.recv, this.#fd, mem.addr + start, length, 0, 0, mem);
    this.#done();
    return result;
  }

  async write(segments: readonly IoSegment[]): Promise<number> {
    if (this.#closed) return -E.EPIPE;
    this.#pending++;
    let total = 0;
    let result = 0;
    for (let first = 0; first < segments.length; ) {
      const count = this.#iov.fill(segments, first);
      let want = 0;
      for (let i = 0; i < count; i++) want += segments[first + i]!.length;
      result = await this.#sendAll(segments, first, count, want);
      if (result < 0) break;
      total += want;
      first += count;
    }
    this.#done();
    return result < 0 ? result : total;
  }

  /** Sends what the iovec array holds, going on after short sends. `want` bytes or -errno. */
  async #sendAll(
    segments: readonly IoSegment[],
    first: number,
    count: number,
    want: number,
  ): Promise<number> {
    let from = 0;
    let sent = 0;
    this.#keep[2] = segments;
    for (;;) {
      this.#msg.buf.writeBigUInt64LE(BigInt(this.#iov.memory.addr + from * IOVEC_BYTES), 16);
      this.#msg.buf.writeUInt32LE(count - from, 24);
      const result = await this.#ring.submit(
        Op.sendmsg,
        this.#fd,
        this.#msg.addr,
        1,
        0,
        MSG_NOSIGNAL | MSG_WAITALL,
        this.#keep,
      );
      if (result < 0) return this.#closed ? -E.EPIPE : result;
      sent += result;
      if (sent === want) break;
      if (result === 0) return -E.EPIPE;
      // Advance the array past what went out.
      let left = result;
      while (from < count) {
        const segment = segments[first + from]!;
        const already = this.#skipOf(segments, first, from, sent - result);
        const rest = segment.length - already;
        if (left < rest) {
          this.#iov.set(from, segment.mem.addr + segment.start + already + left, rest - left);
          break;
        }
        left -= rest;
        from++;
      }
    }
    this.#keep[2] = null;
    return want;
  }

  /** Bytes of segment first+index that had been sent when `sent` bytes of the array were out. */
  #skipOf(segments: readonly IoSegment[], first: number, index: number, sent: number): number {
    let before = 0;
    for (let i = 0; i < index; i++) before += segments[first + i]!.length;
    return Math.max(0, sent - before);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    // Wakes pending operations; the descriptor goes when the last one has completed.
    shutdownSocket(this.#fd);
    if (this.#pending === 0) closeFd(this.#fd);
  }

  #done(): void {
    this.#pending--;
    if (this.#closed && this.#pending === 0) closeFd(this.#fd);
  }
}
