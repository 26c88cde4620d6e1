/**
 * Persistent dirty bitmaps: loaded into the node when the image is opened, stored when it is closed.
 *
 * While an image is open for writing, its bitmaps are marked in use on the disk: after a crash they are known to be
 * out of date. The mark is on stable storage before the first write. A new directory is written beside the old one;
 * the header changes over to it while the autoclear bit is off, which makes everybody ignore bitmaps, so that no
 * torn header can point to half of it. What the old directory listed is freed last. A crash in between loses bitmaps
 * (which were in use anyway) and leaks clusters, no more.
 * Source: qcow2 specification, "Bitmaps extension".
 */

import type { Qcow2BitmapInfo } from '../../../../../schema/generated/types.ts';
import { byteLength, bytesOfText } from '../../../../aio/host/names.ts';
import {
  BITMAP_NAME_MAX_BYTES,
  checkUsable,
  createBitmap,
  type DirtyBitmap,
  findBitmap,
} from '../../../../block/bitmaps/dirty-bitmap.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import type { PersistentBitmaps } from '../../../../block/contract/image.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError, errnoError, errnoOf, reasonOf } from '../../../../errors/error.ts';
import { ImageCorruption } from '../layout/damage.ts';
import { Autoclear, MAX_BITMAP_BYTES, MAX_BITMAP_DIRECTORY_BYTES, MAX_BITMAPS } from '../layout/layout.ts';
import { rebuildMetadata } from '../layout/overlap.ts';
import type { BitmapEntry, Qcow2Node, Qcow2State } from '../layout/state.ts';
import { allocateContiguous } from '../metadata/contiguous.ts';
import { alone, exclusive } from '../metadata/exclusive.ts';
import { barrier, changeHeader, settleHeader, writeHeader, writeMetadata } from '../metadata/metadata-io.ts';
import { deferFree, giveBack } from '../metadata/refcount.ts';
import { settleLocked } from '../metadata/writeback.ts';
import {
  freeBits,
  type ReadBudget,
  readBits,
  type TakenClusters,
  tableEntriesFor,
  writeBits,
} from './data.ts';
import {
  BitmapFlag,
  directoryBytes,
  encodeDirectory,
  entryBytes,
  entryName,
  readDirectory,
} from './directory.ts';

/** Clusters that tables and bits may take beyond what the file holds, in an image whose tables point behind its end. */
const BUDGET_SLACK = 1024;

// ---- opening ---------------------------------------------------------------------------------------------------

/** Reads the bitmaps of the image into the node, whose length is known. Throws what the original says. */
export async function loadBitmaps(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  const dropped = s.header.bitmapsDropped;
  if (dropped !== null) node.layer.report(`warning: ${DROPPED_TEXT[dropped]}${LEAK_TEXT}`);
  s.extras.bitmaps = await readDirectory(node, guard);
  const budget: ReadBudget = {
    clusters: Math.ceil(s.file.node.totalBytes / s.clusterBytes) + BUDGET_SLACK,
  };
  for (const entry of s.extras.bitmaps) {
    const inconsistent = (entry.flags & BitmapFlag.inUse) !== 0;
    const bitmap = createBitmap(node, {
      name: entryName(entry),
      granularityBytes: 2 ** entry.granularityBits,
      enabled: !inconsistent && (entry.flags & BitmapFlag.auto) !== 0,
      persistent: true,
      inconsistent,
      readOnly: node.readOnly,
    });
    if (!inconsistent) await readBits(node, guard, entry, bitmap, budget);
  }
}

const DROPPED_TEXT = {
  v2: 'This qcow2 v2 image contains bitmaps, but they may have been modified by a program without persistent bitmap support; so now they must all be considered inconsistent',
  modified:
    'a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent',
} as const;
const LEAK_TEXT = "\nSome clusters may be leaked, run 'qemu-img check -r' on the image file to fix.";

