/** Arguments: the compiled validators and the visitor agree, and handlers get numbers they can use. */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { VALIDATORS } from '../../schema/generated/validators.js';
import { VISITOR_TYPES, type VisitorType } from '../../schema/generated/visitor-tables.ts';
import { JsonFloat, type JsonObject, type JsonValue } from '../../src/qmp/json-value.ts';
import {
  HELP_REQUESTED,
  longListOf,
  parseOption,
  validateArguments,
  validateInTurns,
  validateValue,
} from '../../src/qmp/validate.ts';
import { visit } from '../../src/qmp/visitor.ts';

type RootType = keyof typeof VALIDATORS;

/** Values that fit nothing in particular. */
const junk = fc.oneof(
  fc.constantFrom<unknown>(
    null,
    true,
    false,
    '',
    'raw',
    'inet',
    'x',
    [],
    {},
    new JsonFloat(1.5),
    new JsonFloat(3),
  ),
  fc.integer(),
  fc.bigInt({ min: -(2n ** 65n), max: 2n ** 65n }),
);

/** Values of a type, most of them right. */
function arbitrary(typeName: string, depth: number): fc.Arbitrary<unknown> {
  const right = rightValue(typeName, depth);
  return fc.oneof({ weight: 30, arbitrary: right }, { weight: 1, arbitrary: junk });
}

function rightValue(typeName: string, depth: number): fc.Arbitrary<unknown> {
  if (typeName.startsWith('[')) return fc.array(arbitrary(typeName.slice(1, -1), depth), { maxLength: 3 });
  switch (typeName) {
    case 'str':
      return fc.string({ maxLength: 4 });
    case 'bool':
      return fc.boolean();
    case 'null':
      return fc.constant(null);
    case 'any':
      return junk;
    case 'int64':
    case 'uint64':
    case 'uint8':
    case 'uint16':
    case 'uint32':
      return fc.oneof(
        fc.integer({ min: -2, max: 300 }),
        fc.constantFrom<unknown>(
          65535,
          65536,
          2 ** 32 - 1,
          2 ** 32,
          2n ** 63n - 1n,
          2n ** 63n,
          2n ** 64n - 1n,
          2n ** 64n,
        ),
        fc.constantFrom<unknown>(-(2n ** 63n), -(2n ** 63n) - 1n),
      );
    default: {
      const type = VISITOR_TYPES[typeName];
      if (type === undefined) throw new Error(`no type ${typeName}`);
      return namedValue(type, depth);
    }
  }
}

function namedValue(type: VisitorType, depth: number): fc.Arbitrary<unknown> {
  if (type.kind === 'enum') return fc.constantFrom(...type.values);
  if (type.kind === 'alternate') {
    const isDeep = (name: string): boolean => !['enum', undefined].includes(VISITOR_TYPES[name]?.kind);
    const choices = Object.values(type.choices).filter((name) => depth > 0 || !isDeep(name));
    return fc.oneof(...choices.map((name) => arbitrary(name, depth - 1)));
  }
  const { tag, branches, members } = type;
  if (tag === undefined || branches === undefined) return record(members, depth);
  return fc.constantFrom(...Object.keys(branches)).chain((value) => {
    const struct = VISITOR_TYPES[branches[value] ?? ''];
    const more = struct?.kind === 'object' ? struct.members : [];
    const common = members.filter(([name]) => name !== tag);
    return record([...common, ...more], depth).map((rest) => ({ [tag]: value, ...rest }));
  });
}

function record(
  members: readonly (readonly [string, string, 0 | 1])[],
  depth: number,
): fc.Arbitrary<Record<string, unknown>> {
  const model = Object.fromEntries(members.map(([name, type]) => [name, arbitrary(type, depth - 1)]));
  const extra = fc.oneof(
    { weight: 20, arbitrary: fc.constant({}) },
    { weight: 1, arbitrary: fc.constant({ zz: 1 }) },
  );
  const requiredKeys = members.filter(([, , optional]) => optional === 0).map(([name]) => name);
  const complete = fc.record(model, { requiredKeys });
  const holes = fc.record(model, { requiredKeys: [] });
  const values = fc.oneof({ weight: 30, arbitrary: complete }, { weight: 1, arbitrary: holes });
  return fc.tuple(values, extra).map(([value, more]) => ({ ...value, ...more }));
}

const accepts = (typeName: RootType, value: unknown): boolean => {
  try {
    visit(typeName, value, 'json');
    return true;
  } catch {
    return false;
  }
};

