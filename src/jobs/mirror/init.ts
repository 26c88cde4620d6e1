/**
 * What a mirror job has to copy in the first place, by sync mode; and zeroes on a target whose content nobody knows.
 */

import { setDirty } from '../../block/bitmaps/dirty-bitmap.ts';
import { Req, Status } from '../../block/contract/request.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { co } from '../../block/io/callbacks.ts';
import { blockStatusAbove } from '../../block/io/status-chain.ts';
import { beginOp, endOp, type Mirror, opIn } from './state.ts';

/** How much is looked at in one step. */
const STEP_BYTES = 64 * 1024 * 1024;

export interface FirstRound {
  /** What the source holds itself or above this node is copied; null: down to the end of the chain. */
  readonly base: BlockNode | null;
  /** The target may hold anything: where the source has nothing it must become zero. */
  readonly zeroTarget: boolean;
  /** The user knows that the target reads as zeroes: zeroes of the source need not be copied. Default: nobody knows. */
  readonly targetIsZero?: boolean;
}

/** Between two steps: returns false when the job has to stop. */
export type BetweenSteps = () => Promise<boolean>;

/** Marks what is to be copied. Writes of users go on meanwhile. */
export async function firstRound(mirror: Mirror, round: FirstRound, goOn: BetweenSteps): Promise<void> {
  const { target, lengthBytes, bitmap } = mirror;
  const zeroesAreHoles =
    target.settings.discardUnmap && (target.driver.supportedZeroFlags & Req.mayUnmap) !== 0;
  if (round.zeroTarget && !zeroesAreHoles) {
    setDirty(bitmap, 0, lengthBytes);
    return;
  }
  for (let at = 0; at < lengthBytes && (await goOn()); ) {
    at = await step(mirror, round, at, Math.min(at + STEP_BYTES, lengthBytes));
  }
}

/** Looks at what begins at `from`, and returns its end. It is one operation: no active write comes in between. */
async function step(
  mirror: Mirror,
  { base, zeroTarget, targetIsZero = false }: FirstRound,
  from: number,
  limit: number,
): Promise<number> {
  const { source, target, bitmap } = mirror;
  const op = beginOp(mirror, from, limit, false);
  try {
    for (
      let other = opIn(mirror, from, limit, op.id);
      other !== null;
      other = opIn(mirror, from, limit, op.id)
    )
      await other.waiters.wait();
    return await source.layer.graphLock.withRead(async (guard) => {
      const status = await blockStatusAbove(source, guard, base, targetIsZero, from, limit - from);
      const bytes = status.bytes || limit - from;
      if (targetIsZero && status.bytes !== 0 && (status.flags & Status.zero) !== 0) return from + bytes;
      // A source that has become shorter says nothing of the rest.
      if (status.bytes === 0 || (status.flags & Status.allocated) !== 0) setDirty(bitmap, from, bytes);
      else if (zeroTarget) await co.pwriteZeroes(target, guard, from, bytes, mirror.mover.zeroFlags);
      return from + bytes;
    });
  } catch {
    // What cannot be told or zeroed is left to the copies, and so to the user's policy for their errors.
    setDirty(bitmap, from, limit - from);
    return limit;
  } finally {
    endOp(mirror, op);
  }
}
