/**
 * Splits a stream of bytes into JSON tokens, a byte at a time, so that a message may arrive in any pieces.
 *
 * The tokens of the message that is being received are kept in flat arrays (kind, start of text) beside one byte
 * store, so that the largest message that is accepted costs little more than its text. Strings and numbers keep
 * their text as received; json-parse.ts makes values of them.
 *
 * After a lexical error the lexer skips what follows, up to a line end or one of `{}[]:,`. What is accepted, and
 * where an error ends, was found by probing qemu-storage-daemon 7.2.
 */

/** Kinds of tokens. Structural tokens have no text. */
export const Token = {
  openBrace: 1,
  closeBrace: 2,
  openBracket: 3,
  closeBracket: 4,
  colon: 5,
  comma: 6,
  integer: 7,
  float: 8,
  keyword: 9,
  /** With its quotes; ASCII without escapes inside. */
  plainString: 10,
  /** With its quotes; to be decoded. */
  string: 11,
} as const;

const State = {
  start: 0,
  recovery: 1,
  doubleQuote: 2,
  doubleQuoteEscape: 3,
  singleQuote: 4,
  singleQuoteEscape: 5,
  minus: 6,
  zero: 7,
  digits: 8,
  point: 9,
  fraction: 10,
  exponent: 11,
  exponentSign: 12,
  exponentDigits: 13,
  keyword: 14,
} as const;

/** What one step of the lexer found. */
export const Lexed = {
  /** The input is used up; a token may be unfinished. */
  needInput: 0,
  token: 1,
  /** Text from tokenStart is not JSON. */
  error: 2,
  /** An unfinished token passed the limit; its text was dropped. */
  tooLong: 3,
} as const;

type LexedValue = (typeof Lexed)[keyof typeof Lexed];

const STRUCTURAL: ReadonlyMap<number, number> = new Map([
  [0x7b, Token.openBrace],
  [0x7d, Token.closeBrace],
  [0x5b, Token.openBracket],
  [0x5d, Token.closeBracket],
  [0x3a, Token.colon],
  [0x2c, Token.comma],
]);

const isDigit = (byte: number): boolean => byte >= 0x30 && byte <= 0x39;
const isKeywordLetter = (byte: number): boolean => byte >= 0x61 && byte <= 0x7a;
const isExponent = (byte: number): boolean => byte === 0x65 || byte === 0x45;
const isSpace = (byte: number): boolean => byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09;
/** Control characters and FE, FF never belong to a token, not even to a string. */
const isForbidden = (byte: number): boolean => byte < 0x20 || byte >= 0xfe;

/** Input that is looked at before somebody else gets a turn. */
const SLICE_BYTES = 128 * 1024;

const INITIAL_TEXT = 1024;
const INITIAL_TOKENS = 64;

export class JsonLexer {
  readonly #limitBytes: number;
  #state: number = State.start;
  #input: Uint8Array = new Uint8Array(0);
  #position = 0;
  #text: Buffer = Buffer.allocUnsafeSlow(INITIAL_TEXT);
  #textLength = 0;
  #kinds = new Uint8Array(INITIAL_TOKENS);
  #starts = new Uint32Array(INITIAL_TOKENS + 1);
  #count = 0;
  /** The string being read needs decoding. */
  #complex = false;

  /** `limitBytes`: text that an unfinished token may have. */
  constructor(limitBytes: number) {
    this.#limitBytes = limitBytes;
  }

  /** Gives the next piece of input. The previous one must be used up. The bytes must not change meanwhile. */
  push(input: Uint8Array): void {
    this.#input = input;
    this.#position = 0;
  }

  /** Bytes of input not looked at yet. */
  get unread(): number {
    return this.#input.length - this.#position;
  }

  /** Number of finished tokens. */
  get count(): number {
    return this.#count;
  }

  kind(index: number): number {
    return index < this.#count ? (this.#kinds[index] ?? 0) : 0;
  }

  /** Where the text of a token starts; that of `count` is the unfinished token. */
  tokenStart(index: number): number {
    return this.#starts[index] ?? 0;
  }

  tokenEnd(index: number): number {
    return this.#starts[index + 1] ?? 0;
  }

  /** Text of all tokens, and of the unfinished one up to `textLength`. */
  get text(): Buffer {
    return this.#text;
  }

