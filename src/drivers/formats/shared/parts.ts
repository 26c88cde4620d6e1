/** Requests part by part: several parts of one at the same time. */

/** The parts of one request that are under way. */
export interface Parts {
  readonly max: number;
  readonly pending: Set<Promise<void>>;
  /** The first that went wrong; no more are begun then. */
  failure: { readonly error: unknown } | null;
}

/** One more part is under way. Resolves when the next may be begun. */
export async function addPart(parts: Parts, part: Promise<void>): Promise<void> {
  const { pending } = parts;
  const settled: Promise<void> = part
    .catch((error: unknown) => {
      parts.failure ??= { error };
    })
    .finally(() => pending.delete(settled));
  pending.add(settled);
  if (pending.size >= parts.max) await Promise.race(pending);
}

/**
 * Begins parts one after another, `max` at the same time, until `next` says there are none left; throws what went wrong
 * when all have ended.
 */
export async function runParts(max: number, next: (parts: Parts) => Promise<boolean>): Promise<void> {
  const parts: Parts = { max, pending: new Set(), failure: null };
  try {
    while (parts.failure === null && (await next(parts))) {
      // Until there is nothing left to begin.
    }
  } catch (error) {
    parts.failure ??= { error };
  }
  // The buffers belong to the caller again when we return: nothing may still be using them.
  await Promise.all(parts.pending);
  if (parts.failure !== null) throw parts.failure.error;
}
