/**
 * How large the file of a qcow2 image will be: the clusters of data and of the metadata that they need.
 *
 * The figures are upper bounds, as the original's are: metadata is counted for the whole of the image, and a cluster
 * counts as data when any part of it is. Without a source the image is empty.
 */

import type { CreateOptionValues, ImageMeasure, MeasureSource } from '../../../../block/contract/image.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError } from '../../../../errors/error.ts';
import { MAX_CLUSTER_BITS, MAX_L1_BYTES, MIN_CLUSTER_BITS } from '../layout/layout.ts';

const DEFAULT_CLUSTER_BYTES = 65536;
const DEFAULT_REFCOUNT_BITS = 16;
const ENTRY_BYTES = 8;
/** LUKS header and key slots for the default cipher. */
const LUKS_HEADER_BYTES = 2068480;
const PREALLOCATIONS: readonly string[] = ['off', 'metadata', 'falloc', 'full'];

function refuse(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

interface Shape {
  readonly clusterBytes: number;
  readonly refcountBits: number;
  readonly l2EntryBytes: number;
  /** Bytes of the encryption header. */
  readonly cryptoBytes: number;
}

function ceilDiv(value: number, divisor: number): number {
  return Math.ceil(value / divisor);
}

/** Bytes of an image of `bytes` with all clusters in use: data, L2 and L1 tables, refcounts, header. */
function fullBytes(bytes: number, shape: Shape): number {
  const { clusterBytes, l2EntryBytes, refcountBits } = shape;
  const dataClusters = ceilDiv(bytes, clusterBytes);
  // Tables are counted in whole clusters, L2 tables first.
  const l2Entries = clusterBytes / l2EntryBytes;
  const l2Clusters = ceilDiv(dataClusters, l2Entries);
  const l1Entries = l2Clusters;
  const l1Clusters = ceilDiv(l1Entries * ENTRY_BYTES, clusterBytes);
  const counted = 1 + dataClusters + l2Clusters + l1Clusters;
  return (counted + refcountClusters(counted, clusterBytes, refcountBits)) * clusterBytes;
}

/** Clusters of refcount blocks and table that count `clusters` others and themselves. */
function refcountClusters(clusters: number, clusterBytes: number, refcountBits: number): number {
  const perBlock = (clusterBytes * 8) / refcountBits;
  const perTable = clusterBytes / ENTRY_BYTES;
  let blocks = 0;
  let tables = 0;
  for (;;) {
    const nextBlocks = ceilDiv(clusters + blocks + tables, perBlock);
    const nextTables = ceilDiv(nextBlocks, perTable);
    if (nextBlocks === blocks && nextTables === tables) return blocks + tables;
    blocks = nextBlocks;
    tables = nextTables;
  }
}

function shapeOf(values: CreateOptionValues): Shape {
  const clusterBytes = Number(values.cluster_size ?? DEFAULT_CLUSTER_BYTES);
  const extended = values.extended_l2 === 'on';
  const bits = Math.log2(clusterBytes);
  if (!Number.isInteger(bits) || bits < MIN_CLUSTER_BITS || bits > MAX_CLUSTER_BITS) {
    throw refuse(
      `Cluster size must be a power of two between ${2 ** MIN_CLUSTER_BITS} and ${2 ** (MAX_CLUSTER_BITS - 10)}k`,
    );
  }
  // Not by the names that creation takes too.
  if (values.compat !== undefined && values.compat !== '0.10' && values.compat !== '1.1')
    throw refuse(`Invalid compatibility level: '${values.compat}'`);
  const preallocation = values.preallocation ?? 'off';
  if (!PREALLOCATIONS.includes(preallocation)) throw refuse(`invalid parameter value: ${preallocation}`);
  const refcountBits = Number(values.refcount_bits ?? DEFAULT_REFCOUNT_BITS);
  if (!Number.isInteger(Math.log2(refcountBits)) || refcountBits > 64)
    throw refuse('Refcount width must be a power of two and may not exceed 64 bits');
  if (values.compat === '0.10' && refcountBits !== DEFAULT_REFCOUNT_BITS) {
    throw refuse(
      'Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)',
    );
  }
  const luks = values['encrypt.format'] === 'luks';
  const cryptoBytes = luks ? ceilDiv(LUKS_HEADER_BYTES, clusterBytes) * clusterBytes : 0;
  return { clusterBytes, refcountBits, l2EntryBytes: extended ? 16 : ENTRY_BYTES, cryptoBytes };
}

/** Clusters of the source that hold anything, in bytes. */
async function dataBytes(source: MeasureSource, clusterBytes: number, bytes: number): Promise<number> {
  let total = 0;
  let offset = 0;
  /** Up to where clusters are counted. */
  let counted = 0;
  for await (const extent of source.extents()) {
    const end = offset + extent.bytes;
    if (extent.allocated && !extent.zero) {
      const from = Math.max(counted, offset - (offset % clusterBytes));
      const to = Math.min(ceilDiv(end, clusterBytes) * clusterBytes, bytes);
      if (to > from) total += to - from;
      counted = Math.max(counted, to);
    }
    offset = end;
  }
  return total;
}

/** Space needed for an image of the source's content, or an empty one of its length. */
export async function measure(values: CreateOptionValues, source: MeasureSource): Promise<ImageMeasure> {
  const shape = shapeOf(values);
  const { clusterBytes } = shape;
  const bytes = ceilDiv(source.bytes, clusterBytes) * clusterBytes;
  if (bytes > Number.MAX_SAFE_INTEGER) throw refuse('The image size is too large');
  const l2Clusters = ceilDiv(bytes / clusterBytes, clusterBytes / shape.l2EntryBytes);
  if (l2Clusters * ENTRY_BYTES > MAX_L1_BYTES) {
    throw new BlockError('The image size is too large (try using a larger cluster size)', {
      errno: E.EINVAL,
    });
  }
  const fullyAllocated = fullBytes(bytes, shape) + shape.cryptoBytes;
  const preallocation = values.preallocation ?? 'off';
  const isFull = preallocation === 'full' || preallocation === 'falloc';
  const used = isFull ? bytes : await dataBytes(source, clusterBytes, bytes);
  // Images of version 2 keep no bitmaps.
  const isV2 = values.compat === '0.10';
  const granularities = isV2 ? undefined : source.bitmapGranularities;
  return {
    required: fullyAllocated - bytes + used,
    fullyAllocated,
    ...(granularities !== undefined && { bitmaps: bitmapBytes(granularities, source.bytes, clusterBytes) }),
  };
}

/** Clusters of bitmaps with all their data, their tables, and the directory. */
function bitmapBytes(granularities: readonly number[], bytes: number, clusterBytes: number): number {
  if (granularities.length === 0) return 0;
  let clusters = 0;
  for (const granularity of granularities) {
    const data = ceilDiv(ceilDiv(ceilDiv(bytes, granularity), 8), clusterBytes);
    clusters += data + ceilDiv(data * ENTRY_BYTES, clusterBytes);
  }
  // An entry of the directory has a name as well; names are short against a cluster.
  clusters += ceilDiv(granularities.length * 64, clusterBytes);
  return clusters * clusterBytes;
}
