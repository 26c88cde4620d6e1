/**
 * Whether bytes of a file are in the page cache, all of them: mincore(2) on a mapping that nobody ever touches.
 *
 * It is asked before pages of the file are lent to a socket, because sendfile(2) reads what is not there in the middle of
 * the call: the loop would wait for the disk, and a bad block would show when the head of the reply has gone out. Cheaper
 * ways say less: cachestat(2) counts pages that are still being read, or could not be.
 *
 * The file is mapped in windows, of which the oldest goes when there are many. mincore(2) tells the truth only to those
 * who own the file or may write to it, and "all there" to others.
 */

import { fstatSync } from 'node:fs';
import { isResident, mapUntouched, unmapAt } from '../../../aio/loop/mincore.ts';

const WINDOW_BYTES = 128 * 1024 * 1024;
const MAX_WINDOWS = 32;
/** The pages were looked for in vain: so many times nobody looks again. */
const READS_AFTER_MISS = 8;

export class Residency {
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

  /** Whether all of the bytes are in the page cache at this moment; false: some are not, or nobody knows. */
  has(offset: number, bytes: number): boolean {
    if (this.#isRefused) return false;
    if (this.#skip > 0) {
      this.#skip--;
      return false;
    }
    const number = Math.floor(offset / WINDOW_BYTES);
    const at = offset - number * WINDOW_BYTES;
    if (at + bytes > WINDOW_BYTES) return false;
    const window = this.#windows.get(number) ?? this.#map(number);
    if (window === null) return false;
    if (isResident(window + at, bytes)) return true;
    this.#skip = READS_AFTER_MISS;
    return false;
  }

  #map(number: number): number | null {
    const addr = mapUntouched(this.#fd, WINDOW_BYTES, number * WINDOW_BYTES);
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
