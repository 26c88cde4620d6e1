/**
 * Refcounts of host clusters, and giving clusters out. Everything here is synchronous.
 *
 * A refcount is an entry of 1 to 64 bits in a refcount block; the refcount table lists the blocks. Functions that
 * meet a block which is not in memory (or does not exist) return a Need and have changed nothing.
 * The order in which changes reach the disk is writeback.ts; new blocks are made in refcount-blocks.ts.
 * Source: qcow2 specification, "Host cluster management".
 */

import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import type { CachedTable } from '../../shared/table-cache.ts';
import { hex, ImageCorruption } from '../layout/damage.ts';
import { MAX_HOST_OFFSET } from '../layout/layout.ts';
import type { FreeReason, Need, Qcow2Node, Qcow2State, RefcountSwitch } from '../layout/state.ts';

const TWO_32 = 2 ** 32;

/** Entry `index` of a refcount block. 64-bit values lose their low bits above 2^53. */
export function readRefcount(view: DataView, order: number, index: number): number {
  switch (order) {
    case 4:
      return view.getUint16(index * 2);
    case 3:
      return view.getUint8(index);
    case 5:
      return view.getUint32(index * 4);
    case 6:
      return view.getUint32(index * 8) * TWO_32 + view.getUint32(index * 8 + 4);
    default: {
      // Narrower than a byte: entries fill each byte from its low bits up.
      const bits = 1 << order;
      const perByte = 8 >> order;
      const byte = view.getUint8(Math.floor(index / perByte));
      return (byte >> ((index % perByte) * bits)) & ((1 << bits) - 1);
    }
  }
}

export function writeRefcount(view: DataView, order: number, index: number, value: number): void {
  switch (order) {
    case 4:
      view.setUint16(index * 2, value);
      break;
    case 3:
      view.setUint8(index, value);
      break;
    case 5:
      view.setUint32(index * 4, value);
      break;
    case 6:
      view.setUint32(index * 8, Math.floor(value / TWO_32));
      view.setUint32(index * 8 + 4, value % TWO_32);
      break;
    default: {
      const bits = 1 << order;
      const perByte = 8 >> order;
      const at = Math.floor(index / perByte);
      const shift = (index % perByte) * bits;
      const mask = ((1 << bits) - 1) << shift;
      view.setUint8(at, (view.getUint8(at) & ~mask) | (value << shift));
    }
  }
}

/** The refcount block that counts `cluster`; null when there is none (its clusters are free). */
function blockOf(s: Qcow2State, cluster: number): CachedTable | Need | null {
  const index = Math.floor(cluster / s.refcountsPerBlock);
  const offset = index < s.refcountTable.length ? s.refcountTable[index]! : 0;
  if (offset === 0) return null;
  return s.refcountCache.get(offset) ?? { need: 'refcounts', offset };
}

export function isNeed(value: unknown): value is Need {
  return typeof value === 'object' && value !== null && 'need' in value;
}

/** Refcount of a host cluster. */
export function getRefcount(s: Qcow2State, cluster: number): number | Need {
  const block = blockOf(s, cluster);
  if (block === null) return 0;
  if (isNeed(block)) return block;
  if (s.switching?.released.has(cluster) === true) return 0;
  return readRefcount(block.view, s.refcountOrder, cluster % s.refcountsPerBlock);
}

/**
 * Adds `delta` to the refcount of one cluster and returns the new value. Throws EINVAL when it would leave the range
 * that the width allows (an image whose refcounts are wrong).
 */
