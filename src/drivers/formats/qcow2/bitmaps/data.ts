/**
 * The bits of a bitmap on the disk: a table of clusters, and the clusters.
 *
 * A table entry is the host offset of a cluster of bits (lowest bit of a byte first), or 0 for a cluster of clear
 * bits, or 1 for one of set bits. Which bitmaps there are is bitmaps/directory.ts.
 * Source: qcow2 specification, "Bitmaps".
 */

import { createTurns } from '../../../../aio/host/turns.ts';
import { allocateIoMemory, vectorOf } from '../../../../aio/memory.ts';
import type { DirtyBitmap } from '../../../../block/bitmaps/dirty-bitmap.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { sync } from '../../../../block/io/callbacks.ts';
import { E } from '../../../../errors/errno.ts';
import { errnoError, errnoOf, ioError } from '../../../../errors/error.ts';
import { readU64, viewOf, writeU64 } from '../layout/layout.ts';
import type { BitmapEntry, Qcow2Node, Qcow2State } from '../layout/state.ts';
import { allocateContiguous } from '../metadata/contiguous.ts';
import { readInto, readMetadata, writeMetadata } from '../metadata/metadata-io.ts';
import { retryLocked } from '../metadata/needs.ts';
import { allocateRun, deferFree } from '../metadata/refcount.ts';

const ENTRY_ONES = 1;
/** Offset bits of an entry: 9 to 55. */
const OFFSET_LIMIT = 2 ** 56;
/** Bits are written in pieces of at most this. */
const WRITE_BYTES = 1024 * 1024;

/** Clusters of bits that a bitmap of `bits` bits takes. */
export function tableEntriesFor(s: Qcow2State, bits: number): number {
  return Math.ceil(bits / 8 / s.clusterBytes);
}

/** Host clusters of a table. */
export function tableClusters(s: Qcow2State, tableEntries: number): number {
  return Math.ceil((tableEntries * 8) / s.clusterBytes);
}

/** Reads a table: per entry 0, ENTRY_ONES or a host offset. Throws EINVAL for an entry that is none of them. */
export async function readTable(
  node: Qcow2Node,
  guard: GraphReadGuard,
  { tableOffset, tableEntries }: BitmapEntry,
): Promise<Float64Array> {
  const s = node.state;
  const view = viewOf(await readMetadata(node, guard, tableOffset, tableEntries * 8));
  const table = new Float64Array(tableEntries);
  for (let i = 0; i < tableEntries; i++) {
    const entry = readU64(view, i * 8);
    if (entry !== ENTRY_ONES && (entry % s.clusterBytes !== 0 || entry >= OFFSET_LIMIT))
      throw ioError(E.EINVAL);
    table[i] = entry;
  }
  return table;
}

/** How much a hostile image may make us read: no cluster of the file belongs to two bitmaps. */
export interface ReadBudget {
  clusters: number;
}

/** Fills a clean bitmap from the disk. Throws with the bitmap's name. */
export async function readBits(
  node: Qcow2Node,
  guard: GraphReadGuard,
  entry: BitmapEntry,
  bitmap: DirtyBitmap,
  budget: ReadBudget,
): Promise<void> {
  const s = node.state;
  const spend = (clusters: number): void => {
    budget.clusters -= clusters;
    if (budget.clusters < 0) throw ioError(E.EINVAL);
  };
  let table: Float64Array;
  try {
    spend(tableClusters(s, entry.tableEntries));
    table = await readTable(node, guard, entry);
  } catch (error) {
    throw errnoError(
      `Could not read bitmap_table table from image for bitmap '${bitmap.name}'`,
      errnoOf(error),
    );
  }
  try {
    const { bits } = bitmap;
    if (table.length !== tableEntriesFor(s, bits.length)) throw ioError(E.EINVAL);
    const chunkBits = s.clusterBytes * 8;
    const mem = allocateIoMemory(s.clusterBytes);
    const turns = createTurns();
    for (let i = 0; i < table.length; i++) {
      const offset = table[i]!;
      if (offset === ENTRY_ONES) bits.set(i * chunkBits, (i + 1) * chunkBits);
      // A cluster behind the end of the file reads as zeroes.
      else if (offset !== 0 && offset < s.file.node.totalBytes) {
        spend(1);
        await turns.next();
        if (!sync.tryPreadv(s.file.node, guard, offset, mem.buf.length, vectorOf(mem)))
          await readInto(node, guard, offset, mem);
        bits.deserialize(i * chunkBits, mem.buf);
      }
    }
  } catch (error) {
    throw errnoError(`Could not read bitmap '${bitmap.name}' from image`, errnoOf(error));
  }
}

/** Host clusters an operation has taken, to be given back when it fails. */
export type TakenClusters = { readonly offset: number; readonly count: number }[];

/** Writes the bits and a table for them into new clusters. The caller holds the metadata lock. */
export async function writeBits(
  node: Qcow2Node,
  guard: GraphReadGuard,
  bitmap: DirtyBitmap,
  taken: TakenClusters,
): Promise<{ readonly tableOffset: number; readonly tableEntries: number }> {
  const s = node.state;
  const { bits } = bitmap;
  const chunkBits = s.clusterBytes * 8;
  const tableEntries = tableEntriesFor(s, bits.length);
  const table = Buffer.alloc(tableEntries * 8);
  const view = viewOf(table);
  const chunks: number[] = [];
  for (let bit = bits.nextSet(0); bit >= 0; ) {
    const chunk = Math.floor(bit / chunkBits);
    const end = (chunk + 1) * chunkBits;
    // The original takes "all set" by the word: the last cluster of bits may not hold that many.
    if (end <= bits.length && bits.nextClear(chunk * chunkBits, end) < 0)
      writeU64(view, chunk * 8, ENTRY_ONES);
    else chunks.push(chunk);
    bit = bits.nextSet(end);
  }
  const most = Math.max(1, Math.floor(WRITE_BYTES / s.clusterBytes));
  for (let at = 0; at < chunks.length; ) {
    const wanted = Math.min(most, chunks.length - at);
    const run = await retryLocked(node, guard, () => allocateRun(s, wanted));
    taken.push(run);
    const data = Buffer.allocUnsafe(run.count * s.clusterBytes);
    for (let i = 0; i < run.count; i++, at++) {
      const chunk = chunks[at]!;
      bits.serialize(chunk * chunkBits, data.subarray(i * s.clusterBytes, (i + 1) * s.clusterBytes));
      writeU64(view, chunk * 8, run.offset + i * s.clusterBytes);
    }
    await writeMetadata(node, guard, run.offset, data, null);
  }
  const run = await allocateContiguous(node, guard, tableClusters(s, tableEntries));
  taken.push(run);
  await writeMetadata(node, guard, run.offset, table, null);
  return { tableOffset: run.offset, tableEntries };
}

/** Gives back the clusters of a bitmap that the directory on the disk lists no more. */
export async function freeBits(node: Qcow2Node, guard: GraphReadGuard, entry: BitmapEntry): Promise<void> {
  const s = node.state;
  // A table that cannot be read, or makes no sense, only leaks its clusters.
  const table = await readTable(node, guard, entry).catch(() => new Float64Array(0));
  for (const offset of table)
    if (offset > ENTRY_ONES && isInFile(s, offset)) deferFree(node, offset, 1, 'other');
  const clusters = tableClusters(s, entry.tableEntries);
  if (isInFile(s, entry.tableOffset)) deferFree(node, entry.tableOffset, clusters, 'other');
}

function isInFile(s: Qcow2State, offset: number): boolean {
  return offset < s.file.node.totalBytes;
}
