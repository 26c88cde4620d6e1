/** Children that come and go at run time, as a driver sees them. Part of the contract in driver.ts. */

import type { BlockChild, BlockNode } from '../graph/node.ts';

/** How a node takes part when the user adds and removes its children at run time. Called while it is drained. */
export interface ChildList<S = unknown> {
  /** Throws when no child can be added; what the edge is like otherwise. */
  checkAdd(node: BlockNode<S>): { readonly name: string; readonly roles: number };
  /** Throws when the child cannot go. */
  checkRemove(node: BlockNode<S>, edge: BlockChild): void;
  added(node: BlockNode<S>, edge: BlockChild): void;
  removed(node: BlockNode<S>, edge: BlockChild): void;
}
