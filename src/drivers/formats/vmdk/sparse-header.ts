/**
 * Headers of sparse extents, all fields little-endian, offsets in sectors of 512 bytes.
 *
 * Hosted ("KDMV"): 4 version, 8 flags, 12 capacity, 20 sectors of a grain, 28 and 36 place and size of an embedded
 * descriptor, 44 entries of a grain table, 48 redundant grain directory, 56 grain directory, 64 sectors of metadata at
 * the front, 72 unclean, 73 four characters that show a transfer as text, 77 compression (1: deflate).
 * ESX ("COWD"): 4 version, 8 flags, 12 sectors of the disk, 16 sectors of a grain, 20 grain directory, 24 its entries;
 * grain tables have 4096 entries.
 *
 * A grain directory has a 32-bit sector for each grain table, a table one for each grain: 0 nothing here, 1 zeroes
 * (with the flag), else where the grain is. In compressed extents the grain begins with a marker: its first sector on
 * the disk (64 bits), bytes of the compressed data (32 bits); then the data, up to a whole sector. Other markers have 0
 * bytes and say what follows: 0 the end, 1 a grain table, 2 the directory, 3 the footer. With the directory at the end
 * (offset of all ones in the header) the footer, the last but one sector, is the header that counts.
 *
 * Source of the facts: VMware, "Virtual Disk Format 5.0".
 */

import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { readU64Le, viewOf } from '../shared/table-io.ts';
import { COWD_MAGIC, SPARSE_MAGIC } from './probe.ts';

export const SECTOR_BYTES = 512;
export const Flag = {
  newLineTest: 1,
  redundantTable: 2,
  zeroedGrains: 4,
  compressed: 0x10000,
  markers: 0x20000,
} as const;
export const Marker = { endOfStream: 0, grainTable: 1, grainDirectory: 2, footer: 3 } as const;
/** Bytes of a grain's marker in front of the compressed data. */
export const GRAIN_MARKER_BYTES = 12;
export const GTE_ZEROED = 1;
const GD_AT_END = 2 ** 64;
/** A directory of this size maps 512 TiB with grains of the usual size. */
const MAX_DIRECTORY_BYTES = 64 * 1024 * 1024;
const MAX_GRAIN_BYTES = 2 ** 31;

export interface SparseHeader {
  readonly capacitySectors: number;
  readonly grainBytes: number;
  readonly entriesPerTable: number;
  readonly directoryEntries: number;
  /** In bytes; null for the redundant one: there is none. */
  readonly directoryOffset: number;
  readonly redundantOffset: number | null;
  readonly zeroedGrains: boolean;
  readonly compressed: boolean;
  readonly markers: boolean;
  /** The directory follows the data, a footer says where. */
  readonly atEnd: boolean;
  readonly descriptorOffset: number;
  readonly descriptorBytes: number;
  /** Data begins here at the earliest, in bytes. */
  readonly overheadBytes: number;
}

function invalid(message: string, errno: number = E.EINVAL): BlockError {
  return new BlockError(message, { errno });
}

export function isHosted(bytes: Buffer): boolean {
  return bytes.toString('latin1', 0, 4) === SPARSE_MAGIC;
}

export function isCowd(bytes: Buffer): boolean {
  return bytes.toString('latin1', 0, 4) === COWD_MAGIC;
}

/** Whether the header leaves the place of the directory to the footer. */
export function isDirectoryAtEnd(bytes: Buffer): boolean {
  return bytes.length >= 64 && readU64Le(viewOf(bytes), 56) === GD_AT_END;
}

/** Reads the header of a hosted sparse extent. `footer`: the sector that counts instead, where there is one. */
export function parseHosted(start: Buffer, footer: Buffer | null): SparseHeader {
  const bytes = footer ?? start;
  const view = viewOf(bytes);
  if (footer !== null && (!isHosted(footer) || isDirectoryAtEnd(footer))) throw invalid('Invalid footer');
  const version = view.getUint32(4, true);
  if (version > 3) throw invalid(`Unsupported VMDK version ${version}`, E.ENOTSUP);
  const flags = view.getUint32(8, true);
  if ((flags & Flag.newLineTest) !== 0 && bytes.toString('latin1', 73, 77) !== '\n \r\n')
    throw invalid('The image was damaged by a transfer as text');
  const entriesPerTable = view.getUint32(44, true);
  if (entriesPerTable > 512) throw invalid('L2 table size too big');
  const capacitySectors = readU64Le(view, 12);
  const redundant = readU64Le(view, 48);
  const hasRedundant = (flags & Flag.redundantTable) !== 0 && redundant !== 0 && redundant < 2 ** 44;
  const compressed = (flags & Flag.compressed) !== 0;
  if (compressed && view.getUint16(77, true) !== 1) throw invalid('Unknown method of compression', E.ENOTSUP);
  return {
    ...shape(capacitySectors, readU64Le(view, 20), entriesPerTable, null),
    capacitySectors,
    entriesPerTable,
    directoryOffset: bytesOf(readU64Le(view, 56)),
    redundantOffset: hasRedundant ? bytesOf(redundant) : null,
    zeroedGrains: (flags & Flag.zeroedGrains) !== 0,
    compressed,
    markers: (flags & Flag.markers) !== 0,
    atEnd: footer !== null,
    descriptorOffset: bytesOf(readU64Le(view, 28)),
    descriptorBytes: bytesOf(readU64Le(view, 36)),
    overheadBytes: bytesOf(readU64Le(view, 64)),
  };
}

