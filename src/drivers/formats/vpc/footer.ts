/**
 * The footer of a VHD image, and the header of one that grows. All fields are big-endian.
 *
 * Footer, the last 512 bytes of the file, and for growing images the first 512 as well:
 *
 * | offset | bytes | field |
 * |---|---|---|
 * | 0 | 8 | "conectix" |
 * | 8 | 4 + 4 | features (2), version 1.0 |
 * | 16 | 8 | offset of the dynamic header; all ones for fixed images |
 * | 24 | 4 | seconds since 2000 |
 * | 28 | 4 + 4 + 4 | creator, its version, its operating system |
 * | 40 | 8 + 8 | original and current size in bytes |
 * | 56 | 2 + 1 + 1 | cylinders, heads, sectors per track |
 * | 60 | 4 | type: 2 fixed, 3 dynamic, 4 differencing |
 * | 64 | 4 | checksum: ones' complement of the sum of all other bytes |
 * | 68 | 16 | UUID |
 *
 * Dynamic header, 1024 bytes: "cxsparse"; at 16 the offset of the block allocation table, at 28 its entries, at 32 bytes
 * of a block, at 36 the checksum, at 40 the parent's UUID, at 64 its name (UTF-16), at 576 eight locators.
 * An entry of the table is the sector where a block begins, all ones for none: first a bitmap with a bit for each sector
 * (in differencing images: whether it is in this file), then the data.
 *
 * Source of the facts: Microsoft, "Virtual Hard Disk Image Format Specification", 1.0.
 */

import { randomBytes } from 'node:crypto';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { readU64Be, viewOf } from '../shared/table-io.ts';
import { FOOTER_COOKIE } from './probe.ts';

export const FOOTER_BYTES = 512;
export const DYNAMIC_BYTES = 1024;
const CHECKSUM_AT = 64;
const DYNAMIC_CHECKSUM_AT = 36;
export const Type = { fixed: 2, dynamic: 3, differencing: 4 } as const;
/** Sectors of the largest geometry: disks with more, or exactly as many, go by their size. */
export const MAX_GEOMETRY_SECTORS = 65535 * 16 * 255;
/** The table's entries have 32 bits: 2040 GiB. */
export const MAX_SECTORS = 0xff000000;
export const DEFAULT_BLOCK_BYTES = 2 * 1024 * 1024;
const SECONDS_TO_2000 = 946684800;

/** Creators whose images go by their size; those of others by their geometry. */
const CREATORS_BY_SIZE: readonly string[] = ['win ', 'qem2', 'd2v ', 'tap\0', 'CTXS'];

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

/** Ones' complement of the sum of the bytes, the four of the checksum left out. */
export function checksum(bytes: Buffer, at: number): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i++) if (i < at || i >= at + 4) sum += bytes[i]!;
  return ~sum >>> 0;
}

export interface Footer {
  readonly bytes: Buffer;
  readonly type: number;
  readonly dynamicOffset: number;
  readonly diskBytes: number;
  readonly uuid: Buffer;
}

export function hasCookie(bytes: Buffer): boolean {
  return bytes.toString('latin1', 0, 8) === FOOTER_COOKIE;
}

/** Reads a footer with a cookie; throws for a wrong checksum. */
export function parseFooter(given: Buffer): Footer {
  const bytes = Buffer.alloc(FOOTER_BYTES);
  given.copy(bytes);
  const view = viewOf(bytes);
  if (view.getUint32(CHECKSUM_AT) !== checksum(bytes, CHECKSUM_AT))
    throw invalid('Incorrect header checksum');
  const currentBytes = readU64Be(view, 48);
  const geometrySectors = view.getUint16(56) * view.getUint8(58) * view.getUint8(59);
  const creator = bytes.toString('latin1', 28, 32);
  const bySize = CREATORS_BY_SIZE.includes(creator) || geometrySectors === MAX_GEOMETRY_SECTORS;
  const sectors = bySize ? Math.floor(currentBytes / 512) : geometrySectors;
  if (sectors > MAX_SECTORS) throw new BlockError('File too large', { errno: E.EFBIG });
  return {
    bytes,
    type: view.getUint32(60),
    dynamicOffset: readU64Be(view, 16),
    diskBytes: sectors * 512,
    uuid: bytes.subarray(68, 84),
  };
}

export interface ParentLocator {
  readonly platform: string;
  readonly offset: number;
  readonly bytes: number;
}

export interface DynamicHeader {
  readonly tableOffset: number;
  readonly entries: number;
  readonly blockBytes: number;
  readonly parentUuid: Buffer;
  /** As stored; empty where there is none. */
  readonly parentName: string;
  readonly locators: readonly ParentLocator[];
}

export function parseDynamic(bytes: Buffer): DynamicHeader {
  const view = viewOf(bytes);
  if (bytes.toString('latin1', 0, 8) !== 'cxsparse') throw invalid('Invalid header magic');
  const blockBytes = view.getUint32(32);
  if (!Number.isInteger(Math.log2(blockBytes)) || blockBytes < 512)
    throw invalid(`Invalid block size ${blockBytes}`);
  const entries = view.getUint32(28);
  if (entries > 0x7fffffff / 4) throw invalid(`Max Table Entries too large (${entries | 0})`);
  const locators = Array.from({ length: 8 }, (_, i) => {
    const at = 576 + i * 24;
    return {
      platform: bytes.toString('latin1', at, at + 4),
      bytes: view.getUint32(at + 8),
      offset: readU64Be(view, at + 16),
    };
  });
  return {
    tableOffset: readU64Be(view, 16),
    entries,
    blockBytes,
    parentUuid: bytes.subarray(40, 56),
    parentName: utf16(bytes.subarray(64, 576), 'be'),
    locators,
  };
}

