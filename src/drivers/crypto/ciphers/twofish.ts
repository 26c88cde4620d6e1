/**
 * Twofish: a block cipher of 16 rounds on 16-byte blocks. OpenSSL does not have it.
 *
 * Source of the facts: Schneier, Kelsey, Whiting, Wagner, Hall, Ferguson, "Twofish: A 128-Bit Block Cipher". Tested with
 * the authors' vectors and against the original's volumes. As the paper proposes for many blocks with one key, the
 * key-dependent boxes and the matrix behind them are tables.
 */

import type { SoftwareCipher } from './software-cipher.ts';

const ROUNDS = 16;
/** Polynomials of the fields of the MDS and the RS matrix. */
const MDS_POLYNOMIAL = 0x169;
const RS_POLYNOMIAL = 0x14d;

const MDS = [
  [0x01, 0xef, 0x5b, 0x5b],
  [0x5b, 0xef, 0xef, 0x01],
  [0xef, 0x5b, 0x01, 0xef],
  [0xef, 0x01, 0xef, 0x5b],
] as const;

const RS = [
  [0x01, 0xa4, 0x55, 0x87, 0x5a, 0x58, 0xdb, 0x9e],
  [0xa4, 0x56, 0x82, 0xf3, 0x1e, 0xc6, 0x68, 0xe5],
  [0x02, 0xa1, 0xfc, 0xc1, 0x47, 0xae, 0x3d, 0x19],
  [0xa4, 0x55, 0x87, 0x5a, 0x58, 0xdb, 0x9e, 0x03],
] as const;

/** The nibble tables of the two fixed permutations of bytes. */
const Q0_NIBBLES = ['817d6f320b59eca4', 'ecb81235f4a6709d', 'ba5e6d90c8f32471', 'd7f4126e9b3085ca'] as const;
const Q1_NIBBLES = ['28bdf76e31940ac5', '1e2b4c376da5f908', '4c75169a0ed82b3f', 'b951c3de647f208a'] as const;

function permutation(nibbles: readonly string[]): Uint8Array {
  const tables = nibbles.map((text) => [...text].map((digit) => Number.parseInt(digit, 16)));
  const mix = (a: number, b: number): number => (a ^ ((b >> 1) | ((b & 1) << 3)) ^ (8 * a)) & 15;
  return Uint8Array.from({ length: 256 }, (_, x) => {
    const a0 = x >> 4;
    const b0 = x & 15;
    const a2 = tables[0]![a0 ^ b0]!;
    const b2 = tables[1]![mix(a0, b0)]!;
    return 16 * tables[3]![mix(a2, b2)]! + tables[2]![a2 ^ b2]!;
  });
}

const Q0 = permutation(Q0_NIBBLES);
const Q1 = permutation(Q1_NIBBLES);

/** The permutation of each stage (last first) for each byte of a word. */
const STAGES = [
  [Q1, Q0, Q1, Q0],
  [Q0, Q0, Q1, Q1],
  [Q0, Q1, Q0, Q1],
  [Q1, Q1, Q0, Q0],
  [Q1, Q0, Q0, Q1],
] as const;

function multiply(a: number, b: number, polynomial: number): number {
  let product = 0;
  for (let x = a, y = b; y !== 0; y >>= 1) {
    if ((y & 1) !== 0) product ^= x;
    x <<= 1;
    if ((x & 0x100) !== 0) x ^= polynomial;
  }
  return product;
}

/** Column `byte` of the MDS matrix times `value`, as a word. */
function mdsColumn(value: number, byte: number): number {
  return MDS.reduce((word, row, i) => word | (multiply(value, row[byte]!, MDS_POLYNOMIAL) << (8 * i)), 0);
}

/** Byte `byte` of the function h before the matrix: `value` through the stages, with the words of `list` as keys. */
function substitute(value: number, byte: number, list: readonly number[]): number {
  let y = value;
  for (let stage = list.length; stage > 0; stage--) {
    y = STAGES[stage]![byte]![y]! ^ ((list[stage - 1]! >>> (8 * byte)) & 255);
  }
  return STAGES[0][byte]![y]!;
}

