/** What counting the data of a conversion has found out about the sources, kept for the copying. */

/** Runs that are kept. */
const MAX_RUNS = 100_000;

/** Where extents of one kind, one behind the other, end. */
interface Run<K> {
  end: number;
  readonly kind: K;
}

/** Runs from the start on. Is filled in order, and asked in order. */
export class KnownRuns<K> {
  readonly #joins: boolean;
  readonly #runs: Run<K>[] = [];
  /** The run that was looked at last. */
  #index = 0;
  #isOpen = true;

  /** `joins`: extents of one kind become one run. */
  constructor(joins: boolean) {
    this.#joins = joins;
  }

  /** The next run ends at `end`. */
  add(end: number, kind: K): void {
    if (!this.#isOpen) return;
    const last = this.#runs.at(-1);
    if (this.#joins && last?.kind === kind) last.end = end;
    else if (this.#runs.length < MAX_RUNS) this.#runs.push({ end, kind });
    else this.#isOpen = false;
  }

  /** What comes now is not known: nothing is added any more. */
  stop(): void {
    this.#isOpen = false;
  }

  /** The run that holds `offset`, which only grows until the next rewind; null: not known. */
  at(offset: number): Readonly<Run<K>> | null {
    while (this.#index < this.#runs.length && this.#runs[this.#index]!.end <= offset) this.#index++;
    return this.#runs[this.#index] ?? null;
  }

  rewind(): void {
    this.#index = 0;
  }
}