export function changeRefcount(s: Qcow2State, cluster: number, delta: number): number | Need {
  const block = blockOf(s, cluster);
  if (block === null) {
    if (delta < 0) throw ioError(E.EINVAL);
    return { need: 'new-refcount-block', index: Math.floor(cluster / s.refcountsPerBlock) };
  }
  if (isNeed(block)) return block;
  const index = cluster % s.refcountsPerBlock;
  const value = readRefcount(block.view, s.refcountOrder, index) + delta;
  if (value < 0 || value > s.maxRefcount) throw ioError(E.EINVAL);
  if (s.switching !== null) return changeSwitching(s, s.switching, block, cluster, delta, value);
  if (value === 0 && s.metadata.has(cluster)) forgetTables(s, cluster);
  writeRefcount(block.view, s.refcountOrder, index, value);
  s.refcountCache.markDirty(block);
  if (value === 0) {
    if (cluster < s.freeHint) s.freeHint = cluster;
    if (Math.floor(s.compressedTail / s.clusterBytes) === cluster) s.compressedTail = 0;
  }
  return value;
}

/** As changeRefcount, of refcounts that change together: a cluster that comes free must not be given out before. */
function changeSwitching(
  s: Qcow2State,
  { released, discarded, isSnapshot }: RefcountSwitch,
  block: CachedTable,
  cluster: number,
  delta: number,
  value: number,
): number {
  s.refcountCache.markDirty(block);
  if (released.has(cluster)) {
    // Its entry says 1.
    if (delta < 0) throw ioError(E.EINVAL);
    released.delete(cluster);
    discarded.delete(cluster);
    writeRefcount(block.view, s.refcountOrder, cluster % s.refcountsPerBlock, value - 1);
    return value - 1;
  }
  if (value === 0) {
    released.add(cluster);
    if (isSnapshot) discarded.add(cluster);
  } else {
    writeRefcount(block.view, s.refcountOrder, cluster % s.refcountsPerBlock, value);
  }
  return value;
}

/** What was a table in that cluster is one no more: no cached copy of it may ever be written. */
function forgetTables(s: Qcow2State, cluster: number): void {
  const offset = cluster * s.clusterBytes;
  const end = offset + s.clusterBytes;
  // In a damaged image something else may point to the cluster of a table that is in use.
  let used = s.refcountCache.isPinned(offset);
  for (let at = offset; at < end; at += s.l2Cache.tableBytes) used ||= s.l2Cache.isPinned(at);
  if (used) throw new ImageCorruption(`Cannot free cluster ${hex(offset)}: it holds a table in use`, true);
  s.metadata.delete(cluster);
  s.refcountBlocks.delete(cluster);
  s.refcountCache.drop(offset);
  for (let at = offset; at < end; at += s.l2Cache.tableBytes) s.l2Cache.drop(at);
}

/**
 * Gives back clusters that have just been taken and that nothing refers to, in memory or on the disk: their refcounts go
 * down at once, or, where a refcount block is not in memory, with the next write-back.
 */
export function giveBack(node: Qcow2Node, offset: number, clusters: number): void {
  const s = node.state;
  const first = Math.floor(offset / s.clusterBytes);
  for (let cluster = first; cluster < first + clusters; cluster++) {
    try {
      if (!isNeed(changeRefcount(s, cluster, -1))) continue;
    } catch {
      // Refcounts that are wrong: there is nothing to give back.
      continue;
    }
    s.frees.push({ cluster, count: 1, reason: 'never', stamp: 0, generation: 0 });
  }
}

/** As giveBack, for what compressed data of `bytes` occupied: every host cluster it touches. */
export function giveBackBytes(node: Qcow2Node, offset: number, bytes: number): void {
  const { clusterBytes } = node.state;
  const first = Math.floor(offset / clusterBytes);
  const last = Math.floor((offset + bytes - 1) / clusterBytes);
  giveBack(node, first * clusterBytes, last - first + 1);
}

export interface HostRun {
  /** Host offset in bytes. */
  readonly offset: number;
  /** Clusters, at least 1. */
  readonly count: number;
  /** Never used before and behind the end of the file: reads as zeroes. */
  readonly fresh: boolean;
}

/** Refcounts that one step looks at, so that the event loop is not held up for more than a few ms. */
const SCAN_CLUSTERS = 256 * 1024;

