/**
 * The part of an image check that walks L1 and L2 tables, active ones and those of snapshots: counts what they refer
 * to, looks for entries that cannot be, and makes the statistics. Flags that say "refcount is one" are check-copied.
 */

import { strerror } from '../../../../errors/errno.ts';
import { errnoOf } from '../../../../errors/error.ts';
import { ImageCorruption } from '../layout/damage.ts';
import {
  decodeCompressed,
  entryOffset,
  HI_COMPRESSED,
  HI_COPIED,
  HI_RESERVED,
  LO_OFFSET,
  LO_RESERVED,
  LO_ZERO,
} from '../layout/layout.ts';
import {
  type Check,
  corruption,
  countRegion,
  entryHex,
  readL2,
  usedEntry,
  wordsOf,
  writeTable,
} from './state.ts';

/** Reserved bits of the low half of an L1 entry: all below the offset. */
const L1_LO_RESERVED = 0x1ff;
/** Reserved bits of the high half of an L1 entry. */
const L1_HI_RESERVED = 0x7f000000;

export interface L1Table {
  readonly offset: number;
  readonly view: DataView;
  /** The statistics are made of the active table. */
  readonly active: boolean;
}

/** Counts an L1 table, the L2 tables it points to, and what they refer to. */
export async function checkL1(c: Check, table: L1Table): Promise<void> {
  const { clusterBytes } = c.s;
  const { view } = table;
  countRegion(c, table.offset, view.byteLength);
  for (let at = 0; at < view.byteLength; at += 8) {
    const hi = view.getUint32(at);
    const lo = view.getUint32(at + 4);
    if (hi === 0 && lo === 0) continue;
    if ((hi & L1_HI_RESERVED) !== 0 || (lo & L1_LO_RESERVED) !== 0) {
      corruption(c, `ERROR found L1 entry with reserved bits set: ${entryHex(hi, lo)}`);
    }
    const offset = entryOffset(hi, lo);
    if (table.active && ((hi & HI_COPIED) === 0 || offset === 0)) c.allCopied = false;
    countRegion(c, offset, clusterBytes);
    if (offset % clusterBytes !== 0) {
      corruption(
        c,
        `ERROR l2_offset=${offset.toString(16)}: Table is not cluster aligned; L1 entry corrupted`,
      );
    }
    await checkL2(c, offset, table.active);
  }
}

/** What is being looked at in an L2 table. */
interface L2Position {
  readonly tableOffset: number;
  readonly view: DataView;
  readonly active: boolean;
  /** Where the next cluster would be if the table's clusters were contiguous; 0: anywhere. */
  next: number;
}

async function checkL2(c: Check, tableOffset: number, active: boolean): Promise<void> {
  const { s } = c;
  // Nothing there means zeroes, and those refer to nothing.
  if (tableOffset >= c.fileBytes) return;
  await c.turns.next();
  const view = await readL2(c, tableOffset, 'check_refcounts_l2');
  const position: L2Position = { tableOffset, view, active, next: 0 };
  const words = wordsOf(view);
  const next = (index: number): number => usedEntry(words, index, s.l2EntryBytes);
  for (let index = next(0); index < s.l2Entries; index = next(index + 1)) {
    const at = index * s.l2EntryBytes;
    const hi = view.getUint32(at);
    const lo = view.getUint32(at + 4);
    if ((hi & HI_COMPRESSED) !== 0) checkCompressed(c, position, index, hi, lo);
    else if (checkStandard(c, position, index, hi, lo)) await clearEntry(c, position, index);
  }
}

function checkCompressed(c: Check, position: L2Position, index: number, hi: number, lo: number): void {
  const { s, result } = c;
  if ((hi & HI_COPIED) !== 0) {
    const { text } = compressedOffset(hi, lo, s.clusterBits);
    corruption(c, `ERROR: coffset=0x${text}: copied flag must never be set for compressed clusters`);
    hi = (hi & ~HI_COPIED) >>> 0;
  }
  if (s.hasDataFile) {
    corruption(c, `ERROR compressed cluster ${index} with data file, entry=0x${entryHex(hi, lo)}`);
    return;
  }
  if (s.l2EntryBytes === 16 && !isZeroBitmap(position.view, index * 16 + 8)) {
    corruption(
      c,
      `ERROR compressed cluster ${index} with non-zero subcluster allocation bitmap, entry=0x${entryHex(hi, lo)}`,
    );
    return;
  }
  const { offset, bytes, text } = compressedOffset(hi, lo, s.clusterBits);
  countRegion(c, offset, bytes, text);
  if (!position.active) return;
  result.compressedClusters++;
  result.allocatedClusters++;
  // Compressed clusters lie at any byte: reading two in a row never is one contiguous read.
  result.fragmentedClusters++;
}