/** Makes the bitmaps of an image that can be written to from now on this node's: marks them in use on the disk. */
export async function markBitmapsInUse(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  const { bitmaps } = s.header;
  if (s.header.bitmapsDropped !== null) {
    // The extension goes; nobody can tell what it refers to.
    s.header.bitmapsDropped = null;
    await writeHeader(node, guard);
    await barrier(node, guard);
  }
  if (bitmaps !== null && s.extras.bitmaps.some(({ flags }) => (flags & BitmapFlag.inUse) === 0)) {
    const marked = s.extras.bitmaps.map((entry) => ({ ...entry, flags: entry.flags | BitmapFlag.inUse }));
    // In place: only these bits change, so a write that is torn marks some and leaves the others, which are right yet.
    try {
      await writeMetadata(node, guard, bitmaps.directoryOffset, encodeDirectory(marked), 'bitmap-directory');
      await barrier(node, guard);
    } catch (error) {
      throw failedTo("Can't update bitmap directory", error);
    }
    s.extras.bitmaps = marked;
  }
  s.extras.bitmapsOwned = true;
}

/** The original's words for what could not be done. Damage of the image is told as such. */
function failedTo(what: string, error: unknown): unknown {
  return error instanceof ImageCorruption ? error : errnoError(what, errnoOf(error));
}

// ---- changing the directory ------------------------------------------------------------------------------------

/**
 * Changes over to a new list of bitmaps, whose tables and bits have been written. The caller holds the metadata lock
 * in an exclusive section, and frees what the old list alone referred to.
 */
async function replaceDirectory(
  node: Qcow2Node,
  guard: GraphReadGuard,
  entries: readonly BitmapEntry[],
  taken: TakenClusters,
): Promise<void> {
  const s = node.state;
  const { header } = s;
  const before = header.bitmaps;
  const directory = encodeDirectory(entries);
  let after: typeof header.bitmaps = null;
  if (entries.length > 0) {
    const clusters = Math.ceil(directory.length / s.clusterBytes);
    const run = await allocateContiguous(node, guard, clusters);
    taken.push(run);
    await writeMetadata(node, guard, run.offset, directory, null);
    after = { count: entries.length, directoryBytes: directory.length, directoryOffset: run.offset };
  }
  // Refcounts of what is new, and everything it refers to, before anything refers to it.
  await settleLocked(node, guard);
  await barrier(node, guard);
  try {
    if ((header.autoclear & Autoclear.bitmaps) !== 0) {
      header.autoclear -= Autoclear.bitmaps;
      await writeHeader(node, guard);
      await barrier(node, guard);
    }
    header.bitmaps = after;
    await writeHeader(node, guard);
    await barrier(node, guard);
    if (after !== null) {
      header.autoclear += Autoclear.bitmaps;
      await writeHeader(node, guard);
      await barrier(node, guard);
    }
  } catch (error) {
    // The disk may say either. Bitmaps are lost; clusters that it may refer to are not given out again before it is
    // known that it does not.
    header.bitmaps = before;
    header.autoclear &= ~Autoclear.bitmaps;
    const unused = taken.splice(0);
    s.headerUndo.push(() => {
      for (const { offset, count } of unused) giveBack(node, offset, count);
    });
    await settleHeader(node, guard).catch(() => undefined);
    throw error;
  }
  s.extras.bitmaps = entries;
  if (before !== null) {
    const clusters = Math.ceil(before.directoryBytes / s.clusterBytes);
    deferFree(node, before.directoryOffset, clusters, 'other');
  }
  rebuildMetadata(s);
}

async function updateDirectory(
  node: Qcow2Node,
  guard: GraphReadGuard,
  entries: readonly BitmapEntry[],
  taken: TakenClusters,
): Promise<void> {
  try {
    await replaceDirectory(node, guard, entries, taken);
  } catch (error) {
    throw failedTo('Failed to update bitmap extension', error);
  }
}

/** Runs `change`; what it has taken is given back when it fails. */
async function orGiveBack(node: Qcow2Node, change: (taken: TakenClusters) => Promise<void>): Promise<void> {
  const taken: TakenClusters = [];
  try {
    await change(taken);
  } catch (error) {
    for (const { offset, count } of taken) giveBack(node, offset, count);
    throw error;
  }
}

