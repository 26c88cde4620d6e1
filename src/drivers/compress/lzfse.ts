/**
 * LZFSE, Apple's compression: the decoder. A stream is a row of blocks, each with a magic number: raw bytes, LZVN
 * (lzvn.ts), or LZFSE proper: literals and (literal count, match length, distance) triples, both coded by finite state
 * entropy, which is read backwards.
 *
 * Everything in the stream is hostile: tables are checked to be full, reads and copies to stay inside. No library for
 * Node is there to be used. Source of the facts: the description of the format in Apple's reference implementation
 * (lzfse.h and its documentation); ideas and numbers only.
 */

import { copyLiterals, copyMatch, damaged, type Sink } from './lzfse-sink.ts';
import { decodeLzvn } from './lzvn.ts';

const Magic = {
  end: 0x24787662,
  raw: 0x2d787662,
  lzfse: 0x32787662,
  lzvn: 0x6e787662,
} as const;

const L_SYMBOLS = 20;
const M_SYMBOLS = 20;
const D_SYMBOLS = 64;
const LITERAL_SYMBOLS = 256;
const L_STATES = 64;
const M_STATES = 64;
const D_STATES = 256;
const LITERAL_STATES = 1024;
/** Some 0.2 ms. */
const TRIPLES_AT_ONCE = 4096;
/** Where the frequencies begin in the header of a block. */
const HEADER_BYTES = 32;

const L_EXTRA = [...zeroes(16), 2, 3, 5, 8];
const M_EXTRA = [...zeroes(16), 3, 5, 8, 11];
const D_EXTRA = Array.from({ length: D_SYMBOLS }, (_, i) => i >> 2);

function zeroes(count: number): number[] {
  return Array.from({ length: count }, () => 0);
}

/** Base values: each symbol begins where the one before it ends. */
function basesOf(extra: readonly number[]): number[] {
  let base = 0;
  return extra.map((bits) => {
    const own = base;
    base += 2 ** bits;
    return own;
  });
}

const L_BASE = basesOf(L_EXTRA);
const M_BASE = basesOf(M_EXTRA);
const D_BASE = basesOf(D_EXTRA);

// ---- bits ----------------------------------------------------------------------------------------------------

/** Bits of a byte range, read from its end backwards; numbers come with their own bits in order. */
interface BackwardBits {
  readonly bytes: Buffer;
  readonly startBit: number;
  /** The next number ends here. */
  bit: number;
}

/** `slack` is 0 to -7: bits at the end that are not used. */
function backwardBits(bytes: Buffer, start: number, end: number, slack: number): BackwardBits {
  return { bytes, startBit: start * 8, bit: end * 8 + slack };
}

/** At most 25 bits. */
function pull(stream: BackwardBits, count: number): number {
  if (count === 0) return 0;
  const bit = stream.bit - count;
  if (bit < stream.startBit) throw damaged();
  stream.bit = bit;
  const byte = bit >> 3;
  const { bytes } = stream;
  const word =
    (bytes[byte]! |
      ((bytes[byte + 1] ?? 0) << 8) |
      ((bytes[byte + 2] ?? 0) << 16) |
      ((bytes[byte + 3] ?? 0) << 24)) >>>
    (bit & 7);
  return word & ((1 << count) - 1);
}

// ---- finite state entropy ------------------------------------------------------------------------------------

/** Per state: bits to read for the next state, what is added to them, the symbol. */
interface DecoderTable {
  readonly bits: Uint8Array;
  readonly delta: Int16Array;
  readonly symbol: Uint8Array;
}

