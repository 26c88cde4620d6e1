/**
 * Encryption of 512-byte sectors in place: each sector starts over with an initialisation vector made of its number.
 *
 * The generators are those of dm-crypt, which LUKS uses: plain (32 bits of the number), plain64 (all of it), essiv
 * (the number encrypted with a hash of the key), benbi (the number of the block, for LRW). Here: from bytes and their offset to bytes. Not here: where keys
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
import { closeTool, type Tool } from '../../aio/workers/pool.ts';
import { CoMutex } from '../../coroutine/co-mutex.ts';
import { E } from '../../errors/errno.ts';
import { assert, BlockError, ioError } from '../../errors/error.ts';
import { essivCipher, keyBytesOf, requireCipher, requireHash } from './algorithms.ts';
import { openContext } from './contexts.ts';

export const SECTOR_BYTES = 512;

export interface BlockCipher {
  /** Data comes in whole sectors of this many bytes: 512, or a larger power of two in LUKS2 volumes. */
  readonly sectorBytes: number;
  /** Up to so many bytes take a fraction of a millisecond. */
  readonly inTurnBytes: number;
  /** Held by who encrypts much in turns of the event loop: requests take turns, so that together they do not take all. */
  readonly bulk: CoMutex;
  /** From so many bytes on it pays to have another thread do it. */
  readonly threadBytes: number;
  /** What another thread makes the same cipher of; bulk.ts opens it there at the first use. */
  readonly elsewhere: CipherElsewhere;
  /** Encrypts `buf` in place; `offsetBytes`, a multiple of sectorBytes, is what the first sector's vector is made of. */
  encrypt(buf: Buffer, offsetBytes: number): void;
  /** The reverse. */
  decrypt(buf: Buffer, offsetBytes: number): void;
  /** Frees and wipes the keys; the cipher must not be used afterwards. */
  close(): void;
}

/** The same cipher in other threads. */
export interface CipherElsewhere {
  readonly spec: CipherSpec;
  readonly key: Buffer;
  /** Null: not asked for yet. */
  tool: Tool | null;
}

/** What is done to each sector. */
export interface CipherSpec {
  readonly algorithm: QCryptoCipherAlgorithm;
  readonly mode: QCryptoCipherMode;
  readonly ivgen: QCryptoIVGenAlgorithm;
  /** For essiv; null with the others. */
  readonly ivgenHash: QCryptoHashAlgorithm | null;
  /** Bytes encrypted as one (default: 512). Vectors count 512 bytes all the same. */
  readonly sectorBytes?: number;
  /** Added to the number of each sector of 512 bytes (default: 0). */
  readonly ivTweak?: number;
}

/** What OpenSSL, and what the ciphers computed here, do in some 0.2 ms. */
const FAST_IN_TURN_BYTES = 64 * 1024;
const SLOW_IN_TURN_BYTES = 4 * 1024;
/** Asking another thread costs some 30 us of both: this many times what is done in the turn is worth it. */
const THREAD_FACTOR = 4;

function isComputedHere(algorithm: QCryptoCipherAlgorithm): boolean {
  return algorithm.startsWith('serpent') || algorithm.startsWith('twofish');
}

/** Vectors are made for this many sectors at a time. */
const BATCH_SECTORS = 64;

interface IvGenerator {
  /** Writes the vectors of `count` units that are `step` sectors apart, from `sector` on. */
  fill(ivs: Buffer, sector: number, step: number, count: number): void;
  free(): void;
}

function writeSectorNumbers(
  ivs: Buffer,
  sector: number,
  step: number,
  count: number,
  highWord: boolean,
): void {
  for (let i = 0; i < count; i++) {
    const number = sector + step * i;
    ivs.writeUInt32LE(number % 2 ** 32, IV_BYTES * i);
    ivs.writeUInt32LE(highWord ? Math.floor(number / 2 ** 32) : 0, IV_BYTES * i + 4);
  }
}

/** The index of a sector's first block of 16 bytes, counted from 1, big-endian. */
function fillBlockIndices(ivs: Buffer, sector: number, step: number, count: number): void {
  for (let i = 0; i < count; i++) {
    const index = BigInt(sector + step * i) * BigInt(SECTOR_BYTES / IV_BYTES) + 1n;
    ivs.writeBigUInt64BE(BigInt.asUintN(64, index), IV_BYTES * i + 8);
  }
}

