/**
 * Reads JSON values from a stream of bytes, with the original's leniency, limits and error texts.
 *
 * Tokens (json-lex.ts) are collected until braces and brackets balance, or one closes too many; then the message is
 * parsed. So an error is reported when the message ends, except for text that is not JSON at all: that drops the
 * message at once. Many values may come in one piece of input, and one value in many pieces. The reader gives one
 * item at a time, so that its user can stop between two.
 */

import { assert } from '../errors/error.ts';
import { JsonLexer, Lexed, Token } from './json-lex.ts';
import { JsonFloat, type JsonObject, type JsonValue } from './json-value.ts';
import { decodeForMessage, decodeModifiedUtf8, isCharacter } from './utf8.ts';

/** Limits of one message, those of the original. */
export const JSON_LIMITS = {
  /** Text of all tokens; so much is refused. */
  bytes: 64 * 1024 * 1024,
  tokens: 2 * 1024 * 1024,
  nesting: 1024,
} as const;

export type JsonItem = { readonly value: JsonValue } | { readonly error: string };

export class JsonReader {
  readonly #lexer = new JsonLexer(JSON_LIMITS.bytes);
  #braces = 0;
  #brackets = 0;
  #structural = 0;

  /** Gives the next piece of input, when `next` has returned null. The bytes must not change until then. */
  push(input: Uint8Array): void {
    assert(this.#lexer.unread === 0, 'JSON input is pushed before the last piece was read');
    this.#lexer.push(input);
  }

  /** Bytes of input not looked at yet. */
  get unread(): number {
    return this.#lexer.unread;
  }

  /** The next value or error; null when the input is used up. */
  next(): JsonItem | null {
    for (;;) {
      const found = this.#lexer.next();
      if (found === Lexed.needInput) return null;
      const item = this.#handle(found);
      if (item !== null) return item;
    }
  }

  /** The items that an end of input yields: an unfinished message is an error. */
  end(): readonly JsonItem[] {
    const items: JsonItem[] = [];
    const found = this.#lexer.end();
    const item = found === Lexed.needInput ? null : this.#handle(found);
    if (item !== null) items.push(item);
    if (this.#lexer.count > 0) items.push(this.#parse());
    return items;
  }

  #handle(found: number): JsonItem | null {
    if (found === Lexed.error) {
      const start = this.#lexer.tokenStart(this.#lexer.count);
      const stray = decodeForMessage(this.#lexer.text, start, this.#lexer.textLength);
      return this.#drop(`JSON parse error, stray '${stray}'`);
    }
    if (found === Lexed.tooLong) return this.#drop('JSON token size limit exceeded');
    const { count } = this.#lexer;
    switch (this.#lexer.kind(count - 1)) {
      case Token.openBrace:
        this.#braces += 1;
        break;
      case Token.closeBrace:
        this.#braces -= 1;
        break;
      case Token.openBracket:
        this.#brackets += 1;
        break;
      case Token.closeBracket:
        this.#brackets -= 1;
        break;
      case Token.colon:
      case Token.comma:
        break;
      default:
        this.#structural -= 1;
    }
    this.#structural += 1;
    if (this.#lexer.textLength + this.#structural >= JSON_LIMITS.bytes) {
      return this.#drop('JSON token size limit exceeded');
    }
    if (count > JSON_LIMITS.tokens) return this.#drop('JSON token count limit exceeded');
    if (this.#braces + this.#brackets > JSON_LIMITS.nesting)
      return this.#drop('JSON nesting depth limit exceeded');
    const balanced = this.#braces === 0 && this.#brackets === 0;
    return balanced || this.#braces < 0 || this.#brackets < 0 ? this.#parse() : null;
  }

  #drop(error: string): JsonItem {
    this.#reset();
    return { error };
  }

  #parse(): JsonItem {
    try {
      return { value: new TokenParser(this.#lexer).parseMessage() };
    } catch (error) {
      if (!(error instanceof JsonError)) throw error;
      return { error: error.message };
    } finally {
      this.#reset();
    }
  }

  #reset(): void {
    this.#lexer.clear();
    this.#braces = 0;
    this.#brackets = 0;
    this.#structural = 0;
  }
}

/** Reads one value from a whole text, as from the command line; throws JsonError with the first error. */
export function parseJsonText(text: string): JsonValue {
  const reader = new JsonReader();
  reader.push(Buffer.from(text, 'utf8'));
  let result: JsonItem | null = null;
  const add = (item: JsonItem): void => {
    if (result === null) result = item;
    else if ('value' in result) throw new JsonError('Expecting at most one JSON value');
  };
  for (let item = reader.next(); item !== null; item = reader.next()) add(item);
  for (const item of reader.end()) add(item);
  const found = result as JsonItem | null;
  if (found === null) throw new JsonError('Expecting a JSON value');
  if ('error' in found) throw new JsonError(found.error);
  return found.value;
}

/** A message that is not JSON; the message text is the original's. */
export class JsonError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'JsonError';
  }
}

