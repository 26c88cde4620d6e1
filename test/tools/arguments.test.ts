/** What the tools' command lines are read with: options, sizes, flat key=value lists. */

import { describe, expect, test } from 'vitest';
import { parseFlatOptions } from '../../src/tools/common/flat-options.ts';
import { createGetopt } from '../../src/tools/common/getopt.ts';
import { humanSize, parseSize } from '../../src/tools/common/size.ts';

const TABLE = {
  output: { long: 'output', argument: true },
  object: { long: 'object', argument: true },
  force: { long: 'force-share', short: 'U', argument: false },
  format: { short: 'f', argument: true },
} as const;

/** Everything that is read from `words`, in short. */
function read(words: string, stopAtOperand = false): string[] {
  const getopt = createGetopt(words.split(' '), TABLE, { program: 'tool', stopAtOperand });
  const seen: string[] = [];
  for (let item = getopt.next(); item !== null; item = getopt.next())
    seen.push(item.kind === 'error' ? `${item.message} (${item.word})` : `${item.name}=${item.value}`);
  return [...seen, `[${getopt.operands.join(' ')}]`];
}

describe('options', () => {
  test.each([
    ['a -Ufraw b --output=x', ['force=', 'format=raw', 'output=x', '[a b]']],
    ['-f raw --out json', ['format=raw', 'output=json', '[]']],
    ['-U -- -f', ['force=', '[-f]']],
    ['- --force', ['force=', '[-]']],
    ['--o x', ["option '--o' is ambiguous; possibilities: '--output' '--object' (--o)", '[x]']],
    ['--nope=1', ["unrecognized option '--nope' (--nope=1)", '[]']],
    ['--force=1', ["option '--force-share' doesn't allow an argument (--force=1)", '[]']],
    ['--output', ["option '--output' requires an argument (--output)", '[]']],
    ['-Uf', ['force=', "option requires an argument -- 'f' (-Uf)", '[]']],
    ['-x', ["invalid option -- 'x' (-x)", '[]']],
    ['-xU', ["invalid option -- 'x' (tool)", 'force=', '[]']],
    ['a -xU', ["invalid option -- 'x' (a)", 'force=', '[a]']],
  ])('%s', (words, expected) => {
    expect(read(words)).toEqual(expected);
  });

  test('the first operand may end them', () => {
    expect(read('-U a -f raw', true)).toEqual(['force=', '[a -f raw]']);
  });
});

describe('sizes', () => {
  test.each([
    ['0', 0n],
    [' +5', 5n],
    ['010', 10n],
    ['0x10', 16n],
    ['0x1e', 30n],
    ['1.7k', 1741n],
    ['1.3k', 1331n],
    ['1.0', 1n],
    ['1e', 2n ** 60n],
    ['1.99999999999999999999k', 1024n],
    ['18446744073709551615', 2n ** 64n - 1n],
  ])('%s', (text, bytes) => {
    expect(parseSize(text)).toEqual({ kind: 'size', bytes });
  });

  test.each(['', '-1', '1k ', '.5k', '1.5', '1kb', '1e3', '0x', '0x1.8k', 'inf', '9'.repeat(600)])(
    'not a size: %s',
    (text) => {
      expect(parseSize(text).kind).toBe('invalid');
    },
  );

  test('too large', () => {
    expect(parseSize('16E').kind).toBe('range');
    expect(parseSize('18446744073709551616').kind).toBe('range');
  });

  test.each([
    [0, '0 B'],
    [999, '999 B'],
    [1000, '0.977 KiB'],
    [9999360, '9.54 MiB'],
    [1023488, '1e+03 KiB'],
    [1072693248, '0.999 GiB'],
  ])('%d bytes for people', (bytes, text) => {
    expect(humanSize(bytes)).toBe(text);
  });
});

describe('flat options', () => {
  test('commas, implied key, short forms', () => {
    const warnings: string[] = [];
    const { pairs, help } = parseFlatOptions('x,,y,a=b,,c,nod,e,?', 'file', (text) => warnings.push(text));
    const plain = pairs.map(({ key, value }) => `${key}:${value}`);
    expect(plain).toEqual(['file:x,y', 'a:b,c', 'd:off', 'e:on']);
    expect(help).toBe(true);
    expect(warnings).toHaveLength(2);
  });
});
