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

/** Takes `bytes` bytes from `place`, which are at `at` in the whole of what is copied. False: that does not work. */
export type RangeSink = (place: FilePlace, at: number, bytes: number) => Promise<boolean>;

export interface CopyRangeCallbacks<S> {
  /**
   * The child in which data lies as the users of the node see it; 'here': the node is a local file. Null: something is
   * done to data on the way. Absent: null.
   */
  copyRangeVia?(node: BlockNode<S>): BlockNode | 'here' | null;
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
}