/**
 * Takes up to `wanted` free host clusters in a row, refcount 1. Fewer when the first free place is smaller; all of a
 * run are fresh or none.
 */
export function allocateRun(s: Qcow2State, wanted: number): HostRun | Need {
  const { refcountsPerBlock: perBlock, refcountOrder: order } = s;
  const scanEnd = s.freeHint + SCAN_CLUSTERS;
  for (let cluster = s.freeHint; ; ) {
    if ((cluster + 1) * s.clusterBytes > MAX_HOST_OFFSET) throw ioError(E.EFBIG);
    if (cluster >= scanEnd) return { need: 'turn' };
    const block = blockOf(s, cluster);
    if (block === null) return { need: 'new-refcount-block', index: Math.floor(cluster / perBlock) };
    if (isNeed(block)) return block;
    const end = (Math.floor(cluster / perBlock) + 1) * perBlock;
    const stop = Math.min(end, scanEnd);
    while (cluster < stop && readRefcount(block.view, order, cluster % perBlock) !== 0) cluster++;
    s.freeHint = cluster;
    if (cluster === stop) continue;
    const fresh = cluster >= s.freshFrom;
    const most = Math.min(end, cluster + wanted, fresh ? end : s.freshFrom);
    const first = cluster;
    while (cluster < most && readRefcount(block.view, order, cluster % perBlock) === 0) {
      writeRefcount(block.view, order, cluster % perBlock, 1);
      cluster++;
    }
    s.refcountCache.markDirty(block);
    s.freeHint = cluster;
    if (cluster > s.freshFrom) s.freshFrom = cluster;
    s.switching?.taken.push([first, cluster - first]);
    return { offset: first * s.clusterBytes, count: cluster - first, fresh };
  }
}

/**
 * Takes the host clusters [first, first + wanted), refcount 1; null when one of them is in use. The refcount blocks
 * must fit into the cache together.
 */
export function takeClusters(s: Qcow2State, first: number, wanted: number): HostRun | Need | null {
  for (let cluster = first; cluster < first + wanted; cluster++) {
    const block = blockOf(s, cluster);
    if (block === null)
      return { need: 'new-refcount-block', index: Math.floor(cluster / s.refcountsPerBlock) };
    if (isNeed(block)) return block;
    if (readRefcount(block.view, s.refcountOrder, cluster % s.refcountsPerBlock) !== 0) return null;
  }
  for (let cluster = first; cluster < first + wanted; cluster++) {
    const block = blockOf(s, cluster) as CachedTable;
    writeRefcount(block.view, s.refcountOrder, cluster % s.refcountsPerBlock, 1);
    s.refcountCache.markDirty(block);
  }
  const fresh = first >= s.freshFrom;
  if (first + wanted > s.freshFrom) s.freshFrom = first + wanted;
  s.switching?.taken.push([first, wanted]);
  return { offset: first * s.clusterBytes, count: wanted, fresh };
}

/**
 * Gives back references to host clusters that the mapping in memory has just lost (or never had: a failed
 * allocation). Their refcounts go down later, see DeferredFree.
 */
export function deferFree(node: Qcow2Node, offset: number, clusters: number, reason: FreeReason): void {
  const s = node.state;
  s.frees.push({
    cluster: Math.floor(offset / s.clusterBytes),
    count: clusters,
    reason,
    stamp: node.tracked.lastId,
    generation: s.generation + 1,
  });
}

/** Gives back what a compressed cluster occupied: every host cluster it touches. */
export function deferFreeCompressed(
  node: Qcow2Node,
  offset: number,
  bytes: number,
  reason: FreeReason,
): void {
  const { clusterBytes } = node.state;
  const first = Math.floor(offset / clusterBytes);
  const last = Math.floor((offset + bytes - 1) / clusterBytes);
  deferFree(node, first * clusterBytes, last - first + 1, reason);
}
