/**
 * Turns for others within long loops: work that waits for nothing but what is there at once never lets the event loop go
 * round by itself.
 */

/** Milliseconds of such work before others have a turn. */
const TURN_MS = 5;

/** Lets everybody else have a turn. */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}

export interface Turns {
  /** Awaited in each round of a loop: lets others have a turn when this one has lasted long enough. */
  next(): Promise<void> | undefined;
}

/** `turnMs`: how long the work may go on before others have a turn. */
export function createTurns(turnMs = TURN_MS): Turns {
  let ends = performance.now() + turnMs;
  return {
    next() {
      if (performance.now() < ends) return undefined;
      return new Promise((resolve) => {
        setImmediate(() => {
          ends = performance.now() + turnMs;
          resolve();
        });
      });
    },
  };
}

/** Carries out `work`, which yields between its steps, and lets others have a turn when it has lasted long enough. */
export async function inTurns<T>(work: Generator<unknown, T>, turnMs = TURN_MS): Promise<T> {
  const turns = createTurns(turnMs);
  for (;;) {
    const step = work.next();
    if (step.done === true) return step.value;
    await turns.next();
  }
}

/** Carries out `work` in one go. */
export function atOnce<T>(work: Generator<undefined, T>): T {
  for (;;) {
    const step = work.next();
    if (step.done === true) return step.value;
  }
}
