/**
 * Names of ciphers, modes, vector generators and hashes: as QMP spells them, as LUKS headers spell them, and which of
 * them this host can compute.
 */

import { getHashes } from 'node:crypto';
import type {
  QCryptoCipherAlgorithm,
  QCryptoCipherMode,
  QCryptoHashAlgorithm,
  QCryptoIVGenAlgorithm,
} from '../../../schema/generated/types.ts';
import { loadLegacyProvider } from '../../aio/evp.ts';
import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';

interface Cipher {
  /** Name in a LUKS header; null: LUKS volumes cannot use it. */
  readonly luksName: string | null;
  /** Name in messages about a family. */
  readonly family: string;
  readonly keyBytes: number;
}

export const CIPHERS: Readonly<Record<QCryptoCipherAlgorithm, Cipher>> = {
  'aes-128': { luksName: 'aes', family: 'AES', keyBytes: 16 },
  'aes-192': { luksName: 'aes', family: 'AES', keyBytes: 24 },
  'aes-256': { luksName: 'aes', family: 'AES', keyBytes: 32 },
  des: { luksName: null, family: 'DES', keyBytes: 8 },
  '3des': { luksName: null, family: '3DES', keyBytes: 24 },
  'cast5-128': { luksName: 'cast5', family: 'Cast5', keyBytes: 16 },
  'serpent-128': { luksName: 'serpent', family: 'Serpent', keyBytes: 16 },
  'serpent-192': { luksName: 'serpent', family: 'Serpent', keyBytes: 24 },
  'serpent-256': { luksName: 'serpent', family: 'Serpent', keyBytes: 32 },
  'twofish-128': { luksName: 'twofish', family: 'Twofish', keyBytes: 16 },
  'twofish-192': { luksName: 'twofish', family: 'Twofish', keyBytes: 24 },
  'twofish-256': { luksName: 'twofish', family: 'Twofish', keyBytes: 32 },
};

const CIPHER_NAMES = Object.keys(CIPHERS) as QCryptoCipherAlgorithm[];

export const MODES: readonly QCryptoCipherMode[] = ['ecb', 'cbc', 'xts', 'ctr', 'lrw'];
export const IV_GENERATORS: readonly QCryptoIVGenAlgorithm[] = ['plain', 'plain64', 'essiv', 'benbi'];

/** Bytes of the key that LRW makes its tweaks with, behind the cipher's. */
const LRW_KEY_BYTES = 16;

/** Bytes of each hash's result. */
export const HASH_BYTES: Readonly<Record<QCryptoHashAlgorithm, number>> = {
  md5: 16,
  sha1: 20,
  sha224: 28,
  sha256: 32,
  sha384: 48,
  sha512: 64,
  ripemd160: 20,
  whirlpool: 64,
};

const unsupported = (message: string): BlockError => new BlockError(message, { errno: E.ENOTSUP });

/** Bytes of the whole key: XTS has one for the data and one for the tweak, LRW a short one for the tweak. */
export function keyBytesOf(algorithm: QCryptoCipherAlgorithm, mode: QCryptoCipherMode): number {
  const { keyBytes } = CIPHERS[algorithm];
  if (mode === 'xts') return 2 * keyBytes;
  return mode === 'lrw' ? keyBytes + LRW_KEY_BYTES : keyBytes;
}

/** Bytes of the cipher's own key in a whole key of `keyBytes`. */
export function cipherKeyBytes(mode: QCryptoCipherMode, keyBytes: number): number {
  if (mode === 'xts') return Math.floor(keyBytes / 2);
  return mode === 'lrw' ? keyBytes - LRW_KEY_BYTES : keyBytes;
}

/** Throws unless sectors can be encrypted so: ciphers of small blocks are not for the modes with tweaks. */
export function requireCipher(algorithm: QCryptoCipherAlgorithm, mode: QCryptoCipherMode): void {
  const { family, luksName } = CIPHERS[algorithm];
  if (luksName === null) throw unsupported(`Algorithm '${algorithm}' not supported`);
  if (family !== 'Cast5') return;
  if (mode === 'xts' || mode === 'lrw') throw unsupported(`Unsupported cipher mode ${mode}`);
  if (!loadLegacyProvider()) throw unsupported(`Algorithm '${algorithm}' not supported`);
}

/** Throws unless this host has the hash. */
export function requireHash(hash: QCryptoHashAlgorithm): void {
  if (hash === 'whirlpool' && loadLegacyProvider()) return;
  if (!getHashes().includes(hash)) throw unsupported(`Hash algorithm '${hash}' not supported`);
}

/** A LUKS header's cipher with its key length (of the half key for XTS). */
export function luksCipher(name: string, keyBytes: number): QCryptoCipherAlgorithm {
  const found = CIPHER_NAMES.find(
    (key) => CIPHERS[key].luksName === name && CIPHERS[key].keyBytes === keyBytes,
  );
  if (found === undefined) {
    throw unsupported(`Algorithm '${name}' with key size ${keyBytes} bytes not supported`);
  }
  return found;
}

/** A LUKS header's cipher mode. */
export function luksMode(name: string): QCryptoCipherMode {
  const found = MODES.find((mode) => mode === name);
  if (found === undefined) throw unsupported(`Cipher mode '${name}' not supported`);
  return found;
}

/** A LUKS header's generator of initialisation vectors. */
export function luksIvGenerator(name: string): QCryptoIVGenAlgorithm {
  const found = IV_GENERATORS.find((generator) => generator === name);
  if (found === undefined) throw unsupported(`IV generator '${name}' not supported`);
  return found;
}

/** A LUKS header's hash. */
export function luksHash(name: string): QCryptoHashAlgorithm {
  if (!Object.hasOwn(HASH_BYTES, name)) throw unsupported(`Hash algorithm '${name}' not supported`);
  return name as QCryptoHashAlgorithm;
}

/** The cipher that ESSIV encrypts sector numbers with: the data's own, with the hash's result as key. */
export function essivCipher(
  algorithm: QCryptoCipherAlgorithm,
  hash: QCryptoHashAlgorithm,
): QCryptoCipherAlgorithm {
  const { family } = CIPHERS[algorithm];
  if (!['AES', 'Serpent', 'Twofish'].includes(family)) {
    throw unsupported(`Cipher ${algorithm} not supported with essiv`);
  }
  const keyBytes = HASH_BYTES[hash];
  const found = CIPHER_NAMES.find(
    (key) => CIPHERS[key].family === family && CIPHERS[key].keyBytes === keyBytes,
  );
  if (found === undefined) throw unsupported(`No ${family} cipher with key size ${keyBytes} available`);
  return found;
}
