/**
 * Lines as they are typed in the shell: a command and its arguments as KEY=VALUE, with dots for what lies inside.
 *
 * Values are JSON where they look like it (also with single quotes, as QMP takes it), numbers, true and false, else text.
 * Quotes keep blanks together: key="a b" and key='a b' are the same text.
 */

export class LineError extends Error {}

/** Splits a line at blanks outside of quotes, brackets and braces. Quotes stay. */
export function splitLine(line: string): string[] {
  const words: string[] = [];
  let word = '';
  let quote = '';
  let depth = 0;
  for (let at = 0; at < line.length; at++) {
    const char = line[at]!;
    if (quote !== '') {
      word += char;
      if (char === '\\' && at + 1 < line.length) word += line[++at];
      else if (char === quote) quote = '';
    } else if (/\s/.test(char) && depth === 0) {
      if (word !== '') words.push(word);
      word = '';
    } else {
      word += char;
      if (char === '"' || char === "'") quote = char;
      else if (char === '{' || char === '[') depth++;
      else if (char === '}' || char === ']') depth--;
    }
  }
  if (quote !== '') throw new LineError(`No closing quotation: ${quote}`);
  if (depth > 0) throw new LineError('A bracket is not closed');
  if (word !== '') words.push(word);
  return words;
}

/** JSON with single quotes made JSON with double ones. */
function doubleQuotes(text: string): string {
  return text.replace(/'((?:\\.|[^'\\])*)'|"(?:\\.|[^"\\])*"/g, (whole, single?: string) =>
    single === undefined ? whole : `"${single.replace(/\\'/g, "'").replace(/"/g, '\\"')}"`,
  );
}

/** The value behind "=". */
export function parseValue(text: string): unknown {
  if (/^[[{]/.test(text)) {
    try {
      return JSON.parse(doubleQuotes(text));
    } catch {
      throw new LineError(`Not JSON: ${text}`);
    }
  }
  if (text === 'true' || text === 'false') return text === 'true';
  if (text === 'null') return null;
  if (/^-?\d+$/.test(text)) return Number(text);
  return text.replace(
    /"((?:\\.|[^"\\])*)"|'((?:\\.|[^'\\])*)'/g,
    (_whole, double?: string, single?: string) => (double ?? single ?? '').replace(/\\(.)/g, '$1'),
  );
}

/** "a.b.c" and a value put into an object; throws where something else stands there already. */
function put(target: Record<string, unknown>, key: string, value: unknown): void {
  const names = key.split('.');
  let at = target;
  for (const name of names.slice(0, -1)) {
    const next = at[name] ?? {};
    if (typeof next !== 'object' || next === null || Array.isArray(next))
      throw new LineError(`Cannot use "${key}": "${name}" is a value already`);
    at[name] = next;
    at = next as Record<string, unknown>;
  }
  const last = names.at(-1)!;
  const there = at[last];
  if (typeof there === 'object' && there !== null && typeof value === 'object' && value !== null)
    Object.assign(there, value);
  else if (there !== undefined) throw new LineError(`Cannot set "${key}" multiple times`);
  else at[last] = value;
}

export interface TypedCommand {
  readonly name: string;
  readonly args: Readonly<Record<string, unknown>>;
}

/** A command with its arguments; null: an empty line or a comment. A whole JSON command is one too. */
export function parseLine(line: string): TypedCommand | null {
  const trimmed = line.trim();
  if (trimmed === '' || trimmed.startsWith('#')) return null;
  if (trimmed.startsWith('{')) {
    const { execute, arguments: args = {} } = parseValue(trimmed) as {
      execute?: unknown;
      arguments?: Record<string, unknown>;
    };
    if (typeof execute !== 'string') throw new LineError("A JSON command has a member 'execute'");
    return { name: execute, args };
  }
  const [name = '', ...words] = splitLine(trimmed);
  const args: Record<string, unknown> = {};
  for (const word of words) {
    const equals = word.indexOf('=');
    if (equals <= 0) throw new LineError(`Expected a key=value pair, got '${word}'`);
    put(args, word.slice(0, equals), parseValue(word.slice(equals + 1)));
  }
  return { name, args };
}
