/**
 * The graph lock: who may look at edges, who may change them.
 *
 * Readers are I/O coroutines, writers are graph changes. Holding the lock is shown by a guard, a value that only
 * this module hands out; functions that need the lock take the guard as a parameter and pass it down. A writer may
 * read, so a write guard is a read guard too. A guard is never taken twice by one coroutine (see CoRwlock).
 *
 * The lock protects the edges. It does not stop I/O: that is drain.ts.
 */

import { CoRwlock, type WaitCounts } from '../../coroutine/co-rwlock.ts';
import type { GraphReadGuard, GraphWriteGuard } from '../contract/guard.ts';
import { asHolder, checkAlive, type DebugGuard, debuggingGraph } from './debug.ts';

// One immutable token per kind: a guard per request would be an allocation per request.
const READ_GUARD = Object.freeze({ kind: 'read' }) as unknown as GraphReadGuard;
const WRITE_GUARD = Object.freeze({ kind: 'write' }) as unknown as GraphWriteGuard;

/** In the debug mode each holder has a guard of its own, which ends with the lock. */
function readGuard(): GraphReadGuard {
  if (!debuggingGraph) return READ_GUARD;
  return { kind: 'read', alive: true } satisfies DebugGuard as unknown as GraphReadGuard;
}

function endGuard(guard: GraphReadGuard): void {
  checkAlive(guard, 'given back');
  (guard as unknown as DebugGuard).alive = false;
}

export class GraphLock {
  readonly #lock = new CoRwlock();

  /** Takes the read side without waiting; null when a writer holds the lock or waits for it. */
  tryRead(): GraphReadGuard | null {
    return this.#lock.tryReadLock() ? readGuard() : null;
  }

  /** Runs `section`, which ends within this turn, as a reader; null: a writer has the lock, or waits for it. */
  readNow<T>(section: (guard: GraphReadGuard) => Sync<T>): Sync<T> | null {
    const guard = this.tryRead();
    if (guard === null) return null;
    try {
      return debuggingGraph ? asHolder(guard, () => section(guard)) : section(guard);
    } finally {
      this.readDone(guard);
    }
  }

  async read(): Promise<GraphReadGuard> {
    await this.#lock.readLock();
    return readGuard();
  }

  /**
   * Runs `section` as a reader of its own, which may go on when the holder of `guard` is done. Begins at once: no
   * writer can come in between.
   */
  async detached<T>(guard: GraphReadGuard, section: (own: GraphReadGuard) => Promise<T>): Promise<T> {
    if (debuggingGraph) checkAlive(guard, 'shared');
    this.#lock.shareReadLock();
    const own = readGuard();
    try {
      return await (debuggingGraph ? asHolder(own, () => section(own)) : section(own));
    } finally {
      this.readDone(own);
    }
  }

  /** Ends a read section; the guard must not be used afterwards. */
  readDone(guard: GraphReadGuard): void {
    if (debuggingGraph) endGuard(guard);
    this.#lock.readUnlock();
  }

  /**
   * Gives the lock back while `wait` runs, for a request that waits for something other than I/O (its turn under a
   * throttling limit, a lost server). Without it one such request would hold up every graph change, and behind that
   * all other requests. The nodes the request is in count it as in flight, so a change of their edges waits for it all
   * the same (graph/change.ts); everything else may have changed afterwards.
   */
  async suspended<T>(guard: GraphReadGuard, wait: () => Promise<T>): Promise<T> {
    this.readDone(guard);
    try {
      return await wait();
    } finally {
      // Requests that hold the lock may be waiting for this one: not behind a writer that waits for them.
      await this.#lock.readLockFirst();
      if (debuggingGraph) (guard as unknown as DebugGuard).alive = true;
    }
  }

  /** Holders, those who wait, and how long others have waited; counted where somebody waits only. */
  get load(): {
    readonly readers: number;
    readonly waiting: number;
    readonly readWaits: Readonly<WaitCounts>;
    readonly writeWaits: Readonly<WaitCounts>;
  } {
    return this.#lock;
  }

  /** Whether a change is being made right now. */
  get writing(): boolean {
    return this.#lock.writing;
  }

  /** Runs `section` as a reader. */
  async withRead<T>(section: (guard: GraphReadGuard) => Promise<T>): Promise<T> {
    const guard = this.tryRead() ?? (await this.read());
    try {
      return await (debuggingGraph ? asHolder(guard, () => section(guard)) : section(guard));
    } finally {
      this.readDone(guard);
    }
  }

  /**
   * Runs `change` as the only one who may look at edges. Synchronous: a graph change that waits for anything while
   * it holds the lock would stall every request. Drain first, then change.
   */
  async withWrite<T>(change: (guard: GraphWriteGuard) => Sync<T>): Promise<T> {
    await this.#lock.writeLock();
    try {
      return change(WRITE_GUARD);
    } finally {
      this.#lock.writeUnlock();
    }
  }
}

type Sync<T> = T extends PromiseLike<unknown> ? never : T;