function h(value: number, list: readonly number[]): number {
  return [0, 1, 2, 3].reduce((word, byte) => word ^ mdsColumn(substitute(value, byte, list), byte), 0);
}

function rotateLeft(value: number, count: number): number {
  return (value << count) | (value >>> (32 - count));
}

function expandKey(key: Buffer): { readonly keys: Int32Array; readonly tables: readonly Int32Array[] } {
  const pairs = key.length / 8;
  const even = Array.from({ length: pairs }, (_, i) => key.readInt32LE(8 * i));
  const odd = Array.from({ length: pairs }, (_, i) => key.readInt32LE(8 * i + 4));
  // The last eight bytes of the key come first.
  const boxKeys = Array.from({ length: pairs }, (_, i) => {
    const from = 8 * (pairs - 1 - i);
    return RS.reduce((word, row, r) => {
      const byte = row.reduce((sum, factor, c) => sum ^ multiply(key[from + c]!, factor, RS_POLYNOMIAL), 0);
      return word | (byte << (8 * r));
    }, 0);
  });
  const keys = new Int32Array(8 + 2 * ROUNDS);
  for (let i = 0; i < keys.length; i += 2) {
    const a = h(i, even);
    const b = rotateLeft(h(i + 1, odd), 8);
    keys[i] = a + b;
    keys[i + 1] = rotateLeft((a + 2 * b) | 0, 9);
  }
  const tables = [0, 1, 2, 3].map((byte) =>
    Int32Array.from({ length: 256 }, (_, x) => mdsColumn(substitute(x, byte, boxKeys), byte)),
  );
  return { keys, tables };
}

/** Twofish with a key of 16, 24 or 32 bytes. */
export function openTwofish(key: Buffer): SoftwareCipher {
  const { keys, tables } = expandKey(key);
  const [t0, t1, t2, t3] = tables as [Int32Array, Int32Array, Int32Array, Int32Array];
  const g = (x: number): number =>
    t0[x & 255]! ^ t1[(x >>> 8) & 255]! ^ t2[(x >>> 16) & 255]! ^ t3[x >>> 24]!;
  return {
    encrypt: (s, at) => {
      let a = s[at]! ^ keys[0]!;
      let b = s[at + 1]! ^ keys[1]!;
      let c = s[at + 2]! ^ keys[2]!;
      let d = s[at + 3]! ^ keys[3]!;
      for (let k = 8; k < keys.length; k += 4) {
        let x = g(a);
        let y = g(rotateLeft(b, 8));
        c = rotateLeft(c ^ (x + y + keys[k]!), 31);
        d = rotateLeft(d, 1) ^ (x + 2 * y + keys[k + 1]!);
        x = g(c);
        y = g(rotateLeft(d, 8));
        a = rotateLeft(a ^ (x + y + keys[k + 2]!), 31);
        b = rotateLeft(b, 1) ^ (x + 2 * y + keys[k + 3]!);
      }
      s[at] = c ^ keys[4]!;
      s[at + 1] = d ^ keys[5]!;
      s[at + 2] = a ^ keys[6]!;
      s[at + 3] = b ^ keys[7]!;
    },
    decrypt: (s, at) => {
      let c = s[at]! ^ keys[4]!;
      let d = s[at + 1]! ^ keys[5]!;
      let a = s[at + 2]! ^ keys[6]!;
      let b = s[at + 3]! ^ keys[7]!;
      for (let k = keys.length - 4; k >= 8; k -= 4) {
        let x = g(c);
        let y = g(rotateLeft(d, 8));
        a = rotateLeft(a, 1) ^ (x + y + keys[k + 2]!);
        b = rotateLeft(b ^ (x + 2 * y + keys[k + 3]!), 31);
        x = g(a);
        y = g(rotateLeft(b, 8));
        c = rotateLeft(c, 1) ^ (x + y + keys[k]!);
        d = rotateLeft(d ^ (x + 2 * y + keys[k + 1]!), 31);
      }
      s[at] = a ^ keys[0]!;
      s[at + 1] = b ^ keys[1]!;
      s[at + 2] = c ^ keys[2]!;
      s[at + 3] = d ^ keys[3]!;
    },
    wipe: () => {
      keys.fill(0);
      for (const table of tables) table.fill(0);
    },
  };
}