test.each(Object.keys(VALIDATORS) as RootType[])('validator and visitor agree on %s', (typeName) => {
  const verdicts = { accepted: 0, refused: 0 };
  fc.assert(
    fc.property(fc.oneof({ weight: 30, arbitrary: rightValue(typeName, 4) }, junk), (value) => {
      const accepted = accepts(typeName, value);
      expect(VALIDATORS[typeName](value)).toBe(accepted);
      verdicts[accepted ? 'accepted' : 'refused'] += 1;
    }),
    { numRuns: 400 },
  );
  expect(verdicts.accepted).toBeGreaterThan(20);
  expect(verdicts.refused).toBeGreaterThan(5);
});

describe('conversion', () => {
  test('integers beyond 2^53 become numbers', () => {
    const args = validateArguments('block_resize', { 'node-name': 'a', size: 2n ** 62n });
    expect(args).toEqual({ 'node-name': 'a', size: 2 ** 62 });
  });

  test('negative 64-bit unsigned integers wrap around, as in the original', () => {
    const args = validateArguments('blockdev-add', { driver: 'null-co', 'latency-ns': -1 });
    expect(args).toEqual({ driver: 'null-co', 'latency-ns': 2 ** 64 });
  });

  test('any values stay as they are', () => {
    const value = { path: '/a', property: 'b', value: [new JsonFloat(1.5), 2n ** 60n] };
    expect(validateArguments('qom-set', value)).toEqual(value);
  });

  test('a command without arguments takes none', () => {
    expect(validateArguments('query-block', undefined)).toEqual({});
    expect(() => validateArguments('query-block', { a: 1 })).toThrow("Parameter 'a' is unexpected");
  });

  test('members of Object.prototype are no members', () => {
    expect(() =>
      validateValue('BlockdevOptions', JSON.parse('{"driver":"null-co","constructor":1}')),
    ).toThrow("Parameter 'constructor' is unexpected");
    expect(() => validateValue('BlockdevOptions', Object.create(null))).toThrow(
      "Parameter 'driver' is missing",
    );
  });
});

describe('command line options', () => {
  test('keyval and JSON give the same', () => {
    const keyval = parseOption(
      'BlockdevOptions',
      'raw,node-name=a,file.driver=null-co,file.size=0x10',
      'driver',
    );
    const json = parseOption(
      'BlockdevOptions',
      "{'driver':'raw','node-name':'a','file':{'driver':'null-co','size':16}}",
      'driver',
    );
    expect(keyval).toEqual(json);
    expect(json).toEqual({ driver: 'raw', 'node-name': 'a', file: { driver: 'null-co', size: 16 } });
  });

  test('help is told apart', () => {
    expect(parseOption('ObjectOptions', 'secret,help', 'qom-type')).toBe(HELP_REQUESTED);
    expect(parseOption('ObjectOptions', '?', 'qom-type')).toBe(HELP_REQUESTED);
  });
});

describe('long lists, in turns', () => {
  const actions = (count: number): JsonValue[] =>
    Array.from({ length: count }, (_, i) => ({
      type: 'block-dirty-bitmap-add',
      // Negative: to be converted, as an unsigned integer.
      data: { node: 'n', name: `b${i}`, granularity: i % 2 === 0 ? 512 : -1 },
    }));

  async function compare(args: JsonObject): Promise<void> {
    const name = longListOf(args);
    expect(name).toBe('actions');
    let expected: unknown;
    let text = '';
    try {
      expected = validateArguments('transaction', args);
    } catch (error) {
      text = (error as Error).message;
    }
    const result = validateInTurns('transaction', args, name!);
    if (text === '') expect(await result).toEqual(expected);
    else await expect(result).rejects.toThrow(text);
  }

  test('what is right is converted alike', async () => {
    await compare({ actions: actions(2500) });
    await compare({ actions: actions(1001), properties: { 'completion-mode': 'grouped' } });
  });

  test('what is wrong is told alike, with its place', async () => {
    for (const at of [0, 999, 1000, 2345, 2499])
      for (const wrong of [
        5,
        { type: 'abort' },
        { type: 'block-dirty-bitmap-add', data: { node: 1, name: 'x' } },
      ]) {
        const list = actions(2500);
        list[at] = wrong as JsonValue;
        await compare({ actions: list });
      }
    await compare({ actions: actions(2500), more: 1 });
    await compare({ actions: actions(2500), properties: 1 });
  });

  test('an error late in the list goes before one of what comes behind the list', async () => {
    for (const at of [0, 2345])
      for (const others of [{ more: 1 }, { properties: { 'completion-mode': 'x' } }, { properties: [1] }]) {
        const list = actions(2500);
        list[at] = { type: 'nothing' };
        await compare({ actions: list, ...others });
      }
  });

  test('what is short is not a long list', () => {
    expect(longListOf({ actions: actions(1000) })).toBeNull();
    expect(longListOf(undefined)).toBeNull();
  });
});
