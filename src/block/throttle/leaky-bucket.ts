/**
 * Leaky buckets: how fast something may go on, and how much of it may come at once.
 *
 * Units (bytes or operations) are poured into a bucket when a request begins, and leak out at the limit's rate. While
 * more is in it than it holds, the next request waits; a single large request may overfill it. Without a burst limit a
 * bucket holds what leaks in a tenth of a second. With one it holds what the burst may pour in over its length; for
 * bursts longer than a second, a second, small bucket that leaks at the burst rate limits how fast that may be.
 * Source of the facts: QEMU documentation, "The QEMU throttling infrastructure"; behaviour of the original.
 *
 * Nothing here knows of time or requests: see throttle-group.ts.
 */

export interface LeakyBucket {
  /** Units a second; 0: no limit. */
  readonly rate: number;
  /** Units a second in bursts; 0: no bursts. */
  readonly burstRate: number;
  /** Longest burst at that rate. */
  readonly burstSeconds: number;
  /** Units in the bucket. */
  level: number;
  /** Units in the bucket that limits the burst rate; used when bursts are longer than a second. */
  burstLevel: number;
}

/** Part of a second whose units a bucket holds in any case: few requests at once need no waiting. */
const SLACK_SECONDS = 0.1;

export function createBucket(rate: number, burstRate: number, burstSeconds: number): LeakyBucket {
  return { rate, burstRate, burstSeconds, level: 0, burstLevel: 0 };
}

/** Lets units leak out for so many seconds. */
export function leak(bucket: LeakyBucket, seconds: number): void {
  bucket.level = Math.max(0, bucket.level - bucket.rate * seconds);
  if (bucket.burstSeconds > 1)
    bucket.burstLevel = Math.max(0, bucket.burstLevel - bucket.burstRate * seconds);
}

export function pour(bucket: LeakyBucket, units: number): void {
  if (bucket.rate === 0) return;
  bucket.level += units;
  if (bucket.burstSeconds > 1) bucket.burstLevel += units;
}

/** Seconds until the next request may begin; 0: at once. */
export function waitSeconds(bucket: LeakyBucket): number {
  const { rate, burstRate, burstSeconds } = bucket;
  if (rate === 0) return 0;
  const capacity = burstRate > 0 ? burstRate * burstSeconds : rate * SLACK_SECONDS;
  if (bucket.level > capacity) return (bucket.level - capacity) / rate;
  if (burstRate === 0 || burstSeconds <= 1) return 0;
  return Math.max(0, bucket.burstLevel - burstRate * SLACK_SECONDS) / burstRate;
}
