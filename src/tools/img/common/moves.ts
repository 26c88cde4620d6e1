/**
 * Moving data from one image to another that nobody else uses: what `commit` and `dd` have in common.
 *
 * What lies in the page cache is moved within the turn, piece behind piece through one buffer. Where something has to wait
 * for the disk or for new tables, several pieces are under way at once. How one is moved is the mover's
 * (block/copy/mover.ts).
 */

import { createTurns, type Turns } from '../../../aio/host/turns.ts';
import { createHoldOff, type HoldOff, holdOff, worked } from '../../../block/copy/hold-off.ts';
import {
  asksKernel,
  type CopyFailure,
  type Mover,
  moveExtent,
  moveInTurn,
  updateUseOfKernel,
} from '../../../block/copy/mover.ts';
import type { GraphLock } from '../../../block/graph/lock.ts';

/** Bytes of one piece, and pieces that may be under way at once. */
const PIECE_BYTES = 1024 * 1024;
const REQUESTS = 4;

/** Pieces that are moved by waiting, after one that had to wait. A new table makes one piece wait, a disk all of them. */
export function createWaiting(): HoldOff {
  return createHoldOff(1, 4096);
}

export class Moves {
  readonly #mover: Mover;
  readonly #graphLock: GraphLock;
  readonly #moved: (bytes: number) => void;
  readonly #turns: Turns = createTurns();
  readonly #running = new Set<Promise<void>>();
  #failure: CopyFailure | null = null;
  readonly #waiting = createWaiting();

  /** `moved` is told of every piece that is done. */
  constructor(mover: Mover, graphLock: GraphLock, moved: (bytes: number) => void) {
    this.#mover = mover;
    this.#graphLock = graphLock;
    this.#moved = moved;
  }

  /** What went wrong first; nothing more is moved then. */
  get failure(): CopyFailure | null {
    return this.#failure;
  }

  /** Moves [offset, offset+bytes), which is of that kind; returns when there is room for more. */
  async add(offset: number, bytes: number, kind: 'data' | 'zero'): Promise<void> {
    const end = offset + bytes;
    for (let at = offset; at < end && this.#failure === null; ) {
      if (kind === 'data' && this.#waiting.left === 0) at += await this.#moveInTurn(at, end - at);
      if (at === end) return;
      if (this.#waiting.left > 0) this.#waiting.left--;
      const length = kind === 'zero' ? end - at : Math.min(end - at, PIECE_BYTES);
      const request: Promise<void> = this.#move(at, length, kind).finally(() =>
        this.#running.delete(request),
      );
      this.#running.add(request);
      if (this.#running.size >= REQUESTS) await Promise.race(this.#running);
      at += length;
    }
  }

  /** Waits for all that is under way; what has failed, null: nothing. */
  async end(): Promise<CopyFailure | null> {
    await Promise.all(this.#running);
    return this.#failure;
  }

  /** Moves as much as nothing has to wait for, and returns how much that was. */
  async #moveInTurn(offset: number, bytes: number): Promise<number> {
    await Promise.all(this.#running);
    let done = 0;
    while (done < bytes && this.#failure === null) {
      const length = Math.min(bytes - done, PIECE_BYTES);
      const moved = await this.#graphLock.withRead(async (guard) => {
        updateUseOfKernel(this.#mover, guard);
        return asksKernel(this.#mover) ? 0 : moveInTurn(this.#mover, guard, offset + done, length);
      });
      done += moved;
      if (moved > 0) {
        worked(this.#waiting);
        this.#moved(moved);
      }
      if (moved < length) {
        holdOff(this.#waiting);
        break;
      }
      await this.#turns.next();
    }
    return done;
  }

  async #move(offset: number, bytes: number, kind: 'data' | 'zero'): Promise<void> {
    const failed = await this.#graphLock.withRead((guard) => {
      updateUseOfKernel(this.#mover, guard);
      return moveExtent(this.#mover, guard, offset, bytes, kind);
    });
    if (failed === null) this.#moved(bytes);
    else this.#failure ??= failed;
  }
}
