/**
 * Dirty bitmaps of nodes: which parts of a node have been written since somebody looked.
 *
 * Here: the record, the table of a node's bitmaps, recording of writes, and the operations with their errors. Not
 * here: the tree of bits (hierarchical-bitmap.ts), the image file (drivers store persistent bitmaps themselves).
 * Offsets and sizes are bytes; a bit stands for `granularityBytes` of the node.
 */

import { createHash } from 'node:crypto';
import type { BlockDirtyInfo } from '../../../schema/generated/types.ts';
import { byteLength } from '../../aio/host/names.ts';
import { nextTurn } from '../../aio/host/turns.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, ioError } from '../../errors/error.ts';
import type { BlockNode } from '../graph/node.ts';
import type { BlockLayer } from '../layer.ts';
import { HierarchicalBitmap, MAX_BITMAP_LENGTH } from './hierarchical-bitmap.ts';

export const MIN_GRANULARITY_BYTES = 512;
/** Longest name in bytes. */
export const BITMAP_NAME_MAX_BYTES = 1023;
/** Bounds of the granularity that is chosen for a user who gives none. */
const DEFAULT_GRANULARITY_MIN = 4096;
const DEFAULT_GRANULARITY_MAX = 65536;

export interface DirtyBitmap {
  readonly node: BlockNode;
  /** Null: made by an operation for itself, not to be found by name. */
  readonly name: string | null;
  readonly granularityBytes: number;
  readonly bits: HierarchicalBitmap;
  /** Length of the node that the bits cover. */
  sizeBytes: number;
  /** Writes are recorded. */
  enabled: boolean;
  /** An operation or export uses it: it cannot be changed or removed. */
  busy: boolean;
  /** Records writes in its place while an operation uses it; see bitmaps/successor.ts. */
  successor: DirtyBitmap | null;
  /** Kept in the image when the node is closed. */
  persistent: boolean;
  /** The image says that it was not stored after the last use: good for nothing but being removed. */
  readonly inconsistent: boolean;
  /** It belongs to an image that is open read-only. */
  readOnly: boolean;
}

/** The bitmaps of a node. */
export interface DirtyBitmapTable {
  /** Oldest first. */
  readonly all: Set<DirtyBitmap>;
  readonly byName: Map<string, DirtyBitmap>;
}

export function createBitmapTable(): DirtyBitmapTable {
  return { all: new Set(), byName: new Map() };
}

/** Blocks of a node. No request goes beyond 2^53 bytes, however long the node says it is. */
function blocksOf(sizeBytes: number, granularityBytes: number): number {
  return Math.min(Math.ceil(sizeBytes / granularityBytes), MAX_BITMAP_LENGTH);
}

export interface NewBitmap {
  readonly name: string | null;
  /** A power of two, at least MIN_GRANULARITY_BYTES. */
  readonly granularityBytes: number;
  readonly enabled?: boolean;
  readonly persistent?: boolean;
  readonly inconsistent?: boolean;
  readonly readOnly?: boolean;
}

/** Adds a bitmap without dirty bits to a node. Throws when the name is taken or too long. */
export function createBitmap(node: BlockNode, wanted: NewBitmap): DirtyBitmap {
  const { name, granularityBytes } = wanted;
  const { all, byName } = node.dirtyBitmaps;
  if (name !== null) {
    if (byName.has(name)) throw new BlockError(`Bitmap already exists: ${name}`, { errno: E.EINVAL });
    if (byteLength(name) > BITMAP_NAME_MAX_BYTES)
      throw new BlockError(`Bitmap name too long: ${name}`, { errno: E.EINVAL });
  }
  const bitmap: DirtyBitmap = {
    node,
    name,
    granularityBytes,
    bits: new HierarchicalBitmap(blocksOf(node.totalBytes, granularityBytes)),
    sizeBytes: node.totalBytes,
    enabled: wanted.enabled ?? true,
    busy: false,
    successor: null,
    persistent: wanted.persistent ?? false,
    inconsistent: wanted.inconsistent ?? false,
    readOnly: wanted.readOnly ?? false,
  };
  all.add(bitmap);
  if (name !== null) byName.set(name, bitmap);
  return bitmap;
}

