/**
 * The driver's side of a split virtqueue, as a guest has it: puts requests into the available ring, takes them back
 * from the used ring.
 *
 * What the device writes is checked as a driver must: it may be another program.
 */

import { signalEventFd } from '../aio/descriptors.ts';
import type { IoMemory } from '../aio/memory.ts';
import {
  availableBytes,
  DESCRIPTOR_BYTES,
  DescriptorFlag,
  NO_NOTIFICATION,
  needsEvent,
  usedBytes,
} from './ring.ts';

/** A part of a request: memory at a guest address. */
export interface Part {
  readonly address: number;
  readonly length: number;
  /** The device writes to it. */
  readonly write: boolean;
}

/** Where a queue's parts are from its start; the whole takes `bytes`. */
export function queueLayout(size: number): {
  readonly available: number;
  readonly used: number;
  readonly bytes: number;
} {
  const available = size * DESCRIPTOR_BYTES;
  const used = Math.ceil((available + availableBytes(size)) / 4096) * 4096;
  return { available, used, bytes: Math.ceil((used + usedBytes(size)) / 4096) * 4096 };
}

export class DriverQueue {
  readonly size: number;
  /** Descriptors that are free: as many requests of that many parts fit. */
  readonly #free: number[];
  /** Per head how many descriptors its request has (0: not in the ring), and the one behind each: the device may write to the table. */
  readonly #lengths: Uint16Array;
  readonly #next: Uint16Array;
  readonly #descriptors: Uint32Array;
  readonly #available: Uint16Array;
  readonly #used16: Uint16Array;
  readonly #used32: Uint32Array;
  readonly #eventIndex: boolean;
  readonly kickFd: number;
  /** Entries written into the available ring, and those the device knows of. */
  #written = 0;
  #published = 0;
  #seen = 0;

  /** Over zeroed memory at `start` of `memory`, laid out as queueLayout says. */
  constructor(memory: IoMemory, start: number, size: number, eventIndex: boolean, kickFd: number) {
    const { available, used } = queueLayout(size);
    const { buffer, byteOffset } = memory.buf;
    const at = byteOffset + start;
    this.size = size;
    this.#descriptors = new Uint32Array(buffer, at, size * 4);
    this.#available = new Uint16Array(buffer, at + available, 3 + size);
    this.#used16 = new Uint16Array(buffer, at + used, 3 + 4 * size);
    this.#used32 = new Uint32Array(buffer, at + used, 1 + 2 * size);
    this.#free = Array.from({ length: size }, (_, i) => size - 1 - i);
    this.#lengths = new Uint16Array(size);
    this.#next = new Uint16Array(size);
    this.#eventIndex = eventIndex;
    this.kickFd = kickFd;
  }

  get freeDescriptors(): number {
    return this.#free.length;
  }

  get usedIndex(): number {
    return Atomics.load(this.#used16, 1);
  }

  /** Puts a request into the ring; returns its head. There must be room. The device learns of it by publish(). */
  put(parts: readonly Part[]): number {
    const table = this.#descriptors;
    let next = -1;
    for (let i = parts.length - 1; i >= 0; i--) {
      const { address, length, write } = parts[i]!;
      const index = this.#free.pop()!;
      table[index * 4] = address >>> 0;
      table[index * 4 + 1] = Math.floor(address / 4294967296);
      table[index * 4 + 2] = length;
      const flags = (write ? DescriptorFlag.write : 0) | (next >= 0 ? DescriptorFlag.next : 0);
      table[index * 4 + 3] = (flags | (Math.max(next, 0) << 16)) >>> 0;
      this.#next[index] = Math.max(next, 0);
      next = index;
    }
    this.#lengths[next] = parts.length;
    this.#available[2 + (this.#written & (this.size - 1))] = next;
    this.#written = (this.#written + 1) & 0xffff;
    return next;
  }

  /** Tells the device of all requests put, and kicks it if it wants to be. */
  publish(): void {
    const old = this.#published;
    const now = this.#written;
    if (old === now) return;
    Atomics.store(this.#available, 1, now);
    this.#published = now;
    const wanted = this.#eventIndex
      ? needsEvent(Atomics.load(this.#used16, 2 + 4 * this.size), now, old)
      : (Atomics.load(this.#used16, 0) & NO_NOTIFICATION) === 0;
    if (wanted) this.kick();
  }

  kick(): void {
    signalEventFd(this.kickFd);
  }

  /** Calls `done` for each request the device has given back; returns how many. Throws when the ring makes no sense. */
  reap(done: (head: number, written: number) => void): number {
    let count = 0;
    for (;;) {
      const waiting = (Atomics.load(this.#used16, 1) - this.#seen) & 0xffff;
      if (waiting === 0) return count;
      if (waiting > this.size) throw new Error('the used index is out of range');
      const at = 1 + 2 * (this.#seen & (this.size - 1));
      const head = this.#used32[at]!;
      const written = this.#used32[at + 1]!;
      this.#seen = (this.#seen + 1) & 0xffff;
      if (head >= this.size || this.#lengths[head] === 0) throw new Error(`unknown head ${head} given back`);
      this.#release(head);
      done(head, written);
      count++;
    }
  }

  /** The device is to notify of the next request given back. Whoever calls this reaps once more. */
  enableCalls(): void {
    if (this.#eventIndex) Atomics.store(this.#available, 2 + this.size, this.#seen);
    else Atomics.store(this.#available, 0, 0);
  }

  #release(head: number): void {
    let index = head;
    for (let left = this.#lengths[head]!; left > 0; left--) {
      this.#free.push(index);
      index = this.#next[index]!;
    }
    this.#lengths[head] = 0;
  }
}
