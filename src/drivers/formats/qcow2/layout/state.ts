/**
 * The state of an open qcow2 node: what the files of this folder share, and who may change what.
 *
 * All synchronous code is atomic (nobody runs between two awaits). Code that needs a table which is not in memory
 * changes nothing, returns a Need, waits for needs.ts to satisfy it, and starts over. So the normal paths need no
 * lock; `metadataLock` is for the operations that must wait in the middle: write-back, new refcount blocks, copying
 * of L2 tables. It is never held across data I/O. Operations that rebuild the image (snapshots, resizing, repair)
 * run as the only request inside the node: see exclusive.ts.
 */

import type { QCryptoBlockInfoLUKS } from '../../../../../schema/generated/types.ts';
import type { IoMemory } from '../../../../aio/memory.ts';
import type { OpenPurpose } from '../../../../block/contract/driver.ts';
import type { BlockChild, BlockNode } from '../../../../block/graph/node.ts';
import type { CoMutex } from '../../../../coroutine/co-mutex.ts';
import type { CoQueue } from '../../../../coroutine/co-queue.ts';
import type { BlockCipher } from '../../../crypto/block-cipher.ts';
import type { CachedTable, TableCache } from '../../shared/table-cache.ts';
import type { ClusterSet } from './cluster-set.ts';
import type { Header } from './header.ts';
import type { MetadataMap, OverlapChecks } from './overlap.ts';

/** What a range of guest offsets is mapped to. */
export const Mapping = {
  /** Nothing here: the backing image decides. */
  unallocated: 0,
  /** Reads as zeroes, no host cluster. */
  zero: 1,
  /** Reads as zeroes, a host cluster is kept for it. */
  zeroAllocated: 2,
  /** Data at `host`. */
  data: 3,
  compressed: 4,
  /** The cluster has a host cluster, this subcluster has no data in it. */
  unallocatedInCluster: 5,
} as const;
export type MappingKind = (typeof Mapping)[keyof typeof Mapping];

/** Result of a lookup; one record per node, valid until the next lookup. */
export interface Found {
  kind: MappingKind;
  /** The range from the offset asked for has this mapping. */
  bytes: number;
  /** Host offset of the first byte: with data, zeroAllocated, unallocatedInCluster. Else 0. */
  host: number;
  /** The host cluster (and the L2 table) belong to this image state alone: writes may go there in place. */
  copied: boolean;
  /** The raw L2 entry, for compressed clusters. */
  entryHi: number;
  entryLo: number;
}

/** What a synchronous step needs before it can be done. */
export type Need =
  | { readonly need: 'l2'; readonly offset: number }
  | { readonly need: 'refcounts'; readonly offset: number }
  | { readonly need: 'new-refcount-block'; readonly index: number }
  | { readonly need: 'new-l2'; readonly l1Index: number }
  /** A turn of the event loop for others: the step looks at so much that it takes several. */
  | { readonly need: 'turn' }
  | { readonly need: 'copy-l2'; readonly l1Index: number };

/** Clusters that a request is allocating: mapped when its data is written. Later requests to them wait. */
export interface Allocation {
  /** Guest range in bytes, whole clusters. */
  readonly start: number;
  readonly end: number;
  readonly host: number;
  /** The host range has never been written since the file was made longer for it: it reads as zeroes. */
  readonly fresh: boolean;
  /** The host clusters were this range's before: nothing to give back on failure. */
  readonly keepsHost: boolean;
  /** Pinned from the plan to the link. */
  readonly table: CachedTable;
  readonly waiters: CoQueue;
}

/** Why clusters are freed: decides whether the discard is passed on to the file. Shrinking always does so. */
export type FreeReason = 'request' | 'snapshot' | 'other' | 'never' | 'always';

/**
 * A reference to host clusters that is gone from the mapping in memory. The refcount goes down only when the mapping
 * on the disk has gone too, and no request that may have seen the old mapping is in flight: until then nobody
 * can be given the clusters.
 */
export interface DeferredFree {
  readonly cluster: number;
  readonly count: number;
  readonly reason: FreeReason;
  /** Newest request that may still use the clusters. */
  readonly stamp: number;
  /** Write-back that takes the last reference off the disk; may be applied when `durable` has reached it. */
  readonly generation: number;
}

/** Refcounts that are changing together: metadata/switch-over.ts. */
export interface RefcountSwitch {
  /** Clusters whose last reference goes: free, and nobody's, when the change is complete. Their refcount stays 1 until then. */
  readonly released: ClusterSet;
  /** Those of them that held the content of a snapshot. */
  readonly discarded: ClusterSet;
  /** Clusters that have been taken: runs of [first, count]. */
  readonly taken: (readonly [number, number])[];
  /** References that go now are a snapshot's. */
  isSnapshot: boolean;
}

/** Memory for what is unpacked within a turn: what is in it means nothing afterwards. */
export interface UnpackMemory {
  /** Room for a cluster as it is in the file, from sector to sector. */
  readonly packed: IoMemory;
  readonly plain: IoMemory;
}