/** Takes a bitmap off its node; what the image holds of it is the driver's. */
export function releaseBitmap(bitmap: DirtyBitmap): void {
  const { all, byName } = bitmap.node.dirtyBitmaps;
  all.delete(bitmap);
  if (bitmap.name !== null) byName.delete(bitmap.name);
}

export function findBitmap(node: BlockNode, name: string): DirtyBitmap | null {
  return node.dirtyBitmaps.byName.get(name) ?? null;
}

/** The bitmap `name` of the node named `nodeName`; throws when there is none. */
export function lookUpBitmap(layer: BlockLayer, nodeName: string, name: string): DirtyBitmap {
  const node = layer.findNode(nodeName);
  if (node === null) throw new BlockError(`Node '${nodeName}' not found`);
  const bitmap = findBitmap(node, name);
  if (bitmap === null) throw new BlockError(`Dirty bitmap '${name}' not found`);
  return bitmap;
}

/** The granularity for a user who gives none: the cluster size of the image (0: unknown) within bounds. */
export function defaultGranularity(clusterBytes: number): number {
  if (clusterBytes <= 0) return DEFAULT_GRANULARITY_MAX;
  return Math.min(Math.max(clusterBytes, DEFAULT_GRANULARITY_MIN), DEFAULT_GRANULARITY_MAX);
}

// ---- bits ------------------------------------------------------------------------------------------------------

/** Marks the blocks that [offset, offset+bytes) touches. */
export function setDirty(bitmap: DirtyBitmap, offset: number, bytes: number): void {
  const { bits, granularityBytes } = bitmap;
  bits.set(Math.floor(offset / granularityBytes), Math.ceil((offset + bytes) / granularityBytes));
}

/** Unmarks the blocks that [offset, offset+bytes) touches: give it whole blocks. */
export function resetDirty(bitmap: DirtyBitmap, offset: number, bytes: number): void {
  const { bits, granularityBytes } = bitmap;
  bits.reset(Math.floor(offset / granularityBytes), Math.ceil((offset + bytes) / granularityBytes));
}

/** Whether the block that holds `offset` is marked. */
export function isDirty(bitmap: DirtyBitmap, offset: number): boolean {
  return bitmap.bits.get(Math.floor(offset / bitmap.granularityBytes));
}

/** Marked bytes, whole blocks. */
export function dirtyBytes(bitmap: DirtyBitmap): number {
  return bitmap.bits.count * bitmap.granularityBytes;
}

export interface DirtyExtent {
  readonly offset: number;
  readonly bytes: number;
}

/** The first marked extent within [offset, end), cut to it and to the node; null: nothing is marked there. */
export function nextDirty(bitmap: DirtyBitmap, offset: number, end = bitmap.sizeBytes): DirtyExtent | null {
  const { bits, granularityBytes } = bitmap;
  const limit = Math.min(end, bitmap.sizeBytes);
  // The last block may go on behind the end of the node, or of what is looked at.
  if (offset >= limit) return null;
  const lastBit = Math.ceil(limit / granularityBytes);
  const first = bits.nextSet(Math.floor(offset / granularityBytes), lastBit);
  if (first < 0) return null;
  const clear = bits.nextClear(first, lastBit);
  const from = Math.max(first * granularityBytes, offset);
  const to = clear < 0 ? limit : clear * granularityBytes;
  return { offset: from, bytes: to - from };
}

/** Records a change of [offset, offset+bytes) of a node. */
export function recordWrite(table: DirtyBitmapTable, offset: number, bytes: number): void {
  if (bytes === 0 || table.all.size === 0) return;
  for (const bitmap of table.all) if (bitmap.enabled) setDirty(bitmap, offset, bytes);
}

/** Makes the bitmaps of a node as long as the node. New parts are clean. */
export function resizeBitmaps(node: BlockNode): void {
  for (const bitmap of node.dirtyBitmaps.all) {
    if (bitmap.sizeBytes === node.totalBytes) continue;
    bitmap.sizeBytes = node.totalBytes;
    bitmap.bits.resize(blocksOf(node.totalBytes, bitmap.granularityBytes));
  }
}

