/**
 * The conversation with the kernel over /dev/fuse: requests in, replies out.
 *
 * Every read(2) brings one request, every write(2) takes one reply, both without waiting. A request lives in one
 * pooled buffer from its arrival to its reply: a write's data lie aligned behind the request's head, and what a read
 * brings goes to the same place, behind the reply's header. Requests that need no waiting are answered in the turn in
 * which they came. What requests mean is operations.ts.
 */

import { readInto, writeFrom } from '../../aio/descriptors.ts';
import { allocateIoMemory, type IoMemory, type IoSegment, type IoVector } from '../../aio/memory.ts';
import { createWatch, type ReadableWatch } from '../../aio/poller.ts';
import { Spinner } from '../../aio/spin.ts';
import { E } from '../../errors/errno.ts';
import {
  IN_HEADER_BYTES,
  In,
  IO_HEAD_BYTES,
  MAX_IO_BYTES,
  NOTIFY_INVALIDATE_INODE,
  OUT_HEADER_BYTES,
  ROOT_INODE,
  writeU64,
} from './protocol.ts';

/** Where the data of reads and writes begin in a request's buffer; aligned in memory. */
export const DATA_AT = IN_HEADER_BYTES + IO_HEAD_BYTES;
const REPLY_AT = DATA_AT - OUT_HEADER_BYTES;
const BUFFER_BYTES = MAX_IO_BYTES + 4096;

/** Requests under way at a time; the rest waits in the kernel. */
const MAX_IN_FLIGHT = 128;
const MAX_FREE_BUFFERS = 16;
/** Longest time for requests before others in this process get their turn. */
const TURN_MS = 2;

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

/** A request and the room for its reply. */
export interface FuseRequest {
  readonly mem: IoMemory;
  readonly view: DataView;
  /** The data of a read or write; set by dataVector. */
  readonly vector: Mutable<IoVector>;
  readonly segment: Mutable<IoSegment>;
  bytes: number;
}

/** Makes the data area of a request a vector of `bytes` bytes. */
export function dataVector(request: FuseRequest, bytes: number): IoVector {
  request.segment.length = bytes;
  request.vector.bytes = bytes;
  return request.vector;
}

/** Handles one request: answers it now or later, once. */
export type HandleRequest = (session: FuseSession, request: FuseRequest, opcode: number) => void;

export class FuseSession {
  readonly #fd: number;
  readonly #handle: HandleRequest;
  readonly #watch: ReadableWatch;
  readonly #spinner = new Spinner();
  readonly #free: FuseRequest[] = [];
  readonly #notice = allocateIoMemory(64);
  #inFlight = 0;
  #paused = false;
  #ended = false;
  #whenIdle: (() => void) | null = null;

  /** Serves requests on `fd`, which stays the caller's, from start() on. */
  constructor(fd: number, handle: HandleRequest) {
    this.#fd = fd;
    this.#handle = handle;
    this.#watch = createWatch(fd, () => this.#serve());
  }

  start(): void {
    this.#update();
  }

  /** Takes no requests meanwhile. */
  setPaused(paused: boolean): void {
    this.#paused = paused;
    this.#update();
  }

  /** Takes no more requests; resolves when all have been answered. */
  async stop(): Promise<void> {
    this.#ended = true;
    this.#update();
    if (this.#inFlight > 0)
      await new Promise<void>((resolve) => {
        this.#whenIdle = resolve;
      });
    this.#free.length = 0;
  }

  #update(): void {
    if (this.#ended || this.#paused || this.#inFlight >= MAX_IN_FLIGHT) this.#watch.stop();
    else this.#watch.start();
  }

  /** Something has come: takes it, and what follows soon. */
  #serve(): void {
    const endMs = performance.now() + TURN_MS;
    const takeOne = (): boolean => this.#takeOne();
    do {
      while (this.#takeOne()) if (performance.now() > endMs) return;
    } while (this.#inFlight === 0 && this.#spinner.spin(takeOne) && performance.now() <= endMs);
  }

  /** Reads a request and handles it; false: there is none. */
  #takeOne(): boolean {
    if (this.#ended || this.#paused) return false;
    const request = this.#free.pop() ?? createRequest();
    const received = readInto(this.#fd, request.mem.addr, BUFFER_BYTES);
    if (received < IN_HEADER_BYTES) {
      this.#free.push(request);
      // Interrupted requests: the next one may be there.
      if (received === -E.EINTR || received === -E.ENOENT) return true;
      // Unmounted: the descriptor stays readable for ever.
      if (received !== -E.EAGAIN) this.#watch.stop();
      return false;
    }
    request.bytes = received;
    this.#inFlight++;
    if (this.#inFlight === MAX_IN_FLIGHT) this.#update();
    this.#handle(this, request, request.view.getUint32(In.opcode, true));
    return true;
  }

  /** Ends a request that has no reply. */
  drop(request: FuseRequest): void {
    if (this.#free.length < MAX_FREE_BUFFERS) this.#free.push(request);
    this.#inFlight--;
    if (this.#inFlight === MAX_IN_FLIGHT - 1) this.#update();
    if (this.#inFlight === 0) this.#whenIdle?.();
  }

  /** Answers with an errno, or with 0 for success without data. */
  answer(request: FuseRequest, errno: number): void {
    this.#send(request, errno, 0);
  }

  /** Answers with the first `bytes` of the data area. */
  answerData(request: FuseRequest, bytes: number): void {
    this.#send(request, 0, bytes);
  }

  #send(request: FuseRequest, errno: number, bytes: number): void {
    const { view } = request;
    const length = OUT_HEADER_BYTES + bytes;
    const uniqueLow = view.getUint32(In.unique, true);
    const uniqueHigh = view.getUint32(In.unique + 4, true);
    view.setUint32(REPLY_AT, length, true);
    view.setInt32(REPLY_AT + 4, -errno, true);
    view.setUint32(REPLY_AT + 8, uniqueLow, true);
    view.setUint32(REPLY_AT + 12, uniqueHigh, true);
    // Whoever asked may be gone, or the mount: nobody is left to be told.
    writeFrom(this.#fd, request.mem.addr + REPLY_AT, length);
    this.drop(request);
  }

  /** Tells the kernel that what it knows of the file (its size) is out of date. */
  invalidate(): void {
    const { buf, addr } = this.#notice;
    const view = new DataView(buf.buffer, buf.byteOffset, 64);
    const length = OUT_HEADER_BYTES + 24;
    view.setUint32(0, length, true);
    view.setInt32(4, NOTIFY_INVALIDATE_INODE, true);
    writeU64(view, 8, 0);
    writeU64(view, 16, ROOT_INODE);
    // A negative offset: attributes only.
    view.setBigInt64(24, -1n, true);
    view.setBigInt64(32, 0n, true);
    writeFrom(this.#fd, addr, length);
  }
}

function createRequest(): FuseRequest {
  const mem = allocateIoMemory(BUFFER_BYTES - DATA_AT, DATA_AT);
  const segment = { mem, start: DATA_AT, length: 0 };
  return {
    mem,
    view: new DataView(mem.buf.buffer, mem.buf.byteOffset, mem.buf.length),
    segment,
    vector: { segments: [segment], bytes: 0 },
    bytes: 0,
  };
}
