/**
 * The contract between the block layer and a block driver, and the small types both sides use.
 *
 * A driver is a record of callbacks; all but `open` are optional. I/O callbacks run in a coroutine and under the
 * graph read lock: they take the guard that proves it and pass it on to their children. They are never called
 * directly: callbacks.ts turns this contract into the callable forms.
 */

import type { BlkdebugEvent, BlockStatsSpecific, ImageInfoSpecific } from '../../schema/generated/types.ts';
import type { AioEngine, EngineKind } from '../aio/engine.ts';
import type { IoVector } from '../aio/memory.ts';
import type { ChildList } from './child-list.ts';
import type { CopyRangeCallbacks } from './copy-range-driver.ts';
import type { GraphReadGuard } from './graph-lock.ts';
import type { BlockDebugger } from './io-debug.ts';
import type { BlockLayer } from './layer.ts';
import type { NameCallbacks } from './name-driver.ts';
import type { BlockChild, BlockNode } from './node.ts';
import type { ReopenCallbacks } from './reopen-driver.ts';
import type { SnapshotIo } from './snapshot-io.ts';
import type { WaitCallbacks } from './wait-driver.ts';

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

/** Counts of a finished image check (QMP reference, ImageCheck). */
export interface ImageCheckResult {
  corruptions: number;
  leaks: number;
  checkErrors: number;
  corruptionsFixed: number;
  leaksFixed: number;
  /** End of the last cluster in use in bytes. */
  imageEndOffset: number;
  totalClusters: number;
  allocatedClusters: number;
  fragmentedClusters: number;
  compressedClusters: number;
}

export interface ImageCheckRequest {
  readonly fixLeaks: boolean;
  readonly fixErrors: boolean;
  /** Takes one line of the report at a time, in the original's words, without line end. */
  readonly report: (line: string) => void;
  /** Takes the lines that the original prints behind the program's name; absent: `report` takes them. */
  readonly reportError?: (line: string) => void;
}

/** An internal snapshot of an image. */
export interface InternalSnapshot {
  readonly id: string;
  readonly name: string;
  readonly vmStateBytes: number;
  readonly dateSeconds: number;
  readonly dateNanoseconds: number;
  readonly vmClockNanoseconds: bigint;
  /** Instruction count; null when the image does not record it. */
  readonly icount: bigint | null;
  readonly diskBytes: number;
}

/** Operations on internal snapshots. Callers drain the node first; names and ids are looked up by the callee. */
export interface InternalSnapshots<S = unknown> {
  list(node: BlockNode<S>): readonly InternalSnapshot[];
  create(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    snapshot: Omit<InternalSnapshot, 'id' | 'diskBytes'>,
  ): Promise<void>;
  /** Makes the active content that of the snapshot (given by id or name). */
  apply(node: BlockNode<S>, guard: GraphReadGuard, idOrName: string): Promise<void>;
  /** Both null-able ends as in the original: a snapshot matching every one that is given. */
  delete(node: BlockNode<S>, guard: GraphReadGuard, id: string | null, name: string | null): Promise<void>;
  /** Shows the snapshot's content from now on; the node must be read-only. */
  load(node: BlockNode<S>, guard: GraphReadGuard, id: string | null, name: string | null): Promise<void>;
}

/** Space an image needs (QMP reference, BlockMeasureInfo); bytes. */
export interface ImageMeasure {
  readonly required: number;
  readonly fullyAllocated: number;
  readonly bitmaps?: number;
}

/** An option of an image being created, as the tools' -o takes it. */
export interface CreateOption {
  readonly name: string;
  readonly type: 'size' | 'bool' | 'string' | 'number';
  readonly help: string;
  /** Shown by the tools' option help; the text after "(default: ". */
  readonly default?: string;
}

export type CreateOptionValues = Readonly<Record<string, string>>;

/** How images of a format (or files of a protocol) are made. */
export interface ImageCreation {
  /**
   * blockdev-create: writes the image into nodes that exist already. `options` is validated against the schema.
   * Absent: the tools alone make such images.
   */
  create?(layer: BlockLayer, options: DriverOptions, progress: CreateProgress): Promise<void>;
  /** Options the tools offer with -o, in the order of their help. */
  readonly options: readonly CreateOption[];
  /** Options that `amend` takes, in the same way. */
  readonly amendOptions?: readonly CreateOption[];
  /** The tools' way: makes the file(s) under `filename`, then the image in it. Values are those of `options`. */
  createFile(
    layer: BlockLayer,
    filename: string,
    values: CreateOptionValues,
    progress: CreateProgress,
  ): Promise<void>;
}

/** Dirty bitmaps that an image keeps. What is recorded meanwhile is in the node's bitmaps (dirty-bitmap.ts). */
export interface PersistentBitmaps<S = unknown> {
  /** Throws when a new bitmap cannot be kept in this image. `granularity` in bytes. */
  checkNew(node: BlockNode<S>, name: string, granularity: number): void;
  /** Takes a bitmap out of the image; does nothing when it is not in there. */
  remove(node: BlockNode<S>, guard: GraphReadGuard, name: string): Promise<void>;
}