  get textLength(): number {
    return this.#textLength;
  }

  /** Forgets all tokens and their text; memory that a large message took is given back. */
  clear(): void {
    this.#count = 0;
    this.#textLength = 0;
    this.#starts[0] = 0;
    if (this.#text.length > 64 * INITIAL_TEXT) this.#text = Buffer.allocUnsafeSlow(INITIAL_TEXT);
    if (this.#kinds.length > 64 * INITIAL_TOKENS) {
      this.#kinds = new Uint8Array(INITIAL_TOKENS);
      this.#starts = new Uint32Array(INITIAL_TOKENS + 1);
    }
  }

  /** Bytes of memory for the message that is being received. */
  get heldBytes(): number {
    return this.#text.length + this.#kinds.length + this.#starts.byteLength + this.unread;
  }

  /**
   * Goes on to the end of a token, of the input, or to an error (the text of which is the unfinished token). After a
   * slice of input it stops all the same: then some is unread.
   */
  next(): LexedValue {
    const input = this.#input;
    const end = Math.min(input.length, this.#position + SLICE_BYTES);
    while (this.#position < end) {
      if (this.#textLength - this.tokenStart(this.#count) > this.#limitBytes) {
        this.#textLength = this.tokenStart(this.#count);
        this.#state = State.start; // what follows is read as if the token had ended
        this.#complex = false;
        return Lexed.tooLong;
      }
      if (this.#state === State.doubleQuote || this.#state === State.singleQuote) this.#skipPlain(end);
      const byte = input[this.#position];
      if (byte === undefined) break;
      const found = this.#step(byte);
      if (found !== Lexed.needInput) return found;
    }
    return Lexed.needInput;
  }

  /** Ends the input: finishes a number or keyword. An unfinished string or number is an error. */
  end(): LexedValue {
    switch (this.#state) {
      case State.start:
      case State.recovery:
        return Lexed.needInput;
      case State.zero:
      case State.digits:
        return this.#finish(Token.integer);
      case State.fraction:
      case State.exponentDigits:
        return this.#finish(Token.float);
      case State.keyword:
        return this.#finish(Token.keyword);
      default:
        this.#state = State.recovery;
        return Lexed.error;
    }
  }

  #step(byte: number): LexedValue {
    switch (this.#state) {
      case State.start:
        return this.#begin(byte);
      case State.recovery:
        return this.#recover(byte);
      case State.doubleQuote:
        return this.#inString(byte, 0x22, State.doubleQuoteEscape);
      case State.singleQuote:
        return this.#inString(byte, 0x27, State.singleQuoteEscape);
      case State.doubleQuoteEscape:
        return isForbidden(byte) ? this.#fail(byte) : this.#take(byte, State.doubleQuote);
      case State.singleQuoteEscape:
        return isForbidden(byte) ? this.#fail(byte) : this.#take(byte, State.singleQuote);
      case State.keyword:
        return isKeywordLetter(byte) ? this.#take(byte, State.keyword) : this.#finish(Token.keyword);
      default:
        return this.#inNumber(byte);
    }
  }

  #begin(byte: number): LexedValue {
    if (isSpace(byte)) {
      this.#position += 1;
      return Lexed.needInput;
    }
    const structural = STRUCTURAL.get(byte);
    if (structural !== undefined) {
      this.#position += 1;
      return this.#finish(structural);
    }
    if (byte === 0x22) return this.#take(byte, State.doubleQuote);
    if (byte === 0x27) return this.#take(byte, State.singleQuote);
    if (byte === 0x2d) return this.#take(byte, State.minus);
    if (byte === 0x30) return this.#take(byte, State.zero);
    if (isDigit(byte)) return this.#take(byte, State.digits);
    if (isKeywordLetter(byte)) return this.#take(byte, State.keyword);
    return this.#fail(byte);
  }

  #recover(byte: number): LexedValue {
    if (byte === 0x0a || byte === 0x0d || STRUCTURAL.has(byte)) {
      this.#state = State.start;
      return this.#begin(byte);
    }
    if (isForbidden(byte) && byte !== 0x09) return this.#fail(byte);
    this.#position += 1;
    return Lexed.needInput;
  }

  #inString(byte: number, quote: number, escapeState: number): LexedValue {
    if (isForbidden(byte)) return this.#fail(byte);
    if (byte === quote) {
      this.#take(byte, this.#state);
      return this.#finish(this.#complex ? Token.string : Token.plainString);
    }
    this.#complex ||= byte >= 0x80 || byte === 0x5c;
    return this.#take(byte, byte === 0x5c ? escapeState : this.#state);
  }

