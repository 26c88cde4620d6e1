/** Which dirty bitmap an export means by a name, and whether it may be exported. */

import type { BlockDirtyBitmapOrStr } from '../../../schema/generated/types.ts';
import { checkUsable, type DirtyBitmap, findBitmap, lookUpBitmap } from '../../block/bitmaps/dirty-bitmap.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import type { BlockLayer } from '../../block/layer.ts';
import { BlockError } from '../../errors/error.ts';

/** The node below that this one shows where it has nothing of its own: a backing image, or what a filter filters. */
function shownThrough(node: BlockNode): BlockNode | null {
  const edge = node.driver.kind === 'filter' ? node.primaryChild : node.child('backing');
  return edge?.node ?? null;
}

/** The bitmap `wanted` of an export of `node`: a name alone is looked for down the backing chain. */
export function bitmapToExport(
  layer: BlockLayer,
  node: BlockNode,
  writable: boolean,
  wanted: BlockDirtyBitmapOrStr,
): DirtyBitmap {
  let bitmap: DirtyBitmap | null = null;
  if (typeof wanted === 'string') {
    for (let at: BlockNode | null = node; at !== null && bitmap === null; at = shownThrough(at))
      bitmap = findBitmap(at, wanted);
    if (bitmap === null) throw new BlockError(`Bitmap '${wanted}' is not found`);
    // What others write through the node would change the bitmap under clients who think it cannot change.
    if (!writable && bitmap.enabled && !bitmap.node.readOnly)
      throw new BlockError(`Enabled bitmap '${wanted}' incompatible with readonly export`);
  } else {
    bitmap = lookUpBitmap(layer, wanted.node, wanted.name);
  }
  checkUsable(bitmap, { readOnly: true, hint: false });
  return bitmap;
}
