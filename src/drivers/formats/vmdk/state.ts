/** The state of an open VMDK image: its descriptor, its extents, and what reads and writes of them share. */

import type { OpenPurpose } from '../../../block/contract/driver.ts';
import type { BlockChild, BlockNode } from '../../../block/graph/node.ts';
import type { AppendSpace } from '../shared/append-space.ts';
import type { MappedState, TableFile } from '../shared/mapped-image.ts';
import type { Descriptor } from './descriptor.ts';
import type { GrainCache } from './grain-read.ts';
import type { GrainStream } from './stream-write.ts';

/** Grains found through directory and tables. */
export interface SparsePart {
  readonly grainBytes: number;
  readonly entriesPerTable: number;
  readonly entryBytes: number;
  /** Offsets of the grain tables in bytes; 0: there is none yet. */
  readonly directory: Float64Array;
  readonly directoryOffset: number;
  /** The same for the redundant tables; null: there are none. */
  readonly redundant: Float64Array | null;
  readonly redundantOffset: number;
  readonly tables: TableFile;
  /** Offset of a grain in bytes, or HOLE, ZERO; throws for damage. */
  decode(view: DataView, at: number): number;
  readonly zeroedGrains: boolean;
  readonly compressed: boolean;
  /** New grains can be put into it. */
  readonly writable: boolean;
  /** New grains and tables; null: the image is not open for writing. */
  space: AppendSpace | null;
  /** Where `space` began: what lies behind is this node's own. */
  ownFrom: number;
  /** Entries of the directory that differ from the disk. */
  readonly changed: Set<number>;
  /** Those of them whose tables are written in the round of write-back under way. */
  inRound: readonly number[];
  /** Numbers of the tables by their offsets, made when tables are first written. */
  tableNumbers: Map<number, number> | null;
  /** Writes the parts of a stream; null: grains and tables have their places in the file. */
  stream: GrainStream | null;
  /** Ends when the last compressed grain has been written: they keep the order in which they came. */
  lastGrain: Promise<void>;
}

export interface Extent {
  /** Guest range. */
  readonly start: number;
  readonly bytes: number;
  /** Type as the descriptor has it; empty: the image is this one extent. */
  readonly type: string;
  /** Null for zeroes. */
  readonly child: BlockChild | null;
  /** Where the data begins in the file; without `sparse`. */
  readonly offset: number;
  readonly sparse: SparsePart | null;
  readonly grains: GrainCache;
}

export interface VmdkState extends MappedState {
  readonly file: BlockChild;
  readonly purpose: OpenPurpose;
  descriptor: Descriptor;
  /** Where the descriptor is in `file`, in bytes. Null: there is none. */
  readonly descriptorAt: number | null;
  readonly extents: readonly Extent[];
  readonly totalBytes: number;
  /** The extent of the last lookup: the next one is mostly there. */
  last: number;
  /** The backing image is another one than when this image was made: what is there must not show. */
  parentMismatch: boolean;
  /** Name of the backing file as looked for; null: none. */
  parentName: string | null;
  /** The content id has been changed since the image was opened for writing: images above this one may know. */
  cidChanged: boolean;
  changingCid: Promise<void> | null;
}

export type VmdkNode = BlockNode<VmdkState>;

/** The extent of a guest offset below the end of the disk. */
export function extentAt(state: VmdkState, offset: number): Extent {
  const { extents } = state;
  const last = extents[state.last]!;
  if (offset >= last.start && offset < last.start + last.bytes) return last;
  let low = 0;
  let high = extents.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >>> 1;
    if (extents[middle]!.start <= offset) low = middle;
    else high = middle - 1;
  }
  state.last = low;
  return extents[low]!;
}
