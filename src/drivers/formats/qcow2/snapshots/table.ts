/**
 * The snapshot table on the disk: reading it with every check, and encoding it.
 *
 * | bytes | field                     | bytes | field                                     |
 * |-------|---------------------------|-------|-------------------------------------------|
 * | 0-7   | L1 table offset           | 28-31 | VM clock (with 24-27), ns                 |
 * | 8-11  | L1 entries                | 32-35 | VM state size, 32 bits                    |
 * | 12-15 | length of id, of name     | 36-39 | length of extra data                      |
 * | 16-23 | date: seconds, nanosec.   | 40-   | extra data: VM state size, disk size,     |
 * |       |                           |       | icount; then id and name; padding to 8    |
 *
 * Operations on snapshots are snapshots.ts. Source: qcow2 specification, "Snapshots".
 */

import { bytesOfText, textOfBytes } from '../../../../aio/host/names.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError, errnoError, errnoOf } from '../../../../errors/error.ts';
import {
  MAX_L1_BYTES,
  MAX_SNAPSHOT_EXTRA_BYTES,
  MAX_SNAPSHOT_TABLE_BYTES,
  readU64,
  viewOf,
  writeU64,
} from '../layout/layout.ts';
import type { Qcow2Node, SnapshotRecord } from '../layout/state.ts';
import { readMetadata } from '../metadata/metadata-io.ts';

const FIXED_BYTES = 40;
const CHUNK_BYTES = 64 * 1024;

/** Reads the table into the state. `lenient`: damaged entries are left for the check to report. */
export async function loadSnapshots(node: Qcow2Node, guard: GraphReadGuard, lenient: boolean): Promise<void> {
  const { header, extras } = node.state;
  const snapshots: SnapshotRecord[] = [];
  let table = Buffer.alloc(0);
  let at = 0;
  // The table's length is nowhere but in its entries: read ahead as they ask for it.
  const need = async (bytes: number): Promise<void> => {
    while (table.length < at + bytes) {
      if (at + bytes > MAX_SNAPSHOT_TABLE_BYTES) {
        const left = header.snapshotCount - snapshots.length;
        throw new BlockError('Snapshot table is too big', {
          errno: E.EFBIG,
          hint: `You can force-remove all ${left} overhanging snapshots with qemu-img check -r all`,
        });
      }
      const more = Math.max(CHUNK_BYTES, at + bytes - table.length);
      const part = await readMetadata(node, guard, header.snapshotsOffset + table.length, more);
      table = Buffer.concat([table, part]);
    }
  };
  try {
    for (let index = 0; index < header.snapshotCount; index++) {
      await need(FIXED_BYTES);
      const fixed = table.subarray(at, at + FIXED_BYTES);
      const extraBytes = fixed.readUInt32BE(36);
      const idBytes = fixed.readUInt16BE(12);
      const nameBytes = fixed.readUInt16BE(14);
      if (extraBytes > MAX_SNAPSHOT_EXTRA_BYTES && !lenient) {
        throw new BlockError(`Too much extra metadata in snapshot table entry ${index}`, {
          errno: E.EINVAL,
          hint: 'You can force-remove this extra metadata with qemu-img check -r all',
        });
      }
      const kept = Math.min(extraBytes, MAX_SNAPSHOT_EXTRA_BYTES);
      await need(FIXED_BYTES + extraBytes + idBytes + nameBytes);
      const extra = table.subarray(at + FIXED_BYTES, at + FIXED_BYTES + kept);
      const idAt = at + FIXED_BYTES + extraBytes;
      snapshots.push(
        decodeSnapshot(
          table.subarray(at, at + FIXED_BYTES),
          extra,
          textOfBytes(table.subarray(idAt, idAt + idBytes)),
          textOfBytes(table.subarray(idAt + idBytes, idAt + idBytes + nameBytes)),
          header.size,
        ),
      );
      at += Math.ceil((FIXED_BYTES + extraBytes + idBytes + nameBytes) / 8) * 8;
    }
  } catch (error) {
    if (error instanceof BlockError && error.errno !== E.EIO) throw error;
    throw errnoError('Could not read snapshots', errnoOf(error));
  }
  extras.snapshots = snapshots;
  extras.snapshotTableBytes = at;
}

