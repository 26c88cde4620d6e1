/**
 * vmdk: images of VMware's products, whole or split, flat, sparse and compressed; the driver record.
 *
 * Options: `backing` (default: what the descriptor names). Descriptors are descriptor.ts, headers of extents
 * sparse-header.ts and se-sparse.ts, lookup and allocation map.ts, compressed grains grain-read.ts and stream-write.ts.
 *
 * Beyond the original: streamOptimized images are made as VMware makes them (directory at the end, markers, footer);
 * ZERO and RDONLY extents count; an image that was cut off gives errors instead of zeroes; names in descriptors are
 * paths and never protocols; metadata is written behind the data it describes.
 */

import type { BlockDriver } from '../../../block/contract/driver.ts';
import { formatChildPermissions } from '../../../block/graph/permissions.ts';
import { co } from '../../../block/io/callbacks.ts';
import { E } from '../../../errors/errno.ts';
import { ioError } from '../../../errors/error.ts';
import { mappedCallbacks } from '../shared/mapped-driver.ts';
import { check } from './check.ts';
import { changeContentId } from './content-id.ts';
import { creation } from './create.ts';
import { clusterBytes, specificInfo } from './info.ts';
import { map } from './map.ts';
import { open, startWriting } from './open.ts';
import { probeVmdk } from './probe.ts';
import { extentAt, type VmdkNode, type VmdkState } from './state.ts';
import { finishStream, pwritevCompressed } from './stream-write.ts';

const mapped = mappedCallbacks(map);

function isStream({ state }: VmdkNode): boolean {
  return state.extents.some(({ sparse }) => sparse?.compressed === true);
}

export const vmdk: BlockDriver<VmdkState> = {
  name: 'vmdk',
  ...mapped,
  supportsBacking: true,
  probe: probeVmdk,
  creation,
  open,
  afterOpen: startWriting,
  reopenCommit({ state }) {
    state.cidChanged = false;
  },
  afterReopen: startWriting,
  async close(node) {
    if (!node.readOnly) {
      await node.layer.graphLock.withRead(async (guard) => {
        for (const extent of node.state.extents) await finishStream(extent, guard);
      });
    }
    await mapped.close(node);
  },
  childPermissions: formatChildPermissions,
  refreshLimits({ state }, limits) {
    const zeroable = state.extents.find(({ sparse }) => sparse?.zeroedGrains === true);
    if (zeroable !== undefined) limits.pwriteZeroesAlignment = zeroable.sparse!.grainBytes;
  },
  specificInfo,
  backingName: ({ state }) =>
    state.parentName === null ? null : { filename: state.parentName, format: 'vmdk' },
  // The first write changes the content id, which takes I/O.
  tryPwritev: (node, guard, offset, bytes, vec, short) =>
    node.state.cidChanged && mapped.tryPwritev!(node, guard, offset, bytes, vec, short),
  async pwritev(node, guard, offset, bytes, vec, flags) {
    if (!node.state.cidChanged) await changeContentId(node, guard);
    if (extentAt(node.state, offset).sparse?.compressed === true)
      return pwritevCompressed(node, guard, offset, bytes, vec);
    return mapped.pwritev!(node, guard, offset, bytes, vec, flags);
  },
  pwritevCompressed,
  check,
  async pwriteZeroes(node, guard, offset, bytes, flags) {
    if (!node.state.cidChanged) await changeContentId(node, guard);
    return mapped.pwriteZeroes!(node, guard, offset, bytes, flags);
  },
  async pdiscard(node, guard, offset, bytes) {
    if (isStream(node)) throw ioError(E.ENOTSUP);
    if (!node.state.cidChanged) await changeContentId(node, guard);
    return mapped.pdiscard!(node, guard, offset, bytes);
  },
  getLength: async ({ state }) => state.totalBytes,
  async getAllocatedFileSize({ state }, guard) {
    let bytes = 0;
    for (const child of new Set([state.file, ...state.extents.flatMap((each) => each.child ?? [])]))
      bytes += await co.getAllocatedFileSize(child.node, guard);
    return bytes;
  },
  getInfo: async (node) => ({
    clusterSizeBytes: clusterBytes(node),
    ...(isStream(node) && { needsCompressedWrites: true }),
  }),
};