/** Where compressed data lies; `text` is exact where the number is not. */
function compressedOffset(
  hi: number,
  lo: number,
  clusterBits: number,
): { offset: number; bytes: number; text: string } {
  const { offset, bytes } = decodeCompressed(hi, lo, clusterBits);
  if (offset <= Number.MAX_SAFE_INTEGER) return { offset, bytes, text: offset.toString(16) };
  const hiBits = 62 - (clusterBits - 8) - 32;
  const exactBytes = Math.ceil(bytes / 512) * 512 - (lo % 512);
  return { offset, bytes: exactBytes, text: entryHex(hi & (2 ** hiBits - 1), lo) };
}

function isZeroBitmap(view: DataView, at: number): boolean {
  return view.getUint32(at) === 0 && view.getUint32(at + 4) === 0;
}

/** Checks an entry that is not compressed. True: the entry is damaged such that it can be cleared, and is to be. */
function checkStandard(c: Check, position: L2Position, index: number, hi: number, lo: number): boolean {
  const { s, result } = c;
  const { view } = position;
  const extended = s.l2EntryBytes === 16;
  const offset = entryOffset(hi, lo);
  if ((hi & HI_RESERVED) !== 0 || (lo & LO_RESERVED) !== 0) {
    corruption(c, `ERROR found l2 entry with reserved bits set: ${entryHex(hi, lo)}`);
  }
  // In an external data file offset 0 is as good as any: there, the flag tells that there is a cluster.
  const allocated = offset !== 0 || (s.hasDataFile && (hi & HI_COPIED) !== 0);
  let hasData = (lo & LO_ZERO) === 0;
  if (extended) {
    const zeroBits = view.getUint32(index * 16 + 8);
    const dataBits = view.getUint32(index * 16 + 12);
    hasData = dataBits !== 0;
    if (!allocated) {
      if (dataBits !== 0) {
        corruption(c, 'ERROR: Unallocated cluster has non-zero subcluster allocation map');
      }
      return false;
    }
    if ((zeroBits & dataBits) !== 0) {
      corruption(
        c,
        `ERROR offset=${offset.toString(16)}: Allocated cluster has corrupted subcluster allocation bitmap`,
      );
    }
  }
  if (!allocated) return false;
  if (position.active) {
    result.allocatedClusters++;
    if ((hi & HI_COPIED) === 0) c.allCopied = false;
    if (position.next !== 0 && offset !== position.next) result.fragmentedClusters++;
    position.next = offset + s.clusterBytes;
  }
  // Clusters are at most 2 MiB, so the low half tells.
  if ((lo & LO_OFFSET & (s.clusterBytes - 1)) !== 0) {
    const what = hasData ? 'Data' : 'Preallocated';
    const line = `offset=${offset.toString(16)}: ${what} cluster is not properly aligned; L2 entry corrupted.`;
    // Nothing is lost with a cluster that holds no data.
    if (c.request.fixErrors && !hasData) {
      c.request.report(`Repairing ${line}`);
      return true;
    }
    corruption(c, `ERROR ${line}`);
  }
  if (!s.hasDataFile) countRegion(c, offset, s.clusterBytes);
  return false;
}

/** Takes the host cluster away from an entry; what read as zeroes still does. */
async function clearEntry(c: Check, position: L2Position, index: number): Promise<void> {
  const { s } = c;
  const at = index * s.l2EntryBytes;
  const offset = position.tableOffset + at;
  position.view.setUint32(at, 0);
  position.view.setUint32(at + 4, s.l2EntryBytes === 16 ? 0 : LO_ZERO);
  const entry = new Uint8Array(position.view.buffer, position.view.byteOffset + at, s.l2EntryBytes);
  try {
    await writeTable(c, offset, entry, position.active ? 'active-l2' : 'inactive-l2');
  } catch (error) {
    c.result.checkErrors++;
    c.request.report(
      error instanceof ImageCorruption
        ? 'ERROR: Overlap check failed'
        : `ERROR: Failed to overwrite L2 table entry: ${strerror(errnoOf(error))}`,
    );
    throw error;
  }
  c.result.corruptionsFixed++;
}
