/** Places for new blocks at the end of a file, for formats that never give one back. */

import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BlockChild } from '../../../block/graph/node.ts';
import { co } from '../../../block/io/callbacks.ts';

export interface AppendSpace {
  readonly child: BlockChild;
  /** The next block goes here, in bytes. */
  end: number;
  /** From here on nothing has been written yet: it reads as zeroes. */
  freshFrom: number;
}

/** Space that begins at `end`; what lies behind the end of the file is known to read as zeroes. */
export function createSpace(child: BlockChild, end: number): AppendSpace {
  // A device does not grow, and what is behind its end is not there.
  const grows = child.node.driver.growsWithZeroes === true;
  return { child, end, freshFrom: grows ? child.node.totalBytes : Number.POSITIVE_INFINITY };
}

/** Takes `bytes`; whether they are fresh is to be asked before. */
export function takeSpace(space: AppendSpace, bytes: number): number {
  const host = space.end;
  space.end += bytes;
  return host;
}

/** Gives back what was taken last, if it was; else it is lost. `untouched`: nothing has been written there. */
export function giveBack(space: AppendSpace, host: number, bytes: number, untouched: boolean): void {
  if (!untouched) space.freshFrom = Math.max(space.freshFrom, host + bytes);
  if (space.end === host + bytes) space.end = host;
}

/**
 * Makes the file as long as what has been taken of it, and `more` bytes. Data that is being written behind its end must
 * not be cut off by that.
 */
export async function extendFile(space: AppendSpace, guard: GraphReadGuard, more = 0): Promise<void> {
  const { node } = space.child;
  const end = space.end + more;
  if (node.totalBytes < end) await co.truncate(node, guard, end, false, 'off', false, true);
}
