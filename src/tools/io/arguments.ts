/** Reading the arguments of a command: options by letters, sizes, patterns. Mistakes are reported here. */

import { createGetopt, type OptionTable } from '../common/getopt.ts';
import { parseSize } from '../common/size.ts';
import { CommandFailed, type IoSession, UsageProblem } from './session.ts';

/** Longest request: what the original's request length can hold, in whole sectors. */
const MAX_REQUEST_BYTES = 2147483136;

export interface Arguments {
  /** Value of an option, '' for one without an argument; absent: not given. */
  readonly options: ReadonlyMap<string, string>;
  readonly operands: readonly string[];
}

/** Splits off the options; "P:" in `letters` means that P has an argument. */
export function readArguments(
  session: IoSession,
  command: string,
  words: readonly string[],
  letters: string,
): Arguments {
  const table: Record<string, { short: string; argument: boolean }> = {};
  for (const [, letter = '', colon] of letters.matchAll(/(\w)(:?)/g)) {
    table[letter] = { short: letter, argument: colon === ':' };
  }
  const getopt = createGetopt(words, table satisfies OptionTable, { program: command });
  const options = new Map<string, string>();
  for (let item = getopt.next(); item !== null; item = getopt.next()) {
    if (item.kind === 'error') {
      session.env.output.note(`${command}: ${item.message}\n`);
      throw new UsageProblem();
    }
    options.set(item.name, item.value);
  }
  return { options, operands: getopt.operands };
}

/** Prints a line and gives up. */
export function fail(session: IoSession, line: string): never {
  session.env.output.print(`${line}\n`);
  throw new CommandFailed();
}

/** A size with suffix. */
export function size(session: IoSession, text: string): number {
  const parsed = parseSize(text);
  if (parsed.kind === 'size' && parsed.bytes < 2n ** 63n) return Number(parsed.bytes);
  if (parsed.kind === 'invalid') {
    fail(session, `Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- ${text}`);
  }
  return fail(session, `Parsing error: argument too large -- ${text}`);
}

/** The length of a request. */
export function length(session: IoSession, text: string): number {
  const bytes = size(session, text);
  if (bytes > MAX_REQUEST_BYTES) fail(session, `length cannot exceed ${MAX_REQUEST_BYTES}, given ${text}`);
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

/** A byte value of a pattern. */
export function pattern(session: IoSession, text: string): number {
  const value = /^(0[xX][0-9a-fA-F]+|\d+)$/.test(text)
    ? Number(/^0\d/.test(text) ? `0o${text.slice(1)}` : text)
    : -1;
  if (!(value >= 0 && value <= 255)) fail(session, `${text} is not a valid pattern byte`);
  return value;
}
