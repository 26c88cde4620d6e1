/**
 * Whether an image was made with its metadata in place and its data clusters as holes (preallocation=metadata): then the
 * file below knows better than the mapping where there is data, and is worth asking for every cluster.
 *
 * Found out by comparing the clusters in use with the space that the file takes, as the original does: there are a
 * ninth more of them, and two at least (measured with qemu-img map on images with so many holes).
 */

import { createTurns } from '../../../../aio/host/turns.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { co } from '../../../../block/io/callbacks.ts';
import { InvariantError } from '../../../../errors/error.ts';
import type { Qcow2Node } from '../layout/state.ts';
import { satisfy } from './needs.ts';
import { getRefcount, isNeed } from './refcount.ts';

/** Clusters that are looked at before the clock is: well below a millisecond. */
const TURN_CLUSTERS = 16 * 1024;

/** Looks at the image once; what was found holds as long as the node is open. */
export function hasPreallocatedMetadata(node: Qcow2Node, guard: GraphReadGuard): Promise<boolean> {
  const { extras } = node.state;
  extras.preallocatedMetadata ??= detect(node, guard).catch((error: unknown) => {
    if (error instanceof InvariantError) throw error;
    // Data clusters that nobody looks into are data.
    return false;
  });
  return extras.preallocatedMetadata;
}

async function detect(node: Qcow2Node, guard: GraphReadGuard): Promise<boolean> {
  const s = node.state;
  const file = s.file.node;
  const clusters = Math.ceil((await co.getLength(file, guard)) / s.clusterBytes);
  const takenBytes = await co.getAllocatedFileSize(file, guard);
  if (takenBytes < 0) return false;
  const taken = Math.floor(takenBytes / s.clusterBytes);
  const enough = Math.max(Math.floor((taken * 10) / 9), taken + 2);
  if (clusters < enough) return false;
  const turns = createTurns();
  let used = 0;
  for (let cluster = 0; cluster < clusters; ) {
    const refcount = getRefcount(s, cluster);
    if (isNeed(refcount)) {
      await satisfy(node, guard, refcount);
      continue;
    }
    if (refcount > 0 && ++used >= enough) return true;
    cluster++;
    if (cluster % TURN_CLUSTERS === 0) await turns.next();
  }
  return false;
}
