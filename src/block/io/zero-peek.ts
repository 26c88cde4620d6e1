/**
 * A look at how data begins, before the kernel is told to copy it unseen: what begins with zeroes may be nothing else,
 * and would better be written as zeroes.
 */

import { type IoMemory, isZeroVector, vectorOf } from '../../aio/memory.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import type { BlockNode } from '../graph/node.ts';
import { tryPreadv } from './in-turn.ts';

export const PEEK_BYTES = 512;

/** Whether the node shows PEEK_BYTES of zeroes at `offset`; true also where nobody knows at once. `memory` is overwritten. */
export function beginsWithZeroes(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  memory: IoMemory,
): boolean {
  const start = vectorOf(memory, 0, PEEK_BYTES);
  return !tryPreadv(node, guard, offset, PEEK_BYTES, start) || isZeroVector(start);
}
