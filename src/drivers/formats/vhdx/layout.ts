/**
 * The structures of a VHDX image, all little-endian:
 *
 * | where | what |
 * |---|---|
 * | 0 | "vhdxfile", creator |
 * | 64 KiB, 128 KiB | headers: "head", checksum, sequence number; the valid one with the higher number counts |
 * | 192 KiB, 256 KiB | region tables: "regi", checksum; where the block allocation table and the metadata are |
 * | by the header | the log |
 * | by the region table | metadata: "metadata", entries by GUID: block size, disk size, sector size, parent locator |
 * | by the region table | block allocation table: 64 bits for each block, state in bits 0 to 2, MiB in bits 20 to 63 |
 *
 * After every 2^23 sectors' worth of blocks the table has an entry for a block of 1 MiB with a bit for each of those
 * sectors: in a differencing image, whether it is in this file.
 *
 * Source of the facts: Microsoft, [MS-VHDX] "Virtual Hard Disk v2 (VHDX) File Format".
 */

import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { readU64Le, viewOf } from '../shared/table-io.ts';
import { checksumWithout } from './crc32c.ts';

export const KIB = 1024;
export const MIB = 1024 * KIB;
export const HEADER_AT = [64 * KIB, 128 * KIB] as const;
export const HEADER_BYTES = 4 * KIB;
export const REGIONS_AT = [192 * KIB, 256 * KIB] as const;
export const REGIONS_BYTES = 64 * KIB;
export const METADATA_TABLE_BYTES = 64 * KIB;
export const MAX_DISK_BYTES = 64 * 1024 ** 4;
export const MIN_BLOCK_BYTES = MIB;
export const MAX_BLOCK_BYTES = 256 * MIB;
/** Sectors that a bitmap block has bits for. */
export const SECTORS_PER_BITMAP = 2 ** 23;
/** Room for all headers and log entries that may ever follow. */
export const MAX_SEQUENCE = 2n ** 63n;
const MAX_REGIONS = 2047;
const MAX_METADATA_ENTRIES = 2047;
const MAX_LOCATOR_BYTES = MIB;

export const State = {
  notPresent: 0,
  undefined: 1,
  zero: 2,
  unmapped: 3,
  fullyPresent: 6,
  partiallyPresent: 7,
} as const;

/** GUIDs as they are on the disk, in hexadecimal digits. */
export const Guid = {
  bat: guid('2DC27766-F623-4200-9D64-115E9BFD4A08'),
  metadata: guid('8B7CA206-4790-4B9A-B8FE-575F050F886E'),
  fileParameters: guid('CAA16737-FA36-4D43-B3B6-33F0AA44E76B'),
  diskSize: guid('2FA54224-CD1B-4876-B211-5DBED83BF4B8'),
  page83: guid('BECA12AB-B2E6-4523-93EF-C309E000C746'),
  logicalSector: guid('8141BF1D-A96F-4709-BA47-F233A8FAAB5F'),
  physicalSector: guid('CDA348C7-445D-4471-9CC9-E9885251C556'),
  parentLocator: guid('A8D35F2D-B30B-454D-ABF7-D3D84834AB0C'),
  vhdxLocator: guid('B04AEFB7-D19E-4A81-B789-25B8E9445913'),
} as const;

/** A GUID in its usual form as hexadecimal digits in the order of the disk: its first three parts are little-endian. */
export function guid(text: string): string {
  const [a, b, c, d, e] = text.toLowerCase().replace(/[{}]/g, '').split('-') as [string, ...string[]];
  const swap = (part: string): string => part.match(/../g)!.reverse().join('');
  return swap(a) + swap(b!) + swap(c!) + d! + e!;
}

export function invalid(message: string, errno: number = E.EINVAL): BlockError {
  return new BlockError(message, { errno });
}

// ---- headers -------------------------------------------------------------------------------------------------

export interface Header {
  /** 0 or 1: where it is. */
  readonly slot: number;
  readonly sequence: bigint;
  readonly fileGuid: Buffer;
  readonly dataGuid: Buffer;
  readonly logGuid: Buffer;
  readonly logBytes: number;
  readonly logOffset: number;
}

