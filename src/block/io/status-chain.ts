/**
 * Block status through a chain of backing images: which layer decides the content of a range, and what that is.
 *
 * One node's own answer is coBlockStatus (io/status.ts). As there, functions run under the graph read lock.
 */

import type { GraphReadGuard } from '../contract/guard.ts';
import { type BlockStatus, Status } from '../contract/request.ts';
import { chainChild, cowChild } from '../graph/chain.ts';
import type { BlockNode } from '../graph/node.ts';
import { coBlockStatus, inWholeBlocks } from './status.ts';

export interface ChainStatus extends BlockStatus {
  /** The layer that decided: 0 for the node itself, 1 for its backing image, and so on. */
  readonly depth: number;
}

/** The image below a node that shows where the node has nothing; null when there is none. */
export function backingOf(node: BlockNode): BlockNode | null {
  return cowChild(node)?.node ?? null;
}

/** What is looked at when a node decides nothing: its backing image or, for a filter, what it filters. */
function belowInChain(node: BlockNode): BlockNode | null {
  return chainChild(node)?.node ?? null;
}

/**
 * As coBlockStatus, but a range that the node leaves to its backing image and that reads as zeroes all the same has
 * Status.zero: there is no backing image, or it ends before. Such a range does not have Status.allocated.
 */
export async function layerStatus(
  node: BlockNode,
  guard: GraphReadGuard,
  wantZero: boolean,
  offset: number,
  bytes: number,
  statusOf: typeof coBlockStatus = coBlockStatus,
): Promise<BlockStatus> {
  const status = await statusOf(node, guard, wantZero, offset, bytes);
  if (!wantZero || status.bytes === 0 || (status.flags & Status.allocated) !== 0) return status;
  if (node.driver.supportsBacking !== true) return status;
  const backing = backingOf(node);
  if (backing !== null && offset < backing.totalBytes) return status;
  return { ...status, flags: status.flags | Status.zero };
}

/**
 * First extent at `offset` of which one layer decides, at most `bytes` long, looking at `node` and the images below it
 * down to `base`, which is not looked at (null: to the end). Nothing allocated: the status has no Status.allocated.
 */
export async function blockStatusAbove(
  node: BlockNode,
  guard: GraphReadGuard,
  base: BlockNode | null,
  wantZero: boolean,
  offset: number,
  bytes: number,
): Promise<ChainStatus> {
  const first = await extentAbove(node, guard, base, wantZero, offset, bytes);
  return inWholeBlocks(node, offset, bytes, first, (at, length) =>
    extentAbove(node, guard, base, wantZero, at, length),
  );
}

async function extentAbove(
  node: BlockNode,
  guard: GraphReadGuard,
  base: BlockNode | null,
  wantZero: boolean,
  offset: number,
  bytes: number,
): Promise<ChainStatus> {
  const top = await layerStatus(node, guard, wantZero, offset, bytes);
  const atEnd = top.flags & Status.eof;
  if (top.bytes === 0 || (top.flags & Status.allocated) !== 0) return { ...top, depth: 0 };
  let last = top;
  let length = top.bytes;
  let depth = 0;
  const eofAt = (extent: number): number => (extent === top.bytes ? atEnd : 0);
  for (let below = belowInChain(node); below !== null && below !== base; below = belowInChain(below)) {
    depth++;
    const status = await layerStatus(below, guard, wantZero, offset, length);
    if (status.bytes === 0) {
      // Behind the end of an image its overlay reads zeroes, whatever is below.
      const flags = Status.zero | Status.allocated | eofAt(length);
      return { bytes: length, flags, map: offset, file: below, depth };
    }
    length = status.bytes;
    const isAllocated = (status.flags & Status.allocated) !== 0;
    // The end of an image that decides nothing is told all the same, as by the original: strict comparisons show it.
    const flags = isAllocated ? status.flags & ~Status.eof : status.flags;
    last = { ...status, flags: flags | eofAt(length) };
    if (isAllocated) return { ...last, depth };
  }
  return { ...last, depth };
}

/** How long the chain of a node is, filters included, without the node itself. */
export function chainDepth(node: BlockNode): number {
  let depth = 0;
  for (let below = belowInChain(node); below !== null; below = belowInChain(below)) depth++;
  return depth;
}
