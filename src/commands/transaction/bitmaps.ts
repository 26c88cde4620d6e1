/** Dirty bitmaps in transactions: the commands of bitmap.ts in steps that can be taken back, bit by bit. */

import {
  checkUsable,
  type DirtyBitmap,
  keepBits,
  lookUpBitmap,
  releaseBitmap,
} from '../../block/bitmaps/dirty-bitmap.ts';
import { addBitmap, mergeBitmaps, removeStoredBitmap } from '../bitmap.ts';
import type { ActionHandlers, PreparedAction } from './transaction.ts';

function setEnabled(bitmap: DirtyBitmap, enabled: boolean): PreparedAction {
  checkUsable(bitmap, { readOnly: true });
  const before = bitmap.enabled;
  bitmap.enabled = enabled;
  return {
    abort: () => {
      bitmap.enabled = before;
    },
  };
}

export const bitmapActions: ActionHandlers<
  | 'block-dirty-bitmap-add'
  | 'block-dirty-bitmap-remove'
  | 'block-dirty-bitmap-clear'
  | 'block-dirty-bitmap-enable'
  | 'block-dirty-bitmap-disable'
  | 'block-dirty-bitmap-merge'
> = {
  'block-dirty-bitmap-add': {
    async prepare({ layer }, { node, name, ...options }) {
      const bitmap = await addBitmap(layer, node, name, options);
      return { abort: () => releaseBitmap(bitmap) };
    },
  },
  'block-dirty-bitmap-remove': {
    prepare({ layer }, { node, name }) {
      const bitmap = lookUpBitmap(layer, node, name);
      checkUsable(bitmap, { inconsistent: true });
      // Its name stays taken until the transaction has succeeded; nobody may use it meanwhile.
      bitmap.busy = true;
      return {
        async commit() {
          await removeStoredBitmap(bitmap);
          releaseBitmap(bitmap);
        },
        abort() {
          bitmap.busy = false;
        },
      };
    },
  },
  'block-dirty-bitmap-clear': {
    prepare({ layer }, { node, name }) {
      const bitmap = lookUpBitmap(layer, node, name);
      checkUsable(bitmap);
      const restore = keepBits(bitmap);
      bitmap.bits.clear();
      return { abort: restore };
    },
  },
  'block-dirty-bitmap-enable': {
    prepare: ({ layer }, { node, name }) => setEnabled(lookUpBitmap(layer, node, name), true),
  },
  'block-dirty-bitmap-disable': {
    prepare: ({ layer }, { node, name }) => setEnabled(lookUpBitmap(layer, node, name), false),
  },
  'block-dirty-bitmap-merge': {
    prepare({ layer }, { node, target, bitmaps }) {
      const restore = keepBits(lookUpBitmap(layer, node, target));
      mergeBitmaps(layer, node, target, bitmaps);
      return { abort: restore };
    },
  },
};