const INT64_MIN = -(2n ** 63n);
const UINT64_MAX = 2n ** 64n - 1n;

/** Value of an integer token: exact between -2^63 and 2^64-1, floating point beyond. */
function integerValue(text: string): JsonValue {
  if (text.length <= 15) return Number(text) + 0; // "+ 0" makes 0 of -0
  const exact = BigInt(text);
  if (exact < INT64_MIN || exact > UINT64_MAX) return new JsonFloat(Number(text));
  const value = Number(exact);
  return Number.isSafeInteger(value) ? value : exact;
}

/** Recursive descent over the tokens of one message. Depth is limited by JSON_LIMITS.nesting. */
class TokenParser {
  readonly #lexer: JsonLexer;
  #at = 0;

  constructor(lexer: JsonLexer) {
    this.#lexer = lexer;
  }

  parseMessage(): JsonValue {
    return this.#value();
  }

  #peek(): number {
    const kind = this.#lexer.kind(this.#at);
    if (kind === 0) throw new JsonError('JSON parse error, premature EOI');
    return kind;
  }

  #value(): JsonValue {
    const kind = this.#peek();
    const token = this.#at;
    this.#at += 1;
    switch (kind) {
      case Token.openBrace:
        return this.#object();
      case Token.openBracket:
        return this.#array();
      case Token.integer:
        return integerValue(this.#tokenText(token));
      case Token.float:
        return new JsonFloat(Number(this.#tokenText(token)));
      case Token.keyword:
        return keywordValue(this.#tokenText(token));
      case Token.plainString:
        return this.#lexer.text.toString(
          'latin1',
          this.#lexer.tokenStart(token) + 1,
          this.#lexer.tokenEnd(token) - 1,
        );
      case Token.string:
        return decodeString(this.#lexer.text, this.#lexer.tokenStart(token), this.#lexer.tokenEnd(token));
      default:
        throw new JsonError('JSON parse error, expecting value');
    }
  }

  #tokenText(token: number): string {
    return this.#lexer.text.toString('latin1', this.#lexer.tokenStart(token), this.#lexer.tokenEnd(token));
  }

  #object(): JsonObject {
    const members: Record<string, JsonValue> = Object.create(null);
    if (this.#peek() === Token.closeBrace) {
      this.#at += 1;
      return members;
    }
    for (;;) {
      this.#pair(members);
      const kind = this.#peek();
      this.#at += 1;
      if (kind === Token.closeBrace) return members;
      if (kind !== Token.comma) throw new JsonError('JSON parse error, expected separator in dict');
    }
  }

  #pair(members: Record<string, JsonValue>): void {
    const key = this.#value();
    if (typeof key !== 'string') throw new JsonError('JSON parse error, key is not a string in object');
    if (this.#peek() !== Token.colon) throw new JsonError('JSON parse error, missing : in object pair');
    this.#at += 1;
    const value = this.#value();
    if (key in members) throw new JsonError('JSON parse error, duplicate key');
    members[key] = value;
  }

  #array(): readonly JsonValue[] {
    const elements: JsonValue[] = [];
    if (this.#peek() === Token.closeBracket) {
      this.#at += 1;
      return elements;
    }
    for (;;) {
      elements.push(this.#value());
      const kind = this.#peek();
      this.#at += 1;
      if (kind === Token.closeBracket) return elements;
      if (kind !== Token.comma) throw new JsonError('JSON parse error, expected separator in list');
    }
  }
}

