/**
 * The contract between the block layer and a block driver, and the small types both sides use.
 *
 * A driver is a record of callbacks; all but `open` are optional. I/O callbacks run in a coroutine and under the
 * graph read lock: they take the guard that proves it and pass it on to their children. They are never called
 * directly: callbacks.ts turns this contract into the callable forms.
 */

import type {
  BlkdebugEvent,
  BlockStatsSpecific,
  ImageInfoSpecific,
} from '../../../schema/generated/types.ts';
import type { AioEngine, EngineKind } from '../../aio/engine.ts';
import type { IoVector } from '../../aio/memory.ts';
import type { BlockChild, BlockNode } from '../graph/node.ts';
import type { LentPages } from './backend-io.ts';
import type { ChildList } from './child-list.ts';
import type { CopyRangeCallbacks } from './copy-range.ts';
import type { BlockDebugger } from './debugger.ts';
import type { GraphReadGuard } from './guard.ts';
import type {
  BackingName,
  CreateOptionValues,
  CreateProgress,
  DriverOptions,
  ImageCheckRequest,
  ImageCheckResult,
  ImageCreation,
  ImageMeasure,
  InternalSnapshots,
  MeasureSource,
  PersistentBitmaps,
  PreallocMode,
  VmStateIo,
} from './image.ts';
import type { NameCallbacks } from './names.ts';
import type { ReopenCallbacks } from './reopen.ts';
import type { BlockDriverInfo, BlockLimits, BlockStatus, PermissionPair } from './request.ts';
import type { ShortRequest } from './short-request.ts';
import type { SnapshotIo } from './snapshot.ts';
import type { WaitCallbacks } from './wait.ts';

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

export interface BlockDriver<S = unknown>
  extends ReopenCallbacks<S>,
    SnapshotIo<S>,
    CopyRangeCallbacks<S>,
    WaitCallbacks<S>,
    NameCallbacks {
  readonly name: string;
  /** Bytes behind the end come into being as zeroes when something is written further on. */
  readonly growsWithZeroes?: boolean;
  /** What has never been written does not read as zeroes, whatever the file below does. */
  readonly freshIsNoise?: boolean;
  /** What a longer image is longer by reads as zeroes when it is asked to, whatever a backing image has there. */
  readonly growsZeroed?: boolean;
  /** The image's own header says how long it is: nothing behind that is the driver's to read or write. */
  readonly fixedLength?: boolean;
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
  /**
   * 0..100: how sure this format is that an image starting with `start` (2 KiB or the whole image) is its own. Few need
   * the file's name for that.
   */
  probe?(start: Buffer, filename?: string): number;
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
  /** The value of a strong option as generated file names show it: without passwords and keys. */
  shownOption?(name: string, value: unknown): unknown;

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
  /** The content is encrypted, where specificInfo does not say so by a member `encrypt`. */
  isEncrypted?(node: BlockNode<S>): boolean;
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
   * for want of data or space. With `short` a read that has to wait for the disk may be begun: then short.isWaiting is
   * set and the answer is true. Nothing is tracked here; who calls it sees to that (src/block/io/in-turn.ts).
   */
  tryPreadv?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    offset: number,
    bytes: number,
    vec: IoVector,
    short: ShortRequest | null,
  ): boolean;
  /**
   * As BackendIo.lendPages. Only for drivers whose bytes stay in the same place of the same file for as long as the image is
   * in use: no format that moves what it holds, and no filter, which comes and goes.
   */
  lendPages?(node: BlockNode<S>, guard: GraphReadGuard, offset: number, bytes: number): LentPages | null;
  /** Writes at once what can be written without waiting, or begins to; as tryPreadv. */
  tryPwritev?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    offset: number,
    bytes: number,
    vec: IoVector,
    short: ShortRequest | null,
  ): boolean;
  /** Bytes at `offset` that the node itself does not hold, but something below it may; 0: it does, or it takes waiting to know. */
  unheldNow?(node: BlockNode<S>, guard: GraphReadGuard, offset: number, bytes: number): number;
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
  /** Gives up all data of this layer, so that the backing image shows. The node is drained. */
  makeEmpty?(node: BlockNode<S>, guard: GraphReadGuard): Promise<void>;
  getLength?(node: BlockNode<S>, guard: GraphReadGuard): Promise<number>;
  getAllocatedFileSize?(node: BlockNode<S>, guard: GraphReadGuard): Promise<number>;
  getInfo?(node: BlockNode<S>, guard: GraphReadGuard): Promise<BlockDriverInfo>;
  isInserted?(node: BlockNode<S>, guard: GraphReadGuard): Promise<boolean>;
  eject?(node: BlockNode<S>, guard: GraphReadGuard, ejected: boolean): Promise<void>;
  lockMedium?(node: BlockNode<S>, guard: GraphReadGuard, locked: boolean): Promise<void>;
  /** Something happens above that tests may want to meet. See io/debug.ts; not passed on to children. */
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
