/**
 * Reads JSON values from a stream of bytes, with the original's leniency, limits and error texts.
 *
 * Tokens (json-lex.ts) are collected until braces and brackets balance, or one closes too many; then the message is
 * parsed. So an error is reported when the message ends, except for text that is not JSON at all: that drops the
 * message at once. Many values may come in one piece of input, and one value in many pieces. The reader gives one
 * item at a time, so that its user can stop between two.
 */

import { bytesOfText } from '../aio/host/names.ts';
import { assert } from '../errors/error.ts';
import { JsonLexer, Lexed, Token } from './json-lex.ts';
import { decodeSlice, JsonError, type StringDecoding, startDecoding } from './json-string.ts';
import { JsonFloat, type JsonValue } from './json-value.ts';
import { decodeForMessage } from './utf8.ts';

/** Limits of one message, those of the original. */
export const JSON_LIMITS = {
  /** Text of all tokens; so much is refused. */
  bytes: 64 * 1024 * 1024,
  tokens: 2 * 1024 * 1024,
  nesting: 1024,
  /** Of one object; the original knows no such limit, and nobody's messages come near. */
  members: 16 * 1024,
} as const;

/** Tokens of a long message that are read or parsed before somebody else gets a turn. */
const SLICE_TOKENS = 16 * 1024;

export type JsonItem = { readonly value: JsonValue } | { readonly error: string };

export class JsonReader {
  readonly #lexer = new JsonLexer(JSON_LIMITS.bytes);
  #braces = 0;
  #brackets = 0;
  #structural = 0;
  /** The message that has been received whole and is being parsed. */
  #parser: TokenParser | null = null;