function parseHeader(bytes: Buffer, slot: number): Header | null {
  const view = viewOf(bytes);
  if (bytes.toString('latin1', 0, 4) !== 'head') return null;
  if (view.getUint32(4, true) !== checksumWithout(bytes, 4)) return null;
  if (view.getUint16(66, true) !== 1) return null;
  return {
    slot,
    sequence: bytes.readBigUInt64LE(8),
    fileGuid: bytes.subarray(16, 32),
    dataGuid: bytes.subarray(32, 48),
    logGuid: bytes.subarray(48, 64),
    logBytes: view.getUint32(68, true),
    logOffset: readU64Le(view, 72),
  };
}

/** The header that counts. */
export function chooseHeader(copies: readonly Buffer[]): Header {
  const valid = copies.flatMap((bytes, slot) => parseHeader(bytes, slot) ?? []);
  const [first, second] = valid;
  if (first === undefined) throw invalid('No valid VHDX header found');
  const header = second !== undefined && second.sequence > first.sequence ? second : first;
  if (header.sequence >= MAX_SEQUENCE) throw invalid('The sequence number of the header is out of range');
  if (header.logOffset % MIB !== 0 || header.logOffset < MIB || !(header.logOffset <= 2 ** 52))
    throw invalid('The offset of the log is invalid');
  if (header.logBytes % MIB !== 0 || header.logBytes === 0) throw invalid('The length of the log is invalid');
  return header;
}

export function encodeHeader(header: Header): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES);
  bytes.write('head', 0, 'latin1');
  bytes.writeBigUInt64LE(header.sequence, 8);
  header.fileGuid.copy(bytes, 16);
  header.dataGuid.copy(bytes, 32);
  header.logGuid.copy(bytes, 48);
  bytes.writeUInt16LE(1, 66);
  bytes.writeUInt32LE(header.logBytes, 68);
  bytes.writeBigUInt64LE(BigInt(header.logOffset), 72);
  bytes.writeUInt32LE(checksumWithout(bytes, 4), 4);
  return bytes;
}

// ---- regions -------------------------------------------------------------------------------------------------

export interface Region {
  readonly offset: number;
  readonly bytes: number;
}

export interface Regions {
  readonly bat: Region;
  readonly metadata: Region;
}

export function parseRegions(bytes: Buffer): Regions | null {
  const view = viewOf(bytes);
  if (bytes.toString('latin1', 0, 4) !== 'regi') return null;
  if (view.getUint32(4, true) !== checksumWithout(bytes, 4)) return null;
  const count = view.getUint32(8, true);
  if (count > MAX_REGIONS) return null;
  let bat: Region | null = null;
  let metadata: Region | null = null;
  const all: Region[] = [];
  for (let i = 0; i < count; i++) {
    const at = 16 + i * 32;
    const id = bytes.toString('hex', at, at + 16);
    const region = { offset: readU64Le(view, at + 16), bytes: view.getUint32(at + 24, true) };
    const required = (view.getUint32(at + 28, true) & 1) !== 0;
    if (
      region.offset % MIB !== 0 ||
      region.bytes % MIB !== 0 ||
      region.offset < MIB ||
      !(region.offset <= 2 ** 52)
    )
      throw invalid('A region of the image has an invalid place');
    if (
      all.some(
        (other) => other.offset < region.offset + region.bytes && region.offset < other.offset + other.bytes,
      )
    )
      throw invalid('Regions of the image overlap');
    all.push(region);
    if (id === Guid.bat) bat = region;
    else if (id === Guid.metadata) metadata = region;
    else if (required) throw invalid('The image needs a region that is not known', E.ENOTSUP);
  }
  if (bat === null || metadata === null)
    throw invalid('The image has no block allocation table or no metadata');
  return { bat, metadata };
}

export function encodeRegions({ bat, metadata }: Regions): Buffer {
  const bytes = Buffer.alloc(REGIONS_BYTES);
  bytes.write('regi', 0, 'latin1');
  bytes.writeUInt32LE(2, 8);
  for (const [i, [id, region]] of (
    [
      [Guid.bat, bat],
      [Guid.metadata, metadata],
    ] as const
  ).entries()) {
    const at = 16 + i * 32;
    bytes.write(id, at, 'hex');
    bytes.writeBigUInt64LE(BigInt(region.offset), at + 16);
    bytes.writeUInt32LE(region.bytes, at + 24);
    bytes.writeUInt32LE(1, at + 28);
  }
  bytes.writeUInt32LE(checksumWithout(bytes, 4), 4);
  return bytes;
}

// ---- metadata ------------------------------------------------------------------------------------------------

