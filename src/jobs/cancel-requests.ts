/** Requests that a job gives up when it is to end: a server may never answer them. */

import { asMonitor } from '../block/graph/debug.ts';
import type { BlockNode } from '../block/graph/node.ts';

/** Lets requests fail that wait for a server, in the node and in all below it. */
export function cancelRequests(node: BlockNode): void {
  asMonitor(() => {
    node.driver.cancelInFlight?.(node);
    for (const edge of node.children) cancelRequests(edge.node);
  });
}
