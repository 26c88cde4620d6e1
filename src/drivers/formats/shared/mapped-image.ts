/**
 * Images that map blocks of the guest to places in files: what all such formats have in common, as types.
 *
 * A format brings a BlockMap: where a guest offset is, how a block gets a place, and how that becomes known. Guest I/O
 * over it is mapped-read.ts and mapped-write.ts, the order in which metadata reaches the disk is write-back.ts. The
 * rules are qcow2's: synchronous code is atomic; a step that lacks a table changes nothing and returns a TableNeed.
 */

import type { IoVector } from '../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BlockChild, BlockNode } from '../../../block/graph/node.ts';
import type { CoMutex } from '../../../coroutine/co-mutex.ts';
import type { CoQueue } from '../../../coroutine/co-queue.ts';
import type { TableCache } from './table-cache.ts';

/** What a range of guest offsets is. */
export const Place = {
  /** Nothing here: the backing image decides; without one it reads as zeroes. */
  hole: 0,
  /** Reads as zeroes whatever is below. */
  zero: 1,
  /** Data at `host` in `child`. */
  data: 2,
  /** Compressed, or otherwise only to be had through the map's readPacked. */
  packed: 3,
} as const;
export type PlaceKind = (typeof Place)[keyof typeof Place];

/** Result of a lookup; one record per image, valid until the next lookup. */
export interface Found {
  kind: PlaceKind;
  /** The range from the offset asked for is of this kind, and contiguous in the file. */
  bytes: number;
  /** Offset in `child` of the first byte: data and packed. Else 0. */
  host: number;
  child: BlockChild | null;
}

/** A table that is not in memory: `offset` in the file of `tables`. */
export interface TableNeed {
  readonly tables: TableFile;
  readonly offset: number;
}

/** Cached tables of one file. */
export interface TableFile {
  readonly child: BlockChild;
  readonly cache: TableCache;
  /** Tables end here, in bytes: what lies behind in the last one is not theirs and never written. */
  readonly endBytes: number;
}

/** A block that a request is giving a place: mapped when its data is written. Later requests to it wait. */
export interface Allocation {
  /** Guest range in bytes: the whole block. */
  readonly start: number;
  readonly end: number;
  readonly host: number;
  readonly child: BlockChild;
  /** The place has never been written and lies behind the end of the file: it reads as zeroes. */
  readonly fresh: boolean;
  readonly waiters: CoQueue;
}

/** What the shared code keeps of an open image. */
export interface MappedState {
  readonly found: Found;
  readonly allocations: Allocation[];
  readonly writeBack: WriteBackState;
}

export interface WriteBackState {
  /** Held for a round of write-back and for operations that change tables over several awaits. */
  readonly lock: CoMutex;
  /** A round in the background has been asked for; the timer when it is to begin later. */
  pending: boolean;
  timer: NodeJS.Timeout | null;
  /** Counts what has changed, so that the timer knows whether it goes on. */
  changes: number;
  /** The node is being closed: nothing new is started in the background. */
  closing: boolean;
}

/** What a format knows about its blocks. */
export interface BlockMap<S extends MappedState> {
  /**
   * Finds out what [offset, offset+bytes) starts with, in `state.found`. Null: done; else nothing is known before the
   * table is in memory. Throws for damage. Never changes anything.
   */
  lookup(node: BlockNode<S>, offset: number, bytes: number): TableNeed | null;
  /**
   * Gives the block at `offset` a place, which nobody else gets from now on; the block is not mapped yet. Called when
   * the block is a hole or zero, and its table is in memory. Throws ENOSPC and the like.
   */
  plan?(node: BlockNode<S>, offset: number): Allocation | TableNeed;
  /** The data is written: maps the block (in memory; the write-back does the rest). */
  link?(node: BlockNode<S>, allocation: Allocation): void;
  /** The data could not be written: the place is given up, or lost. `untouched`: nothing was written there. */
  abandon?(node: BlockNode<S>, allocation: Allocation, untouched: boolean): void;
  /** Makes whole blocks from `offset` read as zeroes, one at least; bytes done. 0: it cannot, data must be written. */
  zero?(node: BlockNode<S>, offset: number, bytes: number): number | TableNeed;
  /** Reads a packed range. `host` and `child` are those of the lookup, `offset` is the guest's. */
  readPacked?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    at: { readonly child: BlockChild; readonly host: number; readonly offset: number },
    vec: IoVector,
  ): Promise<void>;
  /**
   * Holes of the file at the data of `offset` show as zeroes of the disk (static images, as with the original). Elsewhere
   * a block that has a place is data. Absent: never.
   */
  showsHoles?(node: BlockNode<S>, offset: number): boolean;
  readonly writeBack?: WriteBackSteps<S>;
}

/** A changed table, or what is to be written of it. */
export interface TableWrite {
  readonly tables: TableFile;
  readonly offset: number;
  readonly data: Buffer;
}

/** How changed metadata of a format reaches its files. */
export interface WriteBackSteps<S extends MappedState> {
  /** All files with tables. */
  tableFiles(state: S): readonly TableFile[];
  /** Something other than tables has changed. */
  hasMore?(state: S): boolean;
  /** First: files become as long as what is mapped, headers count what is taken, before a table says so. */
  prepare?(node: BlockNode<S>, guard: GraphReadGuard): Promise<void>;
  /** Writes tables in place of the usual way (a write each, where it is). All data is on stable storage by then. */
  write?(node: BlockNode<S>, guard: GraphReadGuard, writes: readonly TableWrite[]): Promise<void>;
  /** Last: what may only be written when the tables are. */
  finish?(node: BlockNode<S>, guard: GraphReadGuard): Promise<void>;
}

export function createFound(): Found {
  return { kind: Place.hole, bytes: 0, host: 0, child: null };
}

export function isNeed(value: object | number): value is TableNeed {
  return typeof value === 'object' && 'tables' in value;
}
