/**
 * Nodes and edges of the block graph: the records, and nothing that acts on them.
 *
 * Who may touch what:
 * - identity and options of a node: set when it is opened, constant afterwards;
 * - edges (`children`, `parents`, an edge's `node`): changed under the graph write lock, read under the read lock;
 * - permissions of an edge: changed by permissions.ts only, on the monitor side;
 * - request state (`inFlight`, `tracked`, `quiesced`): owned by io.ts and drain.ts.
 */

import { CoQueue } from '../coroutine/co-queue.ts';
import { createBitmapTable, type DirtyBitmapTable } from './dirty-bitmap.ts';
import type { BlockDriver, BlockLimits, DriverOptions } from './driver.ts';
import type { BlockLayer } from './layer.ts';
import type { TrackedList } from './tracked.ts';
import { createTrackedList } from './tracked.ts';

/** The parent side of an edge that is not a node: a BlockBackend. */
export interface RootParent {
  /** Names the user in permission errors: "an unnamed block device". */
  describe(): string;
  drainedBegin(): void;
  drainedEnd(): void;
  /** Requests the parent has started on this edge and not finished. */
  readonly inFlight: number;
  resized(): void;
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
}

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
  /** discard=unmap: discards and unmapping zero writes reach the driver. */
  readonly discardUnmap: boolean;
  readonly detectZeroes: 'off' | 'on' | 'unmap';
  readonly cache: CacheMode;
}

export class BlockNode<S = unknown> {
  readonly layer: BlockLayer;
  readonly driver: BlockDriver<S>;
  readonly name: string;
  readonly settings: NodeSettings;
  /** Set by the driver's open; valid from then until close. */
  state!: S;
  /** May turn true while opening (auto-read-only). */
  readOnly: boolean;
  /** The monitor holds a reference: the node was made by blockdev-add itself. */
  monitorOwned = false;

  readonly children: BlockChild[] = [];
  readonly parents: BlockChild[] = [];

  readonly limits: BlockLimits = {
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
  /** Length in bytes, a multiple of 512. */
  totalBytes = 0;

  /** Requests inside this node, from the first check to the last bookkeeping. */
  inFlight = 0;
  readonly tracked: TrackedList = createTrackedList();
  /** Depth of drained sections; new requests from outside wait while it is not 0. */
  quiesced = 0;
  /** Woken when inFlight returns to 0. */
  readonly idle = new CoQueue();

  /** Counts completed writes; a flush is needed when it differs from flushedGeneration. */
  writeGeneration = 0;
  flushedGeneration = 0;
  flushing = false;
  readonly flushQueue = new CoQueue();
  /** Changed on the monitor side; the I/O path sets their bits. */
  readonly dirtyBitmaps: DirtyBitmapTable = createBitmapTable();
  /** End of the farthest write in bytes, for query-blockstats. */
  writeHighestOffset = 0;

  constructor(layer: BlockLayer, driver: BlockDriver<S>, settings: NodeSettings) {
    this.layer = layer;
    this.driver = driver;
    this.name = settings.name;
    this.settings = settings;
    this.readOnly = settings.readOnly;
  }

  /** The child of that name; null when there is none. */
  child(name: string): BlockChild | null {
    return this.children.find((edge) => edge.name === name) ?? null;
  }

  /** The child that holds this node's data: `file` for formats and filters. */
  get primaryChild(): BlockChild | null {
    return this.child('file');
  }
}
