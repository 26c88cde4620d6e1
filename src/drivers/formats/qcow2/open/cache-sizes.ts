/** How large the metadata caches are: the options `cache-size`, `l2-cache-size` and their like, and the defaults. */

import { E } from '../../../../errors/errno.ts';
import { BlockError } from '../../../../errors/error.ts';
import type { Qcow2Options } from './options.ts';

const DEFAULT_L2_MAX_BYTES = 32 * 1024 * 1024;
const MIN_REFCOUNT_BLOCKS = 4;
const MIN_L2_TABLES = 2;
/** Slices a cache holds at least, however small the option: a request needs a few at a time. */
const MIN_SLICES = 16;
/**
 * An L2 table is read in pieces of this size unless the option says otherwise: on a large disk with scattered data
 * most lookups miss, and a miss should not read a whole table for one entry.
 */
const DEFAULT_SLICE_BYTES = 4096;
/** Tables in one cache. */
const MAX_TABLES = 2 ** 31 - 1;
const SIZES = ['cache-size', 'l2-cache-size', 'l2-cache-entry-size', 'refcount-cache-size'] as const;
const DEFAULT_CLEAN_INTERVAL_S = 600;
const MAX_CLEAN_INTERVAL_S = 2 ** 32 - 1;

export interface CacheSizes {
  readonly sliceBytes: number;
  readonly l2Slices: number;
  readonly refcountBlocks: number;
}

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

/** Sizes for an image of `imageBytes`. Throws as the original does on options that contradict each other. */
export function cacheSizes(
  options: Qcow2Options,
  imageBytes: number,
  clusterBytes: number,
  l2EntryBytes: number,
): CacheSizes {
  for (const name of SIZES) {
    // A 64-bit integer in the schema, a size in the original's own options.
    if ((options[name] ?? 0) < 0)
      throw invalid(`Parameter '${name}' expects a non-negative number below 2^64`);
  }
  const {
    'cache-size': combined,
    'l2-cache-size': l2,
    'refcount-cache-size': refcounts,
    'l2-cache-entry-size': entry,
  } = options;
  const wholeL2Bytes = Math.ceil(imageBytes / clusterBytes) * l2EntryBytes;
  const enough = Math.ceil(wholeL2Bytes / clusterBytes) * clusterBytes;
  const minRefcounts = MIN_REFCOUNT_BLOCKS * clusterBytes;
  let l2Bytes: number;
  let refcountBytes: number;
  if (combined !== undefined) {
    if (l2 !== undefined && refcounts !== undefined) {
      throw invalid('cache-size, l2-cache-size and refcount-cache-size may not be set at the same time');
    }
    if (l2 !== undefined && l2 > combined) throw invalid('l2-cache-size may not exceed cache-size');
    if (refcounts !== undefined && refcounts > combined)
      throw invalid('refcount-cache-size may not exceed cache-size');
    if (l2 !== undefined) [l2Bytes, refcountBytes] = [l2, combined - l2];
    else if (refcounts !== undefined) [l2Bytes, refcountBytes] = [combined - refcounts, refcounts];
    else if (combined >= enough + minRefcounts) [l2Bytes, refcountBytes] = [enough, combined - enough];
    else {
      refcountBytes = Math.min(combined, minRefcounts);
      l2Bytes = combined - refcountBytes;
    }
  } else {
    l2Bytes = l2 ?? Math.min(DEFAULT_L2_MAX_BYTES, Math.max(enough, 0));
    refcountBytes = refcounts ?? minRefcounts;
  }
  // More than the whole table is of no use.
  l2Bytes = Math.min(l2Bytes, enough);
  if (
    entry !== undefined &&
    (entry < 512 || entry > clusterBytes || 2 ** Math.round(Math.log2(entry)) !== entry)
  ) {
    throw invalid(
      `L2 cache entry size must be a power of two between 512 and the cluster size (${clusterBytes})`,
    );
  }
  if (l2Bytes > MAX_TABLES * (entry ?? clusterBytes)) throw invalid('L2 cache size too big');
  if (refcountBytes > MAX_TABLES * clusterBytes) throw invalid('Refcount cache size too big');
  const sliceBytes = Math.min(clusterBytes, entry ?? DEFAULT_SLICE_BYTES);
  return {
    sliceBytes,
    l2Slices: Math.max(MIN_SLICES, MIN_L2_TABLES, Math.floor(l2Bytes / sliceBytes)),
    refcountBlocks: Math.max(MIN_REFCOUNT_BLOCKS, Math.floor(refcountBytes / clusterBytes)),
  };
}

/** Seconds after which unused tables are dropped; 0: never. Throws when the original's 32 bits do not hold them. */
export function cleanIntervalSeconds(options: Qcow2Options): number {
  const seconds = options['cache-clean-interval'] ?? DEFAULT_CLEAN_INTERVAL_S;
  if (seconds < 0 || seconds > MAX_CLEAN_INTERVAL_S) throw invalid('Cache clean interval too big');
  return seconds;
}
