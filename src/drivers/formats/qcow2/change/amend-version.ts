/**
 * Changing the version of an image. Up is a matter of the header and of short entries in the snapshot table. Down needs an image without what version 2 cannot
 * say: zero clusters become clusters full of zeroes, or unallocated ones where no backing image would show through.
 */

import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError } from '../../../../errors/error.ts';
import { dropBitmaps } from '../bitmaps/bitmaps.ts';
import { encodeHeader } from '../layout/header.ts';
import {
  entryOffset,
  HI_COMPRESSED,
  HI_COPIED,
  Incompat,
  LO_ZERO,
  offsetHi,
  offsetLo,
  viewOf,
} from '../layout/layout.ts';
import type { Qcow2Node } from '../layout/state.ts';
import { exclusive } from '../metadata/exclusive.ts';
import { barrier, changeHeader, readMetadata, writeMetadata } from '../metadata/metadata-io.ts';
import { retryLocked } from '../metadata/needs.ts';
import { allocateRun, changeRefcount, deferFree, getRefcount, giveBack } from '../metadata/refcount.ts';
import { switchOver } from '../metadata/switch-over.ts';
import { flushMetadataLocked, settleMetadata } from '../metadata/writeback.ts';
import { placeList } from '../snapshots/snapshots.ts';
import { encodeSnapshotTable, readSnapshotL1 } from '../snapshots/table.ts';
import type { StageProgress } from './amend-progress.ts';

function refuse(message: string): BlockError {
  return new BlockError(message, { errno: E.ENOTSUP });
}

/** Refcounts are complete on the disk, and the header says so. */
export async function clearDirtyBit(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const { header } = node.state;
  await settleMetadata(node, guard);
  if ((header.incompatible & Incompat.dirty) === 0) return;
  await changeHeader(node, guard, { incompatible: header.incompatible & ~Incompat.dirty });
}

// ---- version 2 to 3 ------------------------------------------------------------------------------------------

/**
 * Throws what keeps an image from becoming version 3: its header may not fit into the first cluster any more, and a bit
 * that means nothing in version 2 would make zeroes of data.
 */
export async function checkUpgrade(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  encodeHeader({ ...node.state.header, version: 3 });
  for (const table of new Set(await allTables(node, guard))) {
    if (table === 0) continue;
    const view = viewOf(await readMetadata(node, guard, table, node.state.clusterBytes));
    for (let at = 0; at < view.byteLength; at += 8) {
      if ((view.getUint32(at) & HI_COMPRESSED) === 0 && (view.getUint32(at + 4) & LO_ZERO) !== 0)
        throw refuse('Cannot upgrade an image with reserved bits set in L2 entries');
    }
  }
}

/** Version 2 to 3. Entries of the snapshot table get the fields that version 3 demands of them. */
export async function upgrade(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const { extras } = node.state;
  const isShort = encodeSnapshotTable(extras.snapshots).length !== extras.snapshotTableBytes;
  if (!isShort) {
    await changeHeader(node, guard, { version: 3 });
    return;
  }
  await exclusive(node, guard, () =>
    switchOver(node, guard, async () => {
      const { header, apply } = await placeList(node, guard, extras.snapshots);
      return { header: { ...header, version: 3 }, apply };
    }),
  );
}

// ---- version 3 to 2 ------------------------------------------------------------------------------------------

/** Throws what keeps an image from becoming version 2, in the original's order. `refcountOrder`, `sizeBytes`: as they will be. */
export function checkDowngrade(node: Qcow2Node, refcountOrder: number, sizeBytes: number): void {
  const s = node.state;
  if (refcountOrder !== 4) throw refuse('compat=0.10 requires refcount_bits=16');
  if (s.hasDataFile) throw refuse('Cannot downgrade an image with a data file');
  // Fields that version 2 has for this are optional there: others may not look at them.
  if (s.extras.snapshots.some((one) => one.vmStateBytes > 0xffffffff || one.diskBytes !== sizeBytes))
    throw refuse('Internal snapshots prevent downgrade of image');
  // The original lets a compression type other than zlib go, and loses what was compressed with it.
  const left = s.header.incompatible & ~Incompat.dirty;
  if (left !== 0)
    throw refuse(`Cannot downgrade an image with incompatible features 0x${left.toString(16)} set`);
}

