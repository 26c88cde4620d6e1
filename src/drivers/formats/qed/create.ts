/** Making qed images: header, backing file's name, and an empty L1 table. */

import type { BlockBackend } from '../../../block/backend.ts';
import { type CreateProgress, type ImageCreation, sizeOption } from '../../../block/contract/image.ts';
import type { BlockLayer } from '../../../block/layer.ts';
import { choice, createInFiles, createInNode, writeAt } from '../shared/creation.ts';
import {
  checkShape,
  DEFAULT_CLUSTER_BYTES,
  DEFAULT_TABLE_CLUSTERS,
  encodeHeader,
  Feature,
  HEADER_BYTES,
} from './header.ts';

/** BlockdevCreateOptionsQed of the schema. */
interface CreateOptions {
  readonly file: unknown;
  readonly size: number;
  readonly 'backing-file'?: string;
  readonly 'backing-fmt'?: string;
  readonly 'cluster-size'?: number;
  readonly 'table-size'?: number;
}

async function writeImage(file: BlockBackend, options: CreateOptions): Promise<void> {
  const clusterBytes = options['cluster-size'] ?? DEFAULT_CLUSTER_BYTES;
  const tableClusters = options['table-size'] ?? DEFAULT_TABLE_CLUSTERS;
  const name = Buffer.from(options['backing-file'] ?? '');
  const hasBacking = options['backing-file'] !== undefined;
  const raw = hasBacking && options['backing-fmt'] === 'raw';
  const header = encodeHeader({
    clusterBytes,
    tableClusters,
    headerClusters: 1,
    features: (hasBacking ? Feature.backingFile : 0) | (raw ? Feature.backingRaw : 0),
    l1Offset: clusterBytes,
    size: options.size,
    backingNameOffset: hasBacking ? HEADER_BYTES : 0,
    backingNameBytes: name.length,
    bytes: Buffer.alloc(HEADER_BYTES),
  });
  // What was there before is gone; a device keeps its length, and its tables are cleared.
  await file.truncate(0, true, 'off').catch(() => undefined);
  const end = clusterBytes * (1 + tableClusters);
  await file.truncate(end, false, 'off');
  await file.pwriteZeroes(0, end, 0);
  await writeAt(file, 0, Buffer.concat([header, name]));
}

function createImage(layer: BlockLayer, options: CreateOptions, progress: CreateProgress): Promise<void> {
  const check = (): void =>
    checkShape(
      options['cluster-size'] ?? DEFAULT_CLUSTER_BYTES,
      options['table-size'] ?? DEFAULT_TABLE_CLUSTERS,
      options.size,
    );
  return createInNode(layer, options.file, progress, check, (file) => writeImage(file, options));
}

export const creation: ImageCreation = {
  create: (layer, options, progress) => createImage(layer, options as unknown as CreateOptions, progress),
  options: [
    { name: 'size', type: 'size', help: 'Virtual disk size' },
    { name: 'backing_file', type: 'string', help: 'File name of a base image' },
    { name: 'backing_fmt', type: 'string', help: 'Image format of the base image' },
    { name: 'cluster_size', type: 'size', help: 'Cluster size (in bytes)', default: '65536' },
    { name: 'table_size', type: 'size', help: 'L1/L2 table size (in clusters)' },
  ],
  async createFile(layer, filename, values, progress) {
    const { backing_file: backing, backing_fmt: format, cluster_size: cluster, table_size: table } = values;
    await createInFiles(layer, [filename], values, progress, async ([file]) => {
      const options: CreateOptions = {
        file,
        size: sizeOption(values),
        ...(backing !== undefined && { 'backing-file': backing }),
        ...(format !== undefined && {
          'backing-fmt': choice('backing-fmt', format, Object.keys(layer.drivers)),
        }),
        ...(cluster !== undefined && { 'cluster-size': Number(cluster) }),
        ...(table !== undefined && { 'table-size': Number(table) }),
      };
      await createImage(layer, options, progress);
    });
  },
};