  /** Gives the next piece of input, when `next` has returned null. The bytes must not change until then. */
  push(input: Uint8Array): void {
    assert(this.#lexer.unread === 0, 'JSON input is pushed before the last piece was read');
    this.#lexer.push(input);
  }

  /** Bytes of input not looked at yet. */
  get unread(): number {
    return this.#lexer.unread;
  }

  /** There is more to do without more input: `next` has done a part of it, and is to be called again. */
  get busy(): boolean {
    return this.#parser !== null || this.#lexer.unread > 0;
  }

  /** Memory that a message takes which has not been received whole, about. */
  get heldBytes(): number {
    return this.#lexer.heldBytes;
  }

  /** The next value or error; null when the input is used up, or when this is enough for one turn: see `busy`. */
  next(): JsonItem | null {
    if (this.#parser !== null) return this.#parse(this.#parser);
    for (let tokens = 0; tokens < SLICE_TOKENS; tokens++) {
      const found = this.#lexer.next();
      if (found === Lexed.needInput) return null;
      const item = this.#handle(found);
      if (item !== null || this.#parser !== null) return item;
    }
    return null;
  }

  /** The items that an end of input yields: an unfinished message is an error. */
  end(): readonly JsonItem[] {
    const items: JsonItem[] = [];
    const found = this.#lexer.end();
    const item = found === Lexed.needInput ? null : this.#handle(found);
    if (item !== null) items.push(item);
    if (this.#lexer.count > 0) this.#parser ??= new TokenParser(this.#lexer);
    while (this.#parser !== null) {
      const last = this.#parse(this.#parser);
      if (last !== null) items.push(last);
    }
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
    if (!balanced && this.#braces >= 0 && this.#brackets >= 0) return null;
    this.#parser = new TokenParser(this.#lexer);
    return this.#parse(this.#parser);
  }

  #drop(error: string): JsonItem {
    this.#reset();
    return { error };
  }

  /** Goes on parsing for a slice. */
  #parse(parser: TokenParser): JsonItem | null {
    let item: JsonItem;
    try {
      const value = parser.run();
      if (value === undefined) return null;
      item = { value };
    } catch (error) {
      if (!(error instanceof JsonError)) throw error;
      item = { error: error.message };
    }
    this.#reset();
    return item;
  }

  #reset(): void {
    this.#parser = null;
    this.#lexer.clear();
    this.#braces = 0;
    this.#brackets = 0;
    this.#structural = 0;
  }
}

/** Reads one value from a whole text, as from the command line; throws JsonError with the first error. */
export function parseJsonText(text: string): JsonValue {
  const reader = new JsonReader();
  reader.push(bytesOfText(text));
  let result: JsonItem | null = null;
  const add = (item: JsonItem): void => {
    if (result === null) result = item;
    else if ('value' in result) throw new JsonError('Expecting at most one JSON value');
  };
  do {
    const item = reader.next();
    if (item !== null) add(item);
  } while (reader.busy);
  for (const item of reader.end()) add(item);
  const found = result as JsonItem | null;
  if (found === null) throw new JsonError('Expecting a JSON value');
  if ('error' in found) throw new JsonError(found.error);
  return found.value;
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

/** An object or array that is being read, and what may follow in it. */
interface Frame {
  readonly members: Record<string, JsonValue> | null;
  readonly elements: JsonValue[];
  /** Members so far. */
  count: number;
  key: string;
  next: 'first' | 'key' | 'colon' | 'value' | 'separator';
}

/** Parses the tokens of one message, so many at a time. Depth is limited by JSON_LIMITS.nesting. */
class TokenParser {
  readonly #lexer: JsonLexer;
  readonly #frames: Frame[] = [];
  #at = 0;
  /** A long string that is being decoded. */
  #string: StringDecoding | null = null;
  #result: JsonValue | undefined;

  constructor(lexer: JsonLexer) {
    this.#lexer = lexer;
  }

  /** The message; undefined when there is more to do than one slice. Throws JsonError. */
  run(): JsonValue | undefined {
    for (let steps = 0; this.#result === undefined && steps < SLICE_TOKENS; steps++) {
      if (this.#string !== null) {
        if (!decodeSlice(this.#string)) return undefined;
        const text = this.#string.parts.join('');
        this.#string = null;
        this.#complete(text);
      } else this.#step();
    }
    return this.#result;
  }

  #peek(): number {
    const kind = this.#lexer.kind(this.#at);
    if (kind === 0) throw new JsonError('JSON parse error, premature EOI');
    return kind;
  }

  #step(): void {
    const frame = this.#frames.at(-1);
    switch (frame?.next) {
      case undefined:
      case 'key':
      case 'value':
        this.#begin();
        break;
      case 'first':
        if (this.#peek() === closingOf(frame)) this.#close(frame);
        else frame.next = frame.members === null ? 'value' : 'key';
        break;
      case 'colon':
        if (this.#peek() !== Token.colon) throw new JsonError('JSON parse error, missing : in object pair');
        this.#at += 1;
        frame.next = 'value';
        break;
      case 'separator': {
        const kind = this.#peek();
        if (kind === closingOf(frame)) {
          this.#close(frame);
          break;
        }
        const where = frame.members === null ? 'list' : 'dict';
        if (kind !== Token.comma) throw new JsonError(`JSON parse error, expected separator in ${where}`);
        this.#at += 1;
        frame.next = frame.members === null ? 'value' : 'key';
      }
    }
  }

  /** Reads a value, or the beginning of one. */
  #begin(): void {
    const kind = this.#peek();
    const token = this.#at;
    this.#at += 1;
    switch (kind) {
      case Token.openBrace:
        this.#frames.push({ members: Object.create(null), elements: [], count: 0, key: '', next: 'first' });
        break;
      case Token.openBracket:
        this.#frames.push({ members: null, elements: [], count: 0, key: '', next: 'first' });
        break;
      case Token.integer:
        this.#complete(integerValue(this.#tokenText(token)));
        break;
      case Token.float:
        this.#complete(new JsonFloat(Number(this.#tokenText(token))));
        break;
      case Token.keyword:
        this.#complete(keywordValue(this.#tokenText(token)));
        break;
      case Token.plainString: {
        const { text } = this.#lexer;
        this.#complete(
          text.toString('latin1', this.#lexer.tokenStart(token) + 1, this.#lexer.tokenEnd(token) - 1),
        );
        break;
      }
      case Token.string:
        this.#string = startDecoding(
          this.#lexer.text,
          this.#lexer.tokenStart(token),
          this.#lexer.tokenEnd(token),
        );
        break;
      default:
        throw new JsonError('JSON parse error, expecting value');
    }
  }

  #tokenText(token: number): string {
    return this.#lexer.text.toString('latin1', this.#lexer.tokenStart(token), this.#lexer.tokenEnd(token));
  }

  #close(frame: Frame): void {
    this.#at += 1;
    this.#frames.pop();
    this.#complete(frame.members ?? frame.elements);
  }

  /** A value is there: it goes where it belongs. */
  #complete(value: JsonValue): void {
    const frame = this.#frames.at(-1);
    if (frame === undefined) {
      this.#result = value;
    } else if (frame.members === null) {
      frame.elements.push(value);
      frame.next = 'separator';
    } else if (frame.next === 'key') {
      if (typeof value !== 'string') throw new JsonError('JSON parse error, key is not a string in object');
      frame.key = value;
      frame.next = 'colon';
    } else {
      if (frame.key in frame.members) throw new JsonError('JSON parse error, duplicate key');
      frame.count += 1;
      if (frame.count > JSON_LIMITS.members) throw new JsonError('JSON token count limit exceeded');
      frame.members[frame.key] = value;
      frame.next = 'separator';
    }
  }
}

function closingOf({ members }: Frame): number {
  return members === null ? Token.closeBracket : Token.closeBrace;
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
