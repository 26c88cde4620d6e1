/** Write thresholds: an event when a write goes beyond an offset, for managers that make thin volumes longer in time. */

import type { BlockNode } from '../graph/node.ts';

/** Sets the threshold of the node in bytes; 0: none. */
export function setWriteThreshold(node: BlockNode, threshold: number): void {
  node.writeThreshold = threshold;
}

/** Before a write of the range: raises the event if it goes beyond the threshold, and sets that back to none. */
export function checkWriteThreshold(node: BlockNode, offset: number, bytes: number): void {
  const threshold = node.writeThreshold;
  const end = offset + bytes;
  if (end <= threshold) return;
  node.writeThreshold = 0;
  node.layer.events.emit('BLOCK_WRITE_THRESHOLD', {
    'node-name': node.name,
    'amount-exceeded': end - threshold,
    'write-threshold': threshold,
  });
}
