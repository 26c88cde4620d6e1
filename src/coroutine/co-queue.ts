/**
 * CoQueue: coroutines waiting in line for an event.
 *
 * First come, first served. The queue knows nothing of the condition waited for: a woken coroutine looks again.
 */

export class CoQueue {
  #waiting: (() => void)[] = [];

  get empty(): boolean {
    return this.#waiting.length === 0;
  }

  /** Waits until wakeNext or wakeAll reaches this coroutine. */
  wait(): Promise<void> {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  /** Wakes the longest waiting coroutine; false when nobody waits. */
  wakeNext(): boolean {
    const resolve = this.#waiting.shift();
    resolve?.();
    return resolve !== undefined;
  }

  /** Wakes everybody waiting now, in order; those who wait again are not woken twice. */
  wakeAll(): void {
    const batch = this.#waiting;
    if (batch.length === 0) return;
    this.#waiting = [];
    for (const resolve of batch) resolve();
  }
}
