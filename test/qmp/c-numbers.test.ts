/** Numbers as C prints them: generated values beside printf(1), which is C's. */

import { execFileSync } from 'node:child_process';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { fixed, general } from '../../src/qmp/c-numbers.ts';
import { humanSize } from '../../src/tools/common/size.ts';
import { missingPeer } from '../peers/requires.ts';

/** What python's C library prints for each value. */
function printed(format: string, values: readonly number[]): string[] {
  const script = 'import sys, json\nfor v in json.load(sys.stdin): print(sys.argv[1] % v)';
  const input = JSON.stringify(values);
  return execFileSync('python3', ['-c', script, format], { input, encoding: 'utf8' }).trimEnd().split('\n');
}

/** Numbers of every size, many of them ties. */
const numbers = fc.oneof(
  fc.double({ noNaN: true, noDefaultInfinity: true, min: -1e300, max: 1e300 }),
  fc.double({ noNaN: true, min: 0, max: 1e6 }),
  fc
    .tuple(fc.integer({ min: -1e6, max: 1e6 }), fc.integer({ min: -40, max: 60 }))
    .map(([m, e]) => m * 2 ** e),
  fc
    .tuple(fc.integer({ min: 0, max: 4096 }), fc.integer({ min: 1, max: 4096 }))
    .map(([a, b]) => (a * 100) / b),
  fc.integer({ min: 0, max: 1e6 }).map((m) => m / 16),
);

test('%.Nf and %.Ng of generated values', (context) => {
  if (missingPeer(['python3']) !== null) context.skip();
  // JSON has no -0.
  const values = fc.sample(numbers, { numRuns: 3000, seed: 1 }).map((value) => value || 0);
  for (const digits of [0, 1, 2, 3, 4]) {
    expect(values.map((value) => fixed(value, digits))).toEqual(printed(`%.${digits}f`, values));
  }
  for (const digits of [1, 2, 3, 6, 17]) {
    expect(values.map((value) => general(value, digits))).toEqual(printed(`%.${digits}g`, values));
  }
});

test('ties go to the even digit', () => {
  expect([fixed(3.125, 2), fixed(0.125, 2), fixed(2.5, 0), fixed(3.5, 0)]).toEqual([
    '3.12',
    '0.12',
    '2',
    '4',
  ]);
  expect([general(2.125, 3), general(1125, 3), general(999.5, 3), general(2 ** -25, 17)]).toEqual([
    '2.12',
    '1.12e+03',
    '1e+03',
    '2.9802322387695312e-08',
  ]);
  expect([humanSize(2176), humanSize(1000), humanSize(1023.5 * 1024), humanSize(0)]).toEqual([
    '2.12 KiB',
    '0.977 KiB',
    '1 MiB',
    '0 B',
  ]);
});
