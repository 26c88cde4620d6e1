/** The flat option syntax of --chardev, beyond what the comparison with the original covers. */

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { parseOptions } from '../../daemon/arguments/qemu-opts.ts';
import { BlockError } from '../../src/errors/error.ts';

const types = { kind: 'str', flag: 'bool', count: 'num', size: 'size', nodelay: 'bool' } as const;

function parse(text: string): { values: object; warnings: string[]; id: string | null } {
  const warnings: string[] = [];
  const { values, id } = parseOptions(text, types, 'kind', (warning) => warnings.push(warning));
  return { values: Object.fromEntries(values), warnings, id };
}

test.each<[string, object]>([
  ['', {}],
  ['a', { kind: 'a' }],
  ['kind=a,,b', { kind: 'a,b' }],
  ['kind=,,,flag=on', { kind: ',', flag: true }],
  ['kind=a,kind=b', { kind: 'b' }],
  ['count=12', { count: 12 }],
  ['count=0x10', { count: 16 }],
  ['size=1k', { size: 1024 }],
  ['size=1.5M', { size: 1572864 }],
  ['size=2b', { size: 2 }],
  ['flag=off,id=x', { flag: false }],
])('%j', (text, values) => {
  expect(parse(text)).toMatchObject({ values, warnings: [] });
});

test('keys without a value', () => {
  expect(parse('a,flag').values).toEqual({ kind: 'a', flag: true });
  expect(parse('a,noflag').values).toEqual({ kind: 'a', flag: false });
  expect(parse('a,nodelay').values).toEqual({ kind: 'a', nodelay: true });
  expect(parse('a,delay').values).toEqual({ kind: 'a', nodelay: false });
  expect(parse('a,flag').warnings).toEqual([
    "warning: short-form boolean option 'flag' deprecated\nPlease use flag=on instead",
  ]);
});

test('any text is read or refused', () => {
  const words = fc.constantFrom(
    'kind',
    'flag',
    'size',
    'id',
    '=',
    ',',
    ',,',
    'on',
    '5',
    'k',
    '?',
    'x',
    '__proto__',
  );
  fc.assert(
    fc.property(
      fc.array(words).map((parts) => parts.join('')),
      (text) => {
        try {
          parse(text);
        } catch (error) {
          expect(error).toBeInstanceOf(BlockError);
        }
      },
    ),
  );
});
