/**
 * snapshot-access: shows what a copy-before-write filter preserves, for backup tools to read.
 *
 * It has no content of its own. Discards tell the filter what is not needed any more; writes are not possible.
 * Source of the facts: QMP reference, snapshot-access; behaviour of the original.
 */

import type { BlockDriver } from '../../block/contract/driver.ts';
import { Perm, Role } from '../../block/contract/request.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { co } from '../../block/io/callbacks.ts';
import { nodeFilename } from '../../block/open/filename.ts';
import { E } from '../../errors/errno.ts';
import { ioError } from '../../errors/error.ts';

function below(node: BlockNode<null>): BlockNode {
  return node.children[0]!.node;
}

export const snapshotAccess: BlockDriver<null> = {
  name: 'snapshot-access',
  kind: 'format',
  supportedWriteFlags: 0,
  supportedZeroFlags: 0,
  async open(_node, context) {
    await context.openChild('file', Role.data | Role.primary, true);
    return null;
  },
  exactFilename: (node) => nodeFilename(below(node)),
  // Nothing is taken of the filter's own content, however it is used.
  childPermissions: () => ({ perm: 0, shared: Perm.all }),
  preadv: (node, guard, offset, bytes, vec) => co.preadvSnapshot(below(node), guard, offset, bytes, vec),
  async pwritev() {
    throw ioError(E.ENOTSUP);
  },
  async pwriteZeroes() {
    throw ioError(E.ENOTSUP);
  },
  pdiscard: (node, guard, offset, bytes) => co.pdiscardSnapshot(below(node), guard, offset, bytes),
  flush: async () => undefined,
  blockStatus: (node, guard, wantZero, offset, bytes) =>
    co.blockStatusSnapshot(below(node), guard, wantZero, offset, bytes),
  async getInfo() {
    throw ioError(E.ENOTSUP);
  },
};