  #inNumber(byte: number): LexedValue {
    switch (this.#state) {
      case State.minus:
        if (byte === 0x30) return this.#take(byte, State.zero);
        return isDigit(byte) ? this.#take(byte, State.digits) : this.#fail(byte);
      case State.zero:
        // The original takes no exponent after a bare 0: it reads "0e5" as 0 and the keyword e.
        if (byte === 0x2e) return this.#take(byte, State.point);
        return isDigit(byte) ? this.#fail(byte) : this.#finish(Token.integer);
      case State.digits:
        if (byte === 0x2e) return this.#take(byte, State.point);
        if (isExponent(byte)) return this.#take(byte, State.exponent);
        return isDigit(byte) ? this.#take(byte, State.digits) : this.#finish(Token.integer);
      case State.point:
        return isDigit(byte) ? this.#take(byte, State.fraction) : this.#fail(byte);
      case State.fraction:
        if (isExponent(byte)) return this.#take(byte, State.exponent);
        return isDigit(byte) ? this.#take(byte, State.fraction) : this.#finish(Token.float);
      case State.exponent:
        if (byte === 0x2b || byte === 0x2d) return this.#take(byte, State.exponentSign);
        return isDigit(byte) ? this.#take(byte, State.exponentDigits) : this.#fail(byte);
      case State.exponentSign:
        return isDigit(byte) ? this.#take(byte, State.exponentDigits) : this.#fail(byte);
      default:
        return isDigit(byte) ? this.#take(byte, State.exponentDigits) : this.#finish(Token.float);
    }
  }

  /** Takes the characters of a string up to one that needs a decision. */
  #skipPlain(stop: number): void {
    const input = this.#input;
    const from = this.#position;
    // No more than what shows that the limit is passed.
    const end = Math.min(
      stop,
      from + this.#limitBytes + 1 - (this.#textLength - this.tokenStart(this.#count)),
    );
    let at = from;
    for (; at < end; at++) {
      const byte = input[at] ?? 0;
      if (byte < 0x20 || byte >= 0x7f || byte === 0x22 || byte === 0x27 || byte === 0x5c) break;
    }
    if (at === from) return;
    this.#reserveText(at - from);
    if (at - from < 32)
      for (let i = from; i < at; i++) this.#text[this.#textLength + i - from] = input[i] ?? 0;
    else this.#text.set(input.subarray(from, at), this.#textLength);
    this.#textLength += at - from;
    this.#position = at;
  }

  /** Adds a byte to the unfinished token. */
  #take(byte: number, state: number): LexedValue {
    this.#reserveText(1);
    this.#text[this.#textLength] = byte;
    this.#textLength += 1;
    this.#position += 1;
    this.#state = state;
    return Lexed.needInput;
  }

  #fail(byte: number): LexedValue {
    this.#take(byte, State.recovery);
    this.#complex = false;
    return Lexed.error;
  }

  #finish(kind: number): LexedValue {
    if (this.#count === this.#kinds.length) this.#growTokens();
    this.#kinds[this.#count] = kind;
    this.#count += 1;
    this.#starts[this.#count] = this.#textLength;
    this.#state = State.start;
    this.#complex = false;
    return Lexed.token;
  }

  #growTokens(): void {
    const kinds = new Uint8Array(2 * this.#kinds.length);
    kinds.set(this.#kinds);
    const starts = new Uint32Array(2 * this.#kinds.length + 1);
    starts.set(this.#starts);
    this.#kinds = kinds;
    this.#starts = starts;
  }

  #reserveText(bytes: number): void {
    const needed = this.#textLength + bytes;
    if (needed <= this.#text.length) return;
    // Doubles, but does not go far beyond the limit.
    const doubled = Math.min(2 * this.#text.length, this.#limitBytes + 64 * INITIAL_TEXT);
    const grown = Buffer.allocUnsafeSlow(Math.max(needed, doubled));
    this.#text.copy(grown, 0, 0, this.#textLength);
    this.#text = grown;
  }
}
