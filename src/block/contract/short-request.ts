/**
 * A request on the short way that has to wait for the disk: it ends by a plain call and not by a promise.
 *
 * tryPreadv and tryPwritev take one, or null for "now or not at all". Whoever passes it on to a child passes on its own
 * fate: what the child begins has begun for all above. What happens when it ends is src/block/io/short-io.ts.
 */

export interface ShortRequest {
  /** Set by the driver that has begun it; cleared at its end. */
  isWaiting: boolean;
  /** Bytes that the disk is expected to read or write; set with isWaiting. */
  expectedBytes: number;
  /** Ends it; for the engine: bytes, or -errno. Not all of expectedBytes: it has to be made again by the long way. */
  readonly completed: (result: number) => void;
}

/** Who counts requests, and how long they took. */
export interface RequestObserver {
  done(bytes: number, elapsedMs: number): void;
}

/** A short request as those who begin it see it. Reused: one at a time. */
export interface ObservedRequest extends ShortRequest {
  /** Told if it succeeds. */
  observer: RequestObserver | null;
  /** performance.now() of its beginning, for the observer. */
  startMs: number;
}
