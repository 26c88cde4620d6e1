/**
 * ADC, Apple Data Compression: the decoder. 1LLLLLLL: L + 1 literals follow. 00LLLLDD DDDDDDDD: a match of L + 3 bytes,
 * D + 1 bytes back. 01LLLLLL and two bytes of distance: a match of L + 4 bytes.
 *
 * Source of the facts: descriptions of the format in the documentation of dmg tools; Apple published none.
 */

import { copyLiterals, copyMatch, damaged, type Sink } from './lzfse-sink.ts';

/** The caller may let others run when so many bytes have been written. */
const STEP_BYTES = 64 * 1024;

/** Decompresses a stream into `output`; returns the bytes written. Throws DamagedStream. */
export function* decodeAdc(input: Buffer, output: Buffer): Generator<void, number> {
  const sink: Sink = { out: output, at: 0 };
  let next = STEP_BYTES;
  for (let at = 0; at < input.length && sink.at < output.length; ) {
    const op = input[at]!;
    if ((op & 0x80) !== 0) {
      const length = (op & 0x7f) + 1;
      copyLiterals(sink, input, at + 1, length);
      at += 1 + length;
    } else if ((op & 0x40) !== 0) {
      if (at + 3 > input.length) throw damaged();
      copyMatch(sink, input.readUInt16BE(at + 1) + 1, (op & 0x3f) + 4);
      at += 3;
    } else {
      if (at + 2 > input.length) throw damaged();
      copyMatch(sink, (((op & 3) << 8) | input[at + 1]!) + 1, (op >> 2) + 3);
      at += 2;
    }
    if (sink.at < next) continue;
    next = sink.at + STEP_BYTES;
    yield;
  }
  return sink.at;
}
