/**
 * What an export has done: operations, bytes and failures by kind of request, and how long requests took.
 *
 * Latencies are counted in buckets of microseconds whose borders double: cheap to count, fine enough to tell a slow
 * disk from a slow client. Counting makes no garbage.
 */

export const REQUEST_KINDS = ['read', 'write', 'flush', 'discard', 'write-zeroes'] as const;
export type RequestKind = (typeof REQUEST_KINDS)[number];

/** Bucket 0 holds what took less than 1 us, bucket n less than 2^n us, the last one everything from 2^24 us (17 s) on. */
export const LATENCY_BUCKETS = 26;

/** Counters of one kind of request. */
export class RequestCounters {
  operations = 0;
  failed = 0;
  bytes = 0;
  totalUs = 0;
  readonly latency = new Float64Array(LATENCY_BUCKETS);

  /** A request has succeeded. */
  done(bytes: number, elapsedMs: number): void {
    const us = elapsedMs * 1000;
    this.operations++;
    this.bytes += bytes;
    this.totalUs += us;
    const bucket = bucketOf(us);
    this.latency[bucket] = this.latency[bucket]! + 1;
  }
}

function bucketOf(us: number): number {
  return us >= 2 ** (LATENCY_BUCKETS - 2) ? LATENCY_BUCKETS - 1 : 32 - Math.clz32(us);
}

/** Counters of an export, by kind of request. */
export type ExportStatistics = { readonly [K in RequestKind]: RequestCounters };

export function createStatistics(): ExportStatistics {
  return {
    read: new RequestCounters(),
    write: new RequestCounters(),
    flush: new RequestCounters(),
    discard: new RequestCounters(),
    'write-zeroes': new RequestCounters(),
  };
}

/** Upper borders of the buckets in microseconds, without the last, which has none. */
export function latencyBordersUs(): number[] {
  return Array.from({ length: LATENCY_BUCKETS - 1 }, (_, i) => 2 ** i);
}
