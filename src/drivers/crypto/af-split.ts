/**
 * The anti-forensic splitter of LUKS (TKS1; LUKS on-disk format specification, "AF-Splitter"): blows a key up to many
 * stripes of its size, all of which are needed to get it back, so that destroying any part of a key slot destroys
 * the key.
 */

import { createHash, randomBytes } from 'node:crypto';
import type { QCryptoHashAlgorithm } from '../../../schema/generated/types.ts';
import { HASH_BYTES } from './algorithms.ts';

/** Hashes `block` piece by piece, each with its index, in place. */
function diffuse(hash: QCryptoHashAlgorithm, block: Buffer): void {
  const pieceBytes = HASH_BYTES[hash];
  const index = Buffer.alloc(4);
  for (let at = 0, i = 0; at < block.length; at += pieceBytes, i++) {
    index.writeUInt32BE(i);
    const piece = block.subarray(at, at + pieceBytes);
    const digest = createHash(hash).update(index).update(piece).digest();
    digest.copy(piece, 0, 0, piece.length);
  }
}

function xorInto(target: Buffer, source: Buffer, start: number): void {
  for (let i = 0; i < target.length; i++) target[i] = (target[i] ?? 0) ^ (source[start + i] ?? 0);
}

/** `stripes` stripes of random bytes that merge to `key`. */
export function splitKey(hash: QCryptoHashAlgorithm, key: Buffer, stripes: number): Buffer {
  const split = randomBytes(key.length * stripes);
  const block = Buffer.alloc(key.length);
  const last = key.length * (stripes - 1);
  for (let at = 0; at < last; at += key.length) {
    xorInto(block, split, at);
    diffuse(hash, block);
  }
  xorInto(block, key, 0);
  block.copy(split, last);
  return split;
}

/** The key of `keyBytes` bytes that `split` was made of. */
export function mergeKey(
  hash: QCryptoHashAlgorithm,
  split: Buffer,
  keyBytes: number,
  stripes: number,
): Buffer {
  const block = Buffer.alloc(keyBytes);
  const last = keyBytes * (stripes - 1);
  for (let at = 0; at < last; at += keyBytes) {
    xorInto(block, split, at);
    diffuse(hash, block);
  }
  xorInto(block, split, last);
  return block;
}
