/**
 * What all clients of the process together may hold: requests and replies on their way, messages half received.
 *
 * Each connection has a limit of its own where it is served; this is the one above them all. A connection that wants
 * more than there is waits, and stops being read meanwhile; small requests of connections that hold nothing have a
 * reserve, so that nobody is shut out by others' greed. While somebody waits, connections that hold memory and have
 * taken nothing for half a minute are cut off. When much has been given back, it goes back to the system as well.
 */

import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { trimMemory } from '../ffi.ts';

/** For all clients together. */
export const CLIENT_MEMORY_BYTES = 512 * 1024 * 1024;
/** Beyond that, for the first request of a connection that is no larger than this. */
const RESERVE_BYTES = 128 * 1024 * 1024;
const SMALL_BYTES = 256 * 1024;

const LOOK_MS = 1000;
/** Looks without progress after which a connection is cut off for those that wait. */
const STALLED_LOOKS = 30;

/** From this much on it is worth while to give memory back, this long after it was let go. */
const WORTH_RETURNING_BYTES = 64 * 1024 * 1024;
const RETURN_AFTER_MS = 500;

/** A connection. */
export interface Holder {
  /** What it holds. */
  bytes: number;
  /** Counts up whenever it takes or completes something. */
  progress: number;
  readonly evict: () => void;
  /** Whether the peer has gone unnoticed, as while nobody reads. */
  readonly isGone: () => boolean;
}

interface Watched {
  progress: number;
  looks: number;
}

export class ClientMemory {
  heldBytes = 0;
  readonly #limitBytes: number;
  readonly #holders = new Map<Holder, Watched>();
  #waiting: (() => void)[] = [];
  #waking: NodeJS.Immediate | null = null;
  #timer: NodeJS.Timeout | null = null;
  #peakBytes = 0;
  #returning: NodeJS.Timeout | null = null;

  constructor(limitBytes = CLIENT_MEMORY_BYTES) {
    this.#limitBytes = limitBytes;
  }

  /** A connection begins; `evict` cuts it off. */
  open(evict: () => void, isGone = (): boolean => false): Holder {
    const holder: Holder = { bytes: 0, progress: 0, evict, isGone };
    this.#holders.set(holder, { progress: 0, looks: 0 });
    return holder;
  }

  /** The connection has gone, and what it held. */
  close(holder: Holder): void {
    this.#holders.delete(holder);
    this.remove(holder, holder.bytes);
  }

  /** Whether there is room for `bytes` more. `isFirst`: the connection holds nothing. */
  fits(bytes: number, isFirst: boolean): boolean {
    const after = this.heldBytes + bytes;
    if (after <= this.#limitBytes) return true;
    return isFirst && bytes <= SMALL_BYTES && after <= this.#limitBytes + RESERVE_BYTES;
  }

  add(holder: Holder, bytes: number): void {
    holder.bytes += bytes;
    this.heldBytes += bytes;
    if (this.heldBytes > this.#peakBytes) this.#peakBytes = this.heldBytes;
  }

  remove(holder: Holder, bytes: number): void {
    holder.bytes -= bytes;
    holder.progress++;
    this.heldBytes -= bytes;
    if (this.#waiting.length > 0) this.#wakeSoon();
    if (this.#peakBytes > WORTH_RETURNING_BYTES && this.heldBytes < this.#peakBytes / 4) this.#returnSoon();
  }

  /** Says what the connection holds now. Less than before: something is complete. */
  set(holder: Holder, bytes: number): void {
    const more = bytes - holder.bytes;
    if (more >= 0) this.add(holder, more);
    else this.remove(holder, -more);
  }

  /** Calls `wake` once when memory has been given back. */
  wait(wake: () => void): void {
    if (!this.#waiting.includes(wake)) this.#waiting.push(wake);
    this.#timer ??= setInterval(() => this.#look(), LOOK_MS).unref();
  }

  /** In a turn of their own: whoever gives back is in the middle of something. */
  #wakeSoon(): void {
    this.#waking ??= setImmediate(() => {
      this.#waking = null;
      const waiting = this.#waiting;
      this.#waiting = [];
      for (const wake of waiting) wake();
    });
  }

  /** Cuts off who holds memory and does nothing with it, while others wait. */
  #look(): void {
    if (this.#waiting.length === 0) {
      if (this.#timer !== null) clearInterval(this.#timer);
      this.#timer = null;
      for (const watched of this.#holders.values()) watched.looks = 0;
      return;
    }
    for (const [holder, watched] of this.#holders) {
      watched.looks = holder.bytes > 0 && watched.progress === holder.progress ? watched.looks + 1 : 0;
      watched.progress = holder.progress;
      if (watched.looks >= STALLED_LOOKS || (holder.bytes > 0 && holder.isGone())) holder.evict();
    }
  }

  /** Buffers are let go by a collection of garbage, which an idle process does not do by itself. */
  #returnSoon(): void {
    this.#returning ??= setTimeout(() => {
      this.#returning = null;
      this.#peakBytes = this.heldBytes;
      collectGarbage();
      trimMemory();
    }, RETURN_AFTER_MS).unref();
  }
}

function collectGarbage(): void {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as (() => void) | undefined;
  setFlagsFromString('--no-expose-gc');
  collect?.();
}

/** The memory of this process's clients. */
export const clientMemory = new ClientMemory();