export interface Metadata {
  readonly blockBytes: number;
  readonly hasParent: boolean;
  readonly diskBytes: number;
  readonly sectorBytes: number;
  /** Where the parent locator is in the metadata region; null: there is none. */
  readonly locator: Region | null;
}

/** What the entries of the metadata table say where. */
export interface MetadataItems {
  readonly items: ReadonlyMap<string, Region>;
}

export function parseMetadataTable(bytes: Buffer): MetadataItems {
  const view = viewOf(bytes);
  if (bytes.toString('latin1', 0, 8) !== 'metadata')
    throw invalid('The metadata of the image have no signature');
  const count = view.getUint16(10, true);
  if (count > MAX_METADATA_ENTRIES) throw invalid('The image has too many metadata');
  const items = new Map<string, Region>();
  for (let i = 0; i < count; i++) {
    const at = 32 + i * 32;
    const id = bytes.toString('hex', at, at + 16);
    const region = { offset: view.getUint32(at + 16, true), bytes: view.getUint32(at + 20, true) };
    const flags = view.getUint32(at + 24, true);
    const known = Object.values(Guid).some((each) => each === id);
    if (!known && (flags & 4) !== 0) throw invalid('The image needs metadata that are not known', E.ENOTSUP);
    if (!known) continue;
    if (region.offset < METADATA_TABLE_BYTES || region.bytes > MAX_LOCATOR_BYTES || items.has(id))
      throw invalid('Metadata of the image are invalid');
    items.set(id, region);
  }
  return { items };
}

/** Checks the values; `read` gives the bytes of an item. */
export function parseMetadata(
  { items }: MetadataItems,
  read: (id: string, bytes: number) => Buffer,
): Metadata {
  for (const id of [Guid.fileParameters, Guid.diskSize, Guid.logicalSector])
    if (!items.has(id)) throw invalid('Metadata of the image are missing');
  const parameters = read(Guid.fileParameters, 8);
  const blockBytes = parameters.readUInt32LE(0);
  const flags = parameters.readUInt32LE(4);
  const sectorBytes = read(Guid.logicalSector, 4).readUInt32LE(0);
  const diskBytes = readU64Le(viewOf(read(Guid.diskSize, 8)), 0);
  if (
    !Number.isInteger(Math.log2(blockBytes)) ||
    blockBytes < MIN_BLOCK_BYTES ||
    blockBytes > MAX_BLOCK_BYTES
  )
    throw invalid(`Unsupported block size ${blockBytes}`);
  if (sectorBytes !== 512 && sectorBytes !== 4096) throw invalid(`Unsupported sector size ${sectorBytes}`);
  if (diskBytes > MAX_DISK_BYTES || diskBytes % sectorBytes !== 0)
    throw invalid(`Unsupported disk size ${BigInt(Math.min(diskBytes, 2 ** 63))}`);
  const hasParent = (flags & 2) !== 0;
  return { blockBytes, hasParent, diskBytes, sectorBytes, locator: items.get(Guid.parentLocator) ?? null };
}

/** Keys and values of a parent locator. */
export function parseLocator(bytes: Buffer): ReadonlyMap<string, string> {
  const view = viewOf(bytes);
  if (bytes.length < 20 || bytes.toString('hex', 0, 16) !== Guid.vhdxLocator)
    throw invalid('The parent locator is of an unknown kind', E.ENOTSUP);
  const count = view.getUint16(18, true);
  const values = new Map<string, string>();
  for (let i = 0; i < count; i++) {
    const at = 20 + i * 12;
    if (at + 12 > bytes.length) throw invalid('The parent locator is invalid');
    const text = (offset: number, length: number): string => {
      if (offset + length > bytes.length || length % 2 !== 0) throw invalid('The parent locator is invalid');
      return bytes.toString('utf16le', offset, offset + length).replace(/\0+$/, '');
    };
    const key = text(view.getUint32(at, true), view.getUint16(at + 8, true));
    values.set(key, text(view.getUint32(at + 4, true), view.getUint16(at + 10, true)));
  }
  return values;
}

/** Entries of payload blocks between two of bitmaps. */
export function chunkRatio({
  blockBytes,
  sectorBytes,
}: Pick<Metadata, 'blockBytes' | 'sectorBytes'>): number {
  return (SECTORS_PER_BITMAP * sectorBytes) / blockBytes;
}
