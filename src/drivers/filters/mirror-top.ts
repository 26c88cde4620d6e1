/**
 * mirror_top: the filter that a mirror job puts on top of its source.
 *
 * No options and no on-disk format: users cannot make one. Everything passes to the `backing` child. What the job wants
 * to know of a write it gets from the source's dirty bitmap; only a job that writes to both sides at once (copy mode
 * write-blocking) takes the writes over: `writes` is then set. It changes while the filter is drained.
 */

import type { IoVector } from '../../aio/memory.ts';
import type { BlockDriver } from '../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../block/contract/guard.ts';
import { Perm, Req, Status } from '../../block/contract/request.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { co, sync } from '../../block/io/callbacks.ts';
import { nodeFilename } from '../../block/open/filename.ts';

/** A job that writes for the filter's users: to the source first, then to the target. */
export interface MirrorWrites {
  pwritev(guard: GraphReadGuard, offset: number, bytes: number, vec: IoVector, flags: number): Promise<void>;
  pwriteZeroes(guard: GraphReadGuard, offset: number, bytes: number, flags: number): Promise<void>;
  pdiscard(guard: GraphReadGuard, offset: number, bytes: number): Promise<void>;
}

export interface MirrorTopState {
  /** Null: writes pass. */
  writes: MirrorWrites | null;
  /** The target is below the source: what is there is in no consistent state by itself, and nobody relies on it. */
  readonly isCommit?: boolean;
}

export type MirrorTopNode = BlockNode<MirrorTopState>;

function source(node: MirrorTopNode): BlockNode {
  return node.children[0]!.node;
}

export const mirrorTop: BlockDriver<MirrorTopState> = {
  name: 'mirror_top',
  kind: 'filter',
  supportedWriteFlags: Req.fua | Req.writeUnchanged,
  supportedZeroFlags: Req.fua | Req.mayUnmap | Req.noFallback | Req.writeUnchanged,
  open: async () => ({ writes: null }),
  exactFilename: (node) => nodeFilename(source(node)),
  childPermissions(node, _roles, wanted) {
    // Nobody but the filter would tell the job of writes to the source.
    const unseen = node.state.writes === null ? 0 : Perm.write | Perm.writeUnchanged;
    const unneeded = node.state.isCommit === true ? Perm.consistentRead : 0;
    return { perm: wanted.perm & ~unneeded, shared: wanted.shared & ~unseen };
  },
  tryPreadv: (node, guard, offset, bytes, vec, short) =>
    sync.tryPreadv(source(node), guard, offset, bytes, vec, short),
  tryPwritev: (node, guard, offset, bytes, vec, short) =>
    node.state.writes === null && sync.tryPwritev(source(node), guard, offset, bytes, vec, short),
  preadv: (node, guard, offset, bytes, vec, flags) =>
    co.preadv(source(node), guard, offset, bytes, vec, flags),
  pwritev(node, guard, offset, bytes, vec, flags) {
    const { writes } = node.state;
    return writes === null
      ? co.pwritev(source(node), guard, offset, bytes, vec, flags)
      : writes.pwritev(guard, offset, bytes, vec, flags);
  },
  pwriteZeroes(node, guard, offset, bytes, flags) {
    const { writes } = node.state;
    return writes === null
      ? co.pwriteZeroes(source(node), guard, offset, bytes, flags)
      : writes.pwriteZeroes(guard, offset, bytes, flags);
  },
  pdiscard(node, guard, offset, bytes) {
    const { writes } = node.state;
    return writes === null
      ? co.pdiscard(source(node), guard, offset, bytes)
      : writes.pdiscard(guard, offset, bytes);
  },
  async blockStatus(node, _guard, _wantZero, offset, bytes) {
    return { bytes, flags: Status.offsetValid | Status.recurse, map: offset, file: source(node) };
  },
};
