/**
 * The part of an image check that reads the snapshot table as it is, damaged or not, and writes it anew when it had
 * to be repaired.
 *
 * Unlike the reading at open (snapshots/table.ts) it does not give up at the first oddity. The new table is on stable
 * storage, and counted, before the header points to it.
 */

import { textOfBytes } from '../../../../aio/host/names.ts';
import { allocateIoMemory } from '../../../../aio/memory.ts';
import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import {
  MAX_L1_BYTES,
  MAX_SNAPSHOT_EXTRA_BYTES,
  MAX_SNAPSHOT_TABLE_BYTES,
  MAX_SNAPSHOTS,
} from '../layout/layout.ts';
import { rebuildMetadata } from '../layout/overlap.ts';
import type { SnapshotRecord } from '../layout/state.ts';
import { barrier, writeHeader } from '../metadata/metadata-io.ts';
import { addRefcountBlock } from '../metadata/refcount-blocks.ts';
import { decodeSnapshot, encodeSnapshotTable } from '../snapshots/table.ts';
import { discardClusters } from './refcounts.ts';
import { type Check, corruption, programError, readTable, writeTable } from './state.ts';

const FIXED_BYTES = 40;
/** Extra data that version 3 images must have: VM state size, disk size. */
const V3_EXTRA_BYTES = 16;
const WINDOW_BYTES = 256 * 1024;

export interface SnapshotTable {
  readonly records: readonly SnapshotRecord[];
  /** Length of the table on the disk. */
  readonly bytes: number;
  /** What is wrong with it: nothing, or errors that writing it anew mends. */
  readonly errors: number;
}

/** Reads the table. Throws when it cannot be made sense of, after saying why. */
export async function readSnapshots(c: Check): Promise<SnapshotTable> {
  const { header, clusterBytes } = c.s;
  const { fixErrors } = c.request;
  let errors = 0;
  let count = header.snapshotCount;
  if (count > MAX_SNAPSHOTS) {
    const more = count - MAX_SNAPSHOTS;
    if (!fixErrors) {
      programError(c, 'ERROR snapshot table too large');
      c.request.report(`You can force-remove all ${more} overhanging snapshots with qemu-img check -r all`);
      throw ioError(E.EFBIG);
    }
    c.request.report(`Discarding ${more} overhanging snapshots`);
    errors += more;
    count = MAX_SNAPSHOTS;
  }
  if (header.snapshotsOffset % clusterBytes !== 0) {
    programError(c, 'ERROR snapshot table offset invalid');
    throw ioError(E.EINVAL);
  }
  const reader = tableReader(c, header.snapshotsOffset);
  const records: SnapshotRecord[] = [];
  const incomplete: number[] = [];
  let at = 0;
  for (let index = 0; index < count; index++) {
    at = Math.ceil(at / 8) * 8;
    const start = at;
    const fixed = await reader(at, FIXED_BYTES);
    const idBytes = fixed.readUInt16BE(12);
    const nameBytes = fixed.readUInt16BE(14);
    const extraBytes = fixed.readUInt32BE(36);
    if (extraBytes > MAX_SNAPSHOT_EXTRA_BYTES) {
      if (!fixErrors) {
        programError(
          c,
          `ERROR failed to read the snapshot table: Too much extra metadata in snapshot table entry ${index}`,
        );
        c.request.report('You can force-remove this extra metadata with qemu-img check -r all');
        throw ioError(E.EFBIG);
      }
      c.request.report(
        `Discarding too much extra metadata in snapshot table entry ${index} ` +
          `(${extraBytes} > ${MAX_SNAPSHOT_EXTRA_BYTES})`,
      );
      errors++;
    }
    const extra = await reader(at + FIXED_BYTES, Math.min(extraBytes, MAX_SNAPSHOT_EXTRA_BYTES));
    const names = await reader(at + FIXED_BYTES + extraBytes, idBytes + nameBytes);
    const id = upToNul(textOfBytes(names.subarray(0, idBytes)));
    const name = upToNul(textOfBytes(names.subarray(idBytes)));
    records.push(decodeSnapshot(fixed, extra, id, name, header.size));
    at += FIXED_BYTES + extraBytes + idBytes + nameBytes;
    if (header.version >= 3 && extraBytes < V3_EXTRA_BYTES) incomplete.push(index);
    if (at > MAX_SNAPSHOT_TABLE_BYTES) {
      const left = count - index;
      if (!fixErrors) {
        programError(c, 'ERROR failed to read the snapshot table: Snapshot table is too big');
        c.request.report(`You can force-remove all ${left} overhanging snapshots with qemu-img check -r all`);
        throw ioError(E.EFBIG);
      }
      c.request.report(`Discarding ${left} overhanging snapshots (snapshot table is too big)`);
      errors += left;
      records.pop();
      if (incomplete.at(-1) === index) incomplete.pop();
      at = start;
      break;
    }
  }
  for (const index of incomplete) {
    c.request.report(`${fixErrors ? 'Repairing' : 'ERROR'} snapshot table entry ${index} is incomplete`);
  }
  return { records, bytes: at, errors: errors + incomplete.length };
}