function keywordValue(keyword: string): JsonValue {
  switch (keyword) {
    case 'true':
      return true;
    case 'false':
      return false;
    case 'null':
      return null;
    default:
      throw new JsonError(`JSON parse error, invalid keyword '${keyword}'`);
  }
}

const ESCAPES: ReadonlyMap<number, string> = new Map([
  [0x22, '"'],
  [0x27, "'"],
  [0x5c, '\\'],
  [0x2f, '/'],
  [0x62, '\b'],
  [0x66, '\f'],
  [0x6e, '\n'],
  [0x72, '\r'],
  [0x74, '\t'],
]);

/** Value of a string token (with quotes) that has escapes or non-ASCII characters. */
function decodeString(bytes: Buffer, start: number, end: number): string {
  const last = end - 1;
  let text = '';
  let at = start + 1;
  while (at < last) {
    const byte = bytes[at] ?? 0;
    if (byte === 0x5c) {
      const escaped = ESCAPES.get(bytes[at + 1] ?? 0);
      if (escaped !== undefined) {
        text += escaped;
        at += 2;
      } else if (bytes[at + 1] === 0x75) {
        const length = unicodeEscapeLength(bytes, at, end);
        text += unicodeEscape(bytes, at, length);
        at += length;
      } else {
        throw new JsonError('JSON parse error, invalid escape sequence in string');
      }
    } else if (byte < 0x80) {
      const from = at;
      while (at < last && (bytes[at] ?? 0) < 0x80 && bytes[at] !== 0x5c) at += 1;
      text += bytes.toString('latin1', from, at);
    } else {
      const { codePoint, length } = decodeModifiedUtf8(bytes, at, last);
      if (codePoint < 0) throw new JsonError('JSON parse error, invalid UTF-8 sequence in string');
      text += String.fromCodePoint(codePoint);
      at += length;
    }
  }
  return text;
}

/** The number that four hexadecimal digits make, or -1. */
function hex4(bytes: Buffer, at: number): number {
  const digits = bytes.toString('latin1', at, at + 4);
  return /^[0-9A-Fa-f]{4}$/.test(digits) ? Number.parseInt(digits, 16) : -1;
}

const isHigh = (unit: number): boolean => unit >= 0xd800 && unit <= 0xdbff;
const isLow = (unit: number): boolean => unit >= 0xdc00 && unit <= 0xdfff;

/** Bytes of a \u escape: 12 for a pair of surrogates; throws when it has not four hexadecimal digits. */
function unicodeEscapeLength(bytes: Buffer, at: number, end: number): number {
  const first = hex4(bytes, at + 2);
  if (first < 0) throw invalidCharacter(bytes, at, Math.min(at + 6, end));
  const paired =
    isHigh(first) && bytes[at + 6] === 0x5c && bytes[at + 7] === 0x75 && isLow(hex4(bytes, at + 8));
  return paired ? 12 : 6;
}

function unicodeEscape(bytes: Buffer, at: number, length: number): string {
  const first = hex4(bytes, at + 2);
  const codePoint = length === 6 ? first : 0x10000 + ((first & 0x3ff) << 10) + (hex4(bytes, at + 8) & 0x3ff);
  if (!isCharacter(codePoint)) throw invalidCharacter(bytes, at, at + length);
  return String.fromCodePoint(codePoint);
}

function invalidCharacter(bytes: Buffer, start: number, end: number): JsonError {
  return new JsonError(
    `JSON parse error, ${decodeForMessage(bytes, start, end)} is not a valid Unicode character`,
  );
}
