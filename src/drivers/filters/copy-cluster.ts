/** What a copy needs to know of its target: the unit to copy in, and whether the target shows the source. */

import { chainChild, cowChild, skipFilters } from '../../block/graph/chain.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { infoOrNull } from '../../block/io/callbacks.ts';
import type { BlockLayer } from '../../block/layer.ts';
import { BlockError } from '../../errors/error.ts';

const DEFAULT_CLUSTER_BYTES = 65536;

/**
 * The unit of copying to `target` in bytes: its cluster size, at least 64 KiB. A smaller unit would write parts of
 * clusters, and what such a cluster shows of a backing image is not what the source had.
 * `minBytes`: the user wants at least so much; 0: no wish.
 */
export async function copyClusterBytes(
  layer: BlockLayer,
  target: BlockNode,
  minBytes: number,
): Promise<number> {
  if (minBytes < 0 || (minBytes > 0 && !Number.isInteger(Math.log2(minBytes))))
    throw new BlockError('min-cluster-size needs to be a power of 2');
  const info = await infoOrNull(target);
  const hasBacking = cowChild(skipFilters(target)) !== null;
  if (info === null && !hasBacking) {
    layer.report(
      "warning: The target block device doesn't provide information about the block size and it doesn't have a " +
        `backing file. The default block size of ${DEFAULT_CLUSTER_BYTES} bytes is used. If the actual block size of ` +
        'the target exceeds this default, the backup may be unusable\n',
    );
  }
  if (info === null && hasBacking)
    throw new BlockError(
      "Couldn't determine the cluster size of the target image, which has no backing file",
    );
  return Math.max(DEFAULT_CLUSTER_BYTES, info?.clusterSizeBytes ?? 0, minBytes);
}

/** Whether `node` is `top` or in the chain below it. */
export function isInChain(top: BlockNode, node: BlockNode): boolean {
  for (let at: BlockNode | null = top; at !== null; at = chainChild(at)?.node ?? null)
    if (at === node) return true;
  return false;
}
