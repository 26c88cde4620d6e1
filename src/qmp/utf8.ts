/**
 * Modified UTF-8, the encoding of QMP strings: as UTF-8, but NUL may be written as C0 80, and code points that are
 * no characters (U+FDD0 to U+FDEF, U+xxFFFE, U+xxFFFF) are invalid. Checked against qemu-storage-daemon 7.2.
 */

/** A decoded code point, or the length of an invalid sequence. */
export interface Decoded {
  /** -1: invalid. */
  readonly codePoint: number;
  /** Bytes taken, at least 1. */
  readonly length: number;
}

/** Smallest code point that needs a sequence of the given length. */
const FIRST_OF_LENGTH = [0, 0, 0x80, 0x800, 0x10000];

/** Whether a code point may stand in a QMP string. */
export function isCharacter(codePoint: number): boolean {
  if (codePoint > 0x10ffff || (codePoint >= 0xd800 && codePoint <= 0xdfff)) return false;
  return !(codePoint >= 0xfdd0 && codePoint <= 0xfdef) && (codePoint & 0xfffe) !== 0xfffe;
}

function sequenceLength(lead: number): number {
  if (lead < 0x80) return 1;
  if (lead < 0xc0 || lead >= 0xfe) return 0;
  if (lead < 0xe0) return 2;
  if (lead < 0xf0) return 3;
  if (lead < 0xf8) return 4;
  return lead < 0xfc ? 5 : 6;
}

/** Decodes the sequence at `at`. An invalid one ends before the first byte that cannot continue it. */
export function decodeModifiedUtf8(bytes: Uint8Array, at: number, end: number): Decoded {
  const lead = bytes[at] ?? 0;
  const wanted = sequenceLength(lead);
  if (wanted === 1) return { codePoint: lead, length: 1 };
  if (wanted === 0) return { codePoint: -1, length: 1 };
  let codePoint = lead & (0xff >> (wanted + 1));
  let length = 1;
  while (length < wanted && at + length < end) {
    const byte = bytes[at + length] ?? 0;
    if ((byte & 0xc0) !== 0x80) break;
    codePoint = codePoint * 64 + (byte & 0x3f);
    length += 1;
  }
  if (length < wanted || wanted > 4) return { codePoint: -1, length };
  const isNul = codePoint === 0 && wanted === 2;
  const overlong = codePoint < (FIRST_OF_LENGTH[wanted] ?? 0) && !isNul;
  return { codePoint: overlong || !isCharacter(codePoint) ? -1 : codePoint, length };
}

/** Decodes bytes for an error message: invalid sequences become U+FFFD, and a NUL byte ends the text. */
export function decodeForMessage(bytes: Uint8Array, start: number, end: number): string {
  let text = '';
  for (let at = start; at < end && bytes[at] !== 0; ) {
    const { codePoint, length } = decodeModifiedUtf8(bytes, at, end);
    text += codePoint < 0 ? '\ufffd' : String.fromCodePoint(codePoint);
    at += length;
  }
  return text;
}
