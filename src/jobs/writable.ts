/** Images that a job writes to, which were opened read-only. */

import type { BlockNode } from '../block/graph/node.ts';
import { changeOptions } from '../block/open/reopen.ts';

/** Lets a read-only node be written to. Returns what makes it read-only again; null when it was writable. */
export async function makeWritable(node: BlockNode): Promise<(() => Promise<void>) | null> {
  if (!node.readOnly) return null;
  await changeOptions(node, { 'read-only': false });
  return () => changeOptions(node, { 'read-only': true });
}
