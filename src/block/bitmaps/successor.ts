/**
 * Successors of dirty bitmaps: while an operation works on what a bitmap says, writes are recorded in another one.
 *
 * In the end either the old marks are of no use any more, and what was recorded since takes their place, or both
 * count. The record of the bitmap stays the same all the time, so nobody notices but in queries: a bitmap whose marks
 * have been replaced is listed where its successor was, as in the original, where the successor itself stays.
 */

import { assert } from '../../errors/error.ts';
import { createBitmap, type DirtyBitmap, mergeBitmap, releaseBitmap } from './dirty-bitmap.ts';

/** Makes the bitmap busy; its marks stay as they are until the end, writes go to its successor. */
export function beginSuccession(bitmap: DirtyBitmap): void {
  assert(bitmap.successor === null, 'bitmap has a successor already');
  const { node, granularityBytes, enabled } = bitmap;
  bitmap.successor = createBitmap(node, { name: null, granularityBytes, enabled });
  bitmap.enabled = false;
  bitmap.busy = true;
}

/** Ends it. `keepMarks` false: only what was written meanwhile is marked afterwards. */
export function endSuccession(bitmap: DirtyBitmap, keepMarks: boolean): void {
  const { successor } = bitmap;
  assert(successor !== null, 'bitmap has no successor');
  if (!keepMarks) {
    bitmap.bits.clear();
    takePlace(bitmap, successor);
  }
  mergeBitmap(bitmap, successor);
  bitmap.enabled = successor.enabled;
  bitmap.busy = false;
  bitmap.successor = null;
  releaseBitmap(successor);
}

/** Puts the bitmap where `other` is in the list of the node's bitmaps. */
function takePlace(bitmap: DirtyBitmap, other: DirtyBitmap): void {
  const { all } = bitmap.node.dirtyBitmaps;
  const before = [...all];
  all.clear();
  for (const each of before) {
    if (each === bitmap) continue;
    if (each === other) all.add(bitmap);
    all.add(each);
  }
}
