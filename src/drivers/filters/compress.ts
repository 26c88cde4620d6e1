/**
 * compress: a filter that makes every write a compressed one.
 *
 * Only whole clusters can be compressed, so the node's request alignment is the cluster size below; the I/O path fills
 * up what is shorter. Zero writes and discards stay what they are.
 * Source of the facts: QEMU documentation, "Drive options", driver compress.
 */

import { sliceVector } from '../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../block/contract/driver.ts';
import { Req, Role } from '../../block/contract/request.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { co, infoOrNull } from '../../block/io/callbacks.ts';
import { BlockError } from '../../errors/error.ts';
import { filtered, passOn } from './pass-on.ts';

interface CompressState {
  /** 0: not known. */
  clusterBytes: number;
}

type CompressNode = BlockNode<CompressState>;

async function open(_node: CompressNode, context: OpenContext): Promise<CompressState> {
  const edge = await context.openChild('file', Role.filtered | Role.primary, true);
  const below = edge!.node;
  // What is below a filter does not count, as in the original: writes fail then.
  if (below.driver.pwritevCompressed === undefined)
    throw new BlockError(`Compression is not supported for underlying format: ${below.driver.name}`);
  return { clusterBytes: (await infoOrNull(below))?.clusterSizeBytes ?? 0 };
}

export const compress: BlockDriver<CompressState> = {
  name: 'compress',
  kind: 'filter',
  supportedWriteFlags: 0,
  supportedZeroFlags: Req.fua | Req.mayUnmap | Req.noFallback | Req.writeUnchanged,
  open,
  refreshLimits({ state }, limits) {
    limits.requestAlignment = Math.max(limits.requestAlignment, state.clusterBytes);
  },
  ...passOn,
  pwritev(node, guard, offset, bytes, vec) {
    // What the I/O path has added to a last cluster that the end of the image cuts.
    const inside = Math.min(bytes, node.totalBytes - offset);
    return co.pwritevCompressed(filtered(node), guard, offset, inside, sliceVector(vec, 0, inside));
  },
};
