/** The JSON reader by itself: any split of the input gives the same items, limits hold, integers are exact. */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { JSON_LIMITS, type JsonItem, JsonReader, parseJsonText } from '../../src/qmp/json-parse.ts';
import { printJson } from '../../src/qmp/json-print.ts';
import { JsonFloat } from '../../src/qmp/json-value.ts';
import { isCharacter } from '../../src/qmp/utf8.ts';
import { FRAGMENTS } from '../peers/qmp-streams.ts';

/** All items that are in what was pushed, in as many slices as that takes. */
function readNow(reader: JsonReader): JsonItem[] {
  const items: JsonItem[] = [];
  for (;;) {
    const item = reader.next();
    if (item !== null) items.push(item);
    else if (!reader.busy) return items;
  }
}

/** All items that the pieces and the end of input yield. */
function readAll(pieces: readonly Uint8Array[]): readonly JsonItem[] {
  const reader = new JsonReader();
  const items: JsonItem[] = [];
  for (const piece of pieces) {
    reader.push(piece);
    items.push(...readNow(reader));
  }
  return [...items, ...reader.end()];
}

function bytesOneByOne(bytes: Uint8Array): readonly Uint8Array[] {
  return Array.from(bytes, (byte) => Uint8Array.of(byte));
}

const itemText = (items: readonly JsonItem[]): readonly string[] =>
  items.map((item) => ('error' in item ? item.error : printJson(item.value)));

test('a stream yields the same in one piece and byte by byte', () => {
  fc.assert(
    fc.property(fc.array(fc.constantFrom(...FRAGMENTS), { maxLength: 40 }), (fragments) => {
      const whole = Buffer.concat(fragments);
      expect(itemText(readAll(bytesOneByOne(whole)))).toEqual(itemText(readAll([whole])));
    }),
    { numRuns: 500 },
  );
});

test('any bytes at all give items, and the reader recovers', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
      const items = readAll([bytes, Buffer.from('\n\xff\n{"a":1}', 'latin1')]);
      expect(itemText(items).at(-1)).toBe('{"a": 1}');
    }),
    { numRuns: 500 },
  );
});

test('what JSON.stringify writes is read back', () => {
  fc.assert(
    fc.property(fc.jsonValue({ noUnicodeString: false }), (value) => {
      const text = JSON.stringify(value);
      // Code points that are no characters are refused, in keys and in strings.
      fc.pre([...text].every((char) => isCharacter(char.codePointAt(0) ?? 0)) && !/\\ud[89a-f]/.test(text));
      const plain = (item: unknown): unknown => {
        if (item instanceof JsonFloat) return item.value;
        if (Array.isArray(item)) return item.map(plain);
        if (typeof item !== 'object' || item === null) return typeof item === 'bigint' ? Number(item) : item;
        return Object.fromEntries(Object.entries(item).map(([name, member]) => [name, plain(member)]));
      };
      expect(plain(parseJsonText(text))).toEqual(JSON.parse(text, (_key, item) => (item === 0 ? 0 : item)));
    }),
  );
});

describe('numbers', () => {
  test.each([
    ['9007199254740991', 9007199254740991],
    ['9007199254740992', 9007199254740992n],
    ['18446744073709551615', 18446744073709551615n],
    ['-9223372036854775808', -9223372036854775808n],
    ['-0', 0],
  ])('%s is the integer %s', (text, value) => {
    expect(parseJsonText(text)).toBe(value);
  });

  test.each(['1.0', '1e0', '18446744073709551616', '-9223372036854775809', '-0.0'])(
    '%s is no integer',
    (text) => {
      expect(parseJsonText(text)).toBeInstanceOf(JsonFloat);
    },
  );

  test('a very long number costs no time', () => {
    expect(parseJsonText('9'.repeat(200_000))).toBeInstanceOf(JsonFloat);
  });
});

describe('texts from the command line', () => {
  test.each([
    ['{', 'JSON parse error, premature EOI'],
    ['{"a', "JSON parse error, stray '\"a'"],
    ['{"a":nul', "JSON parse error, invalid keyword 'nul'"],
    ['{"a":1', 'JSON parse error, premature EOI'],
    ['{"a":-', "JSON parse error, stray '-'"],
    ['{@,#}', "JSON parse error, stray '@'"],
    ['{}x', 'Expecting at most one JSON value'],
    ['{}{', 'Expecting at most one JSON value'],
    ['{}@', 'Expecting at most one JSON value'],
  ])('%s: %s', (text, message) => {
    expect(() => parseJsonText(text)).toThrow(message);
  });
});

describe('limits', () => {
  const piece = Buffer.alloc(1024 * 1024, 'a');

  /** Items that many pieces yield; `feed` is called with each in turn. */
  function readPieces(pieces: Iterable<Uint8Array>): {
    readonly items: readonly string[];
    readonly heapBytes: number;
  } {
    const reader = new JsonReader();
    const items: JsonItem[] = [];
    const before = process.memoryUsage();
    let highest = 0;
    for (const bytes of pieces) {
      reader.push(bytes);
      items.push(...readNow(reader));
      const now = process.memoryUsage();
      highest = Math.max(highest, now.heapUsed + now.external - before.heapUsed - before.external);
    }
    return { items: itemText(items), heapBytes: highest };
  }

  function* endlessString(bytes: number): Iterable<Uint8Array> {
    yield Buffer.from('"');
    for (let sent = 0; sent < bytes; sent += piece.length) yield piece;
    yield Buffer.from('"\n{"b":1}\n');
  }

  test('an endless string is given up at 64 MiB', () => {
    const { items, heapBytes } = readPieces(endlessString(2 * JSON_LIMITS.bytes));
    expect(items[0]).toBe('JSON token size limit exceeded');
    expect(items.length).toBeLessThan(10);
    expect(heapBytes).toBeLessThan(6 * JSON_LIMITS.bytes);
  });

  test('a message has 2 Mi tokens at most', () => {
    const ones = Buffer.from('1,'.repeat(512 * 1024));
    const { items } = readPieces([Buffer.from('['), ones, ones, Buffer.from('1'), Buffer.from(']')]);
    expect(items[0]).toBe('JSON token count limit exceeded');
    const below = readPieces([Buffer.from('['), ones, ones.subarray(0, -4), Buffer.from('1]')]);
    expect(below.items).toHaveLength(1);
    expect(below.items[0]?.slice(0, 10)).toBe('[1, 1, 1, ');
  });
});
