/** Runs of zeroes in data: against a plain model, and the lengths that matter. */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { firstRun, type ZeroRules } from '../../src/tools/img/convert/zero-runs.ts';

/** The runs of the whole of `data`. */
function runsOf(data: Buffer, offset: number, rules: ZeroRules): { bytes: number; isData: boolean }[] {
  const runs: { bytes: number; isData: boolean }[] = [];
  for (let at = 0; at < data.length; ) {
    const run = firstRun(data.subarray(at), offset + at, rules);
    expect(run.bytes).toBeGreaterThan(0);
    runs.push(run);
    at += run.bytes;
  }
  return runs;
}

describe('zero runs', () => {
  const rules = { alignmentBytes: 4096, leastBytes: 4096 };

  test('data up to the end of its block, zeroes from there', () => {
    const data = Buffer.alloc(16384);
    data[5000] = 1;
    expect(runsOf(data, 0, rules)).toEqual([
      { bytes: 4096, isData: false },
      { bytes: 4096, isData: true },
      { bytes: 8192, isData: false },
    ]);
  });

  test('blocks lie at multiples of the alignment in the image, not in the data', () => {
    const data = Buffer.alloc(8192);
    data[600] = 1;
    expect(runsOf(data, 3584, rules)).toEqual([
      { bytes: 512, isData: false },
      { bytes: 4096, isData: true },
      { bytes: 3584, isData: false },
    ]);
  });

  test('short zeroes between data are data', () => {
    const data = Buffer.alloc(32768, 1);
    data.fill(0, 8192, 16384);
    expect(runsOf(data, 0, { alignmentBytes: 8192, leastBytes: 12288 })).toEqual([
      { bytes: 32768, isData: true },
    ]);
  });

  test('nothing but zeroes is left out', () => {
    const block = fc.integer({ min: 0, max: 3 });
    fc.assert(
      fc.property(fc.array(block, { minLength: 1, maxLength: 40 }), fc.nat(20), (pattern, skipped) => {
        const data = Buffer.concat(pattern.map((value) => Buffer.alloc(1536, value > 1 ? value : 0)));
        let at = 0;
        for (const { bytes, isData } of runsOf(data, skipped * 512, rules)) {
          if (!isData) expect(data.subarray(at, at + bytes).every((value) => value === 0)).toBe(true);
          at += bytes;
        }
        expect(at).toBe(data.length);
      }),
    );
  });
});
