/**
 * The contract between the block layer and a block driver, and the small types both sides use.
 *
 * A driver is a record of callbacks; all but `open` are optional. I/O callbacks run in a coroutine and under the
 * graph read lock: they take the guard that proves it and pass it on to their children. They are never called
 * directly: callbacks.ts turns this contract into the callable forms.
 */

import type { BlockStatsSpecific } from '../../schema/generated/types.ts';
import type { AioEngine, EngineKind } from '../aio/engine.ts';
import type { IoVector } from '../aio/memory.ts';
import type { GraphReadGuard } from './graph-lock.ts';
import type { BlockChild, BlockNode } from './node.ts';

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
}

export type PreallocMode = 'off' | 'metadata' | 'falloc' | 'full';

/** Options after validation: plain data by the schema's member names; nested children are still inside. */
export type DriverOptions = Readonly<Record<string, unknown>>;

/** What an opening driver is given. The node exists but is not in the graph's name table yet. */
export interface OpenContext<Options = DriverOptions> {
  readonly options: Options;
  readonly readOnly: boolean;
  /** read-only may be chosen when read-write fails (auto-read-only). */
  readonly autoReadOnly: boolean;
  readonly engine: AioEngine;
  /** The engine for the `aio` option of a protocol driver; throws when the host cannot provide it. */
  engineOf(kind: EngineKind): AioEngine;
  /** Opens or finds the child named by option `name` and attaches it; null when the option is absent or null. */
  openChild(name: string, roles: number, required: boolean): Promise<BlockChild | null>;
}

export interface BlockDriver<S = unknown> {
  readonly name: string;
  /** A protocol driver is a bottom of the graph: it has no `file` child. */
  readonly kind: 'protocol' | 'format' | 'filter';
  /** Write flags the driver honours itself; others are emulated by the I/O path. */
  readonly supportedWriteFlags: number;
  readonly supportedZeroFlags: number;
  /** Options that change what the content is, for generated file names. */
  readonly strongOptions?: readonly string[];

  // Graph changes: called by the monitor side, the node is drained or new.
  open(node: BlockNode<S>, context: OpenContext): Promise<S>;
  close?(node: BlockNode<S>): Promise<void>;
  /** Permissions to take on `child` for the cumulative permissions of the parents. Default: by role. */
  childPermissions?(node: BlockNode<S>, roles: number, wanted: PermissionPair): PermissionPair;
  /** Claims new cumulative permissions outside the process (file locks); throws to veto. */
  checkPermissions?(node: BlockNode<S>, wanted: PermissionPair): void;
  setPermissions?(node: BlockNode<S>, wanted: PermissionPair): void;
  abortPermissions?(node: BlockNode<S>): void;
  refreshLimits?(node: BlockNode<S>, limits: BlockLimits): void;
  /** Counters for query-blockstats' driver-specific member. */
  statistics?(node: BlockNode<S>): BlockStatsSpecific;
  /** The plain filename, when the node's options are expressible as one. */
  exactFilename?(node: BlockNode<S>): string | null;

  // I/O callbacks: coroutines under the graph read lock.
  preadv?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    offset: number,
    bytes: number,
    vec: IoVector,
    flags: number,
  ): Promise<void>;
  pwritev?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    offset: number,
    bytes: number,
    vec: IoVector,
    flags: number,
  ): Promise<void>;
  pwriteZeroes?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    offset: number,
    bytes: number,
    flags: number,
  ): Promise<void>;
  pdiscard?(node: BlockNode<S>, guard: GraphReadGuard, offset: number, bytes: number): Promise<void>;
  /** Everything completed so far reaches stable storage (own caches written to the children first). */
  flush?(node: BlockNode<S>, guard: GraphReadGuard): Promise<void>;
  blockStatus?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    wantZero: boolean,
    offset: number,
    bytes: number,
  ): Promise<BlockStatus>;
  getLength?(node: BlockNode<S>, guard: GraphReadGuard): Promise<number>;
  getAllocatedFileSize?(node: BlockNode<S>, guard: GraphReadGuard): Promise<number>;
  getInfo?(node: BlockNode<S>, guard: GraphReadGuard): Promise<BlockDriverInfo>;
  isInserted?(node: BlockNode<S>, guard: GraphReadGuard): Promise<boolean>;
  eject?(node: BlockNode<S>, guard: GraphReadGuard, ejected: boolean): Promise<void>;
  lockMedium?(node: BlockNode<S>, guard: GraphReadGuard, locked: boolean): Promise<void>;
  debugEvent?(node: BlockNode<S>, guard: GraphReadGuard, event: string): Promise<void>;
  truncate?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    offset: number,
    exact: boolean,
    prealloc: PreallocMode,
    zeroFill: boolean,
  ): Promise<void>;
}
