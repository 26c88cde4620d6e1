/**
 * CoRwlock: many readers or one writer, fair (first come, first served).
 *
 * A waiting writer holds back readers that come after it. The read side without a writer in sight is a counter:
 * no allocation, no await. Never take the read side twice in one coroutine: as soon as a writer waits, the second
 * attempt waits for the writer and the writer for the first.
 */

import { assert } from '../errors/error.ts';

interface Waiter {
  readonly write: boolean;
  readonly wake: () => void;
}

/** How often a side had to wait, and for how long together. */
export interface WaitCounts {
  waits: number;
  waitedMs: number;
}

export class CoRwlock {
  readonly readWaits: WaitCounts = { waits: 0, waitedMs: 0 };
  readonly writeWaits: WaitCounts = { waits: 0, waitedMs: 0 };
  #readers = 0;
  #writing = false;
  #queue: Waiter[] = [];

  get readers(): number {
    return this.#readers;
  }

  get writing(): boolean {
    return this.#writing;
  }

  /** Takes the read side if that needs no waiting. */
  tryReadLock(): boolean {
    if (this.#writing || this.#queue.length > 0) return false;
    this.#readers++;
    return true;
  }

  async readLock(): Promise<void> {
    if (this.tryReadLock()) return;
    // The waker has counted us in before it wakes us.
    await waited(this.readWaits, new Promise<void>((wake) => this.#queue.push({ write: false, wake })));
  }

  /** How many wait for either side. */
  get waiting(): number {
    return this.#queue.length;
  }

  /**
   * Takes the read side for somebody who gave it up for a while and whom readers may be waiting for: ahead of writers
   * that wait for those readers.
   */
  async readLockFirst(): Promise<void> {
    if (!this.#writing) {
      this.#readers++;
      return;
    }
    await waited(this.readWaits, new Promise<void>((wake) => this.#queue.unshift({ write: false, wake })));
  }

  /** Another hold of the read side, by somebody who holds it already: no writer can come in between. */
  shareReadLock(): void {
    assert(this.#readers > 0, 'read side shared without a reader');
    this.#readers++;
  }

  readUnlock(): void {
    assert(this.#readers > 0, 'read unlock without a reader');
    this.#readers--;
    if (this.#readers === 0 && this.#queue.length > 0) this.#admit();
  }

  async writeLock(): Promise<void> {
    if (!this.#writing && this.#readers === 0 && this.#queue.length === 0) {
      this.#writing = true;
      return;
    }
    await waited(this.writeWaits, new Promise<void>((wake) => this.#queue.push({ write: true, wake })));
  }

  writeUnlock(): void {
    assert(this.#writing, 'write unlock without a writer');
    this.#writing = false;
    this.#admit();
  }

  /** Lets in whoever is next: one writer, or every reader up to the next writer. */
  #admit(): void {
    while (this.#queue.length > 0) {
      const next = this.#queue[0]!;
      if (next.write) {
        if (this.#readers > 0) return;
        this.#queue.shift();
        this.#writing = true;
        next.wake();
        return;
      }
      this.#queue.shift();
      this.#readers++;
      next.wake();
    }
  }
}

async function waited(counts: WaitCounts, waiting: Promise<void>): Promise<void> {
  const startMs = performance.now();
  await waiting;
  counts.waits++;
  counts.waitedMs += performance.now() - startMs;
}
