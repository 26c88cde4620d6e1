/**
 * Base64 as the original reads it in secrets and ring buffers: the alphabet is checked, the padding is not.
 */

import { BlockError } from '../errors/error.ts';

/** Decodes base64 text; line feeds are skipped. Throws when it holds any other character. */
export function decodeBase64(text: string): Buffer {
  if (!/^[A-Za-z0-9+/=\n]*$/.test(text)) throw new BlockError('Base64 data contains invalid characters');
  return Buffer.from(text, 'base64');
}
