/**
 * The secret objects: a password or key given as text, in a file or as a key of the kernel, as it is or in base64, in
 * clear or encrypted with another secret (AES-256 in CBC mode with PKCS#7 padding, docs/system/secrets of the QEMU manual).
 *
 * The bytes are fixed when the object is made: properties set later with qom-set are shown, and change nothing.
 */

import { createDecipheriv } from 'node:crypto';
import type { ObjectOptions, QCryptoSecretFormat } from '../../schema/generated/types.ts';
import { readKernelKey } from '../aio/ffi.ts';
import { readHostFile } from '../aio/host/files.ts';
import { bytesOfText } from '../aio/host/names.ts';
import { E, strerror } from '../errors/errno.ts';
import { BlockError, errnoOf } from '../errors/error.ts';
import { decodeBase64 } from './base64.ts';
import { enumProperty, expectInt32, type QomAccessors, type QomObject, stringProperty } from './qom.ts';

export type SecretOptions = Extract<ObjectOptions, { 'qom-type': 'secret' }>;
export type SecretKeyringOptions = Extract<ObjectOptions, { 'qom-type': 'secret_keyring' }>;

/** More than any key or password needs; keeps a wrong path (a disk, /dev/zero) from filling the memory. */
const MAX_SECRET_BYTES = 16 * 1024 * 1024;

const KEY_BYTES = 32;
const BLOCK_BYTES = 16;
const FORMATS: readonly QCryptoSecretFormat[] = ['raw', 'base64'];

/** Looks up the bytes of the secret a `keyid` names. */
export type SecretLookup = (id: string) => Buffer;

/** The file's content. The texts are those of GLib's g_file_get_contents, which the original uses. */
async function readSecretFile(path: string): Promise<Buffer> {
  try {
    return await readHostFile(path, MAX_SECRET_BYTES);
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === E.EFBIG) throw new BlockError(`Unable to read ${path}: the file is too large`);
    const action =
      (error as NodeJS.ErrnoException).syscall === 'open' ? 'Failed to open file' : 'Error reading file';
    throw new BlockError(`Unable to read ${path}: ${action} \u201c${path}\u201d: ${strerror(errno)}`);
  }
}

/** Decrypts with the secret `keyId`. */
function decrypt(input: Buffer, keyId: string, ivText: string | undefined, lookup: SecretLookup): Buffer {
  const key = lookup(keyId);
  if (key.length !== KEY_BYTES) throw new BlockError(`Key should be ${KEY_BYTES} bytes in length`);
  if (ivText === undefined) throw new BlockError('IV is required to decrypt secret');
  const iv = decodeBase64(ivText);
  if (iv.length !== BLOCK_BYTES) {
    throw new BlockError(`IV should be ${BLOCK_BYTES} bytes in length not ${iv.length}`);
  }
  if (input.length % BLOCK_BYTES !== 0) {
    throw new BlockError(`Length ${input.length} must be a multiple of block size ${BLOCK_BYTES}`);
  }
  const cipher = createDecipheriv('aes-256-cbc', key, iv).setAutoPadding(false);
  const plain = Buffer.concat([cipher.update(input), cipher.final()]);
  const padding = plain.at(-1) ?? 0;
  if (padding > BLOCK_BYTES || padding > plain.length) {
    throw new BlockError(`Incorrect number of padding bytes (${padding}) found on decrypted data`);
  }
  return plain.subarray(0, plain.length - padding);
}

/** The bytes as they are given, made into those that are meant. */
function decode(
  given: Buffer,
  { keyid, iv, format }: SecretOptions | SecretKeyringOptions,
  lookup: SecretLookup,
): Buffer {
  const data = format === 'base64' ? decodeBase64(given.toString('latin1')) : given;
  return keyid === undefined ? data : decrypt(data, keyid, iv, lookup);
}

function commonAccessors({ keyid, iv, format }: SecretOptions | SecretKeyringOptions): QomAccessors {
  const shown = { keyid: keyid ?? null, iv: iv ?? null, format: format ?? 'raw' };
  return {
    iv: stringProperty(shown, 'iv', 'iv'),
    keyid: stringProperty(shown, 'keyid', 'keyid'),
    loaded: { get: () => true },
    format: enumProperty(shown, 'format', 'format', FORMATS),
  };
}

/** Makes a secret: its bytes, and what qom-get shows. */
export async function createSecret(
  options: SecretOptions,
  lookup: SecretLookup,
): Promise<{ data: Buffer; qom: QomObject }> {
  if (options.loaded !== undefined) throw new BlockError("Property 'secret.loaded' is not writable");
  const { data: text, file } = options;
  if (file !== undefined && text !== undefined)
    throw new BlockError("'file' and 'data' are mutually exclusive");
  if (file === undefined && text === undefined)
    throw new BlockError("Either 'file' or 'data' must be provided");
  const given = file === undefined ? bytesOfText(text ?? '') : await readSecretFile(file);
  const data = decode(given, options, lookup);

  const shown = { data: text ?? null, file: file ?? null };
  const accessors = {
    ...commonAccessors(options),
    file: stringProperty(shown, 'file', 'file'),
    data: stringProperty(shown, 'data', 'data'),
  };
  return { data, qom: { typeName: 'secret', accessors } };
}

/** The key's bytes as they are now. */
function readKey(serial: number): Buffer {
  let bytes = Buffer.alloc(0);
  for (;;) {
    const length = readKernelKey(serial, bytes);
    if (length < 0) {
      const hex = (serial >>> 0).toString(16).padStart(8, '0');
      throw new BlockError(`Unable to read serial key ${hex}: ${strerror(-length)}`);
    }
    // Somebody may have given the key a longer value meanwhile.
    if (length <= bytes.length) return bytes.subarray(0, length);
    bytes = Buffer.alloc(length);
  }
}

function checkSerial(value: unknown): number {
  const serial = expectInt32('serial', value);
  if (serial === 0) throw new BlockError("'serial' should not be equal to 0");
  return serial;
}

/** Makes a secret of a key that the kernel keeps (keyrings(7)): its bytes, and what qom-get shows. */
export function createSecretKeyring(
  options: SecretKeyringOptions,
  lookup: SecretLookup,
): { data: Buffer; qom: QomObject } {
  if (options.loaded !== undefined) throw new BlockError("Property 'secret_keyring.loaded' is not writable");
  const serial = checkSerial(options.serial);
  const data = decode(readKey(serial), options, lookup);
  const shown = { serial };
  const accessors = {
    ...commonAccessors(options),
    serial: {
      get: () => shown.serial,
      set: (value: unknown) => {
        shown.serial = checkSerial(value);
      },
    },
  };
  return { data, qom: { typeName: 'secret_keyring', accessors } };
}