/** Version 3 to 2, which checkDowngrade has not refused. */
export async function downgrade(
  node: Qcow2Node,
  guard: GraphReadGuard,
  progress: StageProgress,
): Promise<void> {
  const s = node.state;
  checkDowngrade(node, s.header.refcountOrder, s.header.size);
  s.lazyRefcounts = false;
  await clearDirtyBit(node, guard);
  await dropBitmaps(node, guard);
  await exclusive(node, guard, () => expandAll(node, guard, progress));
  await settleMetadata(node, guard);
  await changeHeader(node, guard, { version: 2, compatible: 0, autoclear: 0 });
}

/** L2 tables by the L1 entries that name them, of the active image and of all snapshots; 0: none. */
async function allTables(node: Qcow2Node, guard: GraphReadGuard): Promise<readonly number[]> {
  const s = node.state;
  const tables: number[] = [];
  const collect = (l1: DataView): void => {
    for (let at = 0; at + 8 <= l1.byteLength; at += 8)
      tables.push(entryOffset(l1.getUint32(at), l1.getUint32(at + 4)));
  };
  collect(s.l1);
  for (const { l1Offset, l1Entries } of s.extras.snapshots)
    collect(await readSnapshotL1(node, guard, { l1Offset, l1Entries }));
  return tables;
}

/** Zero clusters of the active image and of all snapshots; a table that several of them use is done once. */
async function expandAll(node: Qcow2Node, guard: GraphReadGuard, progress: StageProgress): Promise<void> {
  const tables = await allTables(node, guard);
  const done = new Set<number>([0]);
  for (const [index, table] of tables.entries()) {
    if (!done.has(table)) await expandTable(node, guard, table);
    done.add(table);
    progress(index + 1, tables.length);
  }
}

/** A new cluster full of zeroes with `users` references. */
async function zeroCluster(
  node: Qcow2Node,
  guard: GraphReadGuard,
  users: number,
  taken: number[],
): Promise<number> {
  const s = node.state;
  const { offset } = await retryLocked(node, guard, () => allocateRun(s, 1));
  taken.push(offset);
  if (users > 1) await retryLocked(node, guard, () => changeRefcount(s, offset / s.clusterBytes, users - 1));
  const content = Buffer.alloc(s.clusterBytes);
  s.extras.cipher?.encrypt(content, offset);
  await writeMetadata(node, guard, offset, content, null);
  return offset;
}

async function expandTable(node: Qcow2Node, guard: GraphReadGuard, table: number): Promise<void> {
  const s = node.state;
  const content = await readMetadata(node, guard, table, s.clusterBytes);
  const view = viewOf(content);
  const users = await retryLocked(node, guard, () => getRefcount(s, table / s.clusterBytes));
  const dropped: number[] = [];
  const taken: number[] = [];
  // A backing file that nobody has opened would show through all the same.
  const mayShow = node.child('backing') !== null || s.header.backingFile !== null;
  let changed = false;
  try {
    for (let at = 0; at < content.length; at += 8) {
      const hi = view.getUint32(at);
      const lo = view.getUint32(at + 4);
      if ((hi & HI_COMPRESSED) !== 0 || (lo & LO_ZERO) === 0) continue;
      changed = true;
      const old = entryOffset(hi, lo);
      if (old !== 0) dropped.push(old);
      const host = mayShow ? await zeroCluster(node, guard, users, taken) : 0;
      const copied = host !== 0 && users === 1 ? HI_COPIED : 0;
      view.setUint32(at, (offsetHi(host) | copied) >>> 0);
      view.setUint32(at + 4, offsetLo(host));
    }
    if (!changed) return;
    // Refcounts and zeroes first, then the table, then the old clusters are free.
    await flushMetadataLocked(node, guard);
  } catch (error) {
    for (const offset of taken) for (let user = 0; user < users; user++) giveBack(node, offset, 1);
    throw error;
  }
  await writeMetadata(node, guard, table, content, 'active-l2');
  await barrier(node, guard);
  for (let at = 0; at < s.clusterBytes; at += s.l2Cache.tableBytes) s.l2Cache.drop(table + at);
  for (const offset of dropped) {
    for (let user = 0; user < users; user++) deferFree(node, offset, 1, 'other');
  }
}
