/**
 * How much to copy at once: as much as is done in a short time.
 *
 * A request of a size that takes next to no time is followed by larger ones, one that takes long by smaller ones: a
 * guest's write to a cluster that is being copied waits for the whole request, and so do pause, cancellation and a
 * change of speed.
 */

const QUICK_MS = 0.6;
const SLOW_MS = 8;
/** Smaller requests cost more than they save anybody from waiting. */
const MIN_BYTES = 256 * 1024;

export interface RequestSize {
  readonly min: number;
  readonly max: number;
  /** Size of the next request in bytes, a multiple of the cluster size. */
  bytes: number;
}

/** All sizes are rounded up to whole clusters. */
export function createRequestSize(clusterBytes: number, first: number, max: number): RequestSize {
  const whole = (bytes: number): number => Math.ceil(bytes / clusterBytes) * clusterBytes;
  return { min: whole(MIN_BYTES), max: whole(max), bytes: whole(first) };
}

/** Takes into account that a request of `bytes` took `ms` milliseconds. */
export function learn(size: RequestSize, bytes: number, ms: number): void {
  if (ms > SLOW_MS) size.bytes = Math.max(size.min, Math.ceil(size.bytes / 2 / size.min) * size.min);
  else if (ms < QUICK_MS && bytes >= size.bytes) size.bytes = Math.min(size.max, size.bytes * 2);
}
