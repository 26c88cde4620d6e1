/** A bounded number of things at a time, first come first served. Part of what network drivers share. */

export interface Slots {
  /** Runs `action` as soon as there is a free place. */
  run<T>(action: () => Promise<T>): Promise<T>;
  /** Places nobody uses or waits for. */
  readonly free: number;
}

export function createSlots(count: number): Slots {
  const waiting: (() => void)[] = [];
  let used = 0;
  const leave = (): void => {
    const next = waiting.shift();
    // The place goes over to who waited longest.
    if (next === undefined) used--;
    else next();
  };
  return {
    async run(action) {
      if (used < count) used++;
      else await new Promise<void>((resolve) => waiting.push(resolve));
      try {
        return await action();
      } finally {
        leave();
      }
    },
    get free() {
      return count - used;
    },
  };
}
