/**
 * How a driver whose requests wait for anything but I/O (their turn, a server) is told that somebody waits for them.
 * Part of the contract in driver.ts; who calls it is drain.ts, and the end of the daemon.
 */

import type { BlockNode } from '../graph/node.ts';

export interface WaitCallbacks<S> {
  /** The node is being drained: requests that wait for anything but I/O must come to an end soon. */
  drainBegin?(node: BlockNode<S>): void;
  drainEnd?(node: BlockNode<S>): void;
  /** `node.hurried` is not 0 any more: requests that wait for their turn go on, and others do not wait for theirs. */
  hurry?(node: BlockNode<S>): void;
  /** Requests that wait for something outside that may never come (a server's answer) fail now. */
  cancelInFlight?(node: BlockNode<S>): void;
}
