/** Parts of the driver contract (driver.ts) for copies: reading what a filter preserves, and where data lies. */

import type { IoVector } from '../../aio/memory.ts';
import type { BlockNode } from '../graph/node.ts';
import type { GraphReadGuard } from './guard.ts';
import type { BlockStatus } from './request.ts';

/** I/O callbacks of a node that preserves the content it had when it was opened, for others to read. */
export interface SnapshotIo<S> {
  /** As preadv, of the preserved content. */
  preadvSnapshot?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    offset: number,
    bytes: number,
    vec: IoVector,
  ): Promise<void>;
  /** As blockStatus, of what preadvSnapshot reads. */
  blockStatusSnapshot?(
    node: BlockNode<S>,
    guard: GraphReadGuard,
    wantZero: boolean,
    offset: number,
    bytes: number,
  ): Promise<BlockStatus>;
  /** The preserved content of the range is not needed any more. */
  pdiscardSnapshot?(node: BlockNode<S>, guard: GraphReadGuard, offset: number, bytes: number): Promise<void>;
}
