/**
 * LZVN, the simple half of Apple's LZFSE: bytes that say how many literals follow, how long a match is and how far back.
 *
 * Letters in the comments are bits: L literals, M match length, D distance. Source of the facts: as of lzfse.ts.
 */

import { copyLiterals, copyMatch, type Sink } from './lzfse-sink.ts';

/** Matches are at least this long where their length has few bits. */
const MIN_MATCH = 3;
const END = 0x06;

/** Decompresses at most `bytes` bytes; false: the stream is damaged. */
export function decodeLzvn(input: Buffer, sink: Sink, bytes: number): boolean {
  const end = sink.at + bytes;
  let distance = 0;
  for (let at = 0; at < input.length; ) {
    const op = input[at]!;
    const low = op & 7;
    const short = ((op >> 3) & 7) + MIN_MATCH;
    let literals = op >> 6;
    let matched = 0;
    let size = 1;
    if (op >= 0xf0) {
      // 1111MMMM, or a byte more: the distance stays.
      literals = 0;
      size = op === 0xf0 ? 2 : 1;
      matched = op === 0xf0 ? (input[at + 1] ?? 0) + 16 : op & 15;
    } else if (op >= 0xe0) {
      // 1110LLLL, or a byte more: literals alone.
      size = op === 0xe0 ? 2 : 1;
      literals = op === 0xe0 ? (input[at + 1] ?? 0) + 16 : op & 15;
    } else if (op >= 0xa0 && op < 0xc0) {
      // 101LLMMM DDDDDDMM DDDDDDDD
      const more = (input[at + 1] ?? 0) | ((input[at + 2] ?? 0) << 8);
      literals = (op >> 3) & 3;
      matched = (((op & 7) << 2) | (more & 3)) + MIN_MATCH;
      distance = more >> 2;
      size = 3;
    } else if ((op >= 0x70 && op < 0x80) || (op >= 0xd0 && op < 0xe0)) {
      return false;
    } else if (low === 7) {
      // LLMMM111 DDDDDDDD DDDDDDDD
      matched = short;
      distance = (input[at + 1] ?? 0) | ((input[at + 2] ?? 0) << 8);
      size = 3;
    } else if (low === 6) {
      if (op === END) return true;
      if (op === 0x0e || op === 0x16) {
        at += 1;
        continue;
      }
      if (op < 0x40) return false;
      // LLMMM110: the distance stays.
      matched = short;
    } else {
      // LLMMMDDD DDDDDDDD
      matched = short;
      distance = (low << 8) | (input[at + 1] ?? 0);
      size = 2;
    }
    at += size;
    if (sink.at + literals + matched > end) return false;
    copyLiterals(sink, input, at, literals);
    at += literals;
    if (matched > 0) copyMatch(sink, distance, matched);
  }
  return sink.at === end;
}
