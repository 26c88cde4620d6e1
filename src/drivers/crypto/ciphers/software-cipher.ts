/** Block ciphers computed here, where OpenSSL has none, as a context for runs of blocks without chaining (ECB). */

import type { CipherContext } from '../../../aio/evp.ts';

/** A cipher of 16-byte blocks with its key. A block is four words, little-endian in memory. */
export interface SoftwareCipher {
  encrypt(words: Int32Array, at: number): void;
  decrypt(words: Int32Array, at: number): void;
  /** Overwrites what was made of the key. */
  wipe(): void;
}

/** Words worked on at a time: the data may lie at any address, so it is copied. */
const BATCH_WORDS = 1024;

/** `cipher` for one direction; vectors are ignored. */
export function softwareContext(cipher: SoftwareCipher, encrypt: boolean): CipherContext {
  const step = encrypt ? cipher.encrypt : cipher.decrypt;
  const words = new Int32Array(BATCH_WORDS);
  const bytes = Buffer.from(words.buffer);
  return {
    run: (buf, start, unitBytes, _ivs, count) => {
      const end = start + unitBytes * count;
      for (let at = start; at < end; at += bytes.length) {
        const length = Math.min(bytes.length, end - at);
        buf.copy(bytes, 0, at, at + length);
        for (let word = 0; word < length / 4; word += 4) step(words, word);
        bytes.copy(buf, at, 0, length);
      }
    },
    free: () => {
      cipher.wipe();
      words.fill(0);
    },
  };
}
