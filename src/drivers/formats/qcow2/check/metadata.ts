/**
 * The part of an image check that counts what lies in the file besides L1 and L2 tables: the LUKS header, bitmaps, the
 * refcount table and the refcount blocks.
 *
 * What is wrong with a bitmap directory is for the opening to refuse; the check counts what it can make sense of.
 * Source: qcow2 specification, "Bitmaps", "Full disk encryption header pointer", "Refcount table".
 */

import { co } from '../../../../block/io/callbacks.ts';
import { E, strerror } from '../../../../errors/errno.ts';
import { BlockError, errnoOf, ioError } from '../../../../errors/error.ts';
import { Autoclear, readU64 } from '../layout/layout.ts';
import { type Check, corruption, countRegion, measureFile, programError, readTable } from './state.ts';

/** Limits of the original: bytes of the bitmap directory, entries of a bitmap table. */
const MAX_DIRECTORY_BYTES = 65535 * 1024;
const MAX_BITMAP_TABLE_ENTRIES = 0x8000000;
const DIRECTORY_ENTRY_BYTES = 24;
/** What a file offset can express; the original says less about lengths above it. */
const MAX_FILE_BYTES = 2 ** 63;
const CHUNK_BYTES = 1024 * 1024;
const BITMAP_RESERVED_HI = 0xff000000;
const BITMAP_RESERVED_LO = 0x1fe;

export function countLuksHeader(c: Check): void {
  const { encryption } = c.s.header;
  if (encryption !== null) countRegion(c, encryption.offset, encryption.bytes);
}

/** Counts the bitmap directory, the bitmap tables and the clusters of bitmap data. */
export async function countBitmaps(c: Check): Promise<void> {
  const { header } = c.s;
  // Without the autoclear bit, whatever the extension says is out of date: its clusters are leaked.
  if (header.bitmaps === null || (header.autoclear & Autoclear.bitmaps) === 0) return;
  const { count, directoryBytes, directoryOffset } = header.bitmaps;
  if (count === 0) return;
  countRegion(c, directoryOffset, directoryBytes);
  if (directoryBytes > MAX_DIRECTORY_BYTES) {
    corruption(c, `ERROR bitmap directory of ${directoryBytes} bytes is too large`);
    return;
  }
  if (directoryOffset >= c.fileBytes) return;
  const bytes = Math.min(directoryBytes, c.fileBytes - directoryOffset);
  const view = await readTable(c, directoryOffset, bytes);
  let at = 0;
  for (let index = 0; index < count && at + DIRECTORY_ENTRY_BYTES <= bytes; index++) {
    const tableOffset = readU64(view, at);
    const entries = view.getUint32(at + 8);
    const variable = view.getUint16(at + 18) + view.getUint32(at + 20);
    at += Math.ceil((DIRECTORY_ENTRY_BYTES + variable) / 8) * 8;
    if (at > bytes || entries > MAX_BITMAP_TABLE_ENTRIES) {
      corruption(c, `ERROR bitmap directory entry ${index} is broken`);
      return;
    }
    await countBitmapTable(c, tableOffset, entries);
  }
}

async function countBitmapTable(c: Check, offset: number, entries: number): Promise<void> {
  const bytes = entries * 8;
  countRegion(c, offset, bytes);
  const end = Math.min(offset + bytes, c.fileBytes);
  for (let from = offset; from < end; from += CHUNK_BYTES) {
    const view = await readTable(c, from, Math.min(CHUNK_BYTES, end - from));
    for (let at = 0; at + 8 <= view.byteLength; at += 8) {
      const hi = view.getUint32(at);
      const lo = view.getUint32(at + 4);
      if ((hi & BITMAP_RESERVED_HI) !== 0 || (lo & BITMAP_RESERVED_LO) !== 0) {
        corruption(c, `ERROR bitmap table entry ${(from - offset + at) / 8} has reserved bits set`);
      }
      const data = (hi & 0x00ffffff) * 2 ** 32 + ((lo & 0xfffffe00) >>> 0);
      if (data !== 0) countRegion(c, data, c.s.clusterBytes);
    }
  }
}

