/** What a secret object must hold to be a passphrase: text. */

import { isUtf8 } from 'node:buffer';
import { BlockError } from '../../errors/error.ts';

/** The passphrase in secret `id`. Error: bytes that are not UTF-8 text, or contain a zero byte. */
export function passphraseFromSecret(id: string, data: Buffer): Buffer {
  if (!isUtf8(data) || data.includes(0)) throw new BlockError(`Data from secret ${id} is not valid UTF-8`);
  return data;
}