export interface Qcow2State {
  header: Header;
  readonly purpose: OpenPurpose;
  readonly file: BlockChild;
  /** Where data clusters are: `file`, or the external data file. */
  readonly dataFile: BlockChild;
  readonly hasDataFile: boolean;
  readonly clusterBits: number;
  readonly clusterBytes: number;
  /** Bytes of an L2 entry: 8, or 16 with subclusters. */
  readonly l2EntryBytes: number;
  readonly l2Entries: number;
  /** Guest bytes that one L2 table maps. */
  readonly l2SpanBytes: number;
  /** Entries in the part of an L2 table that is cached as one. */
  sliceEntries: number;
  /** clusterBytes, or a 32nd of it. */
  readonly subclusterBytes: number;
  /** Refcount width: 2^refcountOrder bits. */
  refcountOrder: number;
  refcountsPerBlock: number;
  /** Largest refcount the width can hold (capped where doubles stop being exact). */
  maxRefcount: number;

  /** Active L1 table as on the disk. Replaced when it grows. */
  l1: DataView;
  /** 512-byte sectors of the L1 table that differ from the disk. */
  readonly l1Dirty: Set<number>;
  /** Host offset of each refcount block; 0 = none. */
  refcountTable: Float64Array;
  l2Cache: TableCache;
  readonly refcountCache: TableCache;
  readonly found: Found;

  readonly metadataLock: CoMutex;
  readonly allocations: Allocation[];
  frees: DeferredFree[];
  /** Write-backs begun and write-backs whose mappings are on stable storage. */
  generation: number;
  durable: number;
  /** A write-back in the background has been asked for; the timer when it is to begin later. */
  writeBackPending: boolean;
  writeBackTimer: NodeJS.Timeout | null;
  /** The node is being closed: nothing new is started in the background. */
  closing: boolean;

  /** A header may be on the disk that is not the one in memory: what to do once it certainly is. Owned by metadata-io.ts. */
  readonly headerUndo: (() => void)[];
  /** Present while an exclusive section changes refcounts that reach the disk together. */
  switching: RefcountSwitch | null;
  /** Where the search for free clusters starts (cluster index): nothing below is free. */
  freeHint: number;
  /** Clusters from here on have never been used since the image was opened, and lie behind the end of the file. */
  freshFrom: number;
  /** Next free byte in the cluster that compressed data is being packed into; 0 = none. */
  compressedTail: number;
  /** Made by the first read of a compressed cluster within a turn; null: none yet. */
  unpackMemory: UnpackMemory | null;

  /** Refcounts may be late on the disk (the dirty bit says so). */
  lazyRefcounts: boolean;
  passDiscard: Readonly<Record<FreeReason, boolean>>;
  /** Discards leave the host cluster with the guest cluster. */
  discardNoUnref: boolean;
  overlap: OverlapChecks;
  /** Host clusters that hold metadata, and those of them that are refcount blocks. */
  readonly metadata: MetadataMap;
  readonly refcountBlocks: MetadataMap;
  /** Host clusters that hold L2 tables of snapshots; empty unless those are to be checked. Owned by snapshots/. */
  readonly inactiveL2: MetadataMap;
  /** A fatal corruption was found: no more I/O. */
  dead: boolean;
  /** A non-fatal corruption was reported; not again. */
  corruptionReported: boolean;
  extras: Extras;
}

/** Parts that other files of the folder own. */
export interface Extras {
  snapshots: readonly SnapshotRecord[];
  /** Length of their table as it is on the disk; an entry may be shorter than this driver would write it. */
  snapshotTableBytes: number;
  /** The bitmaps in the image, as on the disk. */
  bitmaps: readonly BitmapEntry[];
  /** The bitmaps on the disk are marked in use, by this node: it stores them when it is closed. */
  bitmapsOwned: boolean;
  /** `offset` of its functions: what the initialization vector is derived from. */
  cipher: BlockCipher | null;
  /** The initialization vectors come from host offsets (LUKS), else from guest offsets (legacy AES). */
  cipherUsesHostOffset: boolean;
  /** What is known of the LUKS volume inside; null when there is none. */
  luks: QCryptoBlockInfoLUKS | null;
  cleanTimer: NodeJS.Timeout | null;
  /** The answer of metadata/preallocation.ts, once somebody has asked. */
  preallocatedMetadata: Promise<boolean> | null;
}

/** An entry of the bitmap directory. */
export interface BitmapEntry {
  readonly tableOffset: number;
  readonly tableEntries: number;
  /** Bits of BitmapFlag. */
  readonly flags: number;
  readonly granularityBits: number;
  /** As stored. */
  readonly name: Buffer;
}

/** An entry of the snapshot table. */
export interface SnapshotRecord {
  readonly l1Offset: number;
  readonly l1Entries: number;
  readonly id: string;
  readonly name: string;
  readonly dateSeconds: number;
  readonly dateNanoseconds: number;
  readonly vmClockNanoseconds: bigint;
  readonly vmStateBytes: number;
  readonly diskBytes: number;
  readonly icount: bigint | null;
  /** Extra data this driver does not know, kept. */
  readonly unknownExtra: Buffer;
}

export type Qcow2Node = BlockNode<Qcow2State>;
