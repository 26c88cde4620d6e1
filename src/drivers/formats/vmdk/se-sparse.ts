/**
 * SEsparse extents of ESX 5.5 and later, read only. Fields of 64 bits, little-endian; sizes and offsets in sectors.
 *
 * Constant header: 0 magic 0xcafebabe, 8 version 2.1, 16 capacity, 24 sectors of a grain (8), 32 sectors of a grain
 * table (64), 128 and 136 place and size of the grain directory, 144 of the grain tables, 192 of the grains; 80 place
 * of the volatile header, which has the magic 0xcafecafe and at 24 whether a journal waits to be replayed.
 * An entry of the directory: 0 no table, else 0x10000000 in the high half and the number of the table in the low one.
 * An entry of a table has its kind in the upper 4 bits: 0 nothing here, 1 unmapped and 2 zeroed (both read as zeroes),
 * 3 a grain, whose number is made of bits 48 to 59 (its low 12 bits) and bits 0 to 47 (the rest).
 *
 * Source of the facts: what has been published of the format (libvmdk's documentation, QEMU's), and images of ESX.
 */

import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { HOLE, ZERO } from '../shared/flat-table.ts';
import { readU64Le, viewOf } from '../shared/table-io.ts';
import { SECTOR_BYTES } from './sparse-header.ts';

export const SE_ENTRY_BYTES = 8;
const MAGIC = 0xcafebabe;
const VOLATILE_MAGIC = 0xcafecafe;
const MAX_DIRECTORY_BYTES = 64 * 1024 * 1024;

export interface SeHeader {
  readonly capacitySectors: number;
  readonly grainBytes: number;
  readonly tableBytes: number;
  readonly directoryOffset: number;
  readonly directoryEntries: number;
  readonly tablesOffset: number;
  readonly grainsOffset: number;
  readonly volatileOffset: number;
}

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

function hex16(bytes: Buffer, at: number): string {
  return `0x${bytes.readBigUInt64LE(at).toString(16).padStart(16, '0')}`;
}

export function parseSeHeader(bytes: Buffer): SeHeader {
  const view = viewOf(bytes);
  const sectors = (at: number): number => readU64Le(view, at) * SECTOR_BYTES;
  if (readU64Le(view, 0) !== MAGIC) throw invalid(`Bad const header magic: ${hex16(bytes, 0)}`);
  if (bytes.readBigUInt64LE(8) !== 0x200000001n) {
    throw new BlockError(`Unsupported version: ${hex16(bytes, 8)}`, { errno: E.ENOTSUP });
  }
  const grainBytes = sectors(24);
  const tableBytes = sectors(32);
  const capacitySectors = readU64Le(view, 16);
  if (grainBytes !== 4096) throw invalid(`Unsupported grain size: ${readU64Le(view, 24)}`);
  if (tableBytes !== 32768) throw invalid(`Unsupported grain table size: ${readU64Le(view, 32)}`);
  const directoryBytes = sectors(136);
  const needed = Math.ceil((capacitySectors * SECTOR_BYTES) / ((tableBytes / SE_ENTRY_BYTES) * grainBytes));
  if (!(capacitySectors * SECTOR_BYTES <= 2 ** 53))
    throw new BlockError('File too large', { errno: E.EFBIG });
  if (needed * SE_ENTRY_BYTES > directoryBytes) throw invalid('The grain directory is too small');
  if (directoryBytes > MAX_DIRECTORY_BYTES) throw invalid('L1 size too big');
  for (const at of [80, 128, 144, 192])
    if (!(sectors(at) <= 2 ** 52)) throw invalid('An offset in the header is out of range');
  return {
    capacitySectors,
    grainBytes,
    tableBytes,
    directoryOffset: sectors(128),
    directoryEntries: needed,
    tablesOffset: sectors(144),
    grainsOffset: sectors(192),
    volatileOffset: sectors(80),
  };
}

export function checkVolatileHeader(bytes: Buffer): void {
  if (readU64Le(viewOf(bytes), 0) !== VOLATILE_MAGIC)
    throw invalid(`Bad volatile header magic: ${hex16(bytes, 0)}`);
  if (bytes[24] !== 0)
    throw new BlockError('Image is dirty, Replaying journal not supported', { errno: E.ENOTSUP });
}

/** Offsets of the grain tables in bytes, 0 where there is none. */
export function seDirectory(header: SeHeader, bytes: Buffer): Float64Array {
  const view = viewOf(bytes);
  return Float64Array.from({ length: header.directoryEntries }, (_, i) => {
    const low = view.getUint32(i * 8, true);
    const high = view.getUint32(i * 8 + 4, true);
    if (low === 0 && high === 0) return 0;
    if (high !== 0x10000000)
      throw invalid(`An entry of the grain directory is invalid: ${hex16(bytes, i * 8)}`);
    return header.tablesOffset + low * header.tableBytes;
  });
}

/** Where the grain of an entry is: an offset in bytes, HOLE or ZERO. */
export function seEntry(header: SeHeader, view: DataView, at: number): number {
  const low = view.getUint32(at, true);
  const high = view.getUint32(at + 4, true);
  switch (high >>> 28) {
    case 0:
      if (low === 0 && high === 0) return HOLE;
      throw ioError(E.EIO);
    case 1:
    case 2:
      return ZERO;
    case 3: {
      const number = ((high & 0xffff) * 2 ** 32 + low) * 4096 + ((high >>> 16) & 0xfff);
      return header.grainsOffset + number * header.grainBytes;
    }
    default:
      throw ioError(E.EIO);
  }
}
