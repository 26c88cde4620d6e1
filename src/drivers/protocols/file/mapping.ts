/**
 * A file as memory that only the kernel reads: large reads go from it straight into a socket.
 *
 * No code of this process touches the mapped pages, so a file that shrinks or a bad block makes sendmsg fail with EFAULT
 * and raises no signal. What is not in the page cache is not offered: the kernel would wait for the disk in the middle of
 * sendmsg. The file is mapped in windows, of which the oldest goes when there are many: a large file would fill memory
 * with page tables.
 *
 * mincore(2) tells the truth about pages only to those who own the file or may write to it, and "all there" to others.
 */

import { fstatSync } from 'node:fs';
import { isResident, mapForReading, unmapAt } from '../../../aio/loop/mapped-file.ts';

const WINDOW_BYTES = 128 * 1024 * 1024;
const MAX_WINDOWS = 32;
/** The kernel looked for the pages in vain: so many times nobody looks again. */
const READS_AFTER_MISS = 8;

export class FileMapping {
  readonly #fd: number;
  /** Address by number of the window, oldest first. */
  readonly #windows = new Map<number, number>();
  #isRefused: boolean;
  #skip = 0;

  /** `isWritable`: the descriptor is open for writing. */
  constructor(fd: number, isWritable: boolean) {
    this.#fd = fd;
    this.#isRefused = !isWritable && fstatSync(fd).uid !== process.geteuid?.();
  }

  /** Address of the bytes if all of them are in the page cache; null: not at present. Good for the rest of this turn. */
  find(offset: number, bytes: number): number | null {
    if (this.#isRefused) return null;
    if (this.#skip > 0) {
      this.#skip--;
      return null;
    }
    const number = Math.floor(offset / WINDOW_BYTES);
    const at = offset - number * WINDOW_BYTES;
    if (at + bytes > WINDOW_BYTES) return null;
    const window = this.#windows.get(number) ?? this.#map(number);
    if (window === null) return null;
    if (isResident(window + at, bytes)) return window + at;
    this.#skip = READS_AFTER_MISS;
    return null;
  }

  #map(number: number): number | null {
    const addr = mapForReading(this.#fd, WINDOW_BYTES, number * WINDOW_BYTES);
    if (addr === null) {
      this.#isRefused = true;
      return null;
    }
    if (this.#windows.size >= MAX_WINDOWS) {
      const [oldest] = this.#windows.entries();
      if (oldest !== undefined) {
        unmapAt(oldest[1], WINDOW_BYTES);
        this.#windows.delete(oldest[0]);
      }
    }
    this.#windows.set(number, addr);
    return addr;
  }

  /** Gives all windows back; the descriptor means another file from now on, or none. */
  close(): void {
    for (const addr of this.#windows.values()) unmapAt(addr, WINDOW_BYTES);
    this.#windows.clear();
    this.#isRefused = true;
  }
}
