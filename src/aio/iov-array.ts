/** An array of struct iovec in memory that the kernel may read. */

import { allocateIoMemory, type IoMemory, type IoSegment } from './memory.ts';

const IOVEC_BYTES = 16;
const TWO_32 = 4294967296;

export class IovArray {
  readonly memory: IoMemory;
  readonly #words: Uint32Array;
  readonly #entries: number;

  constructor(entries: number) {
    this.memory = allocateIoMemory(entries * IOVEC_BYTES);
    this.#words = new Uint32Array(this.memory.buf.buffer, this.memory.buf.byteOffset, entries * 4);
    this.#entries = entries;
  }

  /** Fills in segments from `first` on, as many as fit; returns how many. */
  fill(segments: readonly IoSegment[], first: number): number {
    const count = Math.min(segments.length - first, this.#entries);
    const words = this.#words;
    for (let i = 0; i < count; i++) {
      const { mem, start, length } = segments[first + i]!;
      const addr = mem.addr + start;
      const at = i * 4;
      words[at] = addr >>> 0;
      words[at + 1] = addr / TWO_32;
      words[at + 2] = length;
      words[at + 3] = 0;
    }
    return count;
  }
}
