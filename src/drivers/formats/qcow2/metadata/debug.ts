/**
 * Debug events of qcow2, told to the node that holds the metadata. Their names are the original's; where this driver
 * does things in another order (metadata reaches the file by write-back) they come when it does them.
 */

import type { BlkdebugEvent } from '../../../../../schema/generated/types.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { co } from '../../../../block/io/callbacks.ts';
import type { Qcow2Node } from '../layout/state.ts';

/** Whether anybody listens: to be asked first where every request comes by. */
export function isDebugged(node: Qcow2Node): boolean {
  return node.state.file.node.takesDebugEvents;
}

/** Tells of an event, if anybody listens. */
export async function debugEvent(
  node: Qcow2Node,
  guard: GraphReadGuard,
  event: BlkdebugEvent,
): Promise<void> {
  if (isDebugged(node)) await co.debugEvent(node.state.file.node, guard, event);
}
