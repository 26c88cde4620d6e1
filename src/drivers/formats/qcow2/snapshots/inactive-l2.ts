/**
 * Which clusters hold L2 tables of snapshots: read from the snapshots' L1 tables, where `overlap-check` asks for it.
 *
 * The check itself is layout/overlap.ts. Source of the facts: QEMU documentation, qcow2 driver options.
 */

import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { entryOffset } from '../layout/layout.ts';
import type { Qcow2Node } from '../layout/state.ts';
import { readSnapshotL1 } from './table.ts';

/**
 * Fills the map anew. To be called whenever the list of snapshots, or the `overlap-check` option, has changed. A table
 * that cannot be read or that says nonsense is passed over: it is for the check of the image to complain.
 */
export async function learnInactiveL2(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  s.inactiveL2.clear();
  if (!s.overlap['inactive-l2']) return;
  for (const snapshot of s.extras.snapshots) {
    const l1 = await readSnapshotL1(node, guard, snapshot).catch(() => null);
    if (l1 === null) continue;
    for (let at = 0; at + 8 <= l1.byteLength; at += 8) {
      const offset = entryOffset(l1.getUint32(at), l1.getUint32(at + 4));
      if (offset !== 0) s.inactiveL2.add(Math.floor(offset / s.clusterBytes));
    }
  }
}