function decoderTable(states: number, frequencies: Uint16Array): DecoderTable {
  const table: DecoderTable = {
    bits: new Uint8Array(states),
    delta: new Int16Array(states),
    symbol: new Uint8Array(states),
  };
  let at = 0;
  for (let symbol = 0; symbol < frequencies.length; symbol++) {
    const frequency = frequencies[symbol]!;
    if (frequency === 0) continue;
    if (at + frequency > states) throw damaged();
    const k = Math.clz32(frequency) - Math.clz32(states);
    const longer = ((2 * states) >> k) - frequency;
    for (let j = 0; j < frequency; j++, at++) {
      table.symbol[at] = symbol;
      table.bits[at] = j < longer ? k : k - 1;
      table.delta[at] = j < longer ? ((frequency + j) << k) - states : (j - longer) << (k - 1);
    }
  }
  return table;
}

// ---- the header ----------------------------------------------------------------------------------------------

const FREQUENCY_BITS = [2, 3, 2, 5, 2, 3, 2, 8, 2, 3, 2, 5, 2, 3, 2, 14];
/** Values of the short codes by their low five bits. */
const FREQUENCY_VALUES = [
  ...[0, 2, 1, 4, 0, 3, 1, -1, 0, 2, 1, 5, 0, 3, 1, -1],
  ...[0, 2, 1, 6, 0, 3, 1, -1, 0, 2, 1, 7, 0, 3, 1, -1],
];

/** The frequencies of all symbols: a code of 2 to 14 bits each, low bits first. */
function readFrequencies(input: Buffer, from: number, to: number): Uint16Array {
  const all = new Uint16Array(L_SYMBOLS + M_SYMBOLS + D_SYMBOLS + LITERAL_SYMBOLS);
  if (from === to) return all;
  let bit = from * 8;
  for (let i = 0; i < all.length; i++) {
    const byte = bit >> 3;
    const word =
      ((input[byte] ?? 0) | ((input[byte + 1] ?? 0) << 8) | ((input[byte + 2] ?? 0) << 16)) >>> (bit & 7);
    const length = FREQUENCY_BITS[word & 15]!;
    if (length === 8) all[i] = 8 + ((word >> 4) & 15);
    else if (length === 14) all[i] = 24 + ((word >> 4) & 1023);
    else all[i] = FREQUENCY_VALUES[word & 31]!;
    bit += length;
  }
  if (bit > to * 8 || to * 8 - bit >= 8) throw damaged();
  return all;
}

/** A field of a little-endian 64-bit number at `at`. */
function field(input: Buffer, at: number, shift: number, bits: number): number {
  return Number((input.readBigUInt64LE(at) >> BigInt(shift)) & ((1n << BigInt(bits)) - 1n));
}

// ---- a block -------------------------------------------------------------------------------------------------

function* decodeBlock(input: Buffer, at: number, sink: Sink): Generator<void, number> {
  if (at + HEADER_BYTES > input.length) throw damaged();
  const literalCount = field(input, at + 8, 0, 20);
  const literalBytes = field(input, at + 8, 20, 20);
  const matchCount = field(input, at + 8, 40, 20);
  const literalSlack = field(input, at + 8, 60, 3) - 7;
  const literalStates = [0, 10, 20, 30].map((shift) => field(input, at + 16, shift, 10));
  const tripleBytes = field(input, at + 16, 40, 20);
  const tripleSlack = field(input, at + 16, 60, 3) - 7;
  const headerBytes = field(input, at + 24, 0, 32);
  const states = [32, 42, 52].map((shift) => field(input, at + 24, shift, 10)) as [number, number, number];
  const literalsAt = at + headerBytes;
  const triplesAt = literalsAt + literalBytes;
  const end = triplesAt + tripleBytes;
  if (headerBytes < HEADER_BYTES || end > input.length || literalCount % 4 !== 0) throw damaged();
  const frequencies = readFrequencies(input, at + HEADER_BYTES, literalsAt);
  const literals = decodeLiterals(
    decoderTable(LITERAL_STATES, frequencies.subarray(L_SYMBOLS + M_SYMBOLS + D_SYMBOLS)),
    backwardBits(input, at, triplesAt, literalSlack),
    literalStates,
    literalCount,
  );
  const bits = backwardBits(input, at, end, tripleSlack);
  yield* decodeTriples(frequencies, bits, states, matchCount, literals, sink);
  return end;
}

