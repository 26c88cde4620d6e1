/**
 * Making luks images: header and key slots, then room for the content.
 *
 * A detached header is a file of its own, the content another one, or none yet.
 */

import type { BlockBackend } from '../../../block/backend.ts';
import type {
  CreateOption,
  CreateOptionValues,
  CreateProgress,
  ImageCreation,
  ImageMeasure,
  MeasureSource,
  PreallocMode,
} from '../../../block/contract/image.ts';
import { MAX_LENGTH_BYTES } from '../../../block/graph/length.ts';
import type { BlockLayer } from '../../../block/layer.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import {
  createLuks,
  type LuksCreateOptions,
  luksPayloadOffset,
  type NewLuksVolume,
} from '../../crypto/luks.ts';
import { LUKS_AMEND_OPTIONS, LUKS_CREATE_OPTIONS, luksCreateOptions } from '../../crypto/luks-options.ts';
import { choice, createInFiles, createInNode, writeAt } from '../shared/creation.ts';

/** BlockdevCreateOptionsLUKS of the schema. */
interface CreateOptions extends LuksCreateOptions {
  readonly 'key-secret'?: string;
  readonly file?: unknown;
  /** Where the header goes when it is not in front of the content. */
  readonly header?: unknown;
  readonly size: number;
  readonly preallocation?: PreallocMode;
}

const OPTIONS: readonly CreateOption[] = [
  { name: 'size', type: 'size', help: 'Virtual disk size' },
  {
    name: 'key-secret',
    type: 'string',
    help: 'ID of the secret that provides the keyslot passphrase',
  },
  ...LUKS_CREATE_OPTIONS,
  { name: 'detached-header', type: 'bool', help: 'Create a detached LUKS header' },
];

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

/** The volume's first bytes, with key and slots. Takes as long as iter-time says. */
async function makeVolume(
  layer: BlockLayer,
  options: CreateOptions,
  detached: boolean,
): Promise<NewLuksVolume> {
  const secretId = options['key-secret'];
  if (secretId === undefined) throw invalid("Parameter 'key-secret' is required for cipher");
  const passphrase = layer.secret(secretId);
  const volume = await createLuks(options, passphrase, detached);
  volume.cipher.close();
  return volume;
}

async function resize(file: BlockBackend, bytes: number, prealloc: PreallocMode): Promise<void> {
  if (bytes > MAX_LENGTH_BYTES)
    throw new BlockError('The requested file size is too large', { errno: E.EFBIG });
  await file.truncate(bytes, false, prealloc);
}

/** Creates an image as blockdev-create does; `options` is validated. */
async function createImage(
  layer: BlockLayer,
  options: CreateOptions,
  progress: CreateProgress,
): Promise<void> {
  const { size, preallocation: prealloc = 'off', header } = options;
  if (options.file === undefined && header === undefined)
    throw invalid("Either the parameter 'header' or 'file' must be specified");
  if (header === undefined) {
    await createInNode(layer, options.file, progress, checkNothing, async (file) => {
      const volume = await makeVolume(layer, options, false);
      await resize(file, volume.payloadOffset + size, prealloc);
      await writeAt(file, 0, volume.header);
    });
    return;
  }
  await createInNode(layer, header, progress, checkNothing, async (target) => {
    const volume = await makeVolume(layer, options, true);
    // The whole header area is there, so that slots can be filled later.
    await target.truncate(luksPayloadOffset(options), false, 'off');
    await writeAt(target, 0, volume.header);
  });
  if (options.file === undefined) return;
  await createInNode(layer, options.file, progress, checkNothing, (file) => resize(file, size, prealloc));
}

function checkNothing(): void {
  // What there is to check, is checked by what makes the volume.
}

/** The tools' way. */
async function createFile(
  layer: BlockLayer,
  filename: string,
  values: CreateOptionValues,
  progress: CreateProgress,
): Promise<void> {
  const secret = values['key-secret'];
  const { preallocation: _own, ...forFile } = values;
  await createInFiles(layer, [filename], forFile, progress, async ([file]) => {
    const options = {
      ...luksCreateOptions(values),
      ...(secret !== undefined && { 'key-secret': secret }),
      size: Number(values.size ?? 0),
      preallocation: choice('preallocation', values.preallocation ?? 'off', [
        ...(['off', 'metadata', 'falloc', 'full'] as const),
      ]),
    };
    const place = values['detached-header'] === 'on' ? { header: file } : { file };
    await createImage(layer, { ...options, ...place }, progress);
  });
}

/** Header and content; the header's length depends on the cipher's key alone. */
export async function measure(values: CreateOptionValues, source: MeasureSource): Promise<ImageMeasure> {
  if (values['key-secret'] === undefined) throw invalid("Parameter 'key-secret' is required for cipher");
  const bytes = luksPayloadOffset(luksCreateOptions(values)) + Math.ceil(source.bytes / 512) * 512;
  return { required: bytes, fullyAllocated: bytes };
}

export const creation: ImageCreation = {
  create: (layer, options, progress) => createImage(layer, options as unknown as CreateOptions, progress),
  options: OPTIONS,
  amendOptions: LUKS_AMEND_OPTIONS,
  createFile,
};
