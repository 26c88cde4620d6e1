/**
 * Internal snapshots: a snapshot is a copy of the L1 table; everything it refers to has a refcount more.
 *
 * All operations run in exclusive sections and change over in one step (metadata/switch-over.ts): the active L1 table, the
 * list of snapshots and the refcounts that belong to them are those of before or those of afterwards, whatever happens.
 * Source: qcow2 specification, "Snapshots".
 */

import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import type { InternalSnapshot, InternalSnapshots } from '../../../../block/contract/image.ts';
import { co } from '../../../../block/io/callbacks.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError, errnoError, errnoOf, ioError } from '../../../../errors/error.ts';
import { MAX_SNAPSHOTS, viewOf } from '../layout/layout.ts';
import type { Qcow2Node, Qcow2State, SnapshotRecord } from '../layout/state.ts';
import { allocateContiguous } from '../metadata/contiguous.ts';
import { exclusive } from '../metadata/exclusive.ts';
import { writeMetadata } from '../metadata/metadata-io.ts';
import { retryLocked } from '../metadata/needs.ts';
import { changeRefcount } from '../metadata/refcount.ts';
import { type Switched, switchOver } from '../metadata/switch-over.ts';
import { learnInactiveL2 } from './inactive-l2.ts';
import { changeReferences, copyL1, fixCopiedFlags } from './references.ts';
import { encodeSnapshotTable, readSnapshotL1 } from './table.ts';

function toInternal(record: SnapshotRecord): InternalSnapshot {
  const { id, name, vmStateBytes, dateSeconds, dateNanoseconds, vmClockNanoseconds, icount, diskBytes } =
    record;
  return { id, name, vmStateBytes, dateSeconds, dateNanoseconds, vmClockNanoseconds, icount, diskBytes };
}

/** The snapshot with that id, or else with that name. */
function findByIdOrName(s: Qcow2State, idOrName: string): SnapshotRecord | undefined {
  const { snapshots } = s.extras;
  return snapshots.find((one) => one.id === idOrName) ?? snapshots.find((one) => one.name === idOrName);
}

/** The first snapshot that matches all that is given. */
function findByIdAndName(s: Qcow2State, id: string | null, name: string | null): SnapshotRecord | undefined {
  return s.extras.snapshots.find(
    (one) => (id === null || one.id === id) && (name === null || one.name === name),
  );
}

// ---- tables of a change --------------------------------------------------------------------------------------

/** Writes a table to clusters of its own and returns its offset; 0 for an empty one. */
async function placeTable(node: Qcow2Node, guard: GraphReadGuard, table: Buffer): Promise<number> {
  if (table.length === 0) return 0;
  const clusters = Math.ceil(table.length / node.state.clusterBytes);
  const { offset } = await allocateContiguous(node, guard, clusters);
  await writeMetadata(node, guard, offset, table, null);
  return offset;
}