export function countRefcountTable(c: Check): void {
  const { header, clusterBytes } = c.s;
  countRegion(c, header.refcountTableOffset, header.refcountTableClusters * clusterBytes);
}

/** Counts the refcount blocks, and makes the file longer where blocks lie behind its end, if allowed. */
export async function countRefcountBlocks(c: Check): Promise<void> {
  const { s } = c;
  const reserved = await reservedBits(c);
  for (let index = 0; index < s.refcountTable.length; index++) {
    await c.turns.next();
    const offset = s.refcountTable[index]!;
    if (reserved.has(index)) {
      corruption(c, `ERROR refcount table entry ${index} has reserved bits set`);
      c.rebuild = true;
    } else if (offset % s.clusterBytes !== 0) {
      corruption(c, `ERROR refcount block ${index} is not cluster aligned; refcount table entry corrupted`);
      c.rebuild = true;
    } else if (offset !== 0) {
      await countRefcountBlock(c, index, offset);
    }
  }
}

async function countRefcountBlock(c: Check, index: number, offset: number): Promise<void> {
  const { clusterBytes } = c.s;
  const cluster = offset / clusterBytes;
  // A cluster behind the end that something else has been counted in is no place to look for a block either.
  if (cluster >= Math.max(c.clusters, c.references.end)) {
    if (!c.request.fixErrors) {
      corruption(c, `ERROR refcount block ${index} is outside image`);
      return;
    }
    c.request.report(`Repairing refcount block ${index} is outside image`);
    if (!(await lengthenFile(c, offset + clusterBytes))) return;
  }
  countRegion(c, offset, clusterBytes);
  const count = c.references.get(cluster);
  if (count === 1) return;
  corruption(c, `ERROR refcount block ${index} refcount=${count}`);
  c.rebuild = true;
}

/** How far behind the end of the file a refcount block may lie to be looked for there. */
const FAR_BYTES = 16 * 1024 ** 3;

/** A block behind the end of the file reads as zeroes once the file is that long: what it counts can be repaired. */
async function lengthenFile(c: Check, bytes: number): Promise<boolean> {
  try {
    if (bytes >= MAX_FILE_BYTES) throw ioError(E.EINVAL);
    // So far away nothing was ever written: the entry is what is wrong, and a file of that length would help nobody.
    if (bytes > 2 * c.fileBytes + FAR_BYTES) throw ioError(E.EFBIG);
    await co.truncate(c.s.file.node, c.guard, bytes, false, 'off', false);
    c.repaired = true;
    await measureFile(c);
    c.refcounts.clear();
    c.result.corruptionsFixed++;
    return true;
  } catch (error) {
    if (error instanceof BlockError && errnoOf(error) !== E.EFBIG && bytes < MAX_FILE_BYTES)
      programError(c, error.message);
    else if (errnoOf(error) === E.EFBIG) programError(c, `Could not resize file: ${strerror(E.EFBIG)}`);
    corruption(c, `ERROR could not resize image: ${strerror(errnoOf(error))}`);
    c.rebuild = true;
    return false;
  }
}

/** Entries of the refcount table with bits set that mean nothing; the table in memory has them cleared. */
async function reservedBits(c: Check): Promise<Set<number>> {
  const { header, clusterBytes } = c.s;
  const found = new Set<number>();
  const bytes = header.refcountTableClusters * clusterBytes;
  const end = Math.min(header.refcountTableOffset + bytes, c.fileBytes);
  for (let from = header.refcountTableOffset; from < end; from += CHUNK_BYTES) {
    const view = await readTable(c, from, Math.min(CHUNK_BYTES, end - from));
    for (let at = 0; at + 8 <= view.byteLength; at += 8) {
      if ((view.getUint32(at + 4) & 0x1ff) !== 0) found.add((from - header.refcountTableOffset + at) / 8);
    }
  }
  return found;
}
