/** Percent-encoding in names, right and wrong. */

import { expect, test } from 'vitest';
import { percentDecoded } from '../../../src/drivers/net/percent.ts';

test('what is encoded as it should be is decoded, the rest means itself', () => {
  for (const [text, meant] of [
    ['a%20b', 'a b'],
    ['%C3%A9', 'é'],
    ['%zz%41', '%zzA'],
    ['100%', '100%'],
    ['%4', '%4'],
    ['%E9%41', '%E9%41'],
    ['%E9 %41', '%E9 A'],
    ['%%41', '%A'],
  ] as const)
    expect(percentDecoded(text), text).toBe(meant);
});