/** Takes a bitmap out of the image; does nothing when it is not in there. */
async function remove(node: Qcow2Node, guard: GraphReadGuard, name: string): Promise<void> {
  const s = node.state;
  const isIt = (entry: BitmapEntry): boolean => entryName(entry) === name;
  if (!s.extras.bitmaps.some(isIt)) return;
  await exclusive(node, guard, async () => {
    const entry = s.extras.bitmaps.find(isIt);
    if (entry === undefined) return;
    const kept = s.extras.bitmaps.filter((other) => other !== entry);
    await orGiveBack(node, (taken) => updateDirectory(node, guard, kept, taken));
    await freeBits(node, guard, entry);
    await settleLocked(node, guard);
  });
}

/** Takes all bitmaps out of the image, and makes those of the node ones that are not stored. */
export async function dropBitmaps(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  for (const bitmap of node.dirtyBitmaps.all) bitmap.persistent = false;
  const { bitmaps } = s.header;
  if (bitmaps === null) return;
  await exclusive(node, guard, async () => {
    const autoclear = s.header.autoclear & ~Autoclear.bitmaps;
    await changeHeader(node, guard, { autoclear, bitmaps: null });
    for (const entry of s.extras.bitmaps) await freeBits(node, guard, entry);
    s.extras.bitmaps = [];
    deferFree(node, bitmaps.directoryOffset, Math.ceil(bitmaps.directoryBytes / s.clusterBytes), 'other');
    rebuildMetadata(s);
  });
}

// ---- closing ---------------------------------------------------------------------------------------------------

/**
 * Stores the persistent bitmaps of a node that is being closed. Never throws: bitmaps that cannot be stored are lost,
 * and the user is told.
 */
export async function storeBitmaps(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  try {
    await storeBitmapsOrThrow(node, guard);
  } catch (error) {
    const reason = reasonOf(error);
    node.layer.report(`Lost persistent bitmaps during inactivation of node '${node.name}': ${reason}\n`);
  }
}

/** Stores the persistent bitmaps of a node that stays open and is not to be written to any more. */
export async function storeBitmapsOrThrow(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  const toStore = [...node.dirtyBitmaps.all].filter(
    (bitmap) => bitmap.persistent && !bitmap.inconsistent && !bitmap.readOnly,
  );
  // Not ours: the opening failed, or was for a check. And an image that has become version 2 keeps no bitmaps.
  if (toStore.length === 0 || !(s.extras.bitmapsOwned || node.readOnly) || s.header.version < 3) return;
  if (node.readOnly) throw new BlockError('No write access');
  await alone(node, guard, () => store(node, guard, toStore));
}

async function store(node: Qcow2Node, guard: GraphReadGuard, bitmaps: readonly DirtyBitmap[]): Promise<void> {
  const s = node.state;
  const old: BitmapEntry[] = [];
  await orGiveBack(node, async (taken) => {
    const entries: BitmapEntry[] = [];
    const left = new Set(bitmaps);
    for (const entry of s.extras.bitmaps) {
      const bitmap = findBitmap(node, entryName(entry));
      if (bitmap === null || !left.delete(bitmap)) {
        entries.push(entry);
        continue;
      }
      old.push(entry);
      entries.push(await storeOne(node, guard, bitmap, entry.name, taken));
    }
    // New ones in the order in which they are listed: the newest first.
    for (const bitmap of [...left].reverse())
      entries.push(await storeOne(node, guard, bitmap, bytesOfText(bitmap.name ?? ''), taken));
    if (entries.length > MAX_BITMAPS || directoryBytes(entries) > MAX_BITMAP_DIRECTORY_BYTES)
      throw new BlockError('Too many bitmaps', { errno: E.EFBIG });
    await updateDirectory(node, guard, entries, taken);
  });
  for (const entry of old) await freeBits(node, guard, entry);
}

