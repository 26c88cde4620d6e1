/**
 * Internal snapshots over QMP: a point in time kept inside the image.
 *
 * Source of the checks and their order: behaviour of the original.
 */

import type { SnapshotInfo } from '../../../schema/generated/types.ts';
import type { InternalSnapshot } from '../../block/contract/image.ts';
import { type SnapshotKeeper, snapshotKeeper } from '../../block/graph/chain.ts';
import { drained } from '../../block/graph/drain.ts';
import { checkRootNode, findNode } from '../../block/graph/find-node.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { checkOperation, type Operation } from '../../block/graph/op-blockers.ts';
import { wrapped } from '../../block/io/callbacks.ts';
import type { BlockLayer } from '../../block/layer.ts';
import { snapshotInfo } from '../../block/query/query.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, errnoError, errnoOf } from '../../errors/error.ts';
import type { Handlers } from '../../qmp/dispatch.ts';
import type { CommandContext } from '../context.ts';
import type { ActionHandlers } from './transaction.ts';

function findFor(operation: Operation, layer: BlockLayer, name: string): BlockNode {
  const node = findNode(layer, name);
  checkRootNode(node);
  checkOperation(node, operation);
  return node;
}

function requireKeeper(node: BlockNode): SnapshotKeeper {
  const found = snapshotKeeper(node);
  if (found === null) {
    throw new BlockError(
      `Block format '${node.driver.name}' used by device '${node.name}' does not support internal snapshots`,
    );
  }
  return found;
}

export const internalSnapshotActions: ActionHandlers<'blockdev-snapshot-internal-sync'> = {
  'blockdev-snapshot-internal-sync': {
    async prepare({ layer }, { device, name }) {
      const node = findFor('internal-snapshot', layer, device);
      if (node.readOnly) throw new BlockError(`Device '${device}' is read only`);
      const { keeper, snapshots } = requireKeeper(node);
      if (name === '') throw new BlockError('Name is empty');
      if (snapshots.list(keeper).some((one) => one.name === name)) {
        throw new BlockError(`Snapshot with name '${name}' already exists on device '${device}'`);
      }
      await wrapped.flush(node);
      const now = Date.now();
      const taken: Omit<InternalSnapshot, 'id' | 'diskBytes'> = {
        name,
        vmStateBytes: 0,
        dateSeconds: Math.floor(now / 1000),
        dateNanoseconds: (now % 1000) * 1_000_000,
        vmClockNanoseconds: BigInt(now) * 1_000_000n,
        icount: null,
      };
      try {
        await layer.graphLock.withRead((guard) => snapshots.create(keeper, guard, taken));
      } catch (error) {
        throw errnoError(`Failed to create snapshot '${name}' on device '${device}'`, errnoOf(error));
      }
      const id = snapshots.list(keeper).at(-1)?.id ?? null;
      return {
        abort: () => layer.graphLock.withRead((guard) => snapshots.delete(keeper, guard, id, name)),
      };
    },
  },
};

async function deleteSnapshot(
  layer: BlockLayer,
  device: string,
  id: string | null,
  name: string | null,
): Promise<SnapshotInfo> {
  const node = findFor('internal-snapshot-delete', layer, device);
  if (id === null && name === null) throw new BlockError('Name or id must be provided');
  const kept = snapshotKeeper(node);
  if (kept === null) throw errnoError('Failed to get a snapshot list', E.ENOTSUP);
  const { keeper, snapshots } = kept;
  const found = snapshots
    .list(keeper)
    .find((one) => (id === null || one.id === id) && (name === null || one.name === name));
  if (found === undefined) {
    throw new BlockError(
      `Snapshot with id '${id ?? 'null'}' and name '${name ?? 'null'}' does not exist on device '${device}'`,
    );
  }
  await drained(node, () =>
    layer.graphLock.withRead((guard) => snapshots.delete(keeper, guard, found.id, found.name)),
  );
  return snapshotInfo(found);
}

export const internalSnapshotCommands = {
  'blockdev-snapshot-delete-internal-sync': ({ layer }, { device, id, name }) =>
    deleteSnapshot(layer, device, id ?? null, name ?? null),
} satisfies Pick<Handlers<CommandContext>, 'blockdev-snapshot-delete-internal-sync'>;