// ---- use by users ----------------------------------------------------------------------------------------------

/** What a use of a bitmap does not mind. */
export interface BitmapUse {
  readonly readOnly?: boolean;
  readonly inconsistent?: boolean;
  /** false: the error says nothing of a way out. */
  readonly hint?: boolean;
}

/** Throws unless the bitmap can be used now; `accepts` names states that do no harm. */
export function checkUsable(bitmap: DirtyBitmap, accepts: BitmapUse = {}): void {
  const name = `Bitmap '${bitmap.name ?? ''}'`;
  if (bitmap.busy)
    throw new BlockError(`${name} is currently in use by another operation and cannot be used`);
  if (bitmap.readOnly && accepts.readOnly !== true)
    throw new BlockError(`${name} is readonly and cannot be modified`);
  if (bitmap.inconsistent && accepts.inconsistent !== true) {
    const hint = { hint: 'Try block-dirty-bitmap-remove to delete this bitmap from disk' };
    throw new BlockError(`${name} is inconsistent and cannot be used`, accepts.hint === false ? {} : hint);
  }
}

/** Throws unless the bits of `source` can be added to `target`. */
export function checkMergeable(target: DirtyBitmap, source: DirtyBitmap): void {
  checkUsable(target);
  checkUsable(source, { readOnly: true });
  if (target.sizeBytes !== source.sizeBytes) {
    throw new BlockError(
      `Bitmaps are of different sizes (destination size is ${target.sizeBytes}, source size is ${source.sizeBytes}) ` +
        "and can't be merged",
    );
  }
}

/** Adds what is marked in `source`; both cover nodes of one size, granularities may differ. */
export function mergeBitmap(target: DirtyBitmap, source: DirtyBitmap): void {
  if (target === source) return;
  if (target.granularityBytes === source.granularityBytes) {
    target.bits.merge(source.bits);
    return;
  }
  for (let at = 0; ; ) {
    const extent = nextDirty(source, at);
    if (extent === null) return;
    setDirty(target, extent.offset, extent.bytes);
    at = extent.offset + extent.bytes;
  }
}

/** Remembers what is marked now; the result marks exactly that again. */
export function keepBits({ bits }: DirtyBitmap): () => void {
  const kept = new HierarchicalBitmap(bits.length);
  kept.merge(bits);
  return () => {
    kept.resize(bits.length);
    bits.clear();
    bits.merge(kept);
  };
}

/** The `dirty-bitmaps` member of a node in queries: newest first. */
export function dirtyBitmapInfos(node: BlockNode): BlockDirtyInfo[] {
  return [...node.dirtyBitmaps.all].reverse().map((bitmap) => ({
    ...(bitmap.name === null ? {} : { name: bitmap.name }),
    count: dirtyBytes(bitmap),
    granularity: bitmap.granularityBytes,
    recording: bitmap.enabled || bitmap.successor?.enabled === true,
    busy: bitmap.busy,
    persistent: bitmap.persistent,
    ...(bitmap.inconsistent ? { inconsistent: true } : {}),
  }));
}

const HASH_CHUNK_BYTES = 4 * 1024 * 1024;
/** More would take minutes; the original has no memory for it. */
const HASH_MAX_BYTES = 16 * 1024 ** 3;

/** SHA-256 of the bits in little-endian words of 64, in hexadecimal. Lets others run between the chunks. */
export async function bitmapSha256(bitmap: DirtyBitmap): Promise<string> {
  const hash = createHash('sha256');
  // There is a word even when there is no bit.
  const bytes = Math.max(1, Math.ceil(bitmap.bits.length / 64)) * 8;
  if (bytes > HASH_MAX_BYTES) throw ioError(E.ENOMEM);
  const chunk = Buffer.allocUnsafe(Math.min(bytes, HASH_CHUNK_BYTES));
  for (let at = 0; at < bytes; at += HASH_CHUNK_BYTES) {
    if (at > 0) await nextTurn();
    const part = chunk.subarray(0, Math.min(HASH_CHUNK_BYTES, bytes - at));
    bitmap.bits.serialize(at * 8, part);
    hash.update(part);
  }
  return hash.digest('hex');
}
