/**
 * Walking over everything an L1 table refers to: changing refcounts for a snapshot, and putting COPIED flags right.
 *
 * Runs within a switch-over (metadata/switch-over.ts): tables are read from the disk, where they stay as they are.
 */

import { createTurns } from '../../../../aio/host/turns.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import {
  decodeCompressed,
  entryOffset,
  HI_COMPRESSED,
  HI_COPIED,
  offsetHi,
  offsetLo,
  viewOf,
} from '../layout/layout.ts';
import type { Qcow2Node, Qcow2State } from '../layout/state.ts';
import { readMetadata, writeMetadata } from '../metadata/metadata-io.ts';
import { retryLocked } from '../metadata/needs.ts';
import { allocateRun, changeRefcount, getRefcount } from '../metadata/refcount.ts';

/** Adds `delta` to the refcounts of everything `l1` refers to: L2 tables and what they map. */
export async function changeReferences(
  node: Qcow2Node,
  guard: GraphReadGuard,
  l1: DataView,
  delta: 1 | -1,
): Promise<void> {
  const turns = createTurns();
  for (const tableOffset of tablesOf(l1)) {
    const ranges = await referencesOf(node, guard, tableOffset);
    for (const range of ranges) await changeRange(node, guard, range, delta);
    await turns.next();
  }
}

/** Offsets of the L2 tables of an L1 table, in order. */
function* tablesOf(l1: DataView): Generator<number> {
  for (let at = 0; at + 8 <= l1.byteLength; at += 8) {
    const offset = entryOffset(l1.getUint32(at), l1.getUint32(at + 4));
    if (offset !== 0) yield offset;
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
  for (let cluster = first; cluster < first + count; cluster++) {
    const at = cluster;
    const changed = changeRefcount(s, at, delta);
    if (typeof changed !== 'number') await retryLocked(node, guard, () => changeRefcount(s, at, delta));
  }
}

/**
 * Sets the COPIED flag of every entry of `l1`, which is to be the active L1 table, and of its L2 tables whose cluster
 * has refcount 1, and clears the others. An L2 table that differs then gets a new place, and `l1` points there; so does
 * `alsoIn`, an L1 table that shares all tables with it, if there is one.
 */
export async function fixCopiedFlags(
  node: Qcow2Node,
  guard: GraphReadGuard,
  l1: DataView,
  alsoIn: DataView | null,
): Promise<void> {
  const s = node.state;
  const owners = alsoIn === null ? [l1] : [l1, alsoIn];
  const turns = createTurns();
  for (let at = 0; at + 8 <= l1.byteLength; at += 8) {
    const tableOffset = entryOffset(l1.getUint32(at), l1.getUint32(at + 4));
    if (tableOffset === 0) continue;
    const content = await fixedTable(node, guard, tableOffset);
    const place = content === null ? tableOffset : await moveTable(node, guard, tableOffset, content, owners);
    for (const owner of owners) {
      owner.setUint32(at, offsetHi(place));
      owner.setUint32(at + 4, offsetLo(place));
    }
    if ((await refcountOf(node, guard, place / s.clusterBytes)) === 1)
      l1.setUint32(at, withCopied(offsetHi(place), true));
    await turns.next();
  }
}

/** Writes the table to a new place, which all `owners` are to refer to. */
async function moveTable(
  node: Qcow2Node,
  guard: GraphReadGuard,
  from: number,
  content: Buffer,
  owners: readonly DataView[],
): Promise<number> {
  const s = node.state;
  const { offset } = await retryLocked(node, guard, () => allocateRun(s, 1));
  await writeMetadata(node, guard, offset, content, null);
  if (owners.length > 1) await changeRange(node, guard, { first: offset / s.clusterBytes, count: 1 }, 1);
  for (const _ of owners) await changeRange(node, guard, { first: from / s.clusterBytes, count: 1 }, -1);
  return offset;
}

function withCopied(hi: number, copied: boolean): number {
  return (copied ? hi | HI_COPIED : hi & ~HI_COPIED) >>> 0;
}

/** The table with its flags put right; null when they are. */
async function fixedTable(
  node: Qcow2Node,
  guard: GraphReadGuard,
  tableOffset: number,
): Promise<Buffer | null> {
  const s = node.state;
  const content = await readMetadata(node, guard, tableOffset, s.clusterBytes);
  const view = viewOf(content);
  let changed = false;
  for (let at = 0; at < s.clusterBytes; at += s.l2EntryBytes) {
    const hi = view.getUint32(at);
    const offset = entryOffset(hi, view.getUint32(at + 4));
    if ((hi & HI_COMPRESSED) !== 0 || offset === 0) continue;
    const known = refcountOf(node, guard, offset / s.clusterBytes);
    const wanted = withCopied(hi, (typeof known === 'number' ? known : await known) === 1);
    if (wanted === hi) continue;
    view.setUint32(at, wanted);
    changed = true;
  }
  return changed ? content : null;
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
