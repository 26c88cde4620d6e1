/**
 * Key slots: a passphrase and a master key become key material, and back. What openLuks, createLuks and amendLuks
 * have in common.
 */

import { randomBytes, timingSafeEqual } from 'node:crypto';
import type { QCryptoHashAlgorithm } from '../../../schema/generated/types.ts';
import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import { mergeKey, splitKey } from './af-split.ts';
import { openBlockCipher } from './block-cipher.ts';
import {
  DIGEST_BYTES,
  type LuksAlgorithms,
  type LuksHeader,
  type LuksSlot,
  materialBytes,
  SALT_BYTES,
  STRIPES,
} from './luks-header.ts';
import {
  deriveKey,
  iterationsFor,
  MAX_ITERATIONS,
  measureIterations,
  PLAUSIBLE_ITERATIONS,
} from './pbkdf.ts';

/** Reads `bytes` bytes at `offset` of the header area; throws when they are not there. */
export type HeaderReader = (offset: number, bytes: number) => Promise<Buffer>;

/** At least so many iterations protect a key slot (specification: LUKS_SLOT_ITERATIONS_MIN), and the digest. */
const MIN_ITERATIONS = 1000;

/** The digest of the master key is given an eighth of the time, as by the original and cryptsetup. */
const DIGEST_TIME_DIVISOR = 8;

function checkIterations(iterations: number, what: string): void {
  if (iterations <= PLAUSIBLE_ITERATIONS) return;
  const limit = iterations > MAX_ITERATIONS ? MAX_ITERATIONS : PLAUSIBLE_ITERATIONS;
  throw new BlockError(`${what} iteration count ${iterations} is larger than ${limit}`);
}

/** The master key, if `passphrase` is the slot's; null when it is not. */
export async function unlockSlot(
  header: LuksHeader,
  { spec, hash }: LuksAlgorithms,
  index: number,
  passphrase: Buffer,
  read: HeaderReader,
): Promise<Buffer | null> {
  const slot = header.slots[index];
  if (slot === undefined || !slot.active) return null;
  checkIterations(slot.iterations, `Keyslot ${index}`);
  checkIterations(header.digestIterations, 'LUKS key');
  const { keyBytes } = header;
  const slotKey = await deriveKey(hash, passphrase, slot.salt, slot.iterations, keyBytes);
  const material = Buffer.from(await read(slot.offsetBytes, materialBytes(keyBytes)));
  const cipher = openBlockCipher(spec, slotKey);
  try {
    cipher.decrypt(material, 0);
  } finally {
    cipher.close();
  }
  const key = await mergeKey(hash, material, keyBytes, STRIPES);
  const digest = await deriveKey(hash, key, header.digestSalt, header.digestIterations, DIGEST_BYTES);
  return timingSafeEqual(digest, header.digest) ? key : null;
}

/** The master key out of the first slot that `passphrase` opens. Error: EPERM when it opens none. */
export async function findMasterKey(
  header: LuksHeader,
  algorithms: LuksAlgorithms,
  passphrase: Buffer,
  read: HeaderReader,
): Promise<Buffer> {
  for (let i = 0; i < header.slots.length; i++) {
    const key = await unlockSlot(header, algorithms, i, passphrase, read);
    if (key !== null) return key;
  }
  throw new BlockError('Invalid password, cannot unlock any keyslot', { errno: E.EPERM });
}

/** Iterations that make deriving `bytes` bytes take `timeMs` / `divisor` milliseconds here. */
async function chooseIterations(
  hash: QCryptoHashAlgorithm,
  bytes: number,
  timeMs: number,
  divisor: number,
): Promise<number> {
  if (timeMs === 0) return MIN_ITERATIONS; // No need to measure.
  return iterationsFor(await measureIterations(hash, bytes), timeMs, divisor, MIN_ITERATIONS);
}

/** A slot at `offsetBytes` for `passphrase`, and its key material, to be written there. */
export async function makeSlot(
  { spec, hash }: LuksAlgorithms,
  masterKey: Buffer,
  passphrase: Buffer,
  offsetBytes: number,
  iterTimeMs: number,
): Promise<{ slot: LuksSlot; material: Buffer }> {
  const iterations = await chooseIterations(hash, masterKey.length, iterTimeMs, 1);
  const salt = randomBytes(SALT_BYTES);
  const slotKey = await deriveKey(hash, passphrase, salt, iterations, masterKey.length);
  const material = Buffer.alloc(materialBytes(masterKey.length));
  (await splitKey(hash, masterKey, STRIPES)).copy(material);
  const cipher = openBlockCipher(spec, slotKey);
  try {
    cipher.encrypt(material, 0);
  } finally {
    cipher.close();
  }
  return { slot: { active: true, iterations, salt, offsetBytes }, material };
}

/** What a header needs to recognise the master key. */
export async function makeDigest(
  { hash }: LuksAlgorithms,
  masterKey: Buffer,
  iterTimeMs: number,
): Promise<Pick<LuksHeader, 'digest' | 'digestSalt' | 'digestIterations'>> {
  const digestIterations = await chooseIterations(hash, DIGEST_BYTES, iterTimeMs, DIGEST_TIME_DIVISOR);
  const digestSalt = randomBytes(SALT_BYTES);
  const digest = await deriveKey(hash, masterKey, digestSalt, digestIterations, DIGEST_BYTES);
  return { digest, digestSalt, digestIterations };
}
