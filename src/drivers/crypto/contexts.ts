/**
 * Where a cipher with a key comes from: OpenSSL called directly when node exports it, node:crypto otherwise. Serpent and
 * Twofish are computed here, and modes are made of single blocks where OpenSSL does not offer them (XTS with AES-192
 * or with keys whose halves are equal, LRW, CTR with CAST5).
 */

import { createCipheriv, createDecipheriv } from 'node:crypto';
import { type CipherContext, IV_BYTES, loadLegacyProvider, openEvpCipher } from '../../aio/evp.ts';
import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import { openSerpent } from './ciphers/serpent.ts';
import { softwareContext } from './ciphers/software-cipher.ts';
import { openTwofish } from './ciphers/twofish.ts';
import { cbcContext, ctrContext, lrwContext } from './modes.ts';

/** node:crypto: a new object per unit. */
function nodeContext(name: string, key: Buffer, encrypt: boolean): CipherContext {
  const create = encrypt ? createCipheriv : createDecipheriv;
  const withoutIv = name.endsWith('-ecb');
  const ivBytes = blockBytesOf(name);
  return {
    run: (buf, start, unitBytes, ivs, count) => {
      for (let i = 0; i < count; i++) {
        const iv = withoutIv ? null : ivs.subarray(IV_BYTES * i, IV_BYTES * i + ivBytes);
        const at = start + unitBytes * i;
        const cipher = create(name, key, iv).setAutoPadding(false);
        buf.set(cipher.update(buf.subarray(at, at + unitBytes)), at);
      }
    },
    free: () => {},
  };
}

/** Units XTS works on at once: bounds its scratch memory. */
const XTS_BATCH_UNITS = 16;

const NO_IV = Buffer.alloc(IV_BYTES);

/**
 * Fills `tweaks` for one unit: the first block's tweak is there, every next one is it times x in GF(2^128)
 * (IEEE 1619, section 5.2). Words are little-endian, as the host's.
 */
function spreadTweak(tweaks: Int32Array, first: number, words: number): void {
  let [a = 0, b = 0, c = 0, d = 0] = tweaks.subarray(first, first + 4);
  for (let at = first + 4; at < first + words; at += 4) {
    const carry = d >> 31;
    d = (d << 1) | (c >>> 31);
    c = (c << 1) | (b >>> 31);
    b = (b << 1) | (a >>> 31);
    a = (a << 1) ^ (carry & 0x87);
    tweaks[at] = a;
    tweaks[at + 1] = b;
    tweaks[at + 2] = c;
    tweaks[at + 3] = d;
  }
}

function xorInto(target: Int32Array, mask: Int32Array, words: number): void {
  for (let i = 0; i < words; i++) target[i] = (target[i] ?? 0) ^ (mask[i] ?? 0);
}

/** XTS out of the block cipher alone; units are whole blocks (no ciphertext stealing). */
export function xtsContext(blockCipher: string, key: Buffer, encrypt: boolean): CipherContext {
  const half = key.length / 2;
  const dataCipher = openContext(`${blockCipher}-ecb`, key.subarray(0, half), encrypt);
  const tweakCipher = openContext(`${blockCipher}-ecb`, key.subarray(half), true);

  const runBatch = (buf: Buffer, start: number, unitBytes: number, ivs: Buffer, count: number): void => {
    const words = (unitBytes * count) / 4;
    const unitWords = unitBytes / 4;
    const seeds = Buffer.from(ivs.subarray(0, IV_BYTES * count));
    tweakCipher.run(seeds, 0, seeds.length, NO_IV, 1);
    const tweaks = new Int32Array(words);
    for (let i = 0; i < count; i++) {
      for (let k = 0; k < 4; k++) tweaks[unitWords * i + k] = seeds.readInt32LE(IV_BYTES * i + 4 * k);
      spreadTweak(tweaks, unitWords * i, unitWords);
    }
    const data = new Int32Array(words);
    const bytes = Buffer.from(data.buffer);
    buf.copy(bytes, 0, start, start + bytes.length);
    xorInto(data, tweaks, words);
    dataCipher.run(bytes, 0, bytes.length, NO_IV, 1);
    xorInto(data, tweaks, words);
    buf.set(bytes, start);
  };

  return {
    run: (buf, start, unitBytes, ivs, count) => {
      for (let i = 0; i < count; i += XTS_BATCH_UNITS) {
        const units = Math.min(XTS_BATCH_UNITS, count - i);
        runBatch(buf, start + unitBytes * i, unitBytes, ivs.subarray(IV_BYTES * i), units);
      }
    },
    free: () => {
      dataCipher.free();
      tweakCipher.free();
    },
  };
}

/** Bytes of a block of the cipher that `name` begins with, which is the length of its vectors too. */
export function blockBytesOf(name: string): number {
  return name.startsWith('cast5') ? 8 : IV_BYTES;
}

/** OpenSSL's name: it has CAST5 with one length of key, which its names leave out. */
function opensslName(name: string): string {
  return name.replace(/^cast5-128-/, 'cast5-');
}

/** Single blocks, without OpenSSL's symbols. */
function portableBlocks(cipher: string, key: Buffer, encrypt: boolean): CipherContext {
  if (cipher.startsWith('serpent')) return softwareContext(openSerpent(key), encrypt);
  if (cipher.startsWith('twofish')) return softwareContext(openTwofish(key), encrypt);
  if (cipher.startsWith('cast5') && !loadLegacyProvider()) {
    throw new BlockError(`Algorithm '${cipher}' not supported`, { errno: E.ENOTSUP });
  }
  return nodeContext(opensslName(`${cipher}-ecb`), key, encrypt);
}

/** Without OpenSSL's symbols, and for what it does not have. Exported for the tests. */
export function portableContext(name: string, key: Buffer, encrypt: boolean): CipherContext {
  const dash = name.lastIndexOf('-');
  const cipher = name.slice(0, dash);
  const software = !name.startsWith('aes');
  switch (name.slice(dash + 1)) {
    case 'xts':
      return xtsContext(cipher, key, encrypt);
    case 'lrw': {
      const tweakAt = key.length - IV_BYTES;
      const blocks = openContext(`${cipher}-ecb`, key.subarray(0, tweakAt), encrypt);
      return lrwContext(blocks, key.subarray(tweakAt));
    }
    case 'ecb':
      return portableBlocks(cipher, key, encrypt);
    case 'cbc':
      if (software) return cbcContext(portableBlocks(cipher, key, encrypt), blockBytesOf(cipher), encrypt);
      return nodeContext(name, key, encrypt);
    default:
      if (software) return ctrContext(portableBlocks(cipher, key, true), blockBytesOf(cipher));
      return nodeContext(name, key, encrypt);
  }
}

/**
 * The cipher `name` (`aes-256-xts`: the schema's name of the cipher, and a mode) with a key of its length. Units given
 * to it are whole blocks.
 */
export function openContext(name: string, key: Buffer, encrypt: boolean): CipherContext {
  if (name.startsWith('cast5')) loadLegacyProvider();
  return openEvpCipher(opensslName(name), key, encrypt) ?? portableContext(name, key, encrypt);
}
