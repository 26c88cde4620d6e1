/**
 * Making qcow2 images.
 *
 * The checks of the options come first, in the original's order and words. Then the smallest consistent image is
 * written: header, one cluster of refcount table, one refcount block that counts the three. That image is opened as a
 * node, and the node does the rest by the code that every image uses: growing to the size with preallocation, naming
 * the backing file, adding the encryption header. An image that was in the file before is invalid from the first
 * write on, and the new one is valid from the write of its header on.
 *
 * The tools' options and their values are in create-options.ts.
 */

import type { QCryptoBlockCreateOptions } from '../../../../../schema/generated/types.ts';
import { allocateIoMemory, vectorOf } from '../../../../aio/memory.ts';
import type { BlockBackend } from '../../../../block/backend.ts';
import type { CreateProgress, PreallocMode } from '../../../../block/contract/image.ts';
import type { BlockNode } from '../../../../block/graph/node.ts';
import { co, wrapped } from '../../../../block/io/callbacks.ts';
import type { BlockLayer } from '../../../../block/layer.ts';
import { nodeFilename } from '../../../../block/open/filename.ts';
import { openFromOptions } from '../../../../block/open/open.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError, errnoError, errnoOf } from '../../../../errors/error.ts';
import { CREATE_OWNER } from '../../../protocols/protocol-create.ts';
import { takeNode, WRITING, withBackend } from '../../shared/creation.ts';
import { encodeHeader, type Header } from '../layout/header.ts';
import {
  Autoclear,
  Compat,
  Incompat,
  MAX_CLUSTER_BITS,
  MIN_CLUSTER_BITS,
  viewOf,
  writeU64,
} from '../layout/layout.ts';
import type { Qcow2Node } from '../layout/state.ts';
import { setUpEncryption } from './create-encryption.ts';

/** BlockdevCreateOptionsQcow2 of the schema, with the enumerations that matter here. */
export interface Qcow2CreateOptions {
  /** Name of a node, or options of one. */
  readonly file: unknown;
  readonly 'data-file'?: unknown;
  readonly 'data-file-raw'?: boolean;
  readonly 'extended-l2'?: boolean;
  /** Virtual size in bytes. */
  readonly size: number;
  readonly version?: 'v2' | 'v3';
  readonly 'backing-file'?: string;
  readonly 'backing-fmt'?: string;
  readonly encrypt?: QCryptoBlockCreateOptions;
  readonly 'cluster-size'?: number;
  readonly preallocation?: PreallocMode;
  readonly 'lazy-refcounts'?: boolean;
  readonly 'refcount-bits'?: number;
  readonly 'compression-type'?: 'zlib' | 'zstd';
}

const DEFAULT_CLUSTER_BYTES = 65536;
const DEFAULT_REFCOUNT_BITS = 16;
/** A subcluster is at least a sector. */
const MIN_EXTENDED_CLUSTER_BYTES = 16384;
/** Header, refcount table, refcount block. */
const INITIAL_CLUSTERS = 3;

