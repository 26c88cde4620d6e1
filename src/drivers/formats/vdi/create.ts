/** Making VDI images. */

import type { BlockBackend } from '../../../block/backend.ts';
import {
  type CreateProgress,
  type ImageCreation,
  type PreallocMode,
  sizeOption,
} from '../../../block/contract/image.ts';
import type { BlockLayer } from '../../../block/layer.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { createInFiles, createInNode, writeAt } from '../shared/creation.ts';
import { checkDiskSize, DEFAULT_BLOCK_BYTES, HEADER_BYTES, mapBytes, newHeader } from './header.ts';

/** BlockdevCreateOptionsVdi of the schema. */
interface VdiCreateOptions {
  /** Name of a node, or options of one. */
  readonly file: unknown;
  readonly size: number;
  readonly preallocation?: PreallocMode;
}

/** Entries of the map that are made and written at once. */
const MAP_PIECE_BYTES = 1024 * 1024;

function createImage(layer: BlockLayer, options: VdiCreateOptions, progress: CreateProgress): Promise<void> {
  const prealloc = options.preallocation ?? 'off';
  return createInNode(
    layer,
    options.file,
    progress,
    () => {
      if (prealloc !== 'off' && prealloc !== 'metadata')
        throw new BlockError('Preallocation mode not supported for vdi', { errno: E.EINVAL });
      checkDiskSize(options.size);
    },
    (file) => writeImage(file, options.size, prealloc === 'metadata'),
  );
}

async function writeImage(file: BlockBackend, size: number, isStatic: boolean): Promise<void> {
  const blocks = Math.ceil(size / DEFAULT_BLOCK_BYTES);
  const end = HEADER_BYTES + mapBytes(blocks);
  // What was there before is gone.
  await file.truncate(0, false, 'off').catch(() => undefined);
  await file.truncate(isStatic ? end + blocks * DEFAULT_BLOCK_BYTES : end, false, 'off');
  for (let at = 0; at < blocks * 4; at += MAP_PIECE_BYTES) {
    const piece = Buffer.alloc(Math.min(MAP_PIECE_BYTES, mapBytes(blocks) - at));
    const entries = Math.min(MAP_PIECE_BYTES, blocks * 4 - at) / 4;
    for (let i = 0; i < entries; i++) piece.writeUInt32LE(isStatic ? at / 4 + i : 0xffffffff, i * 4);
    await writeAt(file, HEADER_BYTES + at, piece);
  }
  await writeAt(file, 0, newHeader(size, isStatic));
}

export const creation: ImageCreation = {
  create: (layer, options, progress) => createImage(layer, options as unknown as VdiCreateOptions, progress),
  options: [
    { name: 'size', type: 'size', help: 'Virtual disk size' },
    { name: 'static', type: 'bool', help: 'VDI static (pre-allocated) image', default: 'off' },
  ],
  async createFile(layer, filename, values, progress) {
    const size = sizeOption(values);
    await createInFiles(layer, [filename], values, progress, async ([file]) => {
      const preallocation = values.static === 'on' ? 'metadata' : 'off';
      await createImage(layer, { file, size, preallocation }, progress);
    });
  },
};
