/**
 * The anti-forensic splitter of LUKS (TKS1; LUKS on-disk format specification, "AF-Splitter"): blows a key up to many
 * stripes of its size, all of which are needed to get it back, so that destroying any part of a key slot destroys
 * the key.
 */

import { hash, randomBytes } from 'node:crypto';
import type { QCryptoHashAlgorithm } from '../../../schema/generated/types.ts';
import { createTurns } from '../../aio/host/turns.ts';
import { HASH_BYTES } from './algorithms.ts';

/** Hashes `block` piece by piece, each with its index, in place. `input` is scratch memory, four bytes and a piece. */
function diffuse(name: QCryptoHashAlgorithm, block: Buffer, input: Buffer): void {
  const pieceBytes = HASH_BYTES[name];
  for (let at = 0, i = 0; at < block.length; at += pieceBytes, i++) {
    input.writeUInt32BE(i);
    const bytes = block.copy(input, 4, at, at + pieceBytes);
    hash(name, input.subarray(0, 4 + bytes), 'buffer').copy(block, at, 0, bytes);
  }
}

function xorInto(target: Buffer, source: Buffer, start: number): void {
  for (let i = 0; i < target.length; i++) target[i] = (target[i] ?? 0) ^ (source[start + i] ?? 0);
}

/** The state of the diffusion behind the first `stripes` stripes of `split`. */
async function diffused(
  name: QCryptoHashAlgorithm,
  split: Buffer,
  keyBytes: number,
  stripes: number,
): Promise<Buffer> {
  const turns = createTurns();
  const block = Buffer.alloc(keyBytes);
  const input = Buffer.alloc(4 + HASH_BYTES[name]);
  for (let i = 0; i < stripes; i++) {
    xorInto(block, split, i * keyBytes);
    diffuse(name, block, input);
    await turns.next();
  }
  return block;
}

/** `stripes` stripes of random bytes that merge to `key`. */
export async function splitKey(name: QCryptoHashAlgorithm, key: Buffer, stripes: number): Promise<Buffer> {
  const split = randomBytes(key.length * stripes);
  const block = await diffused(name, split, key.length, stripes - 1);
  xorInto(block, key, 0);
  block.copy(split, key.length * (stripes - 1));
  return split;
}

/** The key of `keyBytes` bytes that `split` was made of. */
export async function mergeKey(
  name: QCryptoHashAlgorithm,
  split: Buffer,
  keyBytes: number,
  stripes: number,
): Promise<Buffer> {
  const block = await diffused(name, split, keyBytes, stripes - 1);
  xorInto(block, split, keyBytes * (stripes - 1));
  return block;
}
