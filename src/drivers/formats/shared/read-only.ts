/** Formats that are only read: what they do when somebody wants to write. */

import type { OpenContext } from '../../../block/contract/driver.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';

/** Makes the node read-only if the user lets it, else throws. To be called before children are opened. */
export function requireReadOnly<S>(node: BlockNode<S>, context: OpenContext): void {
  if (context.readOnly) return;
  if (!context.autoReadOnly) throw new BlockError('Image is read-only', { errno: E.EACCES });
  node.readOnly = true;
}