function decodeLiterals(table: DecoderTable, stream: BackwardBits, states: number[], count: number): Buffer {
  const literals = Buffer.alloc(count);
  for (let i = 0; i < count; i++) {
    const state = states[i & 3]!;
    literals[i] = table.symbol[state]!;
    states[i & 3] = table.delta[state]! + pull(stream, table.bits[state]!);
  }
  return literals;
}

function* decodeTriples(
  frequencies: Uint16Array,
  stream: BackwardBits,
  [firstL, firstM, firstD]: readonly [number, number, number],
  count: number,
  literals: Buffer,
  sink: Sink,
): Generator<void, void> {
  const lTable = decoderTable(L_STATES, frequencies.subarray(0, L_SYMBOLS));
  const mTable = decoderTable(M_STATES, frequencies.subarray(L_SYMBOLS, L_SYMBOLS + M_SYMBOLS));
  const dTable = decoderTable(
    D_STATES,
    frequencies.subarray(L_SYMBOLS + M_SYMBOLS, L_SYMBOLS + M_SYMBOLS + D_SYMBOLS),
  );
  let l = firstL;
  let m = firstM;
  let d = firstD;
  let distance = 0;
  let literal = 0;
  if (l >= L_STATES || m >= M_STATES || d >= D_STATES) throw damaged();
  for (let i = 0; i < count; i++) {
    // A state's bits come first, then the symbol's.
    const lSymbol = lTable.symbol[l]!;
    l = lTable.delta[l]! + pull(stream, lTable.bits[l]!);
    const length = L_BASE[lSymbol]! + pull(stream, L_EXTRA[lSymbol]!);
    const mSymbol = mTable.symbol[m]!;
    m = mTable.delta[m]! + pull(stream, mTable.bits[m]!);
    const matched = M_BASE[mSymbol]! + pull(stream, M_EXTRA[mSymbol]!);
    const dSymbol = dTable.symbol[d]!;
    d = dTable.delta[d]! + pull(stream, dTable.bits[d]!);
    const own = D_BASE[dSymbol]! + pull(stream, D_EXTRA[dSymbol]!);
    if (own !== 0) distance = own;
    copyLiterals(sink, literals, literal, length);
    literal += length;
    if (matched > 0) copyMatch(sink, distance, matched);
    if (i % TRIPLES_AT_ONCE === TRIPLES_AT_ONCE - 1) yield;
  }
}

// ---- the stream ----------------------------------------------------------------------------------------------

/**
 * Decompresses a stream into `output`, a block at a time: between blocks the caller's generator loop may let others run.
 * Returns the bytes written. Throws DamagedStream.
 */
export function* decodeLzfse(input: Buffer, output: Buffer): Generator<void, number> {
  const sink: Sink = { out: output, at: 0 };
  for (let at = 0; ; ) {
    if (at + 4 > input.length) throw damaged();
    const magic = input.readUInt32LE(at);
    if (magic === Magic.end) return sink.at;
    if (at + 12 > input.length) throw damaged();
    switch (magic) {
      case Magic.raw: {
        const bytes = input.readUInt32LE(at + 4);
        copyLiterals(sink, input, at + 8, bytes);
        at += 8 + bytes;
        break;
      }
      case Magic.lzvn: {
        const bytes = input.readUInt32LE(at + 8);
        if (at + 12 + bytes > input.length) throw damaged();
        const before = sink.at;
        if (!decodeLzvn(input.subarray(at + 12, at + 12 + bytes), sink, input.readUInt32LE(at + 4)))
          throw damaged();
        if (sink.at - before !== input.readUInt32LE(at + 4)) throw damaged();
        at += 12 + bytes;
        break;
      }
      case Magic.lzfse:
        at = yield* decodeBlock(input, at, sink);
        break;
      default:
        throw damaged();
    }
    yield;
  }
}
