/**
 * Walking over everything an L1 table refers to: changing refcounts for a snapshot, and putting COPIED flags right.
 *
 * Runs in exclusive sections with clean caches, so tables are read from the disk and written straight to it.
 */

import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { co } from '../../../../block/io/callbacks.ts';
import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import { decodeCompressed, entryOffset, HI_COMPRESSED, HI_COPIED, viewOf } from '../layout/layout.ts';
import type { Qcow2Node, Qcow2State } from '../layout/state.ts';
import { readMetadata, writeMetadata } from '../metadata/metadata-io.ts';
import { retryLocked } from '../metadata/needs.ts';
import { changeRefcount, getRefcount } from '../metadata/refcount.ts';

/** Adds `delta` to the refcounts of everything `l1` refers to: L2 tables and what they map. All or nothing for +1. */
export async function changeReferences(
  node: Qcow2Node,
  guard: GraphReadGuard,
  l1: DataView,
  delta: 1 | -1,
): Promise<void> {
  const done: HostRange[] = [];
  try {
    for (let at = 0; at + 8 <= l1.byteLength; at += 8) {
      const tableOffset = entryOffset(l1.getUint32(at), l1.getUint32(at + 4));
      if (tableOffset === 0) continue;
      const ranges = await referencesOf(node, guard, tableOffset);
      for (const range of ranges) {
        await changeRange(node, guard, range, delta);
        if (delta > 0) done.push(range);
      }
    }
  } catch (error) {
    // A refcount that cannot go up (its width is exhausted) must leave everything as it was.
    for (const range of done) await changeRange(node, guard, range, -1).catch(() => undefined);
    throw error;
  }
}

/** Clusters [first, first + count). */
interface HostRange {
  readonly first: number;
  readonly count: number;
}

/** The table itself and all clusters its entries refer to, neighbours merged. */
async function referencesOf(
  node: Qcow2Node,
  guard: GraphReadGuard,
  tableOffset: number,
): Promise<HostRange[]> {
  const s = node.state;
  if (tableOffset % s.clusterBytes !== 0) throw ioError(E.EIO);
  const view = viewOf(await readMetadata(node, guard, tableOffset, s.clusterBytes));
  const ranges: { first: number; count: number }[] = [{ first: tableOffset / s.clusterBytes, count: 1 }];
  const add = (first: number, count: number): void => {
    const last = ranges.at(-1)!;
    if (ranges.length > 1 && last.first + last.count === first) last.count += count;
    else ranges.push({ first, count });
  };
  for (let at = 0; at < s.clusterBytes; at += s.l2EntryBytes) {
    const hi = view.getUint32(at);
    const lo = view.getUint32(at + 4);
    if ((hi & HI_COMPRESSED) !== 0) {
      const { offset, bytes } = decodeCompressed(hi, lo, s.clusterBits);
      const first = Math.floor(offset / s.clusterBytes);
      // Not merged: neighbours may share a cluster, which then counts twice.
      ranges.push({ first, count: Math.floor((offset + bytes - 1) / s.clusterBytes) - first + 1 });
      continue;
    }
    const offset = entryOffset(hi, lo);
    if (offset === 0) continue;
    if (offset % s.clusterBytes !== 0) throw ioError(E.EIO);
    add(offset / s.clusterBytes, 1);
  }
  return ranges;
}

async function changeRange(
  node: Qcow2Node,
  guard: GraphReadGuard,
  { first, count }: HostRange,
  delta: 1 | -1,
): Promise<void> {
  const s = node.state;
  let changed = first;
  try {
    if (delta < 0 && s.passDiscard.snapshot) await discardLastUses(node, guard, first, count);
    for (; changed < first + count; changed++) {
      const cluster = changed;
      await retryLocked(node, guard, () => changeRefcount(s, cluster, delta));
    }
  } catch (error) {
    if (delta > 0) {
      for (let cluster = first; cluster < changed; cluster++) {
        await retryLocked(node, guard, () => changeRefcount(s, cluster, -1));
      }
    }
    throw error;
  }
}

/** Discards clusters that are about to become free. */
async function discardLastUses(
  node: Qcow2Node,
  guard: GraphReadGuard,
  first: number,
  count: number,
): Promise<void> {
  const s = node.state;
  let from = -1;
  for (let cluster = first; cluster <= first + count; cluster++) {
    const at = cluster;
    const last = cluster < first + count && (await retryLocked(node, guard, () => getRefcount(s, at))) === 1;
    if (last && from < 0) from = cluster;
    if (last || from < 0) continue;
    const bytes = (cluster - from) * s.clusterBytes;
    await co.pdiscard(s.file.node, guard, from * s.clusterBytes, bytes).catch(() => undefined);
    from = -1;
  }
}

/**
 * Sets the COPIED flag of every entry of the active L1 table and its L2 tables whose cluster has refcount 1, and
 * clears the others; writes what changed.
 */
export async function fixCopiedFlags(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  for (let index = 0; index < s.header.l1Entries; index++) {
    const at = index * 8;
    const hi = s.l1.getUint32(at);
    const tableOffset = entryOffset(hi, s.l1.getUint32(at + 4));
    if (tableOffset === 0) continue;
    const tableRefcount = await retryLocked(node, guard, () => getRefcount(s, tableOffset / s.clusterBytes));
    await fixTable(node, guard, tableOffset);
    const wanted = withCopied(hi, tableRefcount === 1);
    if (wanted === hi) continue;
    s.l1.setUint32(at, wanted);
    s.l1Dirty.add(at >> 9);
  }
}

function withCopied(hi: number, copied: boolean): number {
  return (copied ? hi | HI_COPIED : hi & ~HI_COPIED) >>> 0;
}

async function fixTable(node: Qcow2Node, guard: GraphReadGuard, tableOffset: number): Promise<void> {
  const s = node.state;
  const content = await readMetadata(node, guard, tableOffset, s.clusterBytes);
  const view = viewOf(content);
  let changed = false;
  for (let at = 0; at < s.clusterBytes; at += s.l2EntryBytes) {
    const hi = view.getUint32(at);
    const offset = entryOffset(hi, view.getUint32(at + 4));
    if ((hi & HI_COMPRESSED) !== 0 || offset === 0) continue;
    const refcount = await refcountOf(node, guard, offset / s.clusterBytes);
    const wanted = withCopied(hi, refcount === 1);
    if (wanted === hi) continue;
    view.setUint32(at, wanted);
    changed = true;
  }
  if (changed) await writeMetadata(node, guard, tableOffset, content, 'active-l2');
}

/** As getRefcount; awaits only where a block has to be read. */
function refcountOf(node: Qcow2Node, guard: GraphReadGuard, cluster: number): number | Promise<number> {
  const known = getRefcount(node.state, cluster);
  return typeof known === 'number' ? known : retryLocked(node, guard, () => getRefcount(node.state, cluster));
}

/** A copy of the active L1 table as it is in memory. */
export function copyL1(s: Qcow2State): DataView {
  const copy = Buffer.alloc(s.l1.byteLength);
  copy.set(new Uint8Array(s.l1.buffer, s.l1.byteOffset, s.l1.byteLength));
  return viewOf(copy);
}
