/**
 * CoMutex: mutual exclusion between coroutines, fair (first come, first served).
 *
 * The lock is handed over on release, so a coroutine that releases and takes again queues behind the waiters.
 * Release is idempotent per acquisition: the returned function does nothing the second time.
 */

import { CoQueue } from './co-queue.ts';

export type Release = () => void;

export class CoMutex {
  readonly #queue = new CoQueue();
  #holder: string | null = null;

  /** Who holds the lock, as named at acquisition; null when free. */
  get holder(): string | null {
    return this.#holder;
  }

  /** Takes the lock. `who` names the holder in debug output. */
  async lock(who: string): Promise<Release> {
    if (this.#holder === null) this.#holder = who;
    else {
      await this.#queue.wait();
      this.#holder = who;
    }
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      // Handed over: the next waiter owns the lock before it runs, so nobody can slip in between.
      if (!this.#queue.wakeNext()) this.#holder = null;
    };
  }

  /** Runs `section` under the lock. */
  async with<T>(who: string, section: () => Promise<T>): Promise<T> {
    const release = await this.lock(who);
    try {
      return await section();
    } finally {
      release();
    }
  }
}
