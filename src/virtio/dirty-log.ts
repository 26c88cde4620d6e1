/**
 * The log of guest memory a device has written to: what a front end needs to move a running guest to another host.
 *
 * One bit a page of guest memory, from address 0 on, in memory that the front end shares and clears. A page is marked
 * after it has been written to: a mark that was taken in between stands for the older content. Not here: what is
 * written, and when to mark it (device-queue.ts).
 *
 * Source of the facts: vhost-user protocol, "Migration".
 */

import { signalEventFd } from '../aio/descriptors.ts';
import type { IoMemory } from '../aio/memory.ts';

const PAGE_BYTES = 4096;

export class DirtyLog {
  /** Told of each change, if the front end wants that; -1: it looks by itself. */
  eventFd = -1;
  readonly #bits: Uint8Array;

  /** Over `bytes` bytes of shared memory from `start` on; they must stay mapped. */
  constructor({ buf }: IoMemory, start: number, bytes: number) {
    this.#bits = new Uint8Array(buf.buffer, buf.byteOffset + start, bytes);
  }

  /** Marks the pages of [address, address+length). What the log is too short for is the front end's loss. */
  mark(address: number, length: number): void {
    const bits = this.#bits;
    const last = Math.min(Math.floor((address + length - 1) / PAGE_BYTES), bits.length * 8 - 1);
    for (let page = Math.floor(address / PAGE_BYTES); page <= last; page++)
      Atomics.or(bits, Math.floor(page / 8), 1 << (page % 8));
  }

  /** What has been marked since the last call is to be looked at. */
  tell(): void {
    if (this.eventFd >= 0) signalEventFd(this.eventFd);
  }
}