export function decodeSnapshot(
  fixed: Buffer,
  extra: Buffer,
  id: string,
  name: string,
  imageBytes: number,
): SnapshotRecord {
  const view = viewOf(fixed);
  const more = viewOf(extra);
  return {
    l1Offset: readU64(view, 0),
    l1Entries: view.getUint32(8),
    id,
    name,
    dateSeconds: view.getUint32(16),
    dateNanoseconds: view.getUint32(20),
    vmClockNanoseconds: fixed.readBigUInt64BE(24),
    vmStateBytes: extra.length >= 8 ? readU64(more, 0) : view.getUint32(32),
    diskBytes: extra.length >= 16 ? readU64(more, 8) : imageBytes,
    icount:
      extra.length >= 24 && extra.readBigUInt64BE(16) !== 2n ** 64n - 1n ? extra.readBigUInt64BE(16) : null,
    unknownExtra: Buffer.from(extra.subarray(24)),
  };
}

/** Reads a snapshot's L1 table after checking where it is. */
export async function readSnapshotL1(
  node: Qcow2Node,
  guard: GraphReadGuard,
  one: Pick<SnapshotRecord, 'l1Offset' | 'l1Entries'>,
): Promise<DataView> {
  const bytes = one.l1Entries * 8;
  if (bytes > MAX_L1_BYTES) throw new BlockError('Snapshot L1 table too large', { errno: E.EFBIG });
  if (one.l1Offset % node.state.clusterBytes !== 0 || one.l1Offset + bytes > Number.MAX_SAFE_INTEGER) {
    throw new BlockError('Snapshot L1 table offset invalid', { errno: E.EINVAL });
  }
  return viewOf(await readMetadata(node, guard, one.l1Offset, bytes));
}

/** The table as it goes to the disk. Throws when it is too big. */
export function encodeSnapshotTable(snapshots: readonly SnapshotRecord[]): Buffer {
  const parts: Buffer[] = [];
  let bytes = 0;
  for (const snapshot of snapshots) {
    const id = bytesOfText(snapshot.id);
    const name = bytesOfText(snapshot.name);
    const extraBytes = 24 + snapshot.unknownExtra.length;
    const entry = Buffer.alloc(Math.ceil((FIXED_BYTES + extraBytes + id.length + name.length) / 8) * 8);
    const view = viewOf(entry);
    writeU64(view, 0, snapshot.l1Offset);
    view.setUint32(8, snapshot.l1Entries);
    view.setUint16(12, id.length);
    view.setUint16(14, name.length);
    view.setUint32(16, snapshot.dateSeconds);
    view.setUint32(20, snapshot.dateNanoseconds);
    entry.writeBigUInt64BE(snapshot.vmClockNanoseconds, 24);
    view.setUint32(32, snapshot.vmStateBytes <= 0xffffffff ? snapshot.vmStateBytes : 0);
    view.setUint32(36, extraBytes);
    writeU64(view, 40, snapshot.vmStateBytes);
    writeU64(view, 48, snapshot.diskBytes);
    entry.writeBigUInt64BE(snapshot.icount ?? 2n ** 64n - 1n, 56);
    snapshot.unknownExtra.copy(entry, 64);
    id.copy(entry, FIXED_BYTES + extraBytes);
    name.copy(entry, FIXED_BYTES + extraBytes + id.length);
    parts.push(entry);
    bytes += entry.length;
  }
  if (bytes > MAX_SNAPSHOT_TABLE_BYTES) throw new BlockError('Snapshot table is too big', { errno: E.EFBIG });
  return Buffer.concat(parts);
}
