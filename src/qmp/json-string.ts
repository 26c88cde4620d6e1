/**
 * Values of string tokens with escapes or characters beyond ASCII, decoded a slice at a time. Tokens are json-lex.ts's,
 * messages json-parse.ts's.
 */

import { decodeForMessage, decodeModifiedUtf8, isCharacter } from './utf8.ts';

/** A message that is not JSON; the message text is the original's. */
export class JsonError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'JsonError';
  }
}

/** Bytes of a string that are decoded before somebody else gets a turn. */
const SLICE_STRING_BYTES = 64 * 1024;

/** Characters behind a backslash, and what they stand for. */
const ESCAPES: ReadonlyMap<number, number> = new Map([
  [0x22, 0x22],
  [0x27, 0x27],
  [0x5c, 0x5c],
  [0x2f, 0x2f],
  [0x62, 0x08],
  [0x66, 0x0c],
  [0x6e, 0x0a],
  [0x72, 0x0d],
  [0x74, 0x09],
]);

/** The decoding of a string token (with quotes) that has escapes or non-ASCII characters. */
export interface StringDecoding {
  readonly bytes: Buffer;
  readonly end: number;
  at: number;
  readonly parts: string[];
}

export function startDecoding(bytes: Buffer, start: number, end: number): StringDecoding {
  return { bytes, end, at: start + 1, parts: [] };
}

/** UTF-16 units of the slice that is being decoded; a character may go beyond its end. */
const sliceUnits = new Uint16Array(SLICE_STRING_BYTES + 2);
const sliceText = Buffer.from(sliceUnits.buffer);

/** Goes on for a slice; whether that was the rest. */
export function decodeSlice(decoding: StringDecoding): boolean {
  const { bytes, end } = decoding;
  const last = end - 1;
  const stop = Math.min(last, decoding.at + SLICE_STRING_BYTES);
  let { at } = decoding;
  let count = 0;
  while (at < stop) {
    const byte = bytes[at] ?? 0;
    let codePoint = byte;
    if (byte === 0x5c) {
      const escaped = ESCAPES.get(bytes[at + 1] ?? 0);
      if (escaped !== undefined) {
        codePoint = escaped;
        at += 2;
      } else if (bytes[at + 1] === 0x75) {
        const length = unicodeEscapeLength(bytes, at, end);
        codePoint = unicodeEscape(bytes, at, length);
        at += length;
      } else {
        throw new JsonError('JSON parse error, invalid escape sequence in string');
      }
    } else if (byte < 0x80) {
      at += 1;
    } else {
      const decoded = decodeModifiedUtf8(bytes, at, last);
      if (decoded.codePoint < 0) throw new JsonError('JSON parse error, invalid UTF-8 sequence in string');
      ({ codePoint } = decoded);
      at += decoded.length;
    }
    if (codePoint >= 0x10000) {
      sliceUnits[count++] = 0xd7c0 + (codePoint >> 10);
      sliceUnits[count++] = 0xdc00 + (codePoint & 0x3ff);
    } else sliceUnits[count++] = codePoint;
  }
  decoding.at = at;
  decoding.parts.push(sliceText.toString('utf16le', 0, 2 * count));
  return at >= last;
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

function unicodeEscape(bytes: Buffer, at: number, length: number): number {
  const first = hex4(bytes, at + 2);
  const codePoint = length === 6 ? first : 0x10000 + ((first & 0x3ff) << 10) + (hex4(bytes, at + 8) & 0x3ff);
  if (!isCharacter(codePoint)) throw invalidCharacter(bytes, at, at + length);
  return codePoint;
}

function invalidCharacter(bytes: Buffer, start: number, end: number): JsonError {
  return new JsonError(
    `JSON parse error, ${decodeForMessage(bytes, start, end)} is not a valid Unicode character`,
  );
}
