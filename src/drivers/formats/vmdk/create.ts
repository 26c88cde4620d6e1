/** Making VMDK images: what the options mean, the descriptor, and the files of the extents. */

import path from 'node:path';
import type { BlockBackend } from '../../../block/backend.ts';
import {
  type CreateOptionValues,
  type CreateProgress,
  type DriverOptions,
  type ImageCreation,
  sizeOption,
} from '../../../block/contract/image.ts';
import { Perm } from '../../../block/contract/request.ts';
import type { BlockLayer } from '../../../block/layer.ts';
import { nodeFilename } from '../../../block/open/filename.ts';
import { relativeName } from '../../../block/open/image-name.ts';
import { openImage } from '../../../block/open/open.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { CREATE_OWNER } from '../../protocols/protocol-create.ts';
import { createInFiles, takeNode, WRITING, withBackend, writeAt } from '../shared/creation.ts';
import { newContentId } from './content-id.ts';
import { writeSparse } from './create-extent.ts';
import { NO_PARENT_CID, newDescriptor } from './descriptor.ts';
import { SECTOR_BYTES } from './sparse-header.ts';
import type { VmdkState } from './state.ts';

const SUBFORMATS = [
  ...['monolithicSparse', 'monolithicFlat', 'twoGbMaxExtentSparse', 'twoGbMaxExtentFlat', 'streamOptimized'],
] as const;
const ADAPTERS: readonly string[] = ['ide', 'buslogic', 'lsilogic', 'legacyESX'];
const SPLIT_BYTES = 2 * 1024 ** 3;

/** BlockdevCreateOptionsVmdk of the schema. */
interface VmdkCreateOptions {
  readonly file: unknown;
  readonly size: number;
  readonly extents?: readonly unknown[];
  readonly subformat?: string;
  readonly 'backing-file'?: string;
  readonly 'adapter-type'?: string;
  readonly hwversion?: string;
  readonly toolsversion?: string;
  readonly 'zeroed-grain'?: boolean;
}