/**
 * What a virtual machine saves of itself in an image, beside the disk; offsets in bytes from the start of that. What was
 * not written reads as zeroes. Callers are not inside a request of the node.
 */
export interface VmStateIo<S = unknown> {
  read(node: BlockNode<S>, guard: GraphReadGuard, offset: number, vec: IoVector): Promise<void>;
  write(node: BlockNode<S>, guard: GraphReadGuard, offset: number, vec: IoVector): Promise<void>;
}

export interface CreateProgress {
  /** Work done and work there is, in any unit. */
  update(done: number, total: number): void;
  /** Awaited between the checks that need no I/O and the rest: what asked for the work may go on from here. */
  checked?(): Promise<void>;
}

export type PreallocMode = 'off' | 'metadata' | 'falloc' | 'full';

/** Options after validation: plain data by the schema's member names; nested children are still inside. */
export type DriverOptions = Readonly<Record<string, unknown>>;

export type OpenPurpose = 'io' | 'check' | 'info';

/** What an opening driver is given. The node exists but is not in the graph's name table yet. */
export interface OpenContext<Options = DriverOptions> {
  readonly options: Options;
  readonly readOnly: boolean;
  /** read-only may be chosen when read-write fails (auto-read-only). */
  readonly autoReadOnly: boolean;
  /** What for: guest I/O; a check, which takes corrupt images as they are; information, which needs no keys. */
  readonly purpose: OpenPurpose;
  readonly engine: AioEngine;
  /** The engine for the `aio` option of a protocol driver; throws when the host cannot provide it. */
  engineOf(kind: EngineKind): AioEngine;
  /** Opens or finds the child named by option `name` and attaches it; null when the option is absent or null. */
  openChild(
    name: string,
    roles: number,
    required: boolean,
    /** What is opened or found, where that is not the option `name`. */
    reference?: unknown,
  ): Promise<BlockChild | null>;
  /**
   * The backing child: the user's `backing` option, or what the image itself names. Null when the user said
   * `backing: null` or the image names nothing. `imageDefault` is what the header says, or null.
   */
  openBacking(imageDefault: BackingName | null): Promise<BlockChild | null>;
  /** A child given by a file name, such as an external data file. `probe`: in the format that is found in it. */
  openNamedChild(name: string, roles: number, filename: string, probe?: boolean): Promise<BlockChild>;
}

/** What an image says of its backing file. */
export interface BackingName {
  /** As stored: relative to the image, absolute, or a pseudo-protocol name such as json:{...}. */
  readonly filename: string;
  /** Null: to be found out by probing. */
  readonly format: string | null;
}

/** The content an image is to be measured for. */
export interface MeasureSource {
  readonly bytes: number;
  /** Extents of the source in order; a source without content has none. */
  extents(): AsyncIterable<{ readonly bytes: number; readonly zero: boolean; readonly allocated: boolean }>;
  /** Granularities, in bytes, of the source's persistent bitmaps; absent where it cannot have any. */
  readonly bitmapGranularities?: readonly number[];
}