/** UTF-16 up to the first zero. */
export function utf16(bytes: Buffer, order: 'be' | 'le'): string {
  const even = Buffer.from(bytes.subarray(0, bytes.length - (bytes.length % 2)));
  if (order === 'be') even.swap16();
  const text = even.toString('utf16le');
  const end = text.indexOf('\0');
  return end < 0 ? text : text.slice(0, end);
}

/** Bytes of the bitmap in front of a block. */
export function bitmapBytes(blockBytes: number): number {
  return Math.ceil(blockBytes / 512 / 8 / 512) * 512;
}

// ---- new images ----------------------------------------------------------------------------------------------

export interface Geometry {
  readonly cylinders: number;
  readonly heads: number;
  readonly sectors: number;
}

/** The specification's way from a number of sectors to a geometry that has about as many. */
function geometryOf(wanted: number): Geometry {
  const total = Math.min(wanted, MAX_GEOMETRY_SECTORS);
  let sectors: number;
  let heads: number;
  let tracks: number;
  if (total >= 65535 * 16 * 63) {
    sectors = 255;
    heads = 16;
    tracks = Math.floor(total / sectors);
  } else {
    sectors = 17;
    tracks = Math.floor(total / sectors);
    heads = Math.max(4, Math.ceil(tracks / 1024));
    if (tracks >= heads * 1024 || heads > 16) {
      sectors = 31;
      heads = 16;
      tracks = Math.floor(total / sectors);
    }
    if (tracks >= heads * 1024) {
      sectors = 63;
      heads = 16;
      tracks = Math.floor(total / sectors);
    }
  }
  return { cylinders: Math.floor(tracks / heads), heads, sectors };
}

export interface DiskShape {
  readonly sectors: number;
  readonly geometry: Geometry;
}

/** Size and geometry of a new disk of at least `bytes`; `exact`: the size counts, the geometry says nothing. */
export function shapeOf(bytes: number, exact: boolean): DiskShape {
  const wanted = Math.ceil(bytes / 512);
  if (wanted > MAX_SECTORS) throw new BlockError('File too large', { errno: E.EFBIG });
  const largest = { cylinders: 65535, heads: 16, sectors: 255 };
  if (exact) return { sectors: wanted, geometry: largest };
  const target = Math.min(wanted, MAX_GEOMETRY_SECTORS);
  let geometry = geometryOf(target);
  const product = ({ cylinders, heads, sectors }: Geometry): number => cylinders * heads * sectors;
  for (let more = 1; product(geometry) < target; more++) geometry = geometryOf(target + more);
  if (product(geometry) === MAX_GEOMETRY_SECTORS) return { sectors: wanted, geometry };
  return { sectors: product(geometry), geometry };
}

export function newFooter(shape: DiskShape, type: number, exact: boolean): Buffer {
  const bytes = Buffer.alloc(FOOTER_BYTES);
  bytes.write(FOOTER_COOKIE, 0, 'latin1');
  bytes.writeUInt32BE(2, 8);
  bytes.writeUInt32BE(0x00010000, 12);
  if (type === Type.fixed) bytes.fill(0xff, 16, 24);
  else bytes.writeBigUInt64BE(BigInt(FOOTER_BYTES), 16);
  bytes.writeUInt32BE(Math.max(0, Math.floor(Date.now() / 1000) - SECONDS_TO_2000) >>> 0, 24);
  bytes.write(exact ? 'qem2' : 'qemu', 28, 'latin1');
  bytes.writeUInt32BE(0x00050003, 32);
  bytes.write('Wi2k', 36, 'latin1');
  bytes.writeBigUInt64BE(BigInt(shape.sectors * 512), 40);
  bytes.writeBigUInt64BE(BigInt(shape.sectors * 512), 48);
  bytes.writeUInt16BE(shape.geometry.cylinders, 56);
  bytes.writeUInt8(shape.geometry.heads, 58);
  bytes.writeUInt8(shape.geometry.sectors, 59);
  bytes.writeUInt32BE(type, 60);
  const uuid = randomBytes(16);
  uuid[6] = (uuid[6]! & 0x0f) | 0x40;
  uuid[8] = (uuid[8]! & 0x3f) | 0x80;
  uuid.copy(bytes, 68);
  bytes.writeUInt32BE(checksum(bytes, CHECKSUM_AT), CHECKSUM_AT);
  return bytes;
}

export function newDynamic(tableOffset: number, entries: number): Buffer {
  const bytes = Buffer.alloc(DYNAMIC_BYTES);
  bytes.write('cxsparse', 0, 'latin1');
  bytes.fill(0xff, 8, 16);
  bytes.writeBigUInt64BE(BigInt(tableOffset), 16);
  bytes.writeUInt32BE(0x00010000, 24);
  bytes.writeUInt32BE(entries, 28);
  bytes.writeUInt32BE(DEFAULT_BLOCK_BYTES, 32);
  bytes.writeUInt32BE(checksum(bytes, DYNAMIC_CHECKSUM_AT), DYNAMIC_CHECKSUM_AT);
  return bytes;
}
