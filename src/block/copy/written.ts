/**
 * What a copy has written to a node that is flushed in the end: from time to time the kernel is told to begin to write it to
 * the disk, which does not stand idle until the flush.
 */

import type { BlockNode } from '../graph/node.ts';
import { beginWriteback } from '../io/copy-range.ts';

/** Small enough to leave little for the flush in the end, large enough for the disk to work in long runs. */
const WRITEBACK_BYTES = 16 * 1024 * 1024;

export interface Written {
  /** Written since the kernel was last told. */
  bytes: number;
}

/** Counts `bytes` more that have been written to `target`. Under the graph lock. */
export function countWritten(written: Written, bytes: number, target: BlockNode): void {
  written.bytes += bytes;
  if (written.bytes < WRITEBACK_BYTES) return;
  written.bytes = 0;
  beginWriteback(target);
}
