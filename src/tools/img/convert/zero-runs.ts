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
  const zeroEnd = sameUntil(data, 0, true, offset, alignmentBytes);
  if (zeroEnd > 0) return { bytes: zeroEnd, isData: false };
  const least = Math.min(leastBytes, total);
  for (let end = sameUntil(data, 0, false, offset, alignmentBytes); ; ) {
    const gapEnd = sameUntil(data, end, true, offset, alignmentBytes);
    // A gap at the very end is a run of its own, however short.
    if (gapEnd === total || gapEnd - end >= least) return { bytes: end, isData: true };
    end = sameUntil(data, gapEnd, false, offset, alignmentBytes);
  }
}

/** End of the blocks that are all zeroes, or all data, from `start` on. One plain loop: it sees every block of an image. */
function sameUntil(data: Buffer, start: number, zero: boolean, offset: number, alignment: number): number {
  const total = data.length;
  let at = start;
  let end = at + alignment - ((offset + at) % alignment);
  while (at < total) {
    if (end > total) end = total;
    // Most blocks with data show it at once.
    const seemsZero = data[at] === 0 && data[end - 1] === 0;
    if ((seemsZero && isZero(data.subarray(at, end))) !== zero) return at;
    at = end;
    end += alignment;
  }
  return total;
}

/** Whether data cut at multiples of `bytes` have the same runs as a whole. Null: no zeroes are looked for. */
export function mayCutAt(bytes: number, rules: ZeroRules | null): boolean {
  return rules === null || (rules.leastBytes <= rules.alignmentBytes && bytes % rules.alignmentBytes === 0);
}