function essivGenerator(spec: CipherSpec, hash: QCryptoHashAlgorithm, key: Buffer): IvGenerator {
  const cipher = essivCipher(spec.algorithm, hash);
  requireHash(hash);
  const context = openContext(`${cipher}-ecb`, createHash(hash).update(key).digest(), true);
  const noIv = Buffer.alloc(IV_BYTES);
  return {
    fill: (ivs, sector, step, count) => {
      ivs.fill(0);
      writeSectorNumbers(ivs, sector, step, count, true);
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
  if (spec.ivgen === 'benbi') return { fill: fillBlockIndices, free: () => {} };
  const highWord = spec.ivgen !== 'plain';
  return {
    fill: (ivs, sector, step, count) => writeSectorNumbers(ivs, sector, step, count, highWord),
    free: () => {},
  };
}

/** A cipher for sectors. Errors: an algorithm this host lacks, a key of the wrong length. */
export function openBlockCipher(spec: CipherSpec, key: Buffer): BlockCipher {
  if (spec.mode === 'xts' && key.length % 2 !== 0) {
    throw new BlockError('XTS cipher key length should be a multiple of 2', { errno: E.EINVAL });
  }
  requireCipher(spec.algorithm, spec.mode);
  const keyBytes = keyBytesOf(spec.algorithm, spec.mode);
  if (key.length !== keyBytes) {
    throw new BlockError(`Cipher key length ${key.length} should be ${keyBytes}`, { errno: E.EINVAL });
  }
  const generator = ivGenerator(spec, key);
  const name = `${spec.algorithm}-${spec.mode}`;
  const encryptor = openContext(name, key, true);
  const decryptor = openContext(name, key, false);
  const ivs = Buffer.alloc(IV_BYTES * BATCH_SECTORS);

  const unitBytes = spec.sectorBytes ?? SECTOR_BYTES;
  const step = unitBytes / SECTOR_BYTES;

  const transform = (context: CipherContext, buf: Buffer, offsetBytes: number): void => {
    assert(offsetBytes % unitBytes === 0 && buf.length % unitBytes === 0, 'whole sectors');
    const units = buf.length / unitBytes;
    const first = offsetBytes / SECTOR_BYTES + (spec.ivTweak ?? 0);
    for (let done = 0; done < units; done += BATCH_SECTORS) {
      const count = Math.min(BATCH_SECTORS, units - done);
      generator.fill(ivs, first + done * step, step, count);
      context.run(buf, done * unitBytes, unitBytes, ivs, count);
    }
  };
  const inTurnBytes = isComputedHere(spec.algorithm) ? SLOW_IN_TURN_BYTES : FAST_IN_TURN_BYTES;
  // Memory of its own: what else lies beside it must not go to another thread with it.
  const ownKey = Buffer.allocUnsafeSlow(key.length);
  key.copy(ownKey);
  const elsewhere: CipherElsewhere = { spec, key: ownKey, tool: null };
  return {
    sectorBytes: unitBytes,
    inTurnBytes,
    bulk: new CoMutex(),
    threadBytes: THREAD_FACTOR * inTurnBytes,
    elsewhere,
    encrypt: (buf, offsetBytes) => transform(encryptor, buf, offsetBytes),
    decrypt: (buf, offsetBytes) => transform(decryptor, buf, offsetBytes),
    close: () => {
      generator.free();
      encryptor.free();
      decryptor.free();
      if (elsewhere.tool !== null) closeTool(elsewhere.tool);
      elsewhere.key.fill(0);
    },
  };
}

/** Stands in for the cipher of an image opened without a key: data is out of reach, EIO. */
export function cipherWithoutKey(): BlockCipher {
  const refuse = (): never => {
    throw ioError(E.EIO);
  };
  return {
    sectorBytes: SECTOR_BYTES,
    inTurnBytes: Number.POSITIVE_INFINITY,
    bulk: new CoMutex(),
    threadBytes: Number.POSITIVE_INFINITY,
    elsewhere: {
      spec: { algorithm: 'aes-128', mode: 'ecb', ivgen: 'plain', ivgenHash: null },
      key: Buffer.alloc(0),
      tool: null,
    },
    encrypt: refuse,
    decrypt: refuse,
    close: () => {},
  };
}
