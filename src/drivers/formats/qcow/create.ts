/** Making qcow images: header, backing file's name, and an empty L1 table. */

import type { QCryptoBlockCreateOptions } from '../../../../schema/generated/types.ts';
import type { BlockBackend } from '../../../block/backend.ts';
import {
  type CreateOption,
  type CreateOptionValues,
  type CreateProgress,
  type ImageCreation,
  sizeOption,
} from '../../../block/contract/image.ts';
import type { BlockLayer } from '../../../block/layer.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { choice, createInFiles, createInNode, writeAt } from '../shared/creation.ts';
import { CRYPT_AES, encodeHeader, HEADER_BYTES, l1Entries } from './header.ts';

/** BlockdevCreateOptionsQcow of the schema. */
interface CreateOptions {
  readonly file: unknown;
  readonly size: number;
  readonly 'backing-file'?: string;
  readonly encrypt?: QCryptoBlockCreateOptions;
}

/** Small clusters are copied quickly from a backing file; large ones need fewer tables. */
const SHAPE_WITH_BACKING = { clusterBits: 9, l2Bits: 12 };
const SHAPE = { clusterBits: 12, l2Bits: 9 };

const OPTIONS: readonly CreateOption[] = [
  { name: 'size', type: 'size', help: 'Virtual disk size' },
  { name: 'backing_file', type: 'string', help: 'File name of a base image' },
  { name: 'backing_fmt', type: 'string', help: 'Format of the backing image' },
  {
    name: 'encryption',
    type: 'bool',
    help: "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
  },
  { name: 'encrypt.format', type: 'string', help: "Encrypt the image, format choices: 'aes'" },
  {
    name: 'encrypt.key-secret',
    type: 'string',
    help: 'ID of the secret that provides the AES encryption key',
  },
];

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

function check(layer: BlockLayer, { size, encrypt }: CreateOptions): void {
  if (size === 0) throw invalid('Image size is too small, cannot be zero length');
  if (encrypt === undefined) return;
  if (encrypt.format !== 'qcow') throw invalid('Unsupported encryption format');
  const secretId = encrypt['key-secret'];
  if (secretId === undefined) throw invalid("Parameter 'encrypt.key-secret' is required for cipher");
  layer.secret(secretId);
}

async function writeImage(file: BlockBackend, options: CreateOptions): Promise<void> {
  const { size, 'backing-file': backing } = options;
  const name = Buffer.from(backing ?? '');
  const hasBacking = backing !== undefined;
  const shape = hasBacking ? SHAPE_WITH_BACKING : SHAPE;
  const l1Offset = Math.ceil((HEADER_BYTES + name.length) / 8) * 8;
  const header = encodeHeader({
    ...shape,
    size,
    backingNameOffset: hasBacking ? HEADER_BYTES : 0,
    backingNameBytes: name.length,
    crypt: options.encrypt === undefined ? 0 : CRYPT_AES,
    l1Offset,
  });
  const l1Bytes = Math.ceil((l1Entries({ ...shape, size }) * 8) / 512) * 512;
  await file.truncate(0, true, 'off').catch(() => undefined);
  await file.truncate(l1Offset + l1Bytes, false, 'off');
  await file.pwriteZeroes(0, l1Offset + l1Bytes, 0);
  await writeAt(file, 0, Buffer.concat([header, name]));
}

function createImage(layer: BlockLayer, options: CreateOptions, progress: CreateProgress): Promise<void> {
  return createInNode(
    layer,
    options.file,
    progress,
    () => check(layer, options),
    (file) => writeImage(file, options),
  );
}

function encryptOptions(values: CreateOptionValues): { readonly encrypt?: QCryptoBlockCreateOptions } {
  const { encryption, 'encrypt.format': format, 'encrypt.key-secret': secret } = values;
  if (encryption === 'on' && format !== undefined)
    throw invalid("'encrypt.format' and its alias 'encryption' can't be used at the same time");
  const name = encryption === 'on' ? 'aes' : format;
  if (name === undefined) {
    if (secret === undefined) return {};
    throw new BlockError("Parameter 'encrypt.format' is missing");
  }
  const kind = choice('format', name === 'aes' ? 'qcow' : name, ['qcow', 'luks']);
  return { encrypt: { format: kind, ...(secret !== undefined && { 'key-secret': secret }) } };
}

export const creation: ImageCreation = {
  create: (layer, options, progress) => createImage(layer, options as unknown as CreateOptions, progress),
  options: OPTIONS,
  async createFile(layer, filename, values, progress) {
    const { backing_file: backing } = values;
    const encrypt = encryptOptions(values);
    await createInFiles(layer, [filename], values, progress, async ([file]) => {
      const options: CreateOptions = {
        file,
        size: sizeOption(values),
        ...(backing !== undefined && { 'backing-file': backing }),
        ...encrypt,
      };
      await createImage(layer, options, progress);
    });
  },
};
