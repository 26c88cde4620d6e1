/**
 * Encryption of 512-byte sectors in place: each sector starts over with an initialisation vector made of its number.
 *
 * The generators are those of dm-crypt, which LUKS uses: plain (32 bits of the number), plain64 (all of it), essiv
 * (the number encrypted with a hash of the key). Here: from bytes and their offset to bytes. Not here: where keys
 * come from (luks.ts, legacy-aes.ts) and which offset counts (the format's driver).
 */

import { createHash } from 'node:crypto';
import type {
  QCryptoCipherAlgorithm,
  QCryptoCipherMode,
  QCryptoHashAlgorithm,
  QCryptoIVGenAlgorithm,
} from '../../../schema/generated/types.ts';
import { type CipherContext, IV_BYTES } from '../../aio/evp.ts';
import { E } from '../../errors/errno.ts';
import { assert, BlockError } from '../../errors/error.ts';
import { essivCipher, keyBytesOf, requireCipher, requireHash } from './algorithms.ts';
import { openContext } from './contexts.ts';

export const SECTOR_BYTES = 512;

export interface BlockCipher {
  /** Data comes in whole sectors of this many bytes. */
  readonly sectorBytes: 512;
  /** Encrypts `buf` in place; `offsetBytes`, a multiple of sectorBytes, is what the first sector's vector is made of. */
  encrypt(buf: Buffer, offsetBytes: number): void;
  /** The reverse. */
  decrypt(buf: Buffer, offsetBytes: number): void;
  /** Frees and wipes the keys; the cipher must not be used afterwards. */
  close(): void;
}

/** What is done to each sector. */
export interface CipherSpec {
  readonly algorithm: QCryptoCipherAlgorithm;
  readonly mode: QCryptoCipherMode;
  readonly ivgen: QCryptoIVGenAlgorithm;
  /** For essiv; null with the others. */
  readonly ivgenHash: QCryptoHashAlgorithm | null;
}

/** Vectors are made for this many sectors at a time. */
const BATCH_SECTORS = 64;

interface IvGenerator {
  /** Writes the vectors of `count` sectors from `sector` on. */
  fill(ivs: Buffer, sector: number, count: number): void;
  free(): void;
}

function writeSectorNumbers(ivs: Buffer, sector: number, count: number, highWord: boolean): void {
  for (let i = 0; i < count; i++) {
    const number = sector + i;
    ivs.writeUInt32LE(number % 2 ** 32, IV_BYTES * i);
    ivs.writeUInt32LE(highWord ? Math.floor(number / 2 ** 32) : 0, IV_BYTES * i + 4);
  }
}

function essivGenerator(spec: CipherSpec, hash: QCryptoHashAlgorithm, key: Buffer): IvGenerator {
  const cipher = essivCipher(spec.algorithm, hash);
  requireHash(hash);
  const context = openContext(`${cipher}-ecb`, createHash(hash).update(key).digest(), true);
  const noIv = Buffer.alloc(IV_BYTES);
  return {
    fill: (ivs, sector, count) => {
      ivs.fill(0);
      writeSectorNumbers(ivs, sector, count, true);
      context.run(ivs, 0, IV_BYTES * count, noIv, 1);
    },
    free: () => context.free(),
  };
}

function ivGenerator(spec: CipherSpec, key: Buffer): IvGenerator {
  if (spec.ivgen === 'essiv' && spec.mode !== 'ecb') {
    assert(spec.ivgenHash !== null, 'essiv with a hash');
    return essivGenerator(spec, spec.ivgenHash, key);
  }
  const highWord = spec.ivgen !== 'plain';
  return {
    fill: (ivs, sector, count) => writeSectorNumbers(ivs, sector, count, highWord),
    free: () => {},
  };
}

/** A cipher for sectors. Errors: an algorithm this host lacks, a key of the wrong length. */
export function openBlockCipher(spec: CipherSpec, key: Buffer): BlockCipher {
  if (spec.mode === 'xts' && key.length % 2 !== 0) {
    throw new BlockError('XTS cipher key length should be a multiple of 2', { errno: E.EINVAL });
  }
  requireCipher(spec.algorithm);
  const keyBytes = keyBytesOf(spec.algorithm, spec.mode);
  if (key.length !== keyBytes) {
    throw new BlockError(`Cipher key length ${key.length} should be ${keyBytes}`, { errno: E.EINVAL });
  }
  const generator = ivGenerator(spec, key);
  const name = `${spec.algorithm}-${spec.mode}`;
  const encryptor = openContext(name, key, true);
  const decryptor = openContext(name, key, false);
  const ivs = Buffer.alloc(IV_BYTES * BATCH_SECTORS);

  const transform = (context: CipherContext, buf: Buffer, offsetBytes: number): void => {
    assert(offsetBytes % SECTOR_BYTES === 0 && buf.length % SECTOR_BYTES === 0, 'whole sectors');
    const sectors = buf.length / SECTOR_BYTES;
    const first = offsetBytes / SECTOR_BYTES;
    for (let done = 0; done < sectors; done += BATCH_SECTORS) {
      const count = Math.min(BATCH_SECTORS, sectors - done);
      generator.fill(ivs, first + done, count);
      context.run(buf, done * SECTOR_BYTES, SECTOR_BYTES, ivs, count);
    }
  };
  return {
    sectorBytes: SECTOR_BYTES,
    encrypt: (buf, offsetBytes) => transform(encryptor, buf, offsetBytes),
    decrypt: (buf, offsetBytes) => transform(decryptor, buf, offsetBytes),
    close: () => {
      generator.free();
      encryptor.free();
      decryptor.free();
    },
  };
}
