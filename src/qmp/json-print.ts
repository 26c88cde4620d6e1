/**
 * Writes JSON as the original does: ASCII only, ", " and ": " as separators, members in its order, and on request
 * one item a line with four spaces for each level (lines end in CRLF).
 */

import { writeOrder } from '../errors/member-order.ts';
import { general } from './c-numbers.ts';
import { JsonFloat } from './json-value.ts';

const SHORT_ESCAPES: Readonly<Record<string, string>> = {
  '"': '\\"',
  '\\': '\\\\',
  '\b': '\\b',
  '\f': '\\f',
  '\n': '\\n',
  '\r': '\\r',
  '\t': '\\t',
};

// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what must be escaped
const NEEDS_ESCAPE = /["\\\u0000-\u001f\u007f-\uffff]/;
// biome-ignore lint/suspicious/noControlCharactersInRegex: as above
const ESCAPED = /["\\\u0000-\u001f\u007f-\uffff]/g;

function escapeUnit(unit: string): string {
  return SHORT_ESCAPES[unit] ?? `\\u${unit.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}`;
}

function printString(text: string): string {
  if (!NEEDS_ESCAPE.test(text)) return `"${text}"`;
  if (text.length > PIECE) return `"${escapeLong(text)}"`;
  // A lone surrogate cannot come from a parsed message, but from a command's result: it is no character.
  return `"${text.replace(/\p{Surrogate}/gu, '\ufffd').replace(ESCAPED, escapeUnit)}"`;
}

/** Characters of a string that are escaped at once; an escape has six at most. */
const PIECE = 16 * 1024;

/**
 * Escapes a long string. A client may have an id of 64 MiB echoed that is all escapes: a regular expression takes
 * gigabytes and half a minute for that.
 */
function escapeLong(text: string): string {
  const pieces: string[] = [];
  for (let start = 0; start < text.length; start += PIECE) pieces.push(escapePiece(text, start));
  return pieces.join('');
}

const pieceOut = Buffer.allocUnsafe(6 * PIECE);

/** The PIECE characters from `start`, escaped. */
function escapePiece(text: string, start: number): string {
  const out = pieceOut;
  const end = Math.min(text.length, start + PIECE);
  let length = 0;
  for (let i = start; i < end; i++) {
    const unit = text.charCodeAt(i);
    if (unit >= 0x20 && unit < 0x7f && unit !== 0x22 && unit !== 0x5c) {
      out[length] = unit;
      length += 1;
    } else {
      length = writeEscape(out, length, isLoneSurrogate(text, i) ? 0xfffd : unit);
    }
  }
  return out.toString('latin1', 0, length);
}

const HEX_DIGITS = Buffer.from('0123456789ABCDEF', 'latin1');

/** Writes the escape of a UTF-16 unit; returns where it ends. */
function writeEscape(out: Buffer, at: number, unit: number): number {
  out[at] = 0x5c;
  const short = unit < 0x80 ? SHORT_ESCAPES[String.fromCharCode(unit)] : undefined;
  if (short !== undefined) {
    out[at + 1] = short.charCodeAt(1);
    return at + 2;
  }
  out[at + 1] = 0x75;
  for (let digit = 0; digit < 4; digit++)
    out[at + 2 + digit] = HEX_DIGITS[(unit >> (12 - 4 * digit)) & 15] ?? 0;
  return at + 6;
}

function isLoneSurrogate(text: string, at: number): boolean {
  const unit = text.charCodeAt(at);
  if (unit < 0xd800 || unit > 0xdfff) return false;
  const other = text.charCodeAt(unit < 0xdc00 ? at + 1 : at - 1);
  return unit < 0xdc00 ? !(other >= 0xdc00 && other <= 0xdfff) : !(other >= 0xd800 && other < 0xdc00);
}

/** A number in C's "%.17g" form, which is how the original writes floating point. */
export function printDouble(value: number): string {
  // The original writes "inf", which is no JSON; a number that overflows says the same and can be read.
  if (!Number.isFinite(value)) return Number.isNaN(value) ? 'null' : `${value < 0 ? '-' : ''}1e+999`;
  return general(value, 17);
}

function printNumber(value: number): string {
  return Number.isInteger(value) && Math.abs(value) < 2 ** 64 ? BigInt(value).toString() : printDouble(value);
}

/** JSON text on one line, without an end of line. Members that are undefined are left out. */
export function printJson(value: unknown): string {
  switch (typeof value) {
    case 'string':
      return printString(value);
    case 'number':
      return Number.isSafeInteger(value) && value !== 0 ? String(value) : printNumber(value);
    case 'bigint':
    case 'boolean':
      return String(value);
    case 'object':
      break;
    default:
      return 'null';
  }
  if (value === null) return 'null';
  if (value instanceof JsonFloat) return printDouble(value.value);
  if (Array.isArray(value)) return `[${value.map(printJson).join(', ')}]`;
  const members = value as Readonly<Record<string, unknown>>;
  const parts: string[] = [];
  for (const name of writeOrder(Object.keys(members))) {
    if (members[name] !== undefined) parts.push(`${printString(name)}: ${printJson(members[name])}`);
  }
  return `{${parts.join(', ')}}`;
}

/** JSON text over several lines, without an end of line at the end. */
export function printJsonPretty(value: unknown, indent = ''): string {
  if (typeof value !== 'object' || value === null || value instanceof JsonFloat) return printJson(value);
  const inner = `${indent}    `;
  if (Array.isArray(value))
    return bracket(
      '[',
      ']',
      indent,
      value.map((item) => inner + printJsonPretty(item, inner)),
    );
  const members = value as Readonly<Record<string, unknown>>;
  const names = writeOrder(Object.keys(members)).filter((name) => members[name] !== undefined);
  const lines = names.map((name) => `${inner}${printString(name)}: ${printJsonPretty(members[name], inner)}`);
  return bracket('{', '}', indent, lines);
}

function bracket(open: string, close: string, indent: string, lines: readonly string[]): string {
  const body = lines.length === 0 ? '' : `${lines.join(',\r\n')}\r\n`;
  return `${open}\r\n${body}${indent}${close}`;
}

// ---- in slices -----------------------------------------------------------------------------------------------

/** Values and characters above which a message is printed in slices. */
const LONG_VALUES = 4000;
const LONG_CHARACTERS = 256 * 1024;
/** How long a slice takes, about, and how many additions pass between two looks at the clock. */
const SLICE_MS = 4;
const LOOK_EVERY = 64;

/** Whether the text of a value is long; looks at no more of it than that takes. */
export function isLong(value: unknown): boolean {
  let values = 0;
  let characters = 0;
  const exceeds = (at: unknown): boolean => {
    values += 1;
    if (typeof at === 'string') characters += at.length;
    if (values > LONG_VALUES || characters > LONG_CHARACTERS) return true;
    if (typeof at !== 'object' || at === null) return false;
    for (const name in at) if (exceeds((at as Readonly<Record<string, unknown>>)[name])) return true;
    return false;
  };
  return exceeds(value);
}

class SlicedText {
  readonly #parts: string[] = [];
  #text = '';
  #additions = 0;
  #sliceEnds = performance.now() + SLICE_MS;

  add(text: string): void {
    this.#text += text;
    if (this.#text.length < PIECE) return;
    this.#parts.push(this.#text);
    this.#text = '';
  }

  /** Whether others should have a turn. */
  get due(): boolean {
    this.#additions += 1;
    if (this.#additions % LOOK_EVERY !== 0) return false;
    return performance.now() >= this.#sliceEnds;
  }

  resume(): void {
    this.#sliceEnds = performance.now() + SLICE_MS;
  }

  /** What has been added since the last call. */
  take(): string {
    const text = this.#parts.join('') + this.#text;
    this.#parts.length = 0;
    this.#text = '';
    return text;
  }
}

/** As printJson, in slices: each is a part of the text, and others may have a turn before the next. */
export function* printJsonSlices(value: unknown): Generator<string> {
  const out = new SlicedText();
  for (const _pause of printInto(out, value)) {
    yield out.take();
    out.resume();
  }
  yield out.take();
}

function* printInto(out: SlicedText, value: unknown): Generator<void> {
  if (typeof value === 'string' && value.length > PIECE) {
    out.add('"');
    for (let start = 0; start < value.length; start += PIECE) {
      out.add(escapePiece(value, start));
      // A piece takes as long as many values.
      for (let looks = 0; looks < LOOK_EVERY / 4; looks++) if (out.due) yield;
    }
    out.add('"');
  } else if (typeof value !== 'object' || value === null || value instanceof JsonFloat) {
    out.add(printJson(value));
  } else if (Array.isArray(value)) {
    out.add('[');
    for (let index = 0; index < value.length; index++) {
      if (index > 0) out.add(', ');
      yield* printInto(out, value[index]);
      if (out.due) yield;
    }
    out.add(']');
  } else {
    const members = value as Readonly<Record<string, unknown>>;
    let separator = '{';
    for (const name of writeOrder(Object.keys(members))) {
      if (members[name] === undefined) continue;
      out.add(`${separator}${printString(name)}: `);
      separator = ', ';
      yield* printInto(out, members[name]);
      if (out.due) yield;
    }
    out.add(separator === '{' ? '{}' : '}');
  }
}
