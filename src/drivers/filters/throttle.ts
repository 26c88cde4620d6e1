/**
 * throttle: a filter that holds requests back until the limits of a throttle group allow them.
 *
 * Reads, and changes of every kind (writes, zeroes, discards), count with the bytes of their range; flushes and
 * questions do not. Options: `throttle-group`, the group object, which other nodes may share.
 * Source of the facts: QEMU documentation, "The QEMU throttling infrastructure"; QMP reference,
 * BlockdevOptionsThrottle.
 */

import type { BlockDriver, OpenContext } from '../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../block/contract/guard.ts';
import type { DriverOptions } from '../../block/contract/image.ts';
import { Req, Role } from '../../block/contract/request.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { co, sync } from '../../block/io/callbacks.ts';
import {
  count,
  type Direction,
  joinThrottle,
  leaveThrottle,
  letAllGo,
  mayBegin,
  type ThrottleMember,
  waitTurn,
} from '../../block/throttle/throttle-group.ts';
import { BlockError } from '../../errors/error.ts';
import { filtered, passOn } from './pass-on.ts';

interface Membership {
  readonly member: ThrottleMember;
  /** Lets the group object go. */
  readonly release: () => void;
}

interface ThrottleState {
  /** Another one after reopening. */
  membership: Membership;
}

type ThrottleNode = BlockNode<ThrottleState>;

function join(node: ThrottleNode, options: DriverOptions): Membership {
  const id = String(options['throttle-group']);
  const used = node.layer.useThrottleGroup(id);
  if (used === null) throw new BlockError(`Throttle group '${id}' does not exist`);
  const member = joinThrottle(node.layer.throttleOf(used.group), () => node.quiesced > 0 || node.hurried > 0);
  return { member, release: used.release };
}

function leave({ member, release }: Membership): void {
  leaveThrottle(member);
  release();
}

async function open(node: ThrottleNode, context: OpenContext): Promise<ThrottleState> {
  await context.openChild('file', Role.filtered | Role.primary, true);
  return { membership: join(node, context.options) };
}

/** What waits goes on: the node is being drained, or somebody waits for its requests. */
function letGo({ state }: ThrottleNode): void {
  // Before `state` is there the node is being opened and has no requests.
  if ((state as ThrottleState | undefined) !== undefined) letAllGo(state.membership.member);
}

/** Null: the request may go on, and has been counted. Else it may when the promise resolves. */
function turn(
  node: ThrottleNode,
  guard: GraphReadGuard,
  direction: Direction,
  bytes: number,
): Promise<void> | null {
  const { member } = node.state.membership;
  if (mayBegin(member, direction)) {
    count(member, direction, bytes);
    return null;
  }
  return node.layer.graphLock.suspended(guard, () => waitTurn(member, direction, bytes));
}

function afterTurn(
  node: ThrottleNode,
  guard: GraphReadGuard,
  direction: Direction,
  bytes: number,
  request: () => Promise<void>,
): Promise<void> {
  const wait = turn(node, guard, direction, bytes);
  return wait === null ? request() : wait.then(request);
}

export const throttle: BlockDriver<ThrottleState> = {
  name: 'throttle',
  kind: 'filter',
  supportedWriteFlags: Req.fua | Req.writeUnchanged,
  supportedZeroFlags: Req.fua | Req.mayUnmap | Req.noFallback | Req.writeUnchanged,
  strongOptions: ['throttle-group'],
  open,
  async close({ state }) {
    leave(state.membership);
  },
  mutableOptions: { 'throttle-group': 'refused' },
  reopenPrepare: async (node, { options }) => join(node, options),
  reopenCommit({ state }, prepared) {
    leave(state.membership);
    state.membership = prepared as Membership;
  },
  reopenAbort(_node, prepared) {
    leave(prepared as Membership);
  },
  drainBegin: letGo,
  hurry: letGo,
  tryPreadv(node, guard, offset, bytes, vec, short) {
    const { member } = node.state.membership;
    if (!mayBegin(member, 'read') || !sync.tryPreadv(filtered(node), guard, offset, bytes, vec, short))
      return false;
    count(member, 'read', bytes);
    return true;
  },
  tryPwritev(node, guard, offset, bytes, vec, short) {
    const { member } = node.state.membership;
    if (!mayBegin(member, 'write') || !sync.tryPwritev(filtered(node), guard, offset, bytes, vec, short))
      return false;
    count(member, 'write', bytes);
    return true;
  },
  preadv: (node, guard, offset, bytes, vec, flags) =>
    afterTurn(node, guard, 'read', bytes, () => co.preadv(filtered(node), guard, offset, bytes, vec, flags)),
  pwritev: (node, guard, offset, bytes, vec, flags) =>
    afterTurn(node, guard, 'write', bytes, () =>
      co.pwritev(filtered(node), guard, offset, bytes, vec, flags),
    ),
  pwritevCompressed: (node, guard, offset, bytes, vec) =>
    afterTurn(node, guard, 'write', bytes, () =>
      co.pwritevCompressed(filtered(node), guard, offset, bytes, vec),
    ),
  pwriteZeroes: (node, guard, offset, bytes, flags) =>
    afterTurn(node, guard, 'write', bytes, () =>
      co.pwriteZeroes(filtered(node), guard, offset, bytes, flags),
    ),
  pdiscard: (node, guard, offset, bytes) =>
    afterTurn(node, guard, 'write', bytes, () => co.pdiscard(filtered(node), guard, offset, bytes)),
  blockStatus: passOn.blockStatus,
  truncate: passOn.truncate,
};
