/**
 * Images as their format drivers describe them: checks, internal snapshots, bitmaps, the state of virtual machines,
 * creation and measuring. Parts of the driver contract (driver.ts).
 */

import type { IoVector } from '../../aio/memory.ts';
import type { BlockNode } from '../graph/node.ts';
import type { BlockLayer } from '../layer.ts';
import type { GraphReadGuard } from './guard.ts';

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

/** A check that has found nothing and counted nothing yet. */
export function emptyCheckResult(): ImageCheckResult {
  return {
    corruptions: 0,
    leaks: 0,
    checkErrors: 0,
    corruptionsFixed: 0,
    leaksFixed: 0,
    imageEndOffset: 0,
    totalClusters: 0,
    allocatedClusters: 0,
    fragmentedClusters: 0,
    compressedClusters: 0,
  };
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

/** The tools' option `size` in bytes, 0 when it is not given: images end at a sector, so what does not is rounded up. */
export function sizeOption(values: CreateOptionValues): number {
  return Math.ceil(Number(values.size ?? 0) / 512) * 512;
}

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
  /** Nobody wants the result any more; asked in between, and the work ends with ECANCELED. */
  isCancelled?(): boolean;
}

export type PreallocMode = 'off' | 'metadata' | 'falloc' | 'full';

/** Options after validation: plain data by the schema's member names; nested children are still inside. */
export type DriverOptions = Readonly<Record<string, unknown>>;

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

/** Options by dotted name; values are strings, numbers, booleans, null, and empty objects and lists. */
export type FlatOptions = Readonly<Record<string, unknown>>;
