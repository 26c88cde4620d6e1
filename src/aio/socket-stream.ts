/**
 * A connected socket as a ByteStream: recv and sendmsg in the turn in which the socket is ready for them.
 *
 * Nothing of it waits in the kernel, so nobody but the running call ever touches the memory it is given.
 */

import type { Socket } from 'node:net';
import { E } from '../errors/errno.ts';
import { BlockError } from '../errors/error.ts';
import { type ByteStream, readSome, writeAll } from './engine.ts';
import {
  closeFd,
  dupFd,
  raiseSendBuffer,
  recvNow,
  sendfileNow,
  sendmsgNow,
  shutdownSocket,
  unsentBytes,
} from './ffi.ts';
import { IovArray } from './iov-array.ts';
import { forgetSource, runTurn, type Source } from './loop/turn.ts';
import { openPoll, type PollHandle, Readiness } from './loop/uv-poll.ts';
import { allocateIoMemory, type IoMemory, type IoSegment } from './memory.ts';

/** Segments per sendmsg: 252 of 4 KiB fill any socket buffer; more would only cost memory per connection. */
const IOV_MAX_PER_SEND = 252;
const MSGHDR_BYTES = 56;
/** Asked for on UNIX sockets: a large reply goes out at once, and the next is made while the client takes it. */
const SEND_BUFFER_BYTES = 1024 * 1024;
/** What a large reply takes in the socket beside its bytes: the kernel counts pages and headers. */
const SEND_SLACK_BYTES = 16 * 1024;

/** A duplicate of the socket's descriptor; the node socket is destroyed. */
function takeSocketFd(socket: Socket): number {
  const handle = (socket as unknown as { readonly _handle: { readonly fd: number } | null })._handle;
  const fd = handle === null ? -E.EBADF : dupFd(handle.fd);
  socket.destroy();
  if (fd < 0) throw new BlockError('Cannot take over the connection', { errno: -fd });
  return fd;
}

/** Takes over a connected socket from node:net; see AioEngine.adoptSocket. */
export function adoptSocket(socket: Socket): ByteStream {
  const isUnix = socket.remoteFamily === undefined;
  const fd = takeSocketFd(socket);
  try {
    return new SocketStream(fd, isUnix);
  } catch (errno) {
    closeFd(fd);
    throw new BlockError('Cannot take over the connection', {
      errno: typeof errno === 'number' ? errno : E.EIO,
    });
  }
}

/** The descriptor of a stream that adoptSocket made, which is over then; the connection itself goes on. */
export function detachDescriptor(stream: ByteStream): number {
  if (!(stream instanceof SocketStream)) throw new BlockError('The connection has no descriptor of its own');
  return stream.detach();
}

class SocketStream implements ByteStream, Source {
  owed: (() => number) | null = null;
  readonly due = 0;
  readonly #fd: number;
  readonly #poll: PollHandle;
  readonly #iov = new IovArray(IOV_MAX_PER_SEND);
  readonly #msg = allocateIoMemory(MSGHDR_BYTES);
  readonly #sendBufferBytes: number;
  #onReadable: (() => number) | null = null;
  #onWritable: (() => void)[] = [];
  /** What libuv has told and nobody has acted on yet. */
  #ready = 0;
  #closed = false;

  constructor(fd: number, isUnix: boolean) {
    this.#fd = fd;
    this.#poll = openPoll(fd, (events) => {
      this.#ready |= events;
      runTurn(this);
    });
    this.#sendBufferBytes = isUnix ? raiseSendBuffer(fd, SEND_BUFFER_BYTES) : 0;
    this.#msg.buf.fill(0);
    this.#msg.buf.writeBigUInt64LE(BigInt(this.#iov.memory.addr), 16);
  }

  get closed(): boolean {
    return this.#closed;
  }

  // ---- Source ------------------------------------------------------------------------------------------------

  get isWaiting(): boolean {
    return this.#onReadable !== null;
  }

  get leadBytes(): number {
    return this.#closed ? 0 : unsentBytes(this.#fd);
  }

  look(): number {
    const ready = this.#ready;
    this.#ready = 0;
    let found = 0;
    if ((ready & Readiness.writable) !== 0 && this.#onWritable.length > 0) {
      const waiting = this.#onWritable;
      this.#onWritable = [];
      for (const onWritable of waiting) onWritable();
      this.#watch();
      found = 1;
    }
    return found + (this.#onReadable?.() ?? 0);
  }

  #watch(): void {
    if (this.#closed) return;
    this.#poll.watch(
      (this.#onReadable === null ? 0 : Readiness.readable) |
        (this.#onWritable.length === 0 ? 0 : Readiness.writable),
    );
  }

  // ---- ByteStream --------------------------------------------------------------------------------------------

  receive(mem: IoMemory, start: number, length: number): number {
    return this.#closed ? -E.ECONNRESET : recvNow(this.#fd, mem.addr + start, length);
  }

  watchReadable(onReadable: (() => number) | null): void {
    this.#onReadable = onReadable;
    this.#watch();
  }

  send(segments: readonly IoSegment[], first: number): number {
    if (this.#closed) return -E.EPIPE;
    const count = this.#iov.fill(segments, first);
    this.#msg.buf[24] = count;
    return sendmsgNow(this.#fd, this.#msg.addr);
  }

  whenWritable(onWritable: () => void): void {
    this.#onWritable.push(onWritable);
    this.#watch();
  }

  sendPages(fd: number, offset: number, length: number): number {
    return this.#closed ? -E.EPIPE : sendfileNow(this.#fd, fd, offset, length);
  }

  hasRoomFor(bytes: number): boolean {
    // The buffer of an inet socket grows as it is used.
    if (this.#sendBufferBytes === 0) return true;
    const unsent = unsentBytes(this.#fd);
    // Nothing under way: there will never be more room.
    return unsent <= 0 || unsent + bytes + SEND_SLACK_BYTES <= this.#sendBufferBytes;
  }

  read(segment: IoSegment): Promise<number> {
    return readSome(this, segment);
  }

  write(segments: readonly IoSegment[]): Promise<number> {
    return writeAll(this, segments);
  }

  detach(): number {
    this.#closed = true;
    forgetSource(this);
    this.#poll.close();
    return this.#fd;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    forgetSource(this);
    this.#poll.close();
    shutdownSocket(this.#fd);
    closeFd(this.#fd);
    // Who waits finds out, but not within this call.
    const onReadable = this.#onReadable;
    const waiting = this.#onWritable;
    this.#onReadable = null;
    this.#onWritable = [];
    process.nextTick(() => {
      for (const onWritable of waiting) onWritable();
      onReadable?.();
    });
  }
}
