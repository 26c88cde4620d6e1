/**
 * Nodes and edges of the block graph: the records, and nothing that acts on them.
 *
 * Who may touch what:
 * - identity of a node: set when it is opened, constant afterwards; its options change when it is reopened;
 * - edges (`children`, `parents`, an edge's `node`): changed under the graph write lock, read under the read lock;
 * - permissions of an edge: changed by permissions.ts only, on the monitor side;
 * - request state (`inFlight`, `tracked`, `quiesced`, `hurried`): owned by io/read-write.ts and drain.ts.
 */

import { CoQueue } from '../../coroutine/co-queue.ts';
import { createBitmapTable, type DirtyBitmapTable } from '../bitmaps/dirty-bitmap.ts';
import type { BlockDriver } from '../contract/driver.ts';
import type { DriverOptions, FlatOptions } from '../contract/image.ts';
import { type BlockLimits, Role } from '../contract/request.ts';
import type { BlockLayer } from '../layer.ts';
import { checkedList, debuggingGraph } from './debug.ts';
import type { OpBlocker } from './op-blockers.ts';
import type { TrackedList } from './tracked.ts';
import { createTrackedList } from './tracked.ts';

/** The parent side of an edge that is not a node: a BlockBackend. */
export interface RootParent {
  /** Names the user in permission errors: "an unnamed block device". */
  describe(): string;
  drainedBegin(): void;
  drainedEnd(): void;
  /** Null when the parent is at rest in a drained section; else resolves when it is worth looking again. */
  waitForRest(): Promise<void> | null;
  resized(): void;
  /** The edge belongs to this very node and does not go along when the node is replaced (a job's hold on it). */
  readonly staysAtNode: boolean;
  /** An inactive node will do: reads are all that is wanted of it, or errors are expected. */
  readonly allowsInactive: boolean;
  /** Requests begun and not ended, those that wait outside included; absent where nobody counts. */
  readonly pending?: number;
  /** The block job that the edge belongs to; null: a user of another kind. */
  readonly jobId: string | null;
}

export type EdgeParent =
  | { readonly kind: 'node'; readonly node: BlockNode }
  | { readonly kind: 'root'; readonly root: RootParent };

export interface BlockChild {
  readonly name: string;
  readonly roles: number;
  readonly parent: EdgeParent;
  node: BlockNode;
  perm: number;
  shared: number;
  /** The parent has been told to send nothing down this edge; owned by drain.ts. */
  quiesced: boolean;
  /** Holders that rely on the edge staying as it is; owned by graph/change.ts. */
  frozen: number;
}

const DEFAULT_LIMITS: BlockLimits = {
  requestAlignment: 1,
  maxTransfer: 0,
  optTransfer: 0,
  maxPdiscard: 0,
  pdiscardAlignment: 0,
  maxPwriteZeroes: 0,
  pwriteZeroesAlignment: 0,
  minMemAlignment: 512,
  optMemAlignment: 4096,
  maxIov: 1024,
};

export interface CacheMode {
  /** O_DIRECT. */
  readonly direct: boolean;
  /** Flushes are ignored. */
  readonly noFlush: boolean;
}

export interface NodeSettings {
  readonly name: string;
  /** The options the user gave this node, children replaced by what they were given as. */
  readonly options: DriverOptions;
  readonly readOnly: boolean;
  readonly autoReadOnly: boolean;
  readonly forceShare: boolean;
  /** Whether it was active when it was opened; what it is now is a matter of the node. */
  readonly active: boolean;
  /** The image opens no file that only it names. */
  readonly untrusted: boolean;
  /** discard=unmap: discards and unmapping zero writes reach the driver. */
  readonly discardUnmap: boolean;
  readonly detectZeroes: 'off' | 'on' | 'unmap';
  readonly cache: CacheMode;
}

export class BlockNode<S = unknown> {
  readonly layer: BlockLayer;
  readonly driver: BlockDriver<S>;
  readonly name: string;
  /** Replaced as a whole, under the graph write lock, when the node is reopened. */
  settings: NodeSettings;
  /** Options the user gave this node itself, and those with what it inherited; owned by open.ts and reopen.ts. */
  optionsGiven: FlatOptions = {};
  optionsInEffect: FlatOptions = {};
  /** The node that defines this one inline, and passes options on to it. */
  inheritsFrom: BlockNode | null = null;
  /** The image whose backing image this one is being opened as; null for all others. */
  overlay: BlockNode | null = null;
  /** Set by the driver's open; valid from then until close. */
  state!: S;
  /** May turn true while opening (auto-read-only). */
  readOnly: boolean;
  /** A reopening is about to make it read-only: users that write are in the way. */
  turnsReadOnly = false;
  /** False: the image is left to others. Nothing is locked, and `readOnly` is true. Owned by open/activation.ts. */
  active: boolean;
  /** The monitor holds a reference: the node was made by blockdev-add itself. */
  monitorOwned = false;
  /** Counts up in the order in which the original names nodes: after the file below, before the backing image. */
  order: number | null = null;
  /** References of code that needs the node for a while; see BlockLayer.hold. */
  refs = 0;
  /** Made by a command, not by the user, who did not name it either. */
  implicit = false;
  /** Why operations are not allowed on this node; owned by op-blockers.ts. */
  readonly opBlockers: OpBlocker[] = [];