function refuse(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

interface Shape {
  readonly subformat: string;
  readonly isFlat: boolean;
  /** Extents are files beside the descriptor. */
  readonly isSplit: boolean;
  /** Bytes of each extent. */
  readonly extents: readonly number[];
}

function shapeOf(subformat: string, size: number): Shape {
  const isFlat = subformat.endsWith('Flat');
  const inPieces = subformat.startsWith('twoGb');
  const isSplit = isFlat || inPieces;
  const piece = inPieces ? SPLIT_BYTES : Math.max(size, 1);
  const count = Math.max(1, Math.ceil(size / piece));
  const extents = Array.from({ length: count }, (_, i) => Math.min(piece, size - i * piece));
  return { subformat, isFlat, isSplit, extents };
}

/** "disk.vmdk" -> "disk-s001.vmdk". */
function extentName(filename: string, { subformat, isFlat }: Shape, index: number): string {
  const { dir, name, ext } = path.parse(filename);
  const number = String(index + 1).padStart(3, '0');
  const suffix = subformat === 'monolithicFlat' ? '-flat' : `-${isFlat ? 'f' : 's'}${number}`;
  const base = `${name}${suffix}${ext}`;
  return dir === '' ? base : `${dir === '/' ? '' : dir}/${base}`;
}

function checkOptions(options: VmdkCreateOptions, shape: Shape): void {
  if (options['backing-file'] !== undefined && shape.isFlat)
    throw refuse("Flat image can't have backing file");
  if (options['zeroed-grain'] === true && shape.isFlat) throw refuse("Flat image can't enable zeroed grain");
  if (!(options.size <= 2 ** 53)) throw new BlockError('File too large', { errno: E.EFBIG });
  if (options.size % SECTOR_BYTES !== 0)
    throw new BlockError('Image size must be a multiple of 512 bytes', { errno: E.EINVAL });
}

async function createImage(
  layer: BlockLayer,
  options: VmdkCreateOptions,
  progress: CreateProgress,
): Promise<void> {
  const shape = shapeOf(options.subformat ?? 'monolithicSparse', options.size);
  const references = options.extents ?? [];
  if (typeof options.file !== 'string' || references.length > 0) await progress.checked?.();
  await withBackend(takeNode(layer, options.file), async (held) => {
    checkOptions(options, shape);
    const wanted = shape.isSplit ? shape.extents.length : 0;
    if (references.length < wanted) throw refuse(`Extent [${references.length}] not specified`);
    if (references.length > wanted) throw refuse('List of extents contains unused extents');
    const parentCid = await parentCidOf(layer, held, options['backing-file']);
    await withBackend(layer.createBackend(held.node, WRITING, CREATE_OWNER), async (file) => {
      if (typeof options.file === 'string' && references.length === 0) await progress.checked?.();
      const names = await writeExtents(layer, file, options, shape, references);
      await writeDescriptor(file, options, shape, names, parentCid);
    });
  });
}

/** The content id of the backing image, which must be a vmdk image. */
async function parentCidOf(layer: BlockLayer, file: BlockBackend, name: string | undefined): Promise<number> {
  if (name === undefined) return NO_PARENT_CID;
  const node = await openImage(layer, relativeName(nodeFilename(file.node), name), null, {
    'read-only': true,
    backing: null,
  });
  const use = { perm: Perm.consistentRead, shared: Perm.all };
  return withBackend(layer.createBackend(node, use, CREATE_OWNER), async () => {
    if (node.driver.name !== 'vmdk')
      throw refuse(`Invalid backing file format: ${node.driver.name}. Must be vmdk`);
    return (node.state as VmdkState).descriptor.cid;
  });
}

/** Writes the extents; their lines of the descriptor. */
async function writeExtents(
  layer: BlockLayer,
  file: BlockBackend,
  options: VmdkCreateOptions,
  shape: Shape,
  references: readonly unknown[],
): Promise<readonly string[]> {
  const zeroedGrains = options['zeroed-grain'] === true;
  const compressed = shape.subformat === 'streamOptimized';
  const lines: string[] = [];
  for (const [index, bytes] of shape.extents.entries()) {
    const write = async (target: BlockBackend): Promise<string> => {
      // What was there before is gone.
      await target.truncate(0, false, 'off').catch(() => undefined);
      if (shape.isFlat) await target.truncate(bytes, false, 'off');
      else await writeSparse(target, bytes, { zeroedGrains, compressed, hasDescriptor: !shape.isSplit });
      return path.basename(nodeFilename(target.node));
    };
    const name = shape.isSplit
      ? await withBackend(takeNode(layer, references[index]), ({ node }) =>
          withBackend(layer.createBackend(node, WRITING, CREATE_OWNER), write),
        )
      : await write(file);
    if (/["\r\n]/.test(name)) throw refuse(`A descriptor cannot name the file '${name}'`);
    const sectors = Math.ceil(bytes / SECTOR_BYTES);
    lines.push(`RW ${sectors} ${shape.isFlat ? 'FLAT' : 'SPARSE'} "${name}"${shape.isFlat ? ' 0' : ''}`);
  }
  return lines;
}

async function writeDescriptor(
  file: BlockBackend,
  options: VmdkCreateOptions,
  shape: Shape,
  extentLines: readonly string[],
  parentCid: number,
): Promise<void> {
  const adapterType = options['adapter-type'] ?? 'ide';
  const heads = adapterType === 'ide' ? 16 : 255;
  const text = newDescriptor({
    cid: newContentId(),
    parentCid,
    createType: shape.subformat,
    parentName: options['backing-file'] ?? null,
    extentLines,
    hwversion: options.hwversion ?? '4',
    cylinders: Math.floor(options.size / (63 * heads * SECTOR_BYTES)),
    heads,
    adapterType,
    toolsversion: options.toolsversion ?? '2147483647',
  });
  const bytes = Buffer.from(text, 'utf8');
  if (shape.isSplit) {
    await file.truncate(0, false, 'off').catch(() => undefined);
    await file.truncate(bytes.length, false, 'off');
    await writeAt(file, 0, bytes);
    // A write of whole sectors may have made it longer, and a text file ends where its text does.
    await file.truncate(bytes.length, true, 'off');
    return;
  }
  if (bytes.length > 20 * SECTOR_BYTES) throw refuse('The descriptor is too long');
  await writeAt(file, SECTOR_BYTES, bytes);
}

// ---- the tools' way ------------------------------------------------------------------------------------------

function toolOptions(values: CreateOptionValues): Omit<VmdkCreateOptions, 'file' | 'extents'> {
  const { adapter_type: adapter, subformat, hwversion, toolsversion } = values;
  const parameter = (value: string, known: readonly string[]): string => {
    if (!known.includes(value)) throw refuse(`invalid parameter value: ${value}`);
    return value;
  };
  if (adapter !== undefined) parameter(adapter, ADAPTERS);
  if (subformat !== undefined) parameter(subformat, SUBFORMATS);
  const isGiven = hwversion !== undefined && hwversion !== 'undefined';
  if (values.compat6 === 'on' && isGiven) throw refuse('compat6 cannot be enabled with hwversion set');
  const version = values.compat6 === 'on' ? '6' : isGiven ? hwversion : undefined;
  for (const text of [version, toolsversion])
    if (text !== undefined && /["\r\n]/.test(text)) throw refuse(`invalid parameter value: ${text}`);
  if (values.backing_fmt !== undefined && values.backing_fmt !== 'vmdk')
    throw refuse('backing_file must be a vmdk image');
  return {
    size: sizeOption(values),
    ...(subformat !== undefined && { subformat }),
    ...(values.backing_file !== undefined && { 'backing-file': values.backing_file }),
    ...(adapter !== undefined && { 'adapter-type': adapter }),
    ...(version !== undefined && { hwversion: version }),
    ...(toolsversion !== undefined && { toolsversion }),
    'zeroed-grain': values.zeroed_grain === 'on',
  };
}

export const creation: ImageCreation = {
  create: (layer, options, progress) => createImage(layer, options as unknown as VmdkCreateOptions, progress),
  options: [
    { name: 'size', type: 'size', help: 'Virtual disk size' },
    {
      name: 'adapter_type',
      type: 'string',
      help: 'Virtual adapter type, can be one of ide (default), lsilogic, buslogic or legacyESX',
    },
    { name: 'backing_file', type: 'string', help: 'File name of a base image' },
    { name: 'backing_fmt', type: 'string', help: "Must be 'vmdk' if present" },
    { name: 'compat6', type: 'bool', help: 'VMDK version 6 image', default: 'off' },
    { name: 'hwversion', type: 'string', help: 'VMDK hardware version', default: 'undefined' },
    { name: 'toolsversion', type: 'string', help: 'VMware guest tools version' },
    {
      name: 'subformat',
      type: 'string',
      help:
        'VMDK flat extent format, can be one of ' +
        '{monolithicSparse (default) | monolithicFlat | twoGbMaxExtentSparse | twoGbMaxExtentFlat | streamOptimized} ',
    },
    {
      name: 'zeroed_grain',
      type: 'bool',
      help: 'Enable efficient zero writes using the zeroed-grain GTE feature',
    },
  ],
  async createFile(layer, filename, values, progress) {
    const options = toolOptions(values);
    const shape = shapeOf(options.subformat ?? 'monolithicSparse', options.size);
    checkOptions({ ...options, file: null }, shape);
    const extents = shape.isSplit ? shape.extents.map((_, i) => extentName(filename, shape, i)) : [];
    await createInFiles(layer, [filename, ...extents], values, progress, async ([file, ...others]) => {
      const more: { extents?: readonly DriverOptions[] } = others.length === 0 ? {} : { extents: others };
      await createImage(layer, { ...options, file, ...more }, progress);
    });
  },
};
