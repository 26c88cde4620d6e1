/**
 * The header of a Parallels expandable image, little-endian:
 *
 * | offset | bytes | field |
 * |---|---|---|
 * | 0 | 16 | "WithoutFreeSpace": entries count sectors, "WithouFreSpacExt": clusters |
 * | 16 | 4 | version: 2 |
 * | 20 | 4 + 4 | heads, cylinders: not used |
 * | 28 | 4 | sectors of a cluster |
 * | 32 | 4 | entries of the block allocation table |
 * | 36 | 8 | sectors of the disk; the upper half only with the second magic |
 * | 44 | 4 | "Ynot": somebody has the image open for writing |
 * | 48 | 4 | sector where data begins; 0: behind the table |
 * | 52 | 4 | flags: 1 nothing was ever written |
 * | 56 | 8 | sector of the format extension, with dirty bitmaps; 0: none |
 * | 64 | | the table: a 32-bit place for each cluster of the disk, 0: none |
 *
 * Source of the facts: "Parallels Expandable Image File Format" in QEMU's documentation (docs/interop/parallels).
 */

import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { MAGIC_CLUSTERS, MAGIC_SECTORS } from './probe.ts';

export const HEADER_BYTES = 64;
export const SECTOR_BYTES = 512;
export const DEFAULT_CLUSTER_BYTES = 1024 * 1024;
const IN_USE = 0x746f6e59;
const IN_USE_AT = 44;
const HEADS = 16;
/** Sectors of a cylinder that the original counts with. */
const CYLINDER_SECTORS = 512;
const MAX_CLUSTER_SECTORS = (2 ** 31 - 1) / SECTOR_BYTES;
const MAX_ENTRIES = (2 ** 31 - 1) / 4;

export interface ParallelsHeader {
  readonly clusterBytes: number;
  readonly entries: number;
  readonly diskBytes: number;
  readonly inUse: boolean;
  readonly dataOffset: number;
  readonly extensionOffset: number;
  /** Bytes that an entry counts. */
  readonly unitBytes: number;
  /** As on the disk. */
  readonly bytes: Buffer;
}

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

/** Reads and checks a header; texts are the original's where it has any. `fileBytes`: length of the file. */
export function parseHeader(bytes: Buffer, fileBytes: number): ParallelsHeader {
  const magic = bytes.toString('latin1', 0, 16);
  const version = bytes.readUInt32LE(16);
  if ((magic !== MAGIC_SECTORS && magic !== MAGIC_CLUSTERS) || version !== 2)
    throw invalid('Image not in Parallels format');
  const byClusters = magic === MAGIC_CLUSTERS;
  const clusterSectors = bytes.readUInt32LE(28);
  const entries = bytes.readUInt32LE(32);
  const sectors = byClusters ? Number(bytes.readBigUInt64LE(36)) : bytes.readUInt32LE(36);
  if (clusterSectors === 0) throw invalid('Invalid image: Zero sectors per track');
  if (clusterSectors > MAX_CLUSTER_SECTORS) throw invalid('Invalid image: Too big cluster');
  if (entries > MAX_ENTRIES) throw new BlockError('Catalog too large', { errno: E.EFBIG });
  const clusterBytes = clusterSectors * SECTOR_BYTES;
  const diskBytes = sectors * SECTOR_BYTES;
  if (!Number.isSafeInteger(diskBytes)) throw invalid('Invalid image: Too many sectors');
  if (entries < Math.ceil(sectors / clusterSectors)) throw invalid('Invalid image: Catalog too small');
  const tableEnd = HEADER_BYTES + entries * 4;
  if (tableEnd > fileBytes) throw invalid('Invalid image: Catalog is not inside the file');
  const given = bytes.readUInt32LE(48) * SECTOR_BYTES;
  // Images of the first kind may leave it out, or have the table reach into the first sector of data.
  const dataOffset = given === 0 ? Math.ceil(tableEnd / SECTOR_BYTES) * SECTOR_BYTES : given;
  if (dataOffset < tableEnd) throw invalid('Invalid image: Data begins inside the catalog');
  return {
    clusterBytes,
    entries,
    diskBytes,
    inUse: bytes.readUInt32LE(IN_USE_AT) === IN_USE,
    dataOffset,
    extensionOffset: Number(bytes.readBigUInt64LE(56)) * SECTOR_BYTES,
    unitBytes: byClusters ? clusterBytes : SECTOR_BYTES,
    bytes: Buffer.from(bytes),
  };
}

/** The header's bytes with the mark of an open image, or without. An image that is written to loses its extension. */
export function markedHeader({ bytes }: ParallelsHeader, inUse: boolean): Buffer {
  bytes.writeUInt32LE(inUse ? IN_USE : 0, IN_USE_AT);
  if (inUse) {
    bytes.writeUInt32LE((bytes.readUInt32LE(52) & ~1) >>> 0, 52);
    bytes.writeBigUInt64LE(0n, 56);
  }
  return bytes;
}

/** Throws unless an image can be made so; the texts are the original's. */
export function checkShape(diskBytes: number, clusterBytes: number): void {
  const tooLarge = (what: string): BlockError => new BlockError(what, { errno: E.E2BIG });
  // Entries count clusters, in 32 bits.
  if (diskBytes >= 2 ** 32 * clusterBytes || diskBytes > Number.MAX_SAFE_INTEGER)
    throw tooLarge('Image size is too large for this cluster size');
  if (clusterBytes > 2 ** 31 - 1) throw tooLarge('Cluster size is too large');
  if (diskBytes % SECTOR_BYTES !== 0) throw invalid('Image size must be a multiple of 512 bytes');
  if (clusterBytes % SECTOR_BYTES !== 0) throw invalid('Cluster size must be a multiple of 512 bytes');
}

/** The header of a new image, and where its data begins. */
export function newHeader(diskBytes: number, clusterBytes: number): { bytes: Buffer; dataOffset: number } {
  const entries = Math.ceil(diskBytes / clusterBytes);
  const clusterSectors = clusterBytes / SECTOR_BYTES;
  const tableSectors = Math.ceil((HEADER_BYTES + entries * 4) / SECTOR_BYTES);
  const dataSectors = Math.ceil(tableSectors / clusterSectors) * clusterSectors;
  const bytes = Buffer.alloc(HEADER_BYTES);
  bytes.write(MAGIC_CLUSTERS, 0, 'latin1');
  bytes.writeUInt32LE(2, 16);
  bytes.writeUInt32LE(HEADS, 20);
  bytes.writeUInt32LE(Math.floor(diskBytes / SECTOR_BYTES / CYLINDER_SECTORS) % 2 ** 32, 24);
  bytes.writeUInt32LE(clusterSectors, 28);
  bytes.writeUInt32LE(entries, 32);
  bytes.writeBigUInt64LE(BigInt(diskBytes / SECTOR_BYTES), 36);
  bytes.writeUInt32LE(dataSectors, 48);
  return { bytes, dataOffset: dataSectors * SECTOR_BYTES };
}
