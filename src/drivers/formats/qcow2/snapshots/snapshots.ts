/**
 * Internal snapshots: a snapshot is a copy of the L1 table; everything it refers to has a refcount more.
 *
 * All operations run in exclusive sections. Refcounts and COPIED flags lie in different clusters and cannot change in
 * one step, so in version 3 images the dirty bit is set meanwhile: whoever opens the image after a crash puts them
 * right. The snapshot table and the header are changed such that a snapshot is listed only while everything it
 * refers to is counted.
 * Source: qcow2 specification, "Snapshots".
 */

import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import type { InternalSnapshot, InternalSnapshots } from '../../../../block/contract/image.ts';
import { co } from '../../../../block/io/callbacks.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError, errnoError, errnoOf, ioError } from '../../../../errors/error.ts';
import { Incompat, MAX_L1_BYTES, MAX_SNAPSHOTS, viewOf } from '../layout/layout.ts';
import { rebuildMetadata } from '../layout/overlap.ts';
import type { Qcow2Node, Qcow2State, SnapshotRecord } from '../layout/state.ts';
import { allocateContiguous } from '../metadata/contiguous.ts';
import { exclusive } from '../metadata/exclusive.ts';
import { growL1 } from '../metadata/l1-table.ts';
import { barrier, readMetadata, writeHeader, writeMetadata } from '../metadata/metadata-io.ts';
import { deferFree } from '../metadata/refcount.ts';
import { flushMetadataLocked, settleLocked } from '../metadata/writeback.ts';
import { changeReferences, copyL1, fixCopiedFlags } from './references.ts';
import { encodeSnapshotTable } from './table.ts';

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

/** Runs `change` while the image says of itself that refcounts and flags may disagree. */
async function whileInconsistent(
  node: Qcow2Node,
  guard: GraphReadGuard,
  change: () => Promise<void>,
): Promise<void> {
  const { header } = node.state;
  const mark = header.version >= 3 && (header.incompatible & Incompat.dirty) === 0;
  if (mark) {
    header.incompatible |= Incompat.dirty;
    await writeHeader(node, guard);
    await barrier(node, guard);
  }
  await change();
  if (mark) {
    header.incompatible &= ~Incompat.dirty;
    await writeHeader(node, guard);
  }
}

/** Replaces the list of snapshots: the new table is on the disk before the header points to it. */
async function writeTable(
  node: Qcow2Node,
  guard: GraphReadGuard,
  snapshots: readonly SnapshotRecord[],
): Promise<void> {
  const s = node.state;
  const table = encodeSnapshotTable(snapshots);
  const oldBytes = encodeSnapshotTable(s.extras.snapshots).length;
  const old = { offset: s.header.snapshotsOffset, clusters: Math.ceil(oldBytes / s.clusterBytes) };
  let offset = 0;
  if (table.length > 0) {
    const clusters = Math.ceil(table.length / s.clusterBytes);
    ({ offset } = await allocateContiguous(node, guard, clusters));
    await writeMetadata(node, guard, offset, table, null);
  }
  await settleLocked(node, guard);
  s.header.snapshotsOffset = offset;
  s.header.snapshotCount = snapshots.length;
  await writeHeader(node, guard);
  await barrier(node, guard);
  s.extras.snapshots = snapshots;
  if (old.clusters > 0) deferFree(node, old.offset, old.clusters, 'snapshot');
  rebuildMetadata(s);
}

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
  await exclusive(node, guard, async () => {
    const entries = s.header.l1Entries;
    const clusters = Math.max(1, Math.ceil((entries * 8) / s.clusterBytes));
    const run = await allocateContiguous(node, guard, clusters);
    const l1 = copyL1(s);
    await writeMetadata(node, guard, run.offset, Buffer.from(l1.buffer, l1.byteOffset, l1.byteLength), null);
    let counted = false;
    try {
      await whileInconsistent(node, guard, async () => {
        await changeReferences(node, guard, l1, 1);
        counted = true;
        // Refcounts first: a cluster that is shared must not be written in place.
        await settleLocked(node, guard);
        await fixCopiedFlags(node, guard);
        await settleLocked(node, guard);
        s.l2Cache.clear();
      });
      await writeTable(node, guard, [
        ...s.extras.snapshots,
        {
          ...wanted,
          id,
          diskBytes: s.header.size,
          l1Offset: run.offset,
          l1Entries: entries,
          unknownExtra: Buffer.alloc(0),
        },
      ]);
    } catch (error) {
      if (!counted) deferFree(node, run.offset, clusters, 'never');
      throw error;
    }
  });
}

/** Reads a snapshot's L1 table after checking where it is. */
async function readSnapshotL1(
  node: Qcow2Node,
  guard: GraphReadGuard,
  one: SnapshotRecord,
): Promise<DataView> {
  const bytes = one.l1Entries * 8;
  if (bytes > MAX_L1_BYTES) throw new BlockError('Snapshot L1 table too large', { errno: E.EFBIG });
  if (one.l1Offset % node.state.clusterBytes !== 0 || one.l1Offset + bytes > Number.MAX_SAFE_INTEGER) {
    throw new BlockError('Snapshot L1 table offset invalid', { errno: E.EINVAL });
  }
  return viewOf(await readMetadata(node, guard, one.l1Offset, bytes));
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
    await growL1(node, guard, one.l1Entries);
    await settleLocked(node, guard);
    await whileInconsistent(node, guard, async () => {
      const before = copyL1(s);
      await changeReferences(node, guard, l1, 1);
      await settleLocked(node, guard);
      const bytes = new Uint8Array(s.l1.buffer, s.l1.byteOffset, s.l1.byteLength);
      bytes.fill(0);
      bytes.set(new Uint8Array(l1.buffer, l1.byteOffset, l1.byteLength));
      for (let sector = 0; sector * 512 < s.l1.byteLength; sector++) s.l1Dirty.add(sector);
      await flushMetadataLocked(node, guard);
      s.l2Cache.clear();
      // From here on nothing on the disk refers to the old state.
      await changeReferences(node, guard, before, -1);
      await settleLocked(node, guard);
      await fixCopiedFlags(node, guard);
      await settleLocked(node, guard);
      s.l2Cache.clear();
    });
    rebuildMetadata(s);
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
  await exclusive(node, guard, async () => {
    try {
      await writeTable(
        node,
        guard,
        s.extras.snapshots.filter((other) => other !== one),
      );
    } catch (error) {
      throw errnoError('Failed to remove snapshot from snapshot list', errnoOf(error));
    }
    await whileInconsistent(node, guard, async () => {
      await changeReferences(node, guard, l1, -1);
      await settleLocked(node, guard);
      await fixCopiedFlags(node, guard);
      await settleLocked(node, guard);
      s.l2Cache.clear();
    });
    const clusters = Math.max(1, Math.ceil((one.l1Entries * 8) / s.clusterBytes));
    deferFree(node, one.l1Offset, clusters, 'snapshot');
  });
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
