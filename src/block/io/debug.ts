/**
 * Debug events and breakpoints: what tests see of the inside of requests.
 *
 * Drivers tell the node below them where they are (`debugEvent`). Only that node hears it: a node in between that is
 * no debugger keeps it. Nobody listening costs the look at one flag:
 * `if (file.takesDebugEvents) await co.debugEvent(file, guard, 'l2_load');`
 * Breakpoints are set from the top: the first debugger along the primary children takes them.
 */

import type { BlkdebugEvent } from '../../../schema/generated/types.ts';
import { E } from '../../errors/errno.ts';
import { ioError } from '../../errors/error.ts';
import type { BlockDebugger } from '../contract/debugger.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import type { BlockNode } from '../graph/node.ts';

/** Tells a node that takes debug events of one. It may suspend the request; never throws. */
export function coDebugEvent(node: BlockNode, guard: GraphReadGuard, event: BlkdebugEvent): Promise<void> {
  return node.driver.debugEvent?.(node, guard, event) ?? Promise.resolve();
}

/** Runs `action` with the debugger at or below `node`; throws ENOTSUP when there is none. */
export function withDebugger<T>(node: BlockNode, action: (debug: BlockDebugger, at: BlockNode) => T): T {
  for (let at: BlockNode | undefined = node; at !== undefined; at = at.primaryChild?.node) {
    if (at.driver.debugger !== undefined) return action(at.driver.debugger, at);
  }
  throw ioError(E.ENOTSUP);
}