  readonly children: BlockChild[];
  readonly parents: BlockChild[];

  /** Refreshed when the node or what is below it changes; see refreshLimits. */
  readonly limits: BlockLimits = { ...DEFAULT_LIMITS };
  /** Length in bytes, a multiple of 512. */
  totalBytes = 0;

  /** Requests inside this node, from the first check to the last bookkeeping. */
  inFlight = 0;
  readonly tracked: TrackedList = createTrackedList();
  /** Depth of drained sections; new requests from outside wait while it is not 0. */
  quiesced = 0;
  /** Whether nobody waits any more for the long work under way in here, such as preallocation. Set by who began it. */
  isUnwanted: () => boolean = () => false;
  /** How many wait for requests in here or above: not 0, they wait for nothing but I/O. */
  hurried = 0;
  /** Woken when inFlight returns to 0. */
  readonly idle = new CoQueue();

  /** Its driver wants to hear of debug events; see io/debug.ts. */
  readonly takesDebugEvents: boolean;

  /** Counts completed writes; a flush is needed when it differs from flushedGeneration. */
  writeGeneration = 0;
  flushedGeneration = 0;
  flushing = false;
  readonly flushQueue = new CoQueue();
  /** Changed on the monitor side; the I/O path sets their bits. */
  readonly dirtyBitmaps: DirtyBitmapTable = createBitmapTable();
  /** End of the farthest write in bytes, for query-blockstats. */
  writeHighestOffset = 0;
  /** Offset in bytes; a write that goes beyond raises an event, once. 0: none. Owned by write-threshold.ts. */
  writeThreshold = 0;
  /** Id of the iothread that the user wants it to run in; recorded only. */
  ioThread: string | null = null;

  constructor(layer: BlockLayer, driver: BlockDriver<S>, settings: NodeSettings) {
    this.layer = layer;
    this.driver = driver;
    this.name = settings.name;
    this.settings = settings;
    this.active = settings.active;
    this.readOnly = settings.readOnly || !settings.active;
    const list = (what: string): BlockChild[] =>
      debuggingGraph ? checkedList(`${what} of node '${settings.name}'`, () => layer.graphLock.writing) : [];
    this.children = list('children');
    this.parents = list('parents');
    this.takesDebugEvents = driver.debugEvent !== undefined;
  }

  /** What users are told: an inactive node may be written to when it is active again. */
  get shownReadOnly(): boolean {
    return this.active ? this.readOnly : this.settings.readOnly;
  }

  /** The child of that name; null when there is none. */
  child(name: string): BlockChild | null {
    return this.children.find((edge) => edge.name === name) ?? null;
  }

  /** The child that holds this node's data: `file` for formats, what is filtered for filters. */
  get primaryChild(): BlockChild | null {
    return this.children.find((edge) => (edge.roles & Role.primary) !== 0) ?? this.child('file');
  }
}

/**
 * Recomputes the limits of `node` from those of its children and its driver's own. The request alignment is not handed
 * up: blocks are read, changed and written back by the node that needs it, where all users of the block meet. Two
 * nodes above it doing so would not see each other's requests.
 */
export function refreshLimits(node: BlockNode): void {
  const { limits } = node;
  Object.assign(limits, DEFAULT_LIMITS);
  for (const { node: below } of node.children) {
    limits.minMemAlignment = Math.max(limits.minMemAlignment, below.limits.minMemAlignment);
  }
  node.driver.refreshLimits?.(node, limits);
}

/**
 * Longest request, in bytes, that reaches every image below `node` in one piece; 0: any. Advice for users: each node splits by
 * its own limits, so a longer request is only slower.
 */
export function adviseMaxTransfer(node: BlockNode): number {
  let least = node.limits.maxTransfer;
  for (const { node: below, roles } of node.children) {
    if ((roles & (Role.data | Role.filtered | Role.cow)) === 0) continue;
    const max = adviseMaxTransfer(below);
    if (max !== 0 && (least === 0 || max < least)) least = max;
  }
  return least;
}