export interface BlockDriver<S = unknown>
  extends ReopenCallbacks<S>,
    SnapshotIo<S>,
    CopyRangeCallbacks<S>,
    WaitCallbacks<S>,
    NameCallbacks {
  readonly name: string;
  /** Bytes behind the end come into being as zeroes when something is written further on. */
  readonly growsWithZeroes?: boolean;
  /** A truncate waits for all requests and holds back new ones: it rebuilds what they rely on. */
  readonly exclusiveTruncate?: boolean;
  /** Runs when the node is open and has its permissions: what an opening has to write. */
  afterOpen?(node: BlockNode<S>): Promise<void>;
  /** A protocol driver is a bottom of the graph: it has no `file` child. */
  readonly kind: 'protocol' | 'format' | 'filter';
  /** Write flags the driver honours itself; others are emulated by the I/O path. */
  readonly supportedWriteFlags: number;
  readonly supportedZeroFlags: number;
  /** Block status is another machine's answer, as reads are. */
  readonly costlyStatus?: boolean;
  /** Has a `backing` child: what this layer does not hold is read from there. */
  readonly supportsBacking?: boolean;
  /** 0..100: how sure this format is that an image starting with `start` (2 KiB or the whole image) is its own. */
  probe?(start: Buffer): number;
  readonly creation?: ImageCreation;
  readonly snapshots?: InternalSnapshots<S>;
  readonly bitmaps?: PersistentBitmaps<S>;
  readonly vmState?: VmStateIo<S>;
  /** A filter that sits right above a protocol node: nothing is probed below it, and names may start with its name. */
  readonly isProtocolFilter?: boolean;
  /** Present: children come and go at run time. */
  readonly childList?: ChildList<S>;
  /** `flush` sees to the children itself; otherwise the I/O path flushes them after it. */
  readonly flushesChildren?: boolean;
  /** Present: its children may be anywhere, so names in the image cannot be relative to it. The text of that error. */
  readonly noPlace?: string;
  readonly debugger?: BlockDebugger<S>;
  /** Options that change what the content is, for generated file names. */
  readonly strongOptions?: readonly string[];

  // Graph changes: called by the monitor side, the node is drained or new.
  open(node: BlockNode<S>, context: OpenContext): Promise<S>;
  close?(node: BlockNode<S>): Promise<void>;
  /** Tells an open node that nobody named its format: it was found out by looking at the content. */
  wasProbed?(node: BlockNode<S>): void;
  /** Permissions to take on `child` for the cumulative permissions of the parents. Default: by role. */
  childPermissions?(node: BlockNode<S>, roles: number, wanted: PermissionPair): PermissionPair;
  /** Claims new cumulative permissions outside the process (file locks); throws to veto. */
  checkPermissions?(node: BlockNode<S>, wanted: PermissionPair): void;
  setPermissions?(node: BlockNode<S>, wanted: PermissionPair): void;
  abortPermissions?(node: BlockNode<S>): void;
  refreshLimits?(node: BlockNode<S>, limits: BlockLimits): void;
  /** Format-specific part of query-named-block-nodes and `info`. */
  specificInfo?(node: BlockNode<S>): ImageInfoSpecific | undefined;
  /** What the image itself says of its backing file; null when nothing. */
  backingName?(node: BlockNode<S>): BackingName | null;
  /** Space needed for an image with the given creation options over `source` (or an empty one of its length). */
  measure?(values: CreateOptionValues, source: MeasureSource): Promise<ImageMeasure>;
  /** Counters for query-blockstats' driver-specific member. */
  statistics?(node: BlockNode<S>): BlockStatsSpecific;
  /** The plain filename, when the node's options are expressible as one. */
  exactFilename?(node: BlockNode<S>): string | null;

  /** Sets a smaller length within this turn of the event loop; false: that did not work. Nothing is in flight there. */
  truncateNow?(node: BlockNode<S>, length: number): boolean;

  // I/O callbacks: coroutines under the graph read lock.
  preadv?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    offset: number,
    bytes: number,
    vec: IoVector,
    flags: number,
  ): Promise<void>;
  /**
   * Reads at once what can be read without waiting; false: nothing has been done, preadv is the way. Never throws
   * for want of data or space. Whoever calls it has nothing to clean up, so nothing is tracked.
   */
  tryPreadv?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    offset: number,
    bytes: number,
    vec: IoVector,
  ): boolean;
  /** Writes at once what can be written without waiting; as tryPreadv. */
  tryPwritev?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    offset: number,
    bytes: number,
    vec: IoVector,
  ): boolean;
  pwritev?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    offset: number,
    bytes: number,
    vec: IoVector,
    flags: number,
  ): Promise<void>;
  /** Writes whole clusters compressed (the last may be cut by the end of the image). bytes 0: the image is complete. */
  pwritevCompressed?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    offset: number,
    bytes: number,
    vec: IoVector,
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
  /** Looks for errors in the metadata, and repairs them when asked. The node is drained. */
  check?(node: BlockNode<S>, guard: GraphReadGuard, request: ImageCheckRequest): Promise<ImageCheckResult>;
  /** Changes format options of an existing image; values as of `creation.options`. The node is drained. */
  amend?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    values: CreateOptionValues,
    force: boolean,
    progress: CreateProgress,
  ): Promise<void>;
  /** Changes what the image says of its backing file; the graph stays as it is. */
  changeBackingFile?(node: BlockNode<S>, guard: GraphReadGuard, backing: BackingName | null): Promise<void>;
  getLength?(node: BlockNode<S>, guard: GraphReadGuard): Promise<number>;
  getAllocatedFileSize?(node: BlockNode<S>, guard: GraphReadGuard): Promise<number>;
  getInfo?(node: BlockNode<S>, guard: GraphReadGuard): Promise<BlockDriverInfo>;
  isInserted?(node: BlockNode<S>, guard: GraphReadGuard): Promise<boolean>;
  eject?(node: BlockNode<S>, guard: GraphReadGuard, ejected: boolean): Promise<void>;
  lockMedium?(node: BlockNode<S>, guard: GraphReadGuard, locked: boolean): Promise<void>;
  /** Something happens above that tests may want to meet. See io-debug.ts; not passed on to children. */
  debugEvent?(node: BlockNode<S>, guard: GraphReadGuard, event: BlkdebugEvent): Promise<void>;
  truncate?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    offset: number,
    exact: boolean,
    prealloc: PreallocMode,
    zeroFill: boolean,
  ): Promise<void>;
}
