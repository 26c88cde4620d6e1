/**
 * What the exports did from one look at their counters to the next: requests and bytes a second, latency. Kept for the
 * last minutes, for all exports together and for each.
 *
 * Here: arithmetic. Not here: asking the daemon (feed.ts), drawing (traffic/).
 */

import type { XBlockExportDetails } from '../../schema/generated/types.ts';

export interface Point {
  readonly timeS: number;
  readonly readBytes: number;
  readonly writtenBytes: number;
  readonly operations: number;
  /** Microseconds; null: there was no request. */
  readonly meanUs: number | null;
  readonly p99Us: number | null;
}

/** Counters of one export at one moment. */
interface Counters {
  readonly operations: number;
  readonly readBytes: number;
  readonly writtenBytes: number;
  readonly totalUs: number;
  readonly latency: readonly number[];
}

/** Points kept of each series: five minutes of one a second. */
export const KEPT_POINTS = 300;

export interface Traffic {
  /** Takes the counters of a moment. */
  add(timeMs: number, exports: readonly XBlockExportDetails[]): void;
  /** The series of an export; null: of all together. Oldest first. */
  points(exportId: string | null): readonly Point[];
}

const ALL = Symbol('all');

function countersOf({ requests }: XBlockExportDetails): Counters {
  const latency: number[] = [];
  let [operations, readBytes, writtenBytes, totalUs] = [0, 0, 0, 0];
  for (const request of requests) {
    operations += request.operations;
    totalUs += request['total-time-us'];
    if (request.kind === 'read') readBytes += request.bytes;
    if (request.kind === 'write') writtenBytes += request.bytes;
    for (const [bucket, count] of request['latency-histogram'].entries())
      latency[bucket] = (latency[bucket] ?? 0) + count;
  }
  return { operations, readBytes, writtenBytes, totalUs, latency };
}

/** The value below which that share of what is counted lies, taken to lie evenly within its bucket. */
export function quantile(
  counts: readonly number[],
  bordersUs: readonly number[],
  share: number,
): number | null {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (total <= 0) return null;
  let left = total * share;
  for (const [bucket, count] of counts.entries()) {
    if (count > 0 && left <= count) {
      const from = bucket === 0 ? 0 : (bordersUs[bucket - 1] ?? 0);
      const to = bordersUs[bucket] ?? from * 2;
      return from + (to - from) * (left / count);
    }
    left -= count;
  }
  return bordersUs.at(-1) ?? null;
}

/** What happened between two moments; both sides summed over exports. */
interface Change {
  operations: number;
  readBytes: number;
  writtenBytes: number;
  totalUs: number;
  readonly latency: number[];
}

const nothing = (): Change => ({ operations: 0, readBytes: 0, writtenBytes: 0, totalUs: 0, latency: [] });

function addChange(change: Change, before: Counters, after: Counters): void {
  change.operations += after.operations - before.operations;
  change.readBytes += after.readBytes - before.readBytes;
  change.writtenBytes += after.writtenBytes - before.writtenBytes;
  change.totalUs += after.totalUs - before.totalUs;
  for (const [bucket, count] of after.latency.entries())
    change.latency[bucket] = (change.latency[bucket] ?? 0) + count - (before.latency[bucket] ?? 0);
}

function pointOf(timeMs: number, seconds: number, change: Change, bordersUs: readonly number[]): Point {
  const { operations, readBytes, writtenBytes, totalUs, latency } = change;
  return {
    timeS: timeMs / 1000,
    readBytes: readBytes / seconds,
    writtenBytes: writtenBytes / seconds,
    operations: operations / seconds,
    meanUs: operations > 0 ? totalUs / operations : null,
    p99Us: quantile(latency, bordersUs, 0.99),
  };
}

export function createTraffic(): Traffic {
  const series = new Map<string | typeof ALL, Point[]>();
  let last: { readonly timeMs: number; readonly counters: ReadonlyMap<string, Counters> } | null = null;

  const push = (key: string | typeof ALL, point: Point): void => {
    const points = series.get(key) ?? [];
    points.push(point);
    if (points.length > KEPT_POINTS) points.shift();
    series.set(key, points);
  };

  return {
    add: (timeMs, exports) => {
      const counters = new Map(exports.map((exp) => [exp.id, countersOf(exp)]));
      const before = last;
      last = { timeMs, counters };
      for (const key of series.keys()) if (typeof key === 'string' && !counters.has(key)) series.delete(key);
      if (before === null || timeMs <= before.timeMs) return;
      const seconds = (timeMs - before.timeMs) / 1000;
      const borders = exports[0]?.['latency-borders-us'] ?? [];
      const all = nothing();
      for (const [id, after] of counters) {
        const old = before.counters.get(id);
        // Made since, or made again under the same name: there is nothing to compare with.
        if (old === undefined || after.operations < old.operations) continue;
        const one = nothing();
        addChange(one, old, after);
        addChange(all, old, after);
        push(id, pointOf(timeMs, seconds, one, borders));
      }
      push(ALL, pointOf(timeMs, seconds, all, borders));
    },
    points: (exportId) => series.get(exportId ?? ALL) ?? [],
  };
}
