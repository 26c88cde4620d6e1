/**
 * The bitmap directory on the disk: which bitmaps an image keeps, and where. Reading with every check, and encoding.
 *
 * | bytes | field                                  | bytes | field                            |
 * |-------|----------------------------------------|-------|----------------------------------|
 * | 0-7   | offset of the bitmap table             | 17    | granularity bits                 |
 * | 8-11  | entries of the bitmap table            | 18-19 | length of the name               |
 * | 12-15 | flags: 1 in use, 2 auto                | 20-23 | length of extra data, 0 here     |
 * | 16    | type: 1, dirty tracking                | 24-   | name; padding to 8               |
 *
 * An entry is in use while the image is open for writing: what it holds then is out of date. Tables and bits are
 * bitmaps/data.ts. Source: qcow2 specification, "Bitmaps".
 */

import { textOfBytes } from '../../../../aio/host/names.ts';
import { BITMAP_NAME_MAX_BYTES } from '../../../../block/bitmaps/dirty-bitmap.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError, errnoError, errnoOf } from '../../../../errors/error.ts';
import { MAX_BITMAP_BYTES, readU64, viewOf, writeU64 } from '../layout/layout.ts';
import type { BitmapEntry, Qcow2Node, Qcow2State } from '../layout/state.ts';
import { readMetadata } from '../metadata/metadata-io.ts';

export const BitmapFlag = { inUse: 1, auto: 2 } as const;
const FLAGS_KNOWN = 3;
const TYPE_DIRTY_TRACKING = 1;
const MIN_GRANULARITY_BITS = 9;
const MAX_GRANULARITY_BITS = 31;
const FIXED_BYTES = 24;

/** The name of a stored bitmap: a zero byte ends it, as for everybody else who reads images. */
export function entryName({ name }: BitmapEntry): string {
  const end = name.indexOf(0);
  return textOfBytes(name.subarray(0, end < 0 ? name.length : end));
}

/** Bytes of the entry of a bitmap whose name has that length. */
export function entryBytes(nameBytes: number): number {
  return Math.ceil((FIXED_BYTES + nameBytes) / 8) * 8;
}

export function directoryBytes(entries: readonly BitmapEntry[]): number {
  return entries.reduce((sum, { name }) => sum + entryBytes(name.length), 0);
}

/** Reads the directory that the header names. Throws what the original says of a broken one. */
export async function readDirectory(node: Qcow2Node, guard: GraphReadGuard): Promise<readonly BitmapEntry[]> {
  const s = node.state;
  const { bitmaps } = s.header;
  if (bitmaps === null) return [];
  if (bitmaps.directoryBytes === 0) throw invalid('Requested bitmap directory size is zero');
  let directory: Buffer;
  try {
    directory = await readMetadata(node, guard, bitmaps.directoryOffset, bitmaps.directoryBytes);
  } catch (error) {
    throw errnoError('Failed to read bitmap directory', errnoOf(error));
  }
  const entries: BitmapEntry[] = [];
  for (let at = 0; at < directory.length; ) {
    if (at + FIXED_BYTES > directory.length) throw invalid('Broken bitmap directory');
    if (entries.length === bitmaps.count)
      throw invalid('More bitmaps found than specified in header extension');
    if (directory.readUInt32BE(at + 20) !== 0) throw invalid('Bitmap extra data is not supported');
    const bytes = entryBytes(directory.readUInt16BE(at + 18));
    if (at + bytes > directory.length) throw invalid('Broken bitmap directory');
    entries.push(decode(s, directory.subarray(at, at + bytes)));
    at += bytes;
  }
  if (entries.length < bitmaps.count) throw invalid('Less bitmaps found than specified in header extension');
  return entries;
}

function decode(s: Qcow2State, data: Buffer): BitmapEntry {
  const view = viewOf(data);
  const nameBytes = view.getUint16(18);
  const entry: BitmapEntry = {
    tableOffset: readU64(view, 0),
    tableEntries: view.getUint32(8),
    flags: view.getUint32(12),
    granularityBits: data[17]!,
    name: Buffer.from(data.subarray(FIXED_BYTES, FIXED_BYTES + nameBytes)),
  };
  if (data[16] !== TYPE_DIRTY_TRACKING || !isAcceptable(s, entry))
    throw invalid(`Bitmap '${entryName(entry)}' doesn't satisfy the constraints`);
  return entry;
}

function isAcceptable(s: Qcow2State, entry: BitmapEntry): boolean {
  const { tableOffset, tableEntries, flags, granularityBits, name } = entry;
  const bitmapBytes = tableEntries * s.clusterBytes;
  return (
    tableEntries > 0 &&
    tableOffset > 0 &&
    tableOffset % s.clusterBytes === 0 &&
    tableOffset + tableEntries * 8 <= Number.MAX_SAFE_INTEGER &&
    bitmapBytes <= MAX_BITMAP_BYTES &&
    (flags & ~FLAGS_KNOWN) === 0 &&
    granularityBits >= MIN_GRANULARITY_BITS &&
    granularityBits <= MAX_GRANULARITY_BITS &&
    name.length > 0 &&
    name.length <= BITMAP_NAME_MAX_BYTES &&
    name[0] !== 0 &&
    // One that was not stored after a resize may be too short: it is of no use either way.
    ((flags & BitmapFlag.inUse) !== 0 || bitmapBytes * 8 * 2 ** granularityBits >= s.header.size)
  );
}

/** The directory as it goes to the disk. */
export function encodeDirectory(entries: readonly BitmapEntry[]): Buffer {
  const directory = Buffer.alloc(directoryBytes(entries));
  const view = viewOf(directory);
  let at = 0;
  for (const { tableOffset, tableEntries, flags, granularityBits, name } of entries) {
    writeU64(view, at, tableOffset);
    view.setUint32(at + 8, tableEntries);
    view.setUint32(at + 12, flags);
    directory[at + 16] = TYPE_DIRTY_TRACKING;
    directory[at + 17] = granularityBits;
    view.setUint16(at + 18, name.length);
    name.copy(directory, at + FIXED_BYTES);
    at += entryBytes(name.length);
  }
  return directory;
}

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}