async function storeOne(
  node: Qcow2Node,
  guard: GraphReadGuard,
  bitmap: DirtyBitmap,
  name: Buffer,
  taken: TakenClusters,
): Promise<BitmapEntry> {
  // A table needs an entry, and an image without bytes gives it none. The words are the original's.
  if (bitmap.bits.length === 0) throw new BlockError('No memory', { errno: E.ENOMEM });
  const reason = unfitReason(node.state, name.length, bitmap.granularityBytes, bitmap.bits.length);
  if (reason !== null) throw new BlockError(`Bitmap '${bitmap.name}' can't be stored: ${reason}`);
  try {
    const table = await writeBits(node, guard, bitmap, taken);
    const granularityBits = Math.log2(bitmap.granularityBytes);
    return { ...table, flags: bitmap.enabled ? BitmapFlag.auto : 0, granularityBits, name };
  } catch (error) {
    throw failedTo(`Failed to write bitmap '${bitmap.name}' to file`, error);
  }
}

// ---- what users ask --------------------------------------------------------------------------------------------

/** Why an image cannot keep a bitmap, in the original's words; null: it can. */
function unfitReason(
  s: Qcow2State,
  nameBytes: number,
  granularityBytes: number,
  bits = Math.ceil(s.header.size / granularityBytes),
): string | null {
  if (s.header.version < 3) return 'Cannot store dirty bitmaps in qcow2 v2 files';
  if (granularityBytes > 2 ** 31) return `Granularity exceeds maximum (${2 ** 31} bytes)`;
  if (granularityBytes < 2 ** 9) return `Granularity is under minimum (${2 ** 9} bytes)`;
  if (nameBytes > BITMAP_NAME_MAX_BYTES)
    return `Name length exceeds maximum (${BITMAP_NAME_MAX_BYTES} characters)`;
  if (tableEntriesFor(s, bits) * s.clusterBytes > MAX_BITMAP_BYTES)
    return 'Too much space will be occupied by the bitmap. Use larger granularity';
  return null;
}

function checkNew(node: Qcow2Node, name: string, granularity: number): void {
  const refuse = (reason: string): never => {
    throw new BlockError(`Can't make bitmap '${name}' persistent in '${node.name}': ${reason}`);
  };
  if (findBitmap(node, name) !== null)
    throw new BlockError(`Bitmap already exists: ${name}`, { errno: E.EINVAL });
  const nameBytes = byteLength(name);
  const reason = unfitReason(node.state, nameBytes, granularity);
  if (reason !== null) refuse(reason);
  let count = 1;
  let bytes = entryBytes(nameBytes);
  for (const other of node.dirtyBitmaps.all) {
    if (!other.persistent) continue;
    count++;
    bytes += entryBytes(byteLength(other.name ?? ''));
  }
  if (count > MAX_BITMAPS) refuse('Maximum number of persistent bitmaps is already reached');
  if (bytes > MAX_BITMAP_DIRECTORY_BYTES) refuse('Not enough space in the bitmap directory');
}

export const bitmaps: PersistentBitmaps<Qcow2State> = { checkNew, remove };

/** Throws when a bitmap in the image keeps it from being resized. */
export function checkBitmapsResizable(node: Qcow2Node): void {
  for (const entry of node.state.extras.bitmaps) {
    const bitmap = findBitmap(node, entryName(entry));
    if (bitmap !== null) checkUsable(bitmap);
  }
}

/** The bitmaps in the image as they are on the disk; undefined when there are none. */
export function bitmapInfos(node: Qcow2Node): Qcow2BitmapInfo[] | undefined {
  const entries = node.state.extras.bitmaps;
  if (entries.length === 0) return undefined;
  return entries.map((entry) => ({
    name: entryName(entry),
    granularity: 2 ** entry.granularityBits,
    flags: [
      ...((entry.flags & BitmapFlag.inUse) !== 0 ? (['in-use'] as const) : []),
      ...((entry.flags & BitmapFlag.auto) !== 0 ? (['auto'] as const) : []),
    ],
  }));
}
