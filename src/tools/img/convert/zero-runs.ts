/**
 * Runs of zeroes in data: what `convert` leaves out.
 *
 * Data is looked at in blocks that begin and end at multiples of an alignment (the first and the last may be cut
 * short). Blocks of zeroes one after another make a run; one shorter than the least length, between data, counts as
 * data, so that files do not get more holes than they are worth.
 */

import { isZero } from '../../../aio/memory.ts';

export interface ZeroRules {
  /** Bytes, a power of two. */
  readonly alignmentBytes: number;
  /** Bytes. */
  readonly leastBytes: number;
}

export interface DataRun {
  readonly bytes: number;
  readonly isData: boolean;
}

/** The run at the start of `data`, which lies at `offset` of the image. */
export function firstRun(data: Buffer, offset: number, { alignmentBytes, leastBytes }: ZeroRules): DataRun {
  const total = data.length;
  const blockEnd = (at: number): number =>
    Math.min(total, at + alignmentBytes - ((offset + at) % alignmentBytes));
  /** End of the blocks that are all zeroes, or all data, from `at` on. */
  const sameUntil = (at: number, zero: boolean): number => {
    let end = at;
    while (end < total && isZeroBlock(data, end, blockEnd(end)) === zero) end = blockEnd(end);
    return end;
  };
  const zeroEnd = sameUntil(0, true);
  if (zeroEnd > 0) return { bytes: zeroEnd, isData: false };
  const least = Math.min(leastBytes, total);
  for (let end = sameUntil(0, false); ; ) {
    const gapEnd = sameUntil(end, true);
    // A gap at the very end is a run of its own, however short.
    if (gapEnd === total || gapEnd - end >= least) return { bytes: end, isData: true };
    end = sameUntil(gapEnd, false);
  }
}

/** Whether data cut at multiples of `bytes` have the same runs as a whole. Null: no zeroes are looked for. */
export function mayCutAt(bytes: number, rules: ZeroRules | null): boolean {
  return rules === null || (rules.leastBytes <= rules.alignmentBytes && bytes % rules.alignmentBytes === 0);
}

function isZeroBlock(data: Buffer, start: number, end: number): boolean {
  // Most blocks with data show it at once.
  if (data[start] !== 0 || data[end - 1] !== 0) return false;
  return isZero(data.subarray(start, end));
}