export function parseCowd(bytes: Buffer): SparseHeader {
  const view = viewOf(bytes);
  const capacitySectors = view.getUint32(12, true);
  const entriesPerTable = 4096;
  return {
    ...shape(capacitySectors, view.getUint32(16, true), entriesPerTable, view.getUint32(24, true)),
    capacitySectors,
    entriesPerTable,
    directoryOffset: view.getUint32(20, true) * SECTOR_BYTES,
    redundantOffset: null,
    zeroedGrains: false,
    compressed: false,
    markers: false,
    atEnd: false,
    descriptorOffset: 0,
    descriptorBytes: 0,
    overheadBytes: SECTOR_BYTES,
  };
}

function bytesOf(sectors: number): number {
  const bytes = sectors * SECTOR_BYTES;
  if (!(bytes <= 2 ** 53)) throw invalid('An offset in the header is out of range');
  return bytes;
}

/** Grains and directory, checked. `given`: entries of the directory as the header says; null: as many as needed. */
function shape(
  capacitySectors: number,
  grainSectors: number,
  entriesPerTable: number,
  given: number | null,
): { readonly grainBytes: number; readonly directoryEntries: number } {
  const grainBytes = grainSectors * SECTOR_BYTES;
  if (grainSectors === 0 || entriesPerTable === 0 || grainBytes > MAX_GRAIN_BYTES)
    throw invalid('L1 entry size is invalid');
  if (capacitySectors * SECTOR_BYTES > 2 ** 53) throw invalid('File too large', E.EFBIG);
  const needed = Math.ceil(capacitySectors / (grainSectors * entriesPerTable));
  if (needed * 4 > MAX_DIRECTORY_BYTES) throw invalid('L1 size too big', E.EFBIG);
  if (given !== null && given < needed) throw invalid('The grain directory is too small');
  return { grainBytes, directoryEntries: needed };
}

export interface NewHeader {
  readonly capacitySectors: number;
  readonly zeroedGrains: boolean;
  readonly compressed: boolean;
  /** Sectors; null: at the end. */
  readonly directory: number | null;
  readonly redundant: number;
  readonly overhead: number;
  readonly hasDescriptor: boolean;
}

export const NEW_GRAIN_SECTORS = 128;
export const NEW_ENTRIES = 512;
export const DESCRIPTOR_SECTORS = 20;

export function newSparseHeader(fields: NewHeader): Buffer {
  const bytes = Buffer.alloc(SECTOR_BYTES);
  const { compressed, zeroedGrains } = fields;
  bytes.write(SPARSE_MAGIC, 0, 'latin1');
  bytes.writeUInt32LE(compressed ? 3 : zeroedGrains ? 2 : 1, 4);
  bytes.writeUInt32LE(
    Flag.newLineTest |
      (fields.redundant !== 0 ? Flag.redundantTable : 0) |
      (zeroedGrains ? Flag.zeroedGrains : 0) |
      (compressed ? Flag.compressed | Flag.markers : 0),
    8,
  );
  bytes.writeBigUInt64LE(BigInt(fields.capacitySectors), 12);
  bytes.writeBigUInt64LE(BigInt(NEW_GRAIN_SECTORS), 20);
  bytes.writeBigUInt64LE(fields.hasDescriptor ? 1n : 0n, 28);
  bytes.writeBigUInt64LE(fields.hasDescriptor ? BigInt(DESCRIPTOR_SECTORS) : 0n, 36);
  bytes.writeUInt32LE(NEW_ENTRIES, 44);
  bytes.writeBigUInt64LE(BigInt(fields.redundant), 48);
  bytes.writeBigUInt64LE(fields.directory === null ? 2n ** 64n - 1n : BigInt(fields.directory), 56);
  bytes.writeBigUInt64LE(BigInt(fields.overhead), 64);
  bytes.write('\n \r\n', 73, 'latin1');
  bytes.writeUInt16LE(compressed ? 1 : 0, 77);
  return bytes;
}

/** A sector that says what follows it: `sectors` of it. */
export function newMarker(type: number, sectors: number): Buffer {
  const bytes = Buffer.alloc(SECTOR_BYTES);
  bytes.writeBigUInt64LE(BigInt(sectors), 0);
  bytes.writeUInt32LE(type, 12);
  return bytes;
}