/** The table at `offset` is not to be referred to any more. */
async function leaveTable(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<void> {
  const s = node.state;
  const first = offset / s.clusterBytes;
  const end = first + Math.ceil(bytes / s.clusterBytes);
  for (let cluster = first; cluster < end; cluster++)
    await retryLocked(node, guard, () => changeRefcount(s, cluster, -1));
}

function bytesOf(view: DataView): Buffer {
  return Buffer.from(view.buffer, view.byteOffset, view.byteLength);
}

/** The new active L1 table goes to a place of its own. */
async function placeL1(node: Qcow2Node, guard: GraphReadGuard, l1: DataView): Promise<Switched> {
  const s = node.state;
  const l1Offset = await placeTable(node, guard, bytesOf(l1));
  await leaveTable(node, guard, s.header.l1Offset, s.header.l1Entries * 8);
  return {
    header: { l1Offset, l1Entries: l1.byteLength / 8 },
    apply: () => {
      s.l1 = l1;
      s.l1Dirty.clear();
    },
  };
}

/** The new list of snapshots goes to a place of its own. Within a switch-over. */
export async function placeList(
  node: Qcow2Node,
  guard: GraphReadGuard,
  snapshots: readonly SnapshotRecord[],
): Promise<Switched> {
  const s = node.state;
  const table = encodeSnapshotTable(snapshots);
  const snapshotsOffset = await placeTable(node, guard, table);
  await leaveTable(node, guard, s.header.snapshotsOffset, s.extras.snapshotTableBytes);
  return {
    header: { snapshotsOffset, snapshotCount: snapshots.length },
    apply: () => {
      s.extras.snapshots = snapshots;
      s.extras.snapshotTableBytes = table.length;
    },
  };
}

function both(one: Switched, other: Switched): Switched {
  return {
    header: { ...one.header, ...other.header },
    apply: () => {
      one.apply();
      other.apply();
    },
  };
}

/** An exclusive section after which the list of snapshots may be another one. */
function changeList(node: Qcow2Node, guard: GraphReadGuard, change: () => Promise<void>): Promise<void> {
  return exclusive(node, guard, async () => {
    await change();
    await learnInactiveL2(node, guard);
  });
}

// ---- the operations ------------------------------------------------------------------------------------------

async function create(
  node: Qcow2Node,
  guard: GraphReadGuard,
  wanted: Omit<InternalSnapshot, 'id' | 'diskBytes'>,
): Promise<void> {
  const s = node.state;
  if (s.extras.snapshots.length >= MAX_SNAPSHOTS) throw ioError(E.EFBIG);
  if (s.hasDataFile) throw ioError(E.ENOTSUP);
  const ids = s.extras.snapshots.map(({ id }) => Number.parseInt(id, 10)).filter((id) => Number.isFinite(id));
  const id = String(Math.max(0, ...ids) + 1);
  await changeList(node, guard, () =>
    switchOver(node, guard, async () => {
      const l1 = copyL1(s);
      const kept = copyL1(s);
      await changeReferences(node, guard, l1, 1);
      await fixCopiedFlags(node, guard, l1, kept);
      // An image without bytes has a table too, though an empty one.
      const l1Offset = await placeTable(
        node,
        guard,
        Buffer.concat([bytesOf(kept)], Math.max(8, kept.byteLength)),
      );
      const record: SnapshotRecord = {
        ...wanted,
        id,
        diskBytes: s.header.size,
        l1Offset,
        l1Entries: s.header.l1Entries,
        unknownExtra: Buffer.alloc(0),
      };
      const list = await placeList(node, guard, [...s.extras.snapshots, record]);
      return both(await placeL1(node, guard, l1), list);
    }),
  );
}

async function apply(node: Qcow2Node, guard: GraphReadGuard, idOrName: string): Promise<void> {
  const s = node.state;
  if (s.hasDataFile) throw ioError(E.ENOTSUP);
  // They would not say any more what changed since they began to record.
  if (node.dirtyBitmaps.all.size > 0) {
    throw new BlockError('Device has active dirty bitmaps', { errno: E.ENOTSUP });
  }
  const one = findByIdOrName(s, idOrName);
  if (one === undefined) throw ioError(E.ENOENT);
  const l1 = await readSnapshotL1(node, guard, one);
  if (one.diskBytes !== s.header.size) await co.truncate(node, guard, one.diskBytes, true, 'off', false);
  await exclusive(node, guard, async () => {
    await switchOver(node, guard, async () => {
      const active = viewOf(Buffer.alloc(Math.max(s.header.l1Entries, one.l1Entries) * 8));
      bytesOf(l1).copy(bytesOf(active));
      await changeReferences(node, guard, active, 1);
      await changeReferences(node, guard, copyL1(s), -1);
      await fixCopiedFlags(node, guard, active, null);
      return placeL1(node, guard, active);
    });
    node.writeGeneration++;
  });
}

async function remove(
  node: Qcow2Node,
  guard: GraphReadGuard,
  id: string | null,
  name: string | null,
): Promise<void> {
  const s = node.state;
  if (s.hasDataFile) throw ioError(E.ENOTSUP);
  const one = findByIdAndName(s, id, name);
  if (one === undefined) throw new BlockError("Can't find the snapshot", { errno: E.ENOENT });
  const l1 = await readSnapshotL1(node, guard, one);
  await changeList(node, guard, () =>
    switchOver(node, guard, async (change) => {
      change.isSnapshot = true;
      const list = await listWithout(node, guard, one);
      await changeReferences(node, guard, l1, -1);
      await leaveTable(node, guard, one.l1Offset, Math.max(8, one.l1Entries * 8));
      change.isSnapshot = false;
      const active = copyL1(s);
      await fixCopiedFlags(node, guard, active, null);
      return both(await placeL1(node, guard, active), list);
    }),
  );
}

async function listWithout(node: Qcow2Node, guard: GraphReadGuard, one: SnapshotRecord): Promise<Switched> {
  const rest = node.state.extras.snapshots.filter((other) => other !== one);
  try {
    return await placeList(node, guard, rest);
  } catch (error) {
    throw errnoError('Failed to remove snapshot from snapshot list', errnoOf(error));
  }
}

async function load(
  node: Qcow2Node,
  guard: GraphReadGuard,
  id: string | null,
  name: string | null,
): Promise<void> {
  const s = node.state;
  if (!node.readOnly) throw new BlockError('Device is not readonly', { errno: E.EINVAL });
  const one = findByIdAndName(s, id, name);
  if (one === undefined) throw new BlockError("Can't find snapshot", { errno: E.ENOENT });
  const l1 = await readSnapshotL1(node, guard, one);
  s.l2Cache.clear();
  s.header.l1Entries = one.l1Entries;
  s.header.l1Offset = one.l1Offset;
  s.l1 = l1;
}

export const snapshots: InternalSnapshots<Qcow2State> = {
  list: (node) => node.state.extras.snapshots.map(toInternal),
  create,
  apply,
  delete: remove,
  load,
};
