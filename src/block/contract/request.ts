/**
 * Requests as the block layer and its drivers speak of them: permissions, roles of edges, flags, block status, limits.
 */

import type { BlockNode } from '../graph/node.ts';

// ---- permissions ---------------------------------------------------------------------------------------------

/** Permission bits (QMP reference, BlockPermission). */
export const Perm = {
  consistentRead: 1,
  write: 2,
  writeUnchanged: 4,
  resize: 8,
  all: 15,
} as const;

export interface PermissionPair {
  /** What the holder does with the node. */
  readonly perm: number;
  /** What the holder lets others do. */
  readonly shared: number;
}

// ---- roles ---------------------------------------------------------------------------------------------------

/** Role bits of an edge: what the parent uses the child for. */
export const Role = {
  data: 1,
  metadata: 2,
  filtered: 4,
  cow: 8,
  primary: 16,
} as const;

// ---- requests ------------------------------------------------------------------------------------------------

/** Request flag bits. */
export const Req = {
  /** The write reaches stable storage before it completes. */
  fua: 1,
  /** Write zeroes: the range may become unallocated. */
  mayUnmap: 2,
  /** Write zeroes: fail with ENOTSUP rather than write a buffer of zeroes. */
  noFallback: 4,
  /** Wait for and keep out every overlapping request. */
  serialising: 8,
  copyOnRead: 16,
  prefetch: 32,
  /** The data written equals what a reader sees already. */
  writeUnchanged: 64,
  compressed: 128,
} as const;

/** Bits of BlockStatus.flags. */
export const Status = {
  /** The range holds data on some layer. */
  data: 1,
  /** The range reads as zeroes. */
  zero: 2,
  /** `map` and `file` are valid. */
  offsetValid: 4,
  /** Ask the child `file` at `map` for the rest of the answer. */
  recurse: 8,
  /** This layer decides the content; the backing chain is not looked at. */
  allocated: 16,
  eof: 32,
  compressed: 64,
  /** What is below knows nothing better: it is not asked. Drivers say so; it is not passed on. */
  final: 128,
} as const;

export interface BlockStatus {
  /** Length of the extent in bytes: at least 1 unless at end of file, never more than asked for. */
  readonly bytes: number;
  readonly flags: number;
  /** Offset in `file` where the extent starts; meaningful with Status.offsetValid. */
  readonly map: number;
  readonly file: BlockNode | null;
}

/** What a driver can do, and how. Sizes in bytes, powers of two for alignments; 0 = no limit. */
export interface BlockLimits {
  requestAlignment: number;
  maxTransfer: number;
  optTransfer: number;
  maxPdiscard: number;
  pdiscardAlignment: number;
  maxPwriteZeroes: number;
  pwriteZeroesAlignment: number;
  minMemAlignment: number;
  optMemAlignment: number;
  maxIov: number;
}

export interface BlockDriverInfo {
  readonly clusterSizeBytes: number;
  readonly vmStateOffset?: number;
  readonly isDirty?: boolean;
  /** Data can only be written as whole compressed clusters. */
  readonly needsCompressedWrites?: boolean;
}
