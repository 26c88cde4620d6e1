/** What filters pass on as it is: callbacks for their driver records, over the one node below. */

import type { BlockDriver } from '../../block/contract/driver.ts';
import { Perm, type PermissionPair, Status } from '../../block/contract/request.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { co } from '../../block/io/callbacks.ts';

/** The node that a filter filters. */
export function filtered(node: BlockNode): BlockNode {
  return node.children[0]!.node;
}

type Shared = 'preadv' | 'pwritev' | 'pwriteZeroes' | 'pdiscard' | 'blockStatus' | 'truncate';

/** Requests go to the node below; what is absent here does so by itself (callbacks.ts). */
export const passOn = {
  preadv: (node, guard, offset, bytes, vec, flags) =>
    co.preadv(filtered(node), guard, offset, bytes, vec, flags),
  pwritev: (node, guard, offset, bytes, vec, flags) =>
    co.pwritev(filtered(node), guard, offset, bytes, vec, flags),
  pwriteZeroes: (node, guard, offset, bytes, flags) =>
    co.pwriteZeroes(filtered(node), guard, offset, bytes, flags),
  pdiscard: (node, guard, offset, bytes) => co.pdiscard(filtered(node), guard, offset, bytes),
  async blockStatus(node, _guard, _wantZero, offset, bytes) {
    return { bytes, flags: Status.offsetValid | Status.recurse, map: offset, file: filtered(node) };
  },
  truncate: (node, guard, length, exact, prealloc, zeroFill) =>
    co.truncate(filtered(node), guard, length, exact, prealloc, zeroFill),
} satisfies Pick<BlockDriver, Shared>;

type Changes = 'pwritev' | 'pwriteZeroes' | 'pdiscard' | 'pwritevCompressed' | 'truncate';

/** Everything that changes the node below goes there inside of `changing`, which gets the range that is changed. */
export function passChanges<S>(
  changing: (node: BlockNode<S>, offset: number, bytes: number, change: () => Promise<void>) => Promise<void>,
): Required<Pick<BlockDriver<S>, Changes>> {
  return {
    pwritev: (node, guard, offset, bytes, vec, flags) =>
      changing(node, offset, bytes, () => co.pwritev(filtered(node), guard, offset, bytes, vec, flags)),
    pwriteZeroes: (node, guard, offset, bytes, flags) =>
      changing(node, offset, bytes, () => co.pwriteZeroes(filtered(node), guard, offset, bytes, flags)),
    pdiscard: (node, guard, offset, bytes) =>
      changing(node, offset, bytes, () => co.pdiscard(filtered(node), guard, offset, bytes)),
    pwritevCompressed: (node, guard, offset, bytes, vec) =>
      changing(node, offset, bytes, () => co.pwritevCompressed(filtered(node), guard, offset, bytes, vec)),
    truncate: (node, guard, length, exact, prealloc, zeroFill) =>
      changing(node, 0, Number.MAX_SAFE_INTEGER, () =>
        co.truncate(filtered(node), guard, length, exact, prealloc, zeroFill),
      ),
  };
}

/** Permissions of a filter that remembers what it has read: nobody else may change what is below. */
export function soleWriter(
  _node: BlockNode,
  _roles: number,
  { perm, shared }: PermissionPair,
): PermissionPair {
  return { perm, shared: shared & ~(Perm.write | Perm.resize) };
}
