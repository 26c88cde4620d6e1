/** Commands on dirty bitmaps. */

import type { BlockDirtyBitmapOrStr } from '../../schema/generated/types.ts';
import {
  bitmapSha256,
  checkMergeable,
  checkUsable,
  createBitmap,
  type DirtyBitmap,
  defaultGranularity,
  lookUpBitmap,
  MIN_GRANULARITY_BYTES,
  mergeBitmap,
  releaseBitmap,
} from '../block/bitmaps/dirty-bitmap.ts';
import { findNode } from '../block/graph/find-node.ts';
import type { BlockNode } from '../block/graph/node.ts';
import { infoOrNull } from '../block/io/callbacks.ts';
import type { BlockLayer } from '../block/layer.ts';
import { E, strerror } from '../errors/errno.ts';
import { BlockError } from '../errors/error.ts';
import type { Handlers } from '../qmp/dispatch.ts';
import type { CommandContext } from './context.ts';

function isPowerOfTwo(value: number): boolean {
  return (value & (value - 1)) === 0;
}

/** Throws when the image of the node cannot keep such a bitmap. */
function checkPersistent(node: BlockNode, name: string, granularityBytes: number): void {
  const { bitmaps } = node.driver;
  if (bitmaps === undefined) {
    throw new BlockError(`Can't store persistent bitmaps to ${node.name}: ${strerror(E.ENOTSUP)}`);
  }
  bitmaps.checkNew(node, name, granularityBytes);
}

/** block-dirty-bitmap-add. */
export async function addBitmap(
  layer: BlockLayer,
  nodeName: string,
  name: string,
  options: { readonly granularity?: number; readonly persistent?: boolean; readonly disabled?: boolean },
): Promise<DirtyBitmap> {
  const node = findNode(layer, nodeName);
  if (name === '') throw new BlockError('Bitmap name cannot be empty');
  let granularityBytes = options.granularity;
  if (granularityBytes === undefined)
    granularityBytes = defaultGranularity((await infoOrNull(node))?.clusterSizeBytes ?? 0);
  else if (granularityBytes < MIN_GRANULARITY_BYTES || !isPowerOfTwo(granularityBytes))
    throw new BlockError('Granularity must be power of 2 and at least 512');
  const persistent = options.persistent ?? false;
  if (persistent) checkPersistent(node, name, granularityBytes);
  return createBitmap(node, { name, granularityBytes, persistent, enabled: options.disabled !== true });
}

/** Takes the bitmap out of the image that keeps it, if one does. Nobody may use it meanwhile. */
export async function removeStoredBitmap(bitmap: DirtyBitmap): Promise<void> {
  const { node, name } = bitmap;
  if (!bitmap.persistent || name === null) return;
  bitmap.busy = true;
  try {
    await node.layer.graphLock.withRead(async (guard) => node.driver.bitmaps?.remove(node, guard, name));
  } finally {
    bitmap.busy = false;
  }
}

/** What the commands of these names do to a bitmap. */
export async function changeBitmap(
  bitmap: DirtyBitmap,
  action: 'remove' | 'clear' | 'enable' | 'disable',
): Promise<void> {
  if (action === 'remove') return remove(bitmap);
  if (action === 'clear') {
    checkUsable(bitmap);
    bitmap.bits.clear();
    return;
  }
  checkUsable(bitmap, { readOnly: true });
  bitmap.enabled = action === 'enable';
}

async function remove(bitmap: DirtyBitmap): Promise<void> {
  checkUsable(bitmap, { inconsistent: true });
  await removeStoredBitmap(bitmap);
  releaseBitmap(bitmap);
}

/** block-dirty-bitmap-merge. All sources are looked at before anything is changed. */
export function mergeBitmaps(
  layer: BlockLayer,
  nodeName: string,
  targetName: string,
  sources: readonly BlockDirtyBitmapOrStr[],
): void {
  const target = lookUpBitmap(layer, nodeName, targetName);
  const found = sources.map((source) => {
    const bitmap =
      typeof source === 'string'
        ? lookUpBitmap(layer, nodeName, source)
        : lookUpBitmap(layer, source.node, source.name);
    checkMergeable(target, bitmap);
    return bitmap;
  });
  for (const source of found) mergeBitmap(target, source);
}

export const bitmapCommands = {
  'block-dirty-bitmap-add': async ({ layer }, { node, name, ...options }) => {
    await addBitmap(layer, node, name, options);
    return {};
  },
  'block-dirty-bitmap-remove': async ({ layer }, { node, name }) => {
    await changeBitmap(lookUpBitmap(layer, node, name), 'remove');
    return {};
  },
  'block-dirty-bitmap-clear': async ({ layer }, { node, name }) => {
    await changeBitmap(lookUpBitmap(layer, node, name), 'clear');
    return {};
  },
  'block-dirty-bitmap-enable': async ({ layer }, { node, name }) => {
    await changeBitmap(lookUpBitmap(layer, node, name), 'enable');
    return {};
  },
  'block-dirty-bitmap-disable': async ({ layer }, { node, name }) => {
    await changeBitmap(lookUpBitmap(layer, node, name), 'disable');
    return {};
  },
  'block-dirty-bitmap-merge': ({ layer }, { node, target, bitmaps }) => {
    mergeBitmaps(layer, node, target, bitmaps);
    return {};
  },
  'x-debug-block-dirty-bitmap-sha256': async ({ layer }, { node, name }) => ({
    sha256: await bitmapSha256(lookUpBitmap(layer, node, name)),
  }),
} satisfies Pick<
  Handlers<CommandContext>,
  | 'block-dirty-bitmap-add'
  | 'block-dirty-bitmap-remove'
  | 'block-dirty-bitmap-clear'
  | 'block-dirty-bitmap-enable'
  | 'block-dirty-bitmap-disable'
  | 'block-dirty-bitmap-merge'
  | 'x-debug-block-dirty-bitmap-sha256'
>;
