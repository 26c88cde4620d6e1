/**
 * retry: a filter that repeats reads that fail, with a growing pause in between.
 *
 * Options: `file`, `retries`, `retry-delay` (milliseconds). Reads and questions are repeated; writes and flushes are
 * not: of them a failure must be heard. Below it drivers connect anew by themselves. While it pauses the graph may
 * change; a drained section, or somebody who waits for its requests, makes the next attempt the last one.
 */

import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import { Req, Role } from '../../../block/contract/request.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { co } from '../../../block/io/callbacks.ts';
import { E } from '../../../errors/errno.ts';
import { errnoOf } from '../../../errors/error.ts';
import { type CancelScope, createCancelScope } from '../../net/cancel.ts';
import { pause, pauseMs, type RetryPolicy, retryPolicy } from '../../net/retry.ts';
import { filtered, passOn } from '../pass-on.ts';

interface RetryState {
  readonly policy: RetryPolicy;
  /** Pauses under way. */
  readonly pauses: CancelScope;
}

type RetryNode = BlockNode<RetryState>;

/** Failures that another attempt does not change. */
const FINAL_ERRNO: readonly number[] = [
  ...[E.EINVAL, E.ENOTSUP, E.EROFS, E.EPERM, E.ECANCELED, E.ESTALE, E.ENOSPC, E.EFBIG],
];

async function open(_node: RetryNode, context: OpenContext): Promise<RetryState> {
  await context.openChild('file', Role.filtered | Role.primary, true);
  return { policy: retryPolicy(context.options), pauses: createCancelScope() };
}

async function repeated<T>(node: RetryNode, guard: GraphReadGuard, attempt: () => Promise<T>): Promise<T> {
  const { policy, pauses } = node.state;
  let isLast = false;
  for (let failed = 0; ; ) {
    try {
      return await attempt();
    } catch (error) {
      if (isLast || failed >= policy.retries || FINAL_ERRNO.includes(errnoOf(error))) throw error;
      failed++;
      isLast = node.quiesced > 0 || node.hurried > 0;
      if (isLast) continue;
      const ms = pauseMs(policy, failed, 0, Math.random());
      await node.layer.graphLock.suspended(guard, async () => {
        try {
          await pause(ms, pauses);
        } catch {
          isLast = true;
        }
      });
    }
  }
}

export const retry: BlockDriver<RetryState> = {
  name: 'retry',
  kind: 'filter',
  supportedWriteFlags: Req.fua | Req.writeUnchanged,
  supportedZeroFlags: Req.fua | Req.mayUnmap | Req.noFallback | Req.writeUnchanged,
  open,
  async close({ state }) {
    state.pauses.close();
  },
  drainBegin: ({ state }) => state.pauses.cancelAll(),
  hurry: ({ state }) => state.pauses.cancelAll(),
  cancelInFlight: ({ state }) => state.pauses.cancelAll(),
  async reopenPrepare() {},
  ...passOn,
  preadv: (node, guard, offset, bytes, vec, flags) =>
    repeated(node, guard, () => co.preadv(filtered(node), guard, offset, bytes, vec, flags)),
  pwritevCompressed: (node, guard, offset, bytes, vec) =>
    co.pwritevCompressed(filtered(node), guard, offset, bytes, vec),
};
