/**
 * Files of options in groups, as blkdebug reads its rules from:
 *
 *   # comment
 *   [GROUP]  or  [GROUP "ID"]
 *     KEY = "VALUE"
 *
 * Here: lines to groups of typed values, with the original's limits and error texts. What the groups mean is not known
 * here.
 * Source of the facts: QEMU documentation, "blkdebug"; its behaviour.
 */

import { BlockError } from '../../../errors/error.ts';

export type ValueType = 'string' | 'number' | 'boolean';
export type ConfigValue = string | number | boolean;

/** Keys of a group and the types of their values. */
export type GroupDefinition = Readonly<Record<string, ValueType>>;

export interface ConfigGroup {
  readonly name: string;
  readonly values: Readonly<Record<string, ConfigValue>>;
}

/** Longest piece of a line that is looked at in one go; what is longer counts as several lines. */
const LINE_BYTES = 1023;
const ID_HINT = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.";
const BOOLEANS: Readonly<Record<string, boolean>> = {
  ...{ on: true, yes: true, true: true, y: true },
  ...{ off: false, no: false, false: false, n: false },
};

/** Reads the groups of a file in order. Throws on what is wrong first. */
export function parseConfig(
  text: string,
  definitions: Readonly<Record<string, GroupDefinition>>,
): ConfigGroup[] {
  const groups: { name: string; id: string | null; values: Record<string, ConfigValue> }[] = [];
  for (const line of lines(text)) {
    if (line === '' || line.startsWith('#')) continue;
    const header = /^\[([^\]"\n]{1,63})(?:"([^"]{1,63}))?/.exec(line);
    if (header !== null) {
      const [, given = '', id = null] = header;
      // A blank stands between the name and its identifier.
      const name = id === null ? given : given.replace(/ $/, '');
      if (!Object.hasOwn(definitions, name)) throw new BlockError(`There is no option group '${name}'`);
      if (id !== null) checkId(id);
      if (id !== null && groups.some((group) => group.name === name && group.id === id))
        throw new BlockError(`Duplicate ID '${id}' for ${name}`);
      groups.push({ name, id, values: {} });
      continue;
    }
    const entry = /^\s*(\S{1,63})(?:\s*=\s*"([^"]{1,1023}))?/.exec(line);
    if (entry === null) throw new BlockError('parse error');
    const group = groups.at(-1);
    if (group === undefined) throw new BlockError('no group defined');
    const [, key = '', value = ''] = entry;
    if (key === 'id') continue;
    const type = Object.hasOwn(definitions[group.name]!, key) ? definitions[group.name]![key] : undefined;
    if (type === undefined) throw new BlockError(`Invalid parameter '${key}'`);
    group.values[key] = typedValue(key, value, type);
  }
  return groups;
}

function lines(text: string): string[] {
  return text
    .split('\n')
    .flatMap((line) => (line.length <= LINE_BYTES ? [line] : (line.match(/[^\n]{1,1023}/g) ?? [])));
}

function checkId(id: string): void {
  if (/^[A-Za-z][A-Za-z0-9._-]*$/.test(id)) return;
  throw new BlockError("Parameter 'id' expects an identifier", { hint: ID_HINT });
}

/** A value given as text in its type; throws when it is not one. */
export function typedValue(key: string, text: string, type: ValueType): ConfigValue {
  switch (type) {
    case 'string':
      return text;
    case 'boolean': {
      const value = Object.hasOwn(BOOLEANS, text) ? BOOLEANS[text] : undefined;
      if (value === undefined) throw new BlockError(`Parameter '${key}' expects 'on' or 'off'`);
      return value;
    }
    case 'number':
      return wholeNumber(key, text);
  }
}

/** As C reads it: sign, decimal, octal or hexadecimal, 64 bits. Negative numbers stay negative here. */
function wholeNumber(key: string, text: string): number {
  const match = /^\s*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9]\d*)$/.exec(text);
  if (match === null) throw new BlockError(`Parameter '${key}' expects a number`);
  const [, sign, digits = ''] = match;
  const value = BigInt(/^0\d/.test(digits) ? `0o${digits}` : digits);
  if (value >= 2n ** 64n) throw new BlockError(`Value '${text}' is too large for parameter '${key}'`);
  return Number(sign === '-' ? -value : value);
}
