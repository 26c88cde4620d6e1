/** Commands on dirty bitmaps. */

import type { BlockDirtyBitmapOrStr } from '../../schema/generated/types.ts';
import { infoOrNull } from '../block/callbacks.ts';
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
} from '../block/dirty-bitmap.ts';
import type { BlockLayer } from '../block/layer.ts';
import type { BlockNode } from '../block/node.ts';
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

async function add(
  layer: BlockLayer,
  nodeName: string,
  name: string,
  options: { readonly granularity?: number; readonly persistent?: boolean; readonly disabled?: boolean },
): Promise<void> {
  const node = layer.findNode(nodeName);
  if (node === null) throw new BlockError(`Cannot find device='${nodeName}' nor node-name='${nodeName}'`);
  if (name === '') throw new BlockError('Bitmap name cannot be empty');
  let granularityBytes = options.granularity;
  if (granularityBytes === undefined)
    granularityBytes = defaultGranularity((await infoOrNull(node))?.clusterSizeBytes ?? 0);
  else if (granularityBytes < MIN_GRANULARITY_BYTES || !isPowerOfTwo(granularityBytes))
    throw new BlockError('Granularity must be power of 2 and at least 512');
  const persistent = options.persistent ?? false;
  if (persistent) checkPersistent(node, name, granularityBytes);
  createBitmap(node, { name, granularityBytes, persistent, enabled: options.disabled !== true });
}

async function remove(layer: BlockLayer, bitmap: DirtyBitmap): Promise<void> {
  const { node, name } = bitmap;
  checkUsable(bitmap, { inconsistent: true });
  if (bitmap.persistent && name !== null) {
    // Nobody may use it while the image is being changed.
    bitmap.busy = true;
    try {
      await layer.graphLock.withRead(async (guard) => node.driver.bitmaps?.remove(node, guard, name));
    } finally {
      bitmap.busy = false;
    }
  }
  releaseBitmap(bitmap);
}

/** All sources are looked at before anything is changed. */
function merge(
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
    await add(layer, node, name, options);
    return {};
  },
  'block-dirty-bitmap-remove': async ({ layer }, { node, name }) => {
    await remove(layer, lookUpBitmap(layer, node, name));
    return {};
  },
  'block-dirty-bitmap-clear': ({ layer }, { node, name }) => {
    const bitmap = lookUpBitmap(layer, node, name);
    checkUsable(bitmap);
    bitmap.bits.clear();
    return {};
  },
  'block-dirty-bitmap-enable': ({ layer }, { node, name }) => {
    const bitmap = lookUpBitmap(layer, node, name);
    checkUsable(bitmap, { readOnly: true });
    bitmap.enabled = true;
    return {};
  },
  'block-dirty-bitmap-disable': ({ layer }, { node, name }) => {
    const bitmap = lookUpBitmap(layer, node, name);
    checkUsable(bitmap, { readOnly: true });
    bitmap.enabled = false;
    return {};
  },
  'block-dirty-bitmap-merge': ({ layer }, { node, target, bitmaps }) => {
    merge(layer, node, target, bitmaps);
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
