/**
 * What a driver offers so that the kernel copies between files and no data comes into this process. Part of the
 * contract in driver.ts; the I/O path over it is io/copy-range.ts.
 */

import type { BlockNode } from '../graph/node.ts';
import type { GraphReadGuard } from './guard.ts';

/** A place in a local file. */
export interface FilePlace {
  readonly fd: number;
  readonly offset: number;
}

/** A local file as a driver has it open. */
export interface LocalFile {
  readonly fd: number;
  /** Where this file is the target: the source of the last copy, and whether the kernel does better than reads and writes. */
  lastSource: { readonly file: LocalFile; readonly isShared: boolean } | null;
}

/** Takes `bytes` bytes from `place`, which are at `at` in the whole of what is copied. False: that does not work. */
export type RangeSink = (place: FilePlace, at: number, bytes: number) => Promise<boolean>;

export interface CopyRangeCallbacks<S> {
  /**
   * The child in which data lies as the users of the node see it, or the local file that the node is. Null: something is
   * done to data on the way. Absent: null.
   */
  copyRangeVia?(node: BlockNode<S>): BlockNode | LocalFile | null;
  /**
   * Gives the sink [offset, offset+bytes), piece by piece, its first byte as `at` 0. False: it cannot, or the sink
   * cannot; a part may have been copied.
   */
  copyRangeFrom?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    offset: number,
    bytes: number,
    sink: RangeSink,
  ): Promise<boolean>;
  /** Writes to [offset, offset+bytes) what is at `from`. False: not, or not all of it. */
  copyRangeTo?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    offset: number,
    bytes: number,
    from: FilePlace,
  ): Promise<boolean>;
  /** For a local file: has the kernel begin to write what is dirty to the disk. A hint, no error. */
  beginWriteback?(node: BlockNode<S>): void;
}
