/**
 * The old encryption of qcow2 (`encrypt.format=aes`): AES-128 in CBC mode, the vector being the sector's number in the
 * guest, the key being the passphrase itself. Kept for reading old images; it protects nothing.
 */

import { type BlockCipher, openBlockCipher } from './block-cipher.ts';

const KEY_BYTES = 16;

/** The cipher of a passphrase: cut to 16 bytes, or filled up with zeroes. Any passphrase is taken. */
export function openAes(passphrase: Buffer): BlockCipher {
  const key = Buffer.alloc(KEY_BYTES);
  passphrase.copy(key, 0, 0, KEY_BYTES);
  return openBlockCipher({ algorithm: 'aes-128', mode: 'cbc', ivgen: 'plain64', ivgenHash: null }, key);
}
