/** Output: ASCII, separators, pretty form. The order of members is compared with the original in test/peers. */

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { printDouble, printJson, printJsonPretty } from '../../src/qmp/json-print.ts';
import { JsonFloat } from '../../src/qmp/json-value.ts';

test('separators and escapes', () => {
  expect(printJson([1, { a: null }, [], {}, true, 'x'])).toBe('[1, {"a": null}, [], {}, true, "x"]');
  expect(printJson('"\\/\b\f\n\r\t\u0001\u007fé€😀')).toBe(
    '"\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u007F\\u00E9\\u20AC\\uD83D\\uDE00"',
  );
});

test('a lone surrogate is no character', () => {
  expect(printJson('a\ud800b\udc00')).toBe('"a\\uFFFDb\\uFFFD"');
});

test('long strings with many escapes, pairs of surrogates across pieces', () => {
  for (const text of ['\u007f'.repeat(3_000_000), `a${'😀'.repeat(20_000)}`, '😀é"'.repeat(20_000)]) {
    expect(JSON.parse(printJson(text))).toBe(text);
  }
  expect(printJson(`\udc00\ud800a${'x'.repeat(20_000)}\ud800`)).toBe(
    `"\\uFFFD\\uFFFDa${'x'.repeat(20_000)}\\uFFFD"`,
  );
});

test('output is ASCII and means the same', () => {
  fc.assert(
    fc.property(fc.jsonValue(), (value) => {
      const text = printJson(value);
      expect(text).toMatch(/^[ -~]*$/);
      expect(JSON.parse(text)).toEqual(JSON.parse(JSON.stringify(value)));
      expect(JSON.parse(printJsonPretty(value))).toEqual(JSON.parse(text));
    }),
  );
});

test('integers keep all their digits', () => {
  expect(printJson([2n ** 64n - 1n, -(2n ** 63n), 2 ** 62, 0])).toBe(
    '[18446744073709551615, -9223372036854775808, 4611686018427387904, 0]',
  );
});

test('members that are undefined are left out', () => {
  expect(printJson({ a: undefined, b: 1 })).toBe('{"b": 1}');
});

test.each([
  [0.1, '0.10000000000000001'],
  [1e22, '1e+22'],
  [1e-7, '9.9999999999999995e-08'],
  [1e17, '1e+17'],
  [1e16, '10000000000000000'],
  [0.0001, '0.0001'],
  [123456789.12345679, '123456789.12345679'],
  [5e-324, '4.9406564584124654e-324'],
  [-0, '-0'],
  [Number.POSITIVE_INFINITY, '1e+999'],
])('%d is written as %s', (value, text) => {
  expect(printDouble(value)).toBe(text);
  expect(printJson(new JsonFloat(value))).toBe(text);
});

test('the pretty form', () => {
  expect(printJsonPretty({ return: { a: [1, []] } })).toBe(
    '{\r\n    "return": {\r\n        "a": [\r\n            1,\r\n            [\r\n            ]\r\n        ]\r\n    }\r\n}',
  );
  expect(printJsonPretty({})).toBe('{\r\n}');
});
