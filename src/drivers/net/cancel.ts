/**
 * Everything a node waits for outside, in one place: so that the end of the daemon, or a job that must end, can give it
 * all up at once. Part of what network drivers share.
 */

export interface CancelScope {
  /** Calls `cancel` when everything is given up; the result takes it out again. At once when the scope is closed. */
  add(cancel: () => void): () => void;
  /** Gives up what is waited for now; what comes later is waited for again. */
  cancelAll(): void;
  /** Gives everything up, now and from now on. */
  close(): void;
  readonly closed: boolean;
  /** Counts how often everything was given up: what began before must not go on. */
  readonly generation: number;
}

export function createCancelScope(): CancelScope {
  const waiting = new Set<() => void>();
  let closed = false;
  let generation = 0;
  const cancelAll = (): void => {
    generation++;
    for (const cancel of [...waiting]) cancel();
  };
  return {
    add(cancel) {
      if (closed) {
        cancel();
        return () => undefined;
      }
      waiting.add(cancel);
      return () => waiting.delete(cancel);
    },
    cancelAll,
    close() {
      closed = true;
      cancelAll();
    },
    get closed() {
      return closed;
    },
    get generation() {
      return generation;
    },
  };
}
