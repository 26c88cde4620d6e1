/**
 * Serpent: a block cipher of 32 rounds on 16-byte blocks. OpenSSL does not have it.
 *
 * Source of the facts: Anderson, Biham, Knudsen, "Serpent: A Proposal for the Advanced Encryption Standard". Tested with
 * the authors' vectors and against the original's volumes.
 */

import { INVERSE_S_BOXES, S_BOXES } from './serpent-boxes.ts';
import type { SoftwareCipher } from './software-cipher.ts';

const ROUNDS = 32;
/** The golden ratio's fraction, as in the key schedule. */
const PHI = 0x9e3779b9;

function rotateLeft(value: number, count: number): number {
  return (value << count) | (value >>> (32 - count));
}

/** 33 round keys of four words. Shorter keys are filled up with one 1 bit and zeroes. */
function roundKeys(key: Buffer): Int32Array {
  const padded = Buffer.alloc(32);
  key.copy(padded);
  if (key.length < 32) padded[key.length] = 1;
  const words = new Int32Array(8 + 4 * (ROUNDS + 1));
  for (let i = 0; i < 8; i++) words[i] = padded.readInt32LE(4 * i);
  for (let i = 8; i < words.length; i++) {
    const mixed = words[i - 8]! ^ words[i - 5]! ^ words[i - 3]! ^ words[i - 1]! ^ PHI ^ (i - 8);
    words[i] = rotateLeft(mixed, 11);
  }
  const keys = words.slice(8);
  words.fill(0);
  padded.fill(0);
  for (let i = 0; i <= ROUNDS; i++) S_BOXES[(ROUNDS + 3 - i) % 8]!(keys, 4 * i);
  return keys;
}

function addKey(s: Int32Array, at: number, keys: Int32Array, round: number): void {
  const k = 4 * round;
  s[at] = s[at]! ^ keys[k]!;
  s[at + 1] = s[at + 1]! ^ keys[k + 1]!;
  s[at + 2] = s[at + 2]! ^ keys[k + 2]!;
  s[at + 3] = s[at + 3]! ^ keys[k + 3]!;
}

function transform(s: Int32Array, at: number): void {
  let a = rotateLeft(s[at]!, 13);
  let c = rotateLeft(s[at + 2]!, 3);
  const b = rotateLeft(s[at + 1]! ^ a ^ c, 1);
  const d = rotateLeft(s[at + 3]! ^ c ^ (a << 3), 7);
  a ^= b ^ d;
  c ^= d ^ (b << 7);
  s[at] = rotateLeft(a, 5);
  s[at + 1] = b;
  s[at + 2] = rotateLeft(c, 22);
  s[at + 3] = d;
}

function transformBack(s: Int32Array, at: number): void {
  const b = s[at + 1]!;
  const d = s[at + 3]!;
  const c = rotateLeft(s[at + 2]!, 10) ^ d ^ (b << 7);
  const a = rotateLeft(s[at]!, 27) ^ b ^ d;
  s[at + 3] = rotateLeft(d, 25) ^ c ^ (a << 3);
  s[at + 1] = rotateLeft(b, 31) ^ a ^ c;
  s[at + 2] = rotateLeft(c, 29);
  s[at] = rotateLeft(a, 19);
}

/** Serpent with a key of 16, 24 or 32 bytes. */
export function openSerpent(key: Buffer): SoftwareCipher {
  const keys = roundKeys(key);
  return {
    encrypt: (s, at) => {
      for (let round = 0; round < ROUNDS - 1; round++) {
        addKey(s, at, keys, round);
        S_BOXES[round % 8]!(s, at);
        transform(s, at);
      }
      addKey(s, at, keys, ROUNDS - 1);
      S_BOXES[7]!(s, at);
      addKey(s, at, keys, ROUNDS);
    },
    decrypt: (s, at) => {
      addKey(s, at, keys, ROUNDS);
      INVERSE_S_BOXES[7]!(s, at);
      addKey(s, at, keys, ROUNDS - 1);
      for (let round = ROUNDS - 2; round >= 0; round--) {
        transformBack(s, at);
        INVERSE_S_BOXES[round % 8]!(s, at);
        addKey(s, at, keys, round);
      }
    },
    wipe: () => void keys.fill(0),
  };
}
