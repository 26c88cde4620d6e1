/**
 * commit_top: the filter that a commit job puts on the images it commits, below the overlay that stays.
 *
 * No options and no on-disk format: users cannot make one. It is read-only and everything passes to the `backing`
 * child. Images above see the same as ever, while nobody may rely on the ones below by themselves.
 */

import type { BlockDriver } from '../../block/contract/driver.ts';
import { Perm, Status } from '../../block/contract/request.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { co, sync } from '../../block/io/callbacks.ts';
import { nodeFilename } from '../../block/open/filename.ts';

function below(node: BlockNode<null>): BlockNode {
  return node.children[0]!.node;
}

export const commitTop: BlockDriver<null> = {
  name: 'commit_top',
  kind: 'filter',
  supportedWriteFlags: 0,
  supportedZeroFlags: 0,
  open: async () => null,
  exactFilename: (node) => nodeFilename(below(node)),
  // What is below is in the hands of the job, which says what others may do.
  childPermissions: () => ({ perm: 0, shared: Perm.all }),
  tryPreadv: (node, guard, offset, bytes, vec, short) =>
    sync.tryPreadv(below(node), guard, offset, bytes, vec, short),
  preadv: (node, guard, offset, bytes, vec, flags) =>
    co.preadv(below(node), guard, offset, bytes, vec, flags),
  async blockStatus(node, _guard, _wantZero, offset, bytes) {
    return { bytes, flags: Status.offsetValid | Status.recurse, map: offset, file: below(node) };
  },
};