/** Names end at the first NUL, whatever length the entry says. */
function upToNul(text: string): string {
  const end = text.indexOf('\0');
  return end === -1 ? text : text.slice(0, end);
}

/** Reads pieces of the table through a window that moves with them. */
function tableReader(c: Check, start: number): (at: number, bytes: number) => Promise<Buffer> {
  let from = 0;
  let window = allocateIoMemory(0).buf;
  return async (at, bytes) => {
    if (bytes === 0) return Buffer.alloc(0);
    if (at < from || at + bytes > from + window.length) {
      const view = await readTable(c, start + at, Math.max(bytes, WINDOW_BYTES));
      window = Buffer.from(view.buffer, view.byteOffset, view.byteLength);
      from = at;
    }
    return Buffer.from(window.subarray(at - from, at - from + bytes));
  };
}

/** Looks at where a snapshot's L1 table is. False: it cannot be read. */
export function checkSnapshotL1(c: Check, record: SnapshotRecord): boolean {
  const { l1Offset, l1Entries, id, name } = record;
  if (l1Offset % c.s.clusterBytes !== 0) {
    corruption(
      c,
      `ERROR snapshot ${id} (${name}) l1_offset=0x${l1Offset.toString(16)}: ` +
        'L1 table is not cluster aligned; snapshot table entry corrupted',
    );
    return false;
  }
  if (l1Entries * 8 > MAX_L1_BYTES) {
    corruption(
      c,
      `ERROR snapshot ${id} (${name}) l1_size=0x${l1Entries.toString(16)}: ` +
        'L1 table is too large; snapshot table entry corrupted',
    );
    return false;
  }
  return true;
}

/** Writes the table anew: to free clusters, then into the header; the old clusters are free afterwards. */
export async function rewriteSnapshots(c: Check, table: SnapshotTable): Promise<void> {
  const { s } = c;
  const content = encodeSnapshotTable(table.records);
  const old = { offset: s.header.snapshotsOffset, bytes: table.bytes };
  let offset = 0;
  if (content.length > 0) {
    offset = await allocate(c, Math.ceil(content.length / s.clusterBytes));
    await barrier(c.node, c.guard);
    await writeTable(c, offset, content, null);
    await barrier(c.node, c.guard);
  }
  s.header.snapshotsOffset = offset;
  s.header.snapshotCount = table.records.length;
  await writeHeader(c.node, c.guard);
  await barrier(c.node, c.guard);
  s.extras.snapshots = table.records;
  s.extras.snapshotTableBytes = content.length;
  rebuildMetadata(s);
  await release(c, old.offset, old.bytes);
}

/** Takes clusters in a row that nobody uses: offset in bytes. */
async function allocate(c: Check, wanted: number): Promise<number> {
  const { s, references } = c;
  let first = 0;
  search: for (;;) {
    first = references.findFree(first, wanted);
    for (let cluster = first; cluster < first + wanted; cluster++) {
      const index = Math.floor(cluster / s.refcountsPerBlock);
      if ((await c.refcounts.block(c, index)) === null) {
        const before = s.header.refcountTableClusters;
        await addRefcountBlock(c.node, c.guard, index);
        if (s.header.refcountTableClusters !== before) c.refcounts.clear();
        // The new structures lie at the start of the range, in use from now on.
        references.set(index * s.refcountsPerBlock, 1);
        continue search;
      }
      if ((await c.refcounts.get(c, cluster)) !== 0) {
        first = cluster + 1;
        continue search;
      }
    }
    break;
  }
  for (let cluster = first; cluster < first + wanted; cluster++) {
    await c.refcounts.set(c, cluster, 1);
    references.set(cluster, 1);
  }
  return first * s.clusterBytes;
}

async function release(c: Check, offset: number, bytes: number): Promise<void> {
  const { clusterBytes } = c.s;
  for (let at = offset; at < offset + bytes; at += clusterBytes) {
    const cluster = at / clusterBytes;
    const refcount = await c.refcounts.get(c, cluster);
    if (refcount === null || refcount === 0) {
      // Behind what was counted: there was no reference to take away.
      c.request.report('qcow2_free_clusters failed: Invalid argument');
      return;
    }
    await c.refcounts.set(c, cluster, refcount - 1);
    if (refcount === 1 && c.s.passDiscard.snapshot) await discardClusters(c, cluster, cluster + 1);
  }
}
