/**
 * Changing the version of an image. Up is a matter of the header. Down needs an image without what version 2 cannot
 * say: zero clusters become clusters full of zeroes, or unallocated ones where no backing image would show through.
 */

import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError } from '../../../../errors/error.ts';
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
import { barrier, readMetadata, writeHeader, writeMetadata } from '../metadata/metadata-io.ts';
import { retryLocked } from '../metadata/needs.ts';
import { allocateRun, changeRefcount, deferFree, getRefcount } from '../metadata/refcount.ts';
import { flushMetadataLocked, settleMetadata } from '../metadata/writeback.ts';

function refuse(message: string): BlockError {
  return new BlockError(message, { errno: E.ENOTSUP });
}

/** Refcounts are complete on the disk, and the header says so. */
export async function clearDirtyBit(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const { header } = node.state;
  await settleMetadata(node, guard);
  if ((header.incompatible & Incompat.dirty) === 0) return;
  header.incompatible &= ~Incompat.dirty;
  await writeHeader(node, guard);
  await barrier(node, guard);
}

/** Version 2 to 3. */
export async function upgrade(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const { header } = node.state;
  header.version = 3;
  try {
    await writeHeader(node, guard);
    await barrier(node, guard);
  } catch (error) {
    header.version = 2;
    throw error;
  }
}

/** Version 3 to 2. */
export async function downgrade(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  const { header } = s;
  if (header.refcountOrder !== 4) throw refuse('compat=0.10 requires refcount_bits=16');
  if (s.hasDataFile) throw refuse('Cannot downgrade an image with a data file');
  // The original lets a compression type other than zlib go, and loses what was compressed with it.
  const left = header.incompatible & ~Incompat.dirty;
  if (left !== 0)
    throw refuse(`Cannot downgrade an image with incompatible features 0x${left.toString(16)} set`);
  s.lazyRefcounts = false;
  await clearDirtyBit(node, guard);
  await exclusive(node, guard, () => expandAll(node, guard));
  await settleMetadata(node, guard);
  const before = { version: 3, compatible: header.compatible, autoclear: header.autoclear };
  header.version = 2;
  header.compatible = 0;
  header.autoclear = 0;
  try {
    await writeHeader(node, guard);
    await barrier(node, guard);
  } catch (error) {
    Object.assign(header, before);
    throw error;
  }
}

/** Zero clusters of the active image and of all snapshots; a table that several of them use is done once. */
async function expandAll(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  const tables = new Set<number>();
  const collect = (l1: DataView): void => {
    for (let at = 0; at + 8 <= l1.byteLength; at += 8) {
      const offset = entryOffset(l1.getUint32(at), l1.getUint32(at + 4));
      if (offset !== 0) tables.add(offset);
    }
  };
  collect(s.l1);
  for (const { l1Offset, l1Entries } of s.extras.snapshots)
    collect(viewOf(await readMetadata(node, guard, l1Offset, l1Entries * 8)));
  for (const table of tables) await expandTable(node, guard, table);
}

/** A new cluster full of zeroes with `users` references. */
async function zeroCluster(node: Qcow2Node, guard: GraphReadGuard, users: number): Promise<number> {
  const s = node.state;
  const { offset } = await retryLocked(node, guard, () => allocateRun(s, 1));
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
  let changed = false;
  for (let at = 0; at < content.length; at += 8) {
    const hi = view.getUint32(at);
    const lo = view.getUint32(at + 4);
    if ((hi & HI_COMPRESSED) !== 0 || (lo & LO_ZERO) === 0) continue;
    changed = true;
    const old = entryOffset(hi, lo);
    if (old !== 0) dropped.push(old);
    const host = node.child('backing') === null ? 0 : await zeroCluster(node, guard, users);
    const copied = host !== 0 && users === 1 ? HI_COPIED : 0;
    view.setUint32(at, (offsetHi(host) | copied) >>> 0);
    view.setUint32(at + 4, offsetLo(host));
  }
  if (!changed) return;
  // Refcounts and zeroes first, then the table, then the old clusters are free.
  await flushMetadataLocked(node, guard);
  await writeMetadata(node, guard, table, content, 'active-l2');
  await barrier(node, guard);
  for (let at = 0; at < s.clusterBytes; at += s.l2Cache.tableBytes) s.l2Cache.drop(table + at);
  for (const offset of dropped) {
    for (let user = 0; user < users; user++) deferFree(node, offset, 1, 'other');
  }
}
