/** What queries tell about a VMDK image. */

import type { ImageInfo, ImageInfoSpecific } from '../../../../schema/generated/types.ts';
import { nodeFilename } from '../../../block/open/filename.ts';
import type { Extent, VmdkNode } from './state.ts';

function extentInfo({ bytes, child, type, sparse }: Extent): ImageInfo {
  return {
    filename: child === null ? '' : nodeFilename(child.node),
    format: type,
    'virtual-size': bytes,
    ...(sparse?.compressed === true && { compressed: true }),
    ...(sparse !== null && { 'cluster-size': sparse.grainBytes }),
  };
}

export function specificInfo({ state }: VmdkNode): ImageInfoSpecific {
  const { descriptor, extents } = state;
  return {
    type: 'vmdk',
    data: {
      'create-type': descriptor.createType,
      cid: descriptor.cid,
      'parent-cid': descriptor.parentCid,
      extents: extents.map(extentInfo),
    },
  };
}

/** Bytes of a grain where all extents have the same; 0: they differ, or one has none. */
export function clusterBytes({ state }: VmdkNode): number {
  const sizes = new Set(state.extents.map(({ sparse }) => sparse?.grainBytes ?? 0));
  return sizes.size === 1 ? [...sizes][0]! : 0;
}