function refuse(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

function needsVersion3(what: string): BlockError {
  return refuse(`${what} compatibility level 1.1 and above (use version=v3 or greater)`);
}

// ---- checks --------------------------------------------------------------------------------------------------

function isPowerOfTwo(value: number): boolean {
  return value >= 1 && Number.isInteger(Math.log2(value));
}

/** The checks between finding the file and finding the data file, in the original's order. */
function checkOptions(options: Qcow2CreateOptions): void {
  const isV2 = options.version === 'v2';
  const clusterBytes = options['cluster-size'] ?? DEFAULT_CLUSTER_BYTES;
  const extended = options['extended-l2'] === true;
  const refcountBits = options['refcount-bits'] ?? DEFAULT_REFCOUNT_BITS;
  const prealloc = options.preallocation ?? 'off';
  if (options.size % 512 !== 0) throw refuse('Image size must be a multiple of 512 bytes');
  // What could not be opened again is not made. Larger ones were given as negative.
  if (options.size > Number.MAX_SAFE_INTEGER && options.size < 2 ** 63)
    throw new BlockError('Image is too big', { errno: E.EFBIG });
  if (extended && isV2) throw needsVersion3('Extended L2 entries are only supported with');
  if (
    !isPowerOfTwo(clusterBytes) ||
    clusterBytes < 2 ** MIN_CLUSTER_BITS ||
    clusterBytes > 2 ** MAX_CLUSTER_BITS
  ) {
    throw refuse(
      `Cluster size must be a power of two between ${2 ** MIN_CLUSTER_BITS} and ${2 ** (MAX_CLUSTER_BITS - 10)}k`,
    );
  }
  if (extended && clusterBytes < MIN_EXTENDED_CLUSTER_BYTES) {
    throw refuse(
      `Extended L2 entries are only supported with cluster sizes of at least ${MIN_EXTENDED_CLUSTER_BYTES} bytes`,
    );
  }
  if (prealloc !== 'off' && options['backing-file'] !== undefined && !extended) {
    throw refuse('Backing file and preallocation can only be used at the same time if extended_l2 is on');
  }
  if (options['backing-fmt'] !== undefined && options['backing-file'] === undefined)
    throw refuse('Backing format cannot be used without backing file');
  if (options['lazy-refcounts'] === true && isV2) throw needsVersion3('Lazy refcounts only supported with');
  if (!isPowerOfTwo(refcountBits) || refcountBits > 64)
    throw refuse('Refcount width must be a power of two and may not exceed 64 bits');
  if (isV2 && refcountBits !== DEFAULT_REFCOUNT_BITS) {
    throw refuse(
      'Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)',
    );
  }
  if (options['data-file-raw'] === true && options['data-file'] === undefined)
    throw refuse('data-file-raw requires data-file');
  if (options['data-file-raw'] === true && options['backing-file'] !== undefined)
    throw refuse('Backing file and data-file-raw cannot be used at the same time');
  if (options['data-file'] !== undefined && isV2)
    throw needsVersion3('External data files are only supported with');
  if (options['compression-type'] === 'zstd' && isV2)
    throw needsVersion3('Non-zlib compression type is only supported with');
}

// ---- the empty image -----------------------------------------------------------------------------------------

function initialHeader(options: Qcow2CreateOptions, dataFile: string | null): Header {
  const clusterBytes = options['cluster-size'] ?? DEFAULT_CLUSTER_BYTES;
  const zstd = options['compression-type'] === 'zstd';
  let incompatible = 0;
  if (dataFile !== null) incompatible |= Incompat.dataFile;
  if (zstd) incompatible |= Incompat.compressionType;
  if (options['extended-l2'] === true) incompatible |= Incompat.extendedL2;
  return {
    version: options.version === 'v2' ? 2 : 3,
    backingFile: null,
    backingFormat: null,
    clusterBits: Math.log2(clusterBytes),
    size: 0,
    cryptMethod: 0,
    l1Entries: 0,
    l1Offset: 0,
    refcountTableOffset: clusterBytes,
    refcountTableClusters: 1,
    snapshotCount: 0,
    snapshotsOffset: 0,
    incompatible,
    compatible: options['lazy-refcounts'] === true ? Compat.lazyRefcounts : 0,
    autoclear: options['data-file-raw'] === true ? Autoclear.dataFileRaw : 0,
    highFeatures: [0, 0, 0],
    refcountOrder: Math.log2(options['refcount-bits'] ?? DEFAULT_REFCOUNT_BITS),
    headerBytes: 0,
    compressionType: zstd ? 1 : 0,
    dataFile,
    encryption: null,
    bitmaps: null,
    bitmapsDropped: null,
    featureNames: null,
    unknownExtensions: [],
    unknownFields: Buffer.alloc(0),
  };
}

/** The refcount table with its first entry, and the block it points to, in which the first clusters count one. */
function initialRefcounts(header: Header): Buffer {
  const clusterBytes = 2 ** header.clusterBits;
  const clusters = Buffer.alloc(2 * clusterBytes);
  writeU64(viewOf(clusters), 0, 2 * clusterBytes);
  const bits = 2 ** header.refcountOrder;
  for (let i = 0; i < INITIAL_CLUSTERS; i++) {
    // Wider counts are big-endian; narrower ones fill a byte from its low bits.
    const lastByte = clusterBytes + (bits >= 8 ? ((i + 1) * bits) / 8 - 1 : Math.floor((i * bits) / 8));
    clusters[lastByte] = clusters[lastByte]! | (bits >= 8 ? 1 : 1 << ((i * bits) % 8));
  }
  return clusters;
}

async function writeEmptyImage(node: BlockNode, header: Header): Promise<void> {
  const clusterBytes = 2 ** header.clusterBits;
  const write = async (offset: number, data: Buffer, what: string): Promise<void> => {
    const memory = allocateIoMemory(data.length);
    data.copy(memory.buf);
    try {
      await wrapped.pwritev(node, offset, data.length, vectorOf(memory), 0);
    } catch (error) {
      throw errnoError(`Could not write ${what}`, errnoOf(error));
    }
  };
  await write(0, Buffer.alloc(clusterBytes), 'qcow2 header');
  await write(clusterBytes, initialRefcounts(header), 'refcount table');
  await write(0, encodeHeader(header), 'qcow2 header');
}

// ---- creation ------------------------------------------------------------------------------------------------

/** Creates an image as blockdev-create does; `options` is validated. */
export async function createImage(
  layer: BlockLayer,
  options: Qcow2CreateOptions,
  progress: CreateProgress,
): Promise<void> {
  // A definition has to be opened, which is I/O.
  let detached = false;
  const checked = async (): Promise<void> => {
    if (!detached) await progress.checked?.();
    detached = true;
  };
  if (typeof options.file !== 'string') await checked();
  await withBackend(takeNode(layer, options.file), async (file) => {
    checkOptions(options);
    const dataReference = options['data-file'];
    if (dataReference === undefined)
      return createIn(layer, options, file.node, null, { ...progress, checked });
    if (typeof dataReference !== 'string') await checked();
    return withBackend(takeNode(layer, dataReference), (data) =>
      createIn(layer, options, file.node, data.node, { ...progress, checked }),
    );
  });
}

async function createIn(
  layer: BlockLayer,
  options: Qcow2CreateOptions,
  file: BlockNode,
  data: BlockNode | null,
  progress: CreateProgress & { readonly checked: () => Promise<void> },
): Promise<void> {
  // Given back before the image's own node takes the file for itself.
  await withBackend(layer.createBackend(file, WRITING, CREATE_OWNER), async () => {
    await progress.checked();
    await writeEmptyImage(file, initialHeader(options, data === null ? null : nodeFilename(data)));
  });
  const node = await openFromOptions(layer, {
    driver: 'qcow2',
    file: file.name,
    ...(data !== null && { 'data-file': data.name }),
  });
  node.isUnwanted = () => progress.isCancelled?.() === true;
  // Nobody else holds the node: it is written back, flushed and closed with the backend.
  await withBackend(layer.createBackend(node, WRITING, CREATE_OWNER), (image) =>
    finishImage(image, node as unknown as Qcow2Node, options),
  );
}

async function finishImage(image: BlockBackend, node: Qcow2Node, options: Qcow2CreateOptions): Promise<void> {
  const raw = options['data-file-raw'] === true;
  let prealloc = options.preallocation ?? 'off';
  // In a raw data file every cluster has its place from the beginning.
  if (raw && prealloc === 'off') prealloc = 'metadata';
  try {
    await image.truncate(signedSize(options.size), false, prealloc);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError(`Could not resize image: ${error.message}`, { errno: error.errno, cause: error });
  }
  const { 'backing-file': backingFile, 'backing-fmt': backingFormat } = options;
  if (backingFile !== undefined) {
    try {
      await node.layer.graphLock.withRead((guard) =>
        co.changeBackingFile(node as BlockNode, guard, {
          filename: backingFile,
          format: backingFormat ?? null,
        }),
      );
    } catch (error) {
      throw errnoError(
        `Could not assign backing file '${backingFile}' with format '${backingFormat ?? '(null)'}'`,
        errnoOf(error),
      );
    }
  }
  if (options.encrypt !== undefined) await setUpEncryption(node, options.encrypt);
}

/** QMP's sizes are unsigned: what is above the signed range was given as negative (small ones lose their value). */
function signedSize(size: number): number {
  return size >= 2 ** 63 ? Math.min(size - 2 ** 64, -1) : size;
}
