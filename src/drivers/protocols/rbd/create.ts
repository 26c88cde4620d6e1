/** Images of Ceph are made here: plain or encrypted. Error texts from qemu-img 7.2. */

import { addressOf } from '../../../aio/ffi.ts';
import { callPooled } from '../../../aio/host/pooled-calls.ts';
import { ENCRYPTION_ALGORITHMS, ENCRYPTION_FORMATS } from '../../../aio/libraries/librbd.ts';
import { type CreateOptionValues, type ImageCreation, sizeOption } from '../../../block/contract/image.ts';
import type { BlockLayer } from '../../../block/layer.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { checked, encryptionOptions, openImage, openPool, type RbdOptions, type RbdPool } from './connect.ts';
import { parseName } from './names.ts';

interface NewEncryption {
  readonly format: keyof typeof ENCRYPTION_FORMATS;
  readonly 'key-secret'?: string;
  readonly 'cipher-alg'?: string;
}

interface NewImage {
  readonly location: RbdOptions;
  readonly size: number;
  readonly 'cluster-size'?: number;
  readonly encrypt?: NewEncryption;
}

const MIN_OBJECT_BYTES = 4096;

function einval(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

/** log2 of the size of objects; 0: the cluster's default. */
function orderOf(objectBytes: number): number {
  if (objectBytes === 0) return 0;
  const order = Math.log2(objectBytes);
  if (!Number.isInteger(order)) throw einval('obj size needs to be power of 2');
  if (objectBytes < MIN_OBJECT_BYTES) throw einval('obj size too small');
  return order;
}

async function create(layer: BlockLayer, image: NewImage): Promise<void> {
  const { location, size, encrypt } = image;
  if (location.snapshot !== undefined) throw einval("Can't use snapshot name for image creation");
  if (location.encrypt !== undefined)
    throw einval("Can't use encryption options of the location for image creation");
  const orderCell = Buffer.allocUnsafeSlow(4);
  orderCell.writeInt32LE(orderOf(image['cluster-size'] ?? 0));
  const pool = await openPool(layer, location, true);
  try {
    const { library, ioctx } = pool;
    const made = await callPooled(library.pooled.create, ioctx, location.image, size, addressOf(orderCell));
    checked(made, 'error rbd create');
    if (encrypt !== undefined) await encryptOrRemove(layer, pool, image, encrypt);
  } finally {
    await pool.close();
  }
}

/** A new image that cannot be encrypted is taken away again. */
async function encryptOrRemove(
  layer: BlockLayer,
  pool: RbdPool,
  { location, size }: NewImage,
  encrypt: NewEncryption,
): Promise<void> {
  const { pooled } = pool.library;
  try {
    const plain = await openImage(layer, pool, location, false);
    await closing(pool, plain.handle, () => formatEncryption(layer, pool, plain.handle, encrypt));
    const { format, 'key-secret': secret } = encrypt;
    const options = {
      ...location,
      encrypt: { format, ...(secret !== undefined && { 'key-secret': secret }) },
    };
    const { handle, headerBytes } = await openImage(layer, pool, options, false);
    // The header takes of the image what the user has asked for: that much is added.
    await closing(pool, handle, async () => {
      checked(await callPooled(pooled.resize, handle, size + headerBytes), 'failed to resize image');
    });
  } catch (error) {
    await callPooled(pooled.remove, pool.ioctx, location.image);
    throw error;
  }
}

/** Closes the image whatever becomes of `action`. */
async function closing(pool: RbdPool, handle: number, action: () => Promise<void>): Promise<void> {
  try {
    await action();
  } finally {
    await callPooled(pool.library.pooled.close, handle);
  }
}

async function formatEncryption(
  layer: BlockLayer,
  { library }: RbdPool,
  handle: number,
  encrypt: NewEncryption,
): Promise<void> {
  const secret = encrypt['key-secret'];
  if (secret === undefined) throw einval("Parameter 'encrypt.key-secret' is missing");
  const cipher = encrypt['cipher-alg'] ?? 'aes-256';
  if (!(cipher in ENCRYPTION_ALGORITHMS)) throw einval(`Unknown encryption algorithm: ${cipher}`);
  const algorithm = ENCRYPTION_ALGORITHMS[cipher as keyof typeof ENCRYPTION_ALGORITHMS];
  const { options, wipe } = encryptionOptions(layer.secret(secret), algorithm);
  const format = ENCRYPTION_FORMATS[encrypt.format];
  const { encryptionFormat } = library.pooled;
  const result = await callPooled(encryptionFormat, handle, format, addressOf(options), options.length);
  wipe();
  checked(result, 'Failed to format encryption');
}

function newEncryption(values: CreateOptionValues): NewEncryption | undefined {
  const format = values['encrypt.format'];
  if (format === undefined) return undefined;
  if (format !== 'luks' && format !== 'luks2') throw einval(`Invalid parameter '${format}'`);
  const secret = values['encrypt.key-secret'];
  const cipher = values['encrypt.cipher-alg'];
  return {
    format,
    ...(secret !== undefined && { 'key-secret': secret }),
    ...(cipher !== undefined && { 'cipher-alg': cipher }),
  };
}

export const creation: ImageCreation = {
  create: (layer, options) => create(layer, options as unknown as NewImage),
  options: [
    { name: 'cluster_size', type: 'size', help: 'RBD object size' },
    {
      name: 'encrypt.cipher-alg',
      type: 'string',
      help: 'Name of encryption cipher algorithm (allowed values: aes-128, aes-256)',
    },
    { name: 'encrypt.format', type: 'string', help: "Encrypt the image, format choices: 'luks', 'luks2'" },
    { name: 'encrypt.key-secret', type: 'string', help: 'ID of secret providing LUKS passphrase' },
    { name: 'password-secret', type: 'string', help: 'ID of secret providing the password' },
    { name: 'size', type: 'size', help: 'Virtual disk size' },
  ],
  createFile(layer, filename, values) {
    const location = parseName(filename.replace(/^rbd:/, '')) as unknown as RbdOptions;
    const secret = values['password-secret'];
    const encrypt = newEncryption(values);
    return create(layer, {
      location: { ...location, ...(secret !== undefined && { 'key-secret': secret }) },
      size: sizeOption(values),
      'cluster-size': Number(values.cluster_size ?? 0),
      ...(encrypt !== undefined && { encrypt }),
    });
  },
};
