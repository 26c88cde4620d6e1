/**
 * The older syntax of option arguments, which `--chardev` has: flat `key=value` pairs with typed keys. A key alone
 * means on, with "no" before it off; both are deprecated, and said to be. Error texts are those of
 * qemu-storage-daemon 7.2.
 */

import { BlockError } from '../../src/errors/error.ts';
import { identifierError, isIdentifier } from '../../src/objects/tree.ts';

export type OptionType = 'str' | 'bool' | 'num' | 'size';

const TYPE_TEXTS: Readonly<Record<OptionType, string>> = {
  str: 'str',
  bool: 'bool (on/off)',
  num: 'num',
  size: 'size',
};

export type OptionTypes = Readonly<Record<string, OptionType>>;

/** Values by key; where a key is given twice the last one counts. */
export interface ParsedOptions {
  readonly id: string | null;
  readonly values: ReadonlyMap<string, string | boolean | number>;
  /** `help` or `?` was among the pairs. */
  readonly help: boolean;
}

interface Pair {
  readonly key: string;
  readonly value: string;
}

/** Splits at single commas; ",," stands for a comma in a value. */
function splitPairs(text: string): string[] {
  const parts: string[] = [];
  let part = '';
  for (let at = 0; at < text.length; at++) {
    if (text[at] !== ',') part += text[at];
    else if (text[at + 1] === ',') {
      part += ',';
      at++;
    } else {
      parts.push(part);
      part = '';
    }
  }
  return part === '' ? parts : [...parts, part];
}

/** Reads a key without a value. */
function shortForm(name: string, warn: (text: string) => void): Pair {
  let pair: Pair = { key: name, value: 'on' };
  // "delay" is the one key that was renamed into its opposite.
  if (name === 'delay') pair = { key: 'nodelay', value: 'off' };
  else if (name.startsWith('no') && name !== 'nodelay') pair = { key: name.slice(2), value: 'off' };
  warn(
    `warning: short-form boolean option '${name}' deprecated\nPlease use ${pair.key}=${pair.value} instead`,
  );
  return pair;
}

const SIZE_UNITS = 'kMGTPE';

function parseSize(key: string, value: string): number {
  const match = /^(\d+(?:\.\d+)?|0x[0-9a-f]+)([bkmgtpe]?)$/i.exec(value);
  const [, digits = '', unit = ''] = match ?? [];
  const exponent = SIZE_UNITS.toLowerCase().indexOf(unit.toLowerCase()) + 1;
  const bytes = Number(digits) * 1024 ** (unit === '' ? 0 : exponent);
  if (match !== null && Number.isSafeInteger(bytes)) return bytes;
  throw new BlockError(`Parameter '${key}' expects a non-negative number below 2^64`, {
    hint: 'Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.',
  });
}

function convert(key: string, value: string, type: OptionType): string | boolean | number {
  switch (type) {
    case 'str':
      return value;
    case 'bool':
      if (value !== 'on' && value !== 'off') throw new BlockError(`Parameter '${key}' expects 'on' or 'off'`);
      return value === 'on';
    case 'num':
      if (!/^(\d+|0x[0-9a-f]+)$/i.test(value)) throw new BlockError(`Parameter '${key}' expects a number`);
      return Number(value);
    case 'size':
      return parseSize(key, value);
  }
}

/** Reads option text; `impliedKey` is the key of a first word without "=". `warn` is given warnings as they arise. */
export function parseOptions(
  text: string,
  types: OptionTypes,
  impliedKey: string,
  warn: (text: string) => void,
): ParsedOptions {
  const pairs: Pair[] = [];
  let help = false;
  for (const [index, part] of splitPairs(text).entries()) {
    const equals = part.indexOf('=');
    if (equals >= 0) pairs.push({ key: part.slice(0, equals), value: part.slice(equals + 1) });
    else if (part === 'help' || part === '?') help = true;
    else if (index === 0) pairs.push({ key: impliedKey, value: part });
    else pairs.push(shortForm(part, warn));
  }
  const id = pairs.find(({ key }) => key === 'id')?.value ?? null;
  if (id !== null && !isIdentifier(id)) throw identifierError();
  const values = new Map<string, string | boolean | number>();
  for (const { key, value } of pairs) {
    if (key === 'id') continue;
    const type = Object.hasOwn(types, key) ? types[key] : undefined;
    if (type === undefined) throw new BlockError(`Invalid parameter '${key}'`);
    values.set(key, convert(key, value, type));
  }
  return { id, values, help };
}

/** The list of keys that `help` prints. */
export function describeOptions(name: string, types: OptionTypes): string {
  const lines = Object.entries(types).map(([key, type]) => `  ${key}=<${TYPE_TEXTS[type]}>`);
  return `${name} options:\n${lines.sort().join('\n')}\n`;
}
