/**
 * The receive side of a connection: bytes that arrived and were not consumed yet.
 *
 * It starts small and doubles while reads fill it, so that an idle client costs little and a busy one gets many
 * requests out of one read. The same buffer serves the handshake and the transmission phase: what a client sent
 * early is not lost.
 */

import type { ByteStream } from '../../aio/engine.ts';
import { allocateIoMemory, type IoMemory } from '../../aio/memory.ts';
import { assert } from '../../errors/error.ts';
import { RECEIVE_BUFFER_MAX, RECEIVE_BUFFER_MIN } from './limits.ts';

/** A buffer of which so many reads in a row use less than a part is too large. */
const SHRINK_FACTOR = 16;
const SMALL_READS_BEFORE_SHRINKING = 256;

/** The peer has gone, or the connection was closed: not an error of anybody's. */
export class ConnectionEnded extends Error {
  constructor(message = 'Unexpected end-of-file before all data were read') {
    super(message);
    this.name = 'ConnectionEnded';
  }
}

export class ReceiveBuffer {
  mem: IoMemory;
  /** Over mem.buf. */
  view: DataView;
  /** Unconsumed bytes are mem.buf[start..end). */
  start = 0;
  end = 0;
  /** Reads in a row that used a small part of the buffer. */
  #smallReads = 0;

  constructor() {
    this.mem = allocateIoMemory(RECEIVE_BUFFER_MIN);
    this.view = viewOf(this.mem);
  }

  /** Unconsumed bytes. */
  get available(): number {
    return this.end - this.start;
  }

  /** The last receive() has not filled it. */
  get hasRoom(): boolean {
    return this.end < this.mem.buf.length;
  }

  /**
   * Receives what has arrived behind the unconsumed bytes, at most `limit` bytes. Bytes received; 0 at the end of the
   * stream, -EAGAIN when there is nothing, negative errno on failure.
   */
  receive(stream: ByteStream, limit = RECEIVE_BUFFER_MAX): number {
    if (this.#smallReads > SMALL_READS_BEFORE_SHRINKING) this.#shrink();
    this.#makeRoom();
    const { length: size } = this.mem.buf;
    return this.#took(stream.receive(this.mem, this.end, Math.min(limit, size - this.end)));
  }

  /** receive(), waiting for something to arrive. */
  async fill(stream: ByteStream): Promise<number> {
    this.#makeRoom();
    const segment = { mem: this.mem, start: this.end, length: this.mem.buf.length - this.end };
    return this.#took(await stream.read(segment));
  }

  #took(received: number): number {
    if (received <= 0) return received;
    const { length: size } = this.mem.buf;
    this.end += received;
    if (this.end === size) this.#grow();
    this.#smallReads = received < size / SHRINK_FACTOR ? this.#smallReads + 1 : 0;
    return received;
  }

  /** Waits until `bytes` (at most RECEIVE_BUFFER_MIN) are available; throws ConnectionEnded. */
  async need(stream: ByteStream, bytes: number): Promise<void> {
    assert(bytes <= RECEIVE_BUFFER_MIN, 'more than the smallest buffer holds');
    while (this.available < bytes) {
      if ((await this.fill(stream)) <= 0) throw new ConnectionEnded();
    }
  }

  /** Consumes and forgets `bytes`, however many. */
  async skip(stream: ByteStream, bytes: number): Promise<void> {
    let left = bytes;
    for (;;) {
      const take = Math.min(left, this.available);
      this.start += take;
      left -= take;
      if (left === 0) return;
      if ((await this.fill(stream)) <= 0) throw new ConnectionEnded();
    }
  }

  /** Takes `bytes`, which must be available, as a copy. */
  take(bytes: number): Buffer {
    assert(bytes <= this.available, 'bytes taken before they arrived');
    this.start += bytes;
    return Buffer.from(this.mem.buf.subarray(this.start - bytes, this.start));
  }

  /** Moves the unconsumed bytes to the front. */
  #makeRoom(): void {
    if (this.start === this.end) {
      this.start = 0;
      this.end = 0;
      return;
    }
    if (this.start === 0) return;
    this.mem.buf.copyWithin(0, this.start, this.end);
    this.end -= this.start;
    this.start = 0;
  }

  #grow(): void {
    const size = this.mem.buf.length;
    if (size >= RECEIVE_BUFFER_MAX) return;
    const mem = allocateIoMemory(size * 2);
    this.mem.buf.copy(mem.buf, 0, this.start, this.end);
    this.end -= this.start;
    this.start = 0;
    this.mem = mem;
    this.view = viewOf(mem);
  }

  /** Goes back to the smallest size when nothing is waiting in it. */
  #shrink(): void {
    this.#smallReads = 0;
    if (this.available > 0 || this.mem.buf.length === RECEIVE_BUFFER_MIN) return;
    this.mem = allocateIoMemory(RECEIVE_BUFFER_MIN);
    this.view = viewOf(this.mem);
    this.start = 0;
    this.end = 0;
  }
}

function viewOf(mem: IoMemory): DataView {
  return new DataView(mem.buf.buffer, mem.buf.byteOffset, mem.buf.length);
}
