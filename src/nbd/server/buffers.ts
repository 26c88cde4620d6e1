/**
 * Request buffers: aligned memory with room for a reply header directly before the payload, so that the disk's data
 * lands where it is sent from. Pooled by size class, shared by all connections of a server.
 *
 * A buffer belongs to one request from take() to give(). What the pool keeps is bounded and is given back when a
 * while has passed without need for it.
 */

import { allocateIoMemory, type IoMemory, type IoSegment, type IoVector } from '../../aio/memory.ts';
import { POOL_MAX_FREE_BYTES, POOL_TRIM_INTERVAL_MS } from '../protocol/limits.ts';

/** Room before the payload: the longest reply header (32) and the longest chunk head before data (8), rounded up. */
export const HEADROOM_BYTES = 64;

const MIN_CLASS_BITS = 12;
const MIN_CLASS_BYTES = 2 ** MIN_CLASS_BITS;

/** The smallest buffers are cut from one piece of memory, so many at a time. */
const SLAB_BUFFERS = 32;

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

export interface RequestBuffer {
  readonly mem: IoMemory;
  /** Over mem.buf: positions below HEADROOM_BYTES are the header's. */
  readonly view: DataView;
  /** Payload bytes it can hold. */
  readonly capacity: number;
  /** The payload as a vector of `vector.bytes` bytes, set by setPayload. */
  readonly vector: IoVector;
  /** The one segment of `vector`. */
  readonly payload: Mutable<IoSegment>;
  /** For the reply's sender: header and payload, or a part of them. */
  readonly reply: Mutable<IoSegment>;
}

function makeBuffer(mem: IoMemory, capacity: number): RequestBuffer {
  const payload = { mem, start: HEADROOM_BYTES, length: capacity };
  return {
    mem,
    view: new DataView(mem.buf.buffer, mem.buf.byteOffset, mem.buf.length),
    capacity,
    vector: { segments: [payload], bytes: capacity },
    payload,
    reply: { mem, start: 0, length: 0 },
  };
}

function allocate(capacity: number): RequestBuffer {
  return makeBuffer(allocateIoMemory(capacity, HEADROOM_BYTES), capacity);
}

/** Buffers of the smallest class: of each two pages the second is the payload, the end of the first its header. */
function allocateSlab(): RequestBuffer[] {
  const stride = 2 * MIN_CLASS_BYTES;
  const slab = allocateIoMemory(SLAB_BUFFERS * stride);
  return Array.from({ length: SLAB_BUFFERS }, (_, i) => {
    const from = i * stride + MIN_CLASS_BYTES - HEADROOM_BYTES;
    const buf = slab.buf.subarray(from, (i + 1) * stride);
    return makeBuffer({ buf, addr: slab.addr + from }, MIN_CLASS_BYTES);
  });
}

/** Makes the buffer's vector `bytes` long. */
export function setPayload(buffer: RequestBuffer, bytes: number): void {
  buffer.payload.length = bytes;
  (buffer.vector as Mutable<IoVector>).bytes = bytes;
}

/** Size class of a payload length, as a power of two. */
function classBits(bytes: number): number {
  return bytes <= MIN_CLASS_BYTES ? MIN_CLASS_BITS : 32 - Math.clz32(bytes - 1);
}

interface SizeClass {
  readonly free: RequestBuffer[];
  /** Fewest free buffers since the last trim: so many were not needed. */
  lowWater: number;
}

export class BufferPool {
  readonly #classes: SizeClass[] = [];
  #freeBytes = 0;
  #timer: NodeJS.Timeout | null = null;

  /** A buffer for `bytes` (at most 2^31) of payload; its content is whatever it was. */
  take(bytes: number): RequestBuffer {
    const bits = classBits(bytes);
    const sizeClass = this.#classes[bits];
    const buffer = sizeClass?.free.pop();
    if (sizeClass === undefined || buffer === undefined) return this.#allocate(bits);
    this.#freeBytes -= buffer.capacity;
    if (sizeClass.free.length < sizeClass.lowWater) sizeClass.lowWater = sizeClass.free.length;
    return buffer;
  }

  #allocate(bits: number): RequestBuffer {
    if (bits > MIN_CLASS_BITS) return allocate(2 ** bits);
    const [first, ...others] = allocateSlab();
    for (const other of others) this.give(other);
    return first as RequestBuffer;
  }

  /** Returns a buffer nobody uses any more. */
  give(buffer: RequestBuffer): void {
    if (this.#freeBytes + buffer.capacity > POOL_MAX_FREE_BYTES) return;
    const bits = classBits(buffer.capacity);
    let sizeClass = this.#classes[bits];
    if (sizeClass === undefined) {
      sizeClass = { free: [], lowWater: 0 };
      this.#classes[bits] = sizeClass;
    }
    sizeClass.free.push(buffer);
    this.#freeBytes += buffer.capacity;
    this.#timer ??= setInterval(() => this.trim(), POOL_TRIM_INTERVAL_MS).unref();
  }

  /** Lets go of the buffers that were not needed since the last call. */
  trim(): void {
    for (const sizeClass of this.#classes) {
      if (sizeClass === undefined) continue;
      for (const buffer of sizeClass.free.splice(0, sizeClass.lowWater)) this.#freeBytes -= buffer.capacity;
      sizeClass.lowWater = sizeClass.free.length;
    }
    if (this.#freeBytes === 0 && this.#timer !== null) {
      clearInterval(this.#timer);
      this.#timer = null;
    }
  }

  /** Bytes of payload kept for reuse. */
  get freeBytes(): number {
    return this.#freeBytes;
  }

  /** Lets go of everything. */
  clear(): void {
    this.#classes.length = 0;
    this.#freeBytes = 0;
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
  }
}
