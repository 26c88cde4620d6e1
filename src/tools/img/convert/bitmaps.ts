/** `convert --bitmaps`: the persistent bitmaps of the source are made in the target as well. */

import type { ImageInfo } from '../../../../schema/generated/types.ts';
import { createBitmap, type DirtyBitmap, mergeBitmap } from '../../../block/bitmaps/dirty-bitmap.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { BlockError } from '../../../errors/error.ts';
import type { ToolOutput } from '../../common/output.ts';

/** Whether an image of this kind keeps bitmaps. */
export function keepsBitmaps(info: ImageInfo): boolean {
  const specific = info['format-specific'];
  return specific?.type === 'qcow2' && specific.data.compat !== '0.10';
}

/** Throws when one of the source's bitmaps is inconsistent, unless such are to be left out. */
export function checkBitmaps(source: BlockNode, skipBroken: boolean): void {
  for (const { name, inconsistent } of persistentBitmaps(source)) {
    if (inconsistent && !skipBroken) {
      throw new BlockError(`Cannot copy inconsistent bitmap '${name}'`, {
        hint: "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
      });
    }
  }
}

/** Copies the bitmaps; the target stores them when it is closed. */
export function copyBitmaps(source: BlockNode, target: BlockNode, output: ToolOutput): void {
  for (const bitmap of persistentBitmaps(source)) {
    const { name, granularityBytes, enabled } = bitmap;
    if (bitmap.inconsistent) {
      output.warn(`Skipping inconsistent bitmap '${name}'`);
      continue;
    }
    target.driver.bitmaps?.checkNew(target, name ?? '', granularityBytes);
    mergeBitmap(createBitmap(target, { name, granularityBytes, enabled, persistent: true }), bitmap);
  }
}

/** Newest first, as the original goes through them: the target's directory then has the source's order. */
function persistentBitmaps(node: BlockNode): DirtyBitmap[] {
  return [...node.dirtyBitmaps.all].filter(({ persistent }) => persistent).reverse();
}
