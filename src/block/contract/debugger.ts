/** Breakpoints, as a driver for tests offers them. Part of the contract in driver.ts. */

import type { BlockNode } from '../graph/node.ts';

/** Breakpoints of requests, for tests. Each throws an error with ENOENT when there is no such event or tag. */
export interface BlockDebugger<S = unknown> {
  /** The next request that meets the event is suspended under the tag. */
  setBreakpoint(node: BlockNode<S>, event: string, tag: string): void;
  /** Removes the breakpoints of the tag, and lets requests suspended under it go on. */
  removeBreakpoint(node: BlockNode<S>, tag: string): void;
  /** Lets a request suspended under the tag go on. */
  resume(node: BlockNode<S>, tag: string): void;
  isSuspended(node: BlockNode<S>, tag: string): boolean;
}
