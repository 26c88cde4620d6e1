/**
 * The filter that a stream job puts on top of its node, so that it can be told from other users of it.
 *
 * No options and no on-disk format: users cannot make one. Everything passes to the `file` child; the job itself copies
 * (io/copy-on-read.ts), and what is read through the filter is not copied on the way.
 */

import type { BlockDriver } from '../../block/contract/driver.ts';
import { Perm, Req, Status } from '../../block/contract/request.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { co, sync } from '../../block/io/callbacks.ts';
import { exactFilename } from '../../block/open/filename.ts';

function below(node: BlockNode<null>): BlockNode {
  return node.children[0]!.node;
}

export const streamFilter: BlockDriver<null> = {
  name: 'copy-on-read',
  kind: 'filter',
  supportedWriteFlags: Req.fua | Req.writeUnchanged,
  supportedZeroFlags: Req.fua | Req.mayUnmap | Req.noFallback | Req.writeUnchanged,
  open: async () => null,
  exactFilename: (node) => exactFilename(below(node)),
  childPermissions(_node, _roles, { perm, shared }) {
    return {
      perm: perm | Perm.consistentRead | Perm.writeUnchanged,
      shared: (shared & (Perm.consistentRead | Perm.write | Perm.resize)) | Perm.writeUnchanged,
    };
  },
  tryPreadv: (node, guard, offset, bytes, vec, short) =>
    sync.tryPreadv(below(node), guard, offset, bytes, vec, short),
  tryPwritev: (node, guard, offset, bytes, vec, short) =>
    sync.tryPwritev(below(node), guard, offset, bytes, vec, short),
  preadv: (node, guard, offset, bytes, vec, flags) =>
    co.preadv(below(node), guard, offset, bytes, vec, flags),
  pwritev: (node, guard, offset, bytes, vec, flags) =>
    co.pwritev(below(node), guard, offset, bytes, vec, flags),
  pwritevCompressed: (node, guard, offset, bytes, vec) =>
    co.pwritevCompressed(below(node), guard, offset, bytes, vec),
  pwriteZeroes: (node, guard, offset, bytes, flags) =>
    co.pwriteZeroes(below(node), guard, offset, bytes, flags),
  pdiscard: (node, guard, offset, bytes) => co.pdiscard(below(node), guard, offset, bytes),
  async blockStatus(node, _guard, _wantZero, offset, bytes) {
    return { bytes, flags: Status.offsetValid | Status.recurse, map: offset, file: below(node) };
  },
};
