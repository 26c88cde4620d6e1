/** Reading the arguments of a command: options by letters, sizes, patterns. Mistakes are reported here. */

import { createGetopt, type OptionTable } from '../common/getopt.ts';
import { parseSize } from '../common/size.ts';
import { CommandFailed, type IoSession, UsageProblem } from './session.ts';

/** Longest request: what the original's request length can hold, in whole sectors. */
const MAX_REQUEST_BYTES = 2147483136;

export interface Arguments {
  /** Value of an option, '' for one without an argument; absent: not given. */
  readonly options: ReadonlyMap<string, string>;
  /** Byte given with -P; null: not given. */
  readonly pattern: number | null;
  readonly operands: readonly string[];
}

/**
 * Splits off the options; "P:" in `letters` means that P has an argument, which is a pattern, "l#" that l has one that is a
 * size: what is wrong with it is told before what is behind it is looked at. Nothing behind the option
 * `last` is looked at.
 */
export function readArguments(
  session: IoSession,
  command: string,
  words: readonly string[],
  letters: string,
  last: string | null = null,
): Arguments {
  const table: Record<string, { short: string; argument: boolean }> = {};
  for (const [, letter = '', colon] of letters.matchAll(/(\w)([:#]?)/g)) {
    table[letter] = { short: letter, argument: colon !== '' };
  }
  const getopt = createGetopt(words, table satisfies OptionTable, { program: command });
  const options = new Map<string, string>();
  let value: number | null = null;
  for (let item = getopt.next(); item !== null; item = getopt.next()) {
    if (item.kind === 'error') {
      // Commands have no long options: the second dash is taken for a letter.
      const isLong = item.message.startsWith('unrecognized option');
      session.env.output.note(`${command}: ${isLong ? "invalid option -- '-'" : item.message}\n`);
      throw new UsageProblem();
    }
    options.set(item.name, item.value);
    if (letters.includes(`${item.name}#`)) size(session, item.value);
    if (item.name === 'P') value = pattern(session, item.value);
    if (item.name === last) break;
  }
  return { options, pattern: value, operands: getopt.operands };
}

/** Prints a line and gives up. */
export function fail(session: IoSession, line: string): never {
  const { output } = session.env;
  if (output.errorFormat === 'json') output.error(line);
  else output.print(`${line}\n`);
  throw new CommandFailed();
}

/** A size with suffix. `shown` is what a message about it names. */
export function size(session: IoSession, text: string, shown = text): number {
  const parsed = parseSize(text);
  if (parsed.kind === 'size' && parsed.bytes < 2n ** 63n) {
    if (parsed.warning !== undefined) session.env.output.warn(parsed.warning);
    return Number(parsed.bytes);
  }
  if (parsed.kind === 'invalid') {
    fail(session, `Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- ${shown}`);
  }
  return fail(session, `Parsing error: argument too large -- ${shown}`);
}

/** The size that a text stands for which has been read as one. */
export function exactSize(text: string): bigint {
  const parsed = parseSize(text);
  return parsed.kind === 'size' ? parsed.bytes : 0n;
}

/** The length of a request. `unless` is what a message about one too long says of a way around. */
export function length(session: IoSession, text: string, unless = ''): number {
  const bytes = size(session, text);
  if (bytes > MAX_REQUEST_BYTES)
    fail(session, `length cannot exceed ${MAX_REQUEST_BYTES}${unless}, given ${text}`);
  return bytes;
}

/** Lengths of the parts of a vectored request; their sum is bounded too. */
export function lengths(session: IoSession, texts: readonly string[]): number[] {
  const parts: number[] = [];
  let total = 0;
  for (const text of texts) {
    const bytes = size(session, text);
    if (bytes > MAX_REQUEST_BYTES)
      fail(session, `Argument '${text}' exceeds maximum size ${MAX_REQUEST_BYTES}`);
    if (total > MAX_REQUEST_BYTES - bytes)
      fail(session, `The total number of bytes exceed the maximum size ${MAX_REQUEST_BYTES}`);
    total += bytes;
    parts.push(bytes);
  }
  return parts;
}

/** A whole number as C reads it: with a sign, decimal, octal or hexadecimal; null: not one. */
export function wholeNumber(text: string): number | null {
  const match = /^\s*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9]\d*)$/.exec(text);
  if (match === null) return null;
  const [, sign, digits = ''] = match;
  const value = Number(/^0\d/.test(digits) ? `0o${digits}` : digits);
  return sign === '-' ? -value : value;
}

/** A byte value of a pattern. */
function pattern(session: IoSession, text: string): number {
  const value = wholeNumber(text);
  if (value === null || value < 0 || value > 255) fail(session, `${text} is not a valid pattern byte`);
  return value;
}
