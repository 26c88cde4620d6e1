/** Making VHD images. */

import type { BlockBackend } from '../../../block/backend.ts';
import { type CreateProgress, type ImageCreation, sizeOption } from '../../../block/contract/image.ts';
import type { BlockLayer } from '../../../block/layer.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, errnoOf } from '../../../errors/error.ts';
import { choice, createInFiles, createInNode, writeAt } from '../shared/creation.ts';
import {
  DEFAULT_BLOCK_BYTES,
  type DiskShape,
  DYNAMIC_BYTES,
  FOOTER_BYTES,
  newDynamic,
  newFooter,
  shapeOf,
  Type,
} from './footer.ts';

/** BlockdevCreateOptionsVpc of the schema. */
interface VpcCreateOptions {
  /** Name of a node, or options of one. */
  readonly file: unknown;
  readonly size: number;
  readonly subformat?: 'dynamic' | 'fixed';
  readonly 'force-size'?: boolean;
  readonly azure?: boolean;
}

const MIB = 1024 * 1024;
const TABLE_AT = FOOTER_BYTES + DYNAMIC_BYTES;

/** What Azure takes: a fixed image that goes by its size, which is whole MiB. */
function resolved(options: VpcCreateOptions): VpcCreateOptions {
  if (options.azure !== true) return options;
  const size = Math.max(1, Math.ceil(options.size / MIB)) * MIB;
  return { ...options, size, subformat: 'fixed', 'force-size': true };
}

/** Throws where a size cannot be had as it is: the monitor's command rounds nothing, the tools do. */
function checkAsked({ size, 'force-size': exact }: VpcCreateOptions): void {
  let shape: DiskShape;
  try {
    shape = shapeOf(size, exact === true);
  } catch (error) {
    if (errnoOf(error) !== E.EFBIG) throw error;
    throw new BlockError('Disk size is too large, max size is 2040 GiB', { errno: E.EINVAL });
  }
  if (shape.sectors * 512 !== size)
    throw new BlockError('The requested image size cannot be represented in CHS geometry', {
      errno: E.EINVAL,
    });
}

function createImage(
  layer: BlockLayer,
  given: VpcCreateOptions,
  progress: CreateProgress,
  check: (options: VpcCreateOptions) => void = () => undefined,
): Promise<void> {
  const options = resolved(given);
  const exact = options['force-size'] === true;
  let shape: DiskShape;
  return createInNode(
    layer,
    options.file,
    progress,
    () => {
      check(options);
      shape = shapeOf(options.size, exact);
    },
    async (file) => {
      // What was there before is gone.
      await file.truncate(0, false, 'off').catch(() => undefined);
      if (options.subformat === 'fixed') await writeFixed(file, shape, exact);
      else await writeDynamic(file, shape, exact);
    },
  );
}

async function writeFixed(file: BlockBackend, shape: DiskShape, exact: boolean): Promise<void> {
  const bytes = shape.sectors * 512;
  await file.truncate(bytes + FOOTER_BYTES, false, 'off');
  await writeAt(file, bytes, newFooter(shape, Type.fixed, exact));
}

async function writeDynamic(file: BlockBackend, shape: DiskShape, exact: boolean): Promise<void> {
  const entries = Math.ceil((shape.sectors * 512) / DEFAULT_BLOCK_BYTES);
  const tableBytes = Math.ceil((entries * 4) / 512) * 512;
  const footer = newFooter(shape, Type.dynamic, exact);
  await file.truncate(TABLE_AT + tableBytes + FOOTER_BYTES, false, 'off');
  for (let at = 0; at < tableBytes; at += MIB)
    await writeAt(file, TABLE_AT + at, Buffer.alloc(Math.min(MIB, tableBytes - at), 0xff));
  await writeAt(file, TABLE_AT + tableBytes, footer);
  await writeAt(file, FOOTER_BYTES, newDynamic(TABLE_AT, entries));
  await writeAt(file, 0, footer);
}

export const creation: ImageCreation = {
  create: (layer, options, progress) =>
    createImage(layer, options as unknown as VpcCreateOptions, progress, checkAsked),
  options: [
    { name: 'size', type: 'size', help: 'Virtual disk size' },
    {
      name: 'subformat',
      type: 'string',
      help: 'Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed} ',
    },
    {
      name: 'force_size',
      type: 'bool',
      help: 'Force disk size calculation to use the actual size specified, rather than using the nearest CHS-based calculation',
    },
    { name: 'azure', type: 'bool', help: 'What Azure takes: fixed, force_size, a size of whole MiB' },
  ],
  async createFile(layer, filename, values, progress) {
    await createInFiles(layer, [filename], values, progress, async ([file]) => {
      const { subformat } = values;
      await createImage(
        layer,
        {
          file,
          size: sizeOption(values),
          ...(subformat !== undefined && {
            subformat: choice('subformat', subformat, ['dynamic', 'fixed']),
          }),
          'force-size': values.force_size === 'on',
          azure: values.azure === 'on',
        },
        progress,
      );
    });
  },
};
