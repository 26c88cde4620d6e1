/** Events as async iterators: every iterator has its own queue, which is bounded. */

import type { Events } from '../schema/generated/types.ts';

/** An event as it arrives; `name` tells the type of `data`. */
export type QmpEvent<K extends keyof Events = keyof Events> = {
  [N in K]: { readonly name: N; readonly data: Events[N]; readonly timeMs: number };
}[K];

/** What iterators that ask for it get beside events: the connection came back, and events may have been missed. */
export interface Reconnected {
  readonly name: 'reconnected';
}

/** An iterator that nobody reads may hold this many events; then it ends with an error. */
const MAX_QUEUED = 65_536;

interface Listener {
  readonly push: (event: QmpEvent | Reconnected) => void;
  readonly end: (error: Error | null) => void;
}

export interface EventHub {
  emit(event: QmpEvent | Reconnected): void;
  /** Ends every iterator; with an error where there is one. */
  end(error: Error | null): void;
  /** Events of these names from now on (not from the first `next`); empty: all. */
  listen<K extends keyof Events>(
    names: readonly K[],
    options: { readonly signal?: AbortSignal | undefined; readonly reconnects?: boolean },
  ): AsyncIterableIterator<QmpEvent<K> | Reconnected>;
}

export function createEventHub(): EventHub {
  const listeners = new Set<Listener>();
  return {
    emit: (event) => {
      for (const listener of listeners) listener.push(event);
    },
    end: (error) => {
      for (const listener of [...listeners]) listener.end(error);
    },
    listen: <K extends keyof Events>(
      names: readonly K[],
      {
        signal,
        reconnects = false,
      }: { readonly signal?: AbortSignal | undefined; readonly reconnects?: boolean },
    ) => iterate<K>(listeners, names, signal, reconnects),
  };
}

function iterate<K extends keyof Events>(
  listeners: Set<Listener>,
  names: readonly K[],
  signal: AbortSignal | undefined,
  reconnects: boolean,
): AsyncIterableIterator<QmpEvent<K> | Reconnected> {
  type Item = QmpEvent<K> | Reconnected;
  type Waiter = {
    readonly resolve: (result: IteratorResult<Item, undefined>) => void;
    readonly reject: (error: unknown) => void;
  };
  let queue: Item[] = [];
  let waiters: Waiter[] = [];
  let ended: { readonly error: unknown } | null = null;
  const wanted: ReadonlySet<string> = new Set(names);

  const finish = (error: unknown): void => {
    if (ended !== null) return;
    ended = { error };
    listeners.delete(listener);
    signal?.removeEventListener('abort', abort);
    const left = waiters;
    waiters = [];
    for (const waiter of left) settle(waiter);
  };
  const settle = ({ resolve, reject }: Waiter): void => {
    const error = ended?.error ?? null;
    // An error is told once; afterwards the iterator is simply at its end.
    ended = { error: null };
    if (error === null) resolve({ done: true, value: undefined });
    else reject(error);
  };
  const abort = (): void => finish(signal?.reason);
  const listener: Listener = {
    push: (event) => {
      if (event.name === 'reconnected' ? !reconnects : wanted.size > 0 && !wanted.has(event.name)) return;
      const item = event as Item;
      const waiter = waiters.shift();
      if (waiter !== undefined) waiter.resolve({ done: false, value: item });
      else if (queue.length < MAX_QUEUED) queue.push(item);
      else {
        queue = [];
        finish(new Error(`More than ${MAX_QUEUED} events were not read`));
      }
    },
    end: finish,
  };
  listeners.add(listener);
  if (signal?.aborted === true) abort();
  else signal?.addEventListener('abort', abort, { once: true });

  return {
    [Symbol.asyncIterator]() {
      return this;
    },
    next: () =>
      new Promise((resolve, reject) => {
        const item = queue.shift();
        if (item !== undefined) resolve({ done: false, value: item });
        else if (ended !== null) settle({ resolve, reject });
        else waiters.push({ resolve, reject });
      }),
    return: () => {
      queue = [];
      finish(null);
      return Promise.resolve({ done: true, value: undefined });
    },
  };
}
