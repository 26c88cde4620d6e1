/** Writes to a node that takes debug events: the events of the I/O path around the driver's callback. */

import type { BlkdebugEvent } from '../../../schema/generated/types.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import { Req } from '../contract/request.ts';
import type { BlockNode } from '../graph/node.ts';
import { coDebugEvent } from './debug.ts';
import { coFlush } from './flush.ts';

/**
 * Runs `write` with the flags that are left to it, between its events. A flush in place of FUA comes last, with the
 * events of a flush from above: in the original the node's parent does it.
 */
export async function debuggedWrite(
  node: BlockNode,
  guard: GraphReadGuard,
  before: BlkdebugEvent,
  flags: number,
  write: (flags: number) => Promise<void>,
): Promise<void> {
  const ownFua = node.driver.supportedWriteFlags & Req.fua;
  const flushes = (flags & Req.fua) !== 0 && ownFua === 0;
  await coDebugEvent(node, guard, before);
  try {
    await write(flushes ? flags & ~Req.fua : flags);
  } finally {
    await coDebugEvent(node, guard, 'pwritev_done');
  }
  if (!flushes) return;
  await coDebugEvent(node, guard, 'flush_to_os');
  await coDebugEvent(node, guard, 'flush_to_disk');
  await coFlush(node, guard);
}
