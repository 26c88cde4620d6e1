/** Making Parallels images: header and an empty table, up to where data begins. */

import type { CreateProgress, ImageCreation } from '../../../block/contract/image.ts';
import type { BlockLayer } from '../../../block/layer.ts';
import { createInFiles, createInNode, writeAt } from '../shared/creation.ts';
import { checkShape, DEFAULT_CLUSTER_BYTES, newHeader } from './header.ts';

/** BlockdevCreateOptionsParallels of the schema. */
interface CreateOptions {
  readonly file: unknown;
  readonly size: number;
  readonly 'cluster-size'?: number;
}

function createImage(layer: BlockLayer, options: CreateOptions, progress: CreateProgress): Promise<void> {
  const clusterBytes = options['cluster-size'] ?? DEFAULT_CLUSTER_BYTES;
  const check = (): void => checkShape(options.size, clusterBytes);
  return createInNode(layer, options.file, progress, check, async (file) => {
    const { bytes, dataOffset } = newHeader(options.size, clusterBytes);
    await file.truncate(0, true, 'off').catch(() => undefined);
    await file.truncate(dataOffset, false, 'off');
    await file.pwriteZeroes(0, dataOffset, 0);
    await writeAt(file, 0, bytes);
  });
}

export const creation: ImageCreation = {
  create: (layer, options, progress) => createImage(layer, options as unknown as CreateOptions, progress),
  options: [
    { name: 'size', type: 'size', help: 'Virtual disk size' },
    { name: 'cluster_size', type: 'size', help: 'Parallels image cluster size', default: '1048576' },
  ],
  async createFile(layer, filename, values, progress) {
    const toSectors = (text: string): number => Math.ceil(Number(text) / 512) * 512;
    await createInFiles(layer, [filename], values, progress, async ([file]) => {
      const cluster = toSectors(values.cluster_size ?? String(DEFAULT_CLUSTER_BYTES));
      const options = { file, size: toSectors(values.size ?? '0'), 'cluster-size': cluster };
      await createImage(layer, options, progress);
    });
  },
};
