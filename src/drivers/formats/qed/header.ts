/**
 * The header of a qed image, little-endian:
 *
 * | offset | bytes | field |
 * |---|---|---|
 * | 0 | 4 | magic "QED\0" |
 * | 4 | 4 | bytes of a cluster: a power of two from 4 KiB to 64 MiB |
 * | 8 | 4 | clusters of a table: 1, 2, 4, 8 or 16 |
 * | 12 | 4 | clusters of the header |
 * | 16 | 8 | features that must be known |
 * | 24 | 8 | features that need not |
 * | 32 | 8 | features that whoever does not know them clears |
 * | 40 | 8 | offset of the L1 table |
 * | 48 | 8 | size of the disk in bytes |
 * | 56 | 4 + 4 | offset and bytes of the backing file's name, if there is one |
 *
 * Entries of tables are 64-bit offsets; 0: none, in L2 tables 1: a cluster that reads as zeroes.
 * Source of the facts: the QED image format specification in QEMU's documentation (docs/interop/qed_spec).
 */

import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { QED_MAGIC } from './probe.ts';

export const HEADER_BYTES = 64;
export const MAX_BACKING_NAME_BYTES = 1023;
export const DEFAULT_CLUSTER_BYTES = 65536;
export const DEFAULT_TABLE_CLUSTERS = 4;
const MIN_CLUSTER_BYTES = 4096;
const MAX_CLUSTER_BYTES = 64 * 1024 * 1024;
const MAX_TABLE_CLUSTERS = 16;

export const Feature = {
  backingFile: 1,
  /** Metadata may not be as it should: the image was not closed. */
  needCheck: 2,
  /** The backing file is raw, whatever it looks like. */
  backingRaw: 4,
} as const;
const KNOWN_FEATURES = 7;

export interface QedHeader {
  readonly clusterBytes: number;
  readonly tableClusters: number;
  readonly headerClusters: number;
  features: number;
  readonly l1Offset: number;
  size: number;
  backingNameOffset: number;
  backingNameBytes: number;
  /** Bytes of the header as on the disk, with fields nobody here knows. */
  readonly bytes: Buffer;
}

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

function isPowerOfTwo(value: number, min: number, max: number): boolean {
  return value >= min && value <= max && Number.isInteger(Math.log2(value));
}

/** Throws unless an image can be made so; the texts are the original's. */
export function checkShape(clusterBytes: number, tableClusters: number, size: number): void {
  if (!isPowerOfTwo(clusterBytes, MIN_CLUSTER_BYTES, MAX_CLUSTER_BYTES)) {
    throw invalid(
      `QED cluster size must be within range [${MIN_CLUSTER_BYTES}, ${MAX_CLUSTER_BYTES}] and power of 2`,
    );
  }
  if (!isPowerOfTwo(tableClusters, 1, MAX_TABLE_CLUSTERS))
    throw invalid(`QED table size must be within range [1, ${MAX_TABLE_CLUSTERS}] and power of 2`);
  const max = maxSize(clusterBytes, tableClusters);
  if (size % 512 !== 0 || size > max) {
    throw invalid(
      `QED image size must be a non-zero multiple of cluster size and less than ${BigInt(max)} bytes`,
    );
  }
}

/** The largest disk that tables of that size can map, in bytes. */
function maxSize(clusterBytes: number, tableClusters: number): number {
  const entries = tableEntries(clusterBytes, tableClusters);
  return Math.min(entries * entries * clusterBytes, 2 ** 63);
}

export function tableEntries(clusterBytes: number, tableClusters: number): number {
  return (clusterBytes * tableClusters) / 8;
}

function u64(bytes: Buffer, at: number): number {
  return Number(bytes.readBigUInt64LE(at));
}

/** Reads and checks a header. `fileBytes`: length of the file it is in. */
export function parseHeader(bytes: Buffer, fileBytes: number): QedHeader {
  if (bytes.readUInt32LE(0) !== QED_MAGIC) throw invalid('Image not in QED format');
  const features = bytes.readBigUInt64LE(16);
  if ((features & ~BigInt(KNOWN_FEATURES)) !== 0n) {
    throw new BlockError(`Unsupported QED features: ${(features & ~BigInt(KNOWN_FEATURES)).toString(16)}`, {
      errno: E.ENOTSUP,
    });
  }
  const header: QedHeader = {
    clusterBytes: bytes.readUInt32LE(4),
    tableClusters: bytes.readUInt32LE(8),
    headerClusters: bytes.readUInt32LE(12),
    features: Number(features),
    l1Offset: u64(bytes, 40),
    size: u64(bytes, 48),
    backingNameOffset: bytes.readUInt32LE(56),
    backingNameBytes: bytes.readUInt32LE(60),
    bytes: Buffer.from(bytes),
  };
  const { clusterBytes, tableClusters, headerClusters, l1Offset, size } = header;
  const wrong = (field: string, value: number): BlockError =>
    invalid(`Invalid QED image: ${field} ${BigInt(value)}`);
  if (!isPowerOfTwo(clusterBytes, MIN_CLUSTER_BYTES, MAX_CLUSTER_BYTES))
    throw wrong('cluster size', clusterBytes);
  if (!isPowerOfTwo(tableClusters, 1, MAX_TABLE_CLUSTERS)) throw wrong('table size', tableClusters);
  if (size % 512 !== 0 || size > maxSize(clusterBytes, tableClusters) || !Number.isSafeInteger(size))
    throw wrong('image size', size);
  // The L1 table lies behind the header and inside the file.
  const headerBytes = headerClusters * clusterBytes;
  if (headerClusters === 0 || headerBytes > fileBytes) throw wrong('header size', headerClusters);
  if (
    l1Offset % clusterBytes !== 0 ||
    l1Offset < headerBytes ||
    l1Offset + tableClusters * clusterBytes > fileBytes
  )
    throw wrong('L1 table offset', l1Offset);
  if ((header.features & Feature.backingFile) !== 0) {
    const end = header.backingNameOffset + header.backingNameBytes;
    if (
      header.backingNameOffset < HEADER_BYTES ||
      end > headerBytes ||
      header.backingNameBytes > MAX_BACKING_NAME_BYTES
    )
      throw wrong('backing file name offset', header.backingNameOffset);
  }
  return header;
}

/** The bytes of a header, HEADER_BYTES long. */
export function encodeHeader(header: QedHeader): Buffer {
  const { bytes } = header;
  bytes.writeUInt32LE(QED_MAGIC, 0);
  bytes.writeUInt32LE(header.clusterBytes, 4);
  bytes.writeUInt32LE(header.tableClusters, 8);
  bytes.writeUInt32LE(header.headerClusters, 12);
  bytes.writeBigUInt64LE(BigInt(header.features), 16);
  bytes.writeBigUInt64LE(BigInt(header.l1Offset), 40);
  bytes.writeBigUInt64LE(BigInt(header.size), 48);
  bytes.writeUInt32LE(header.backingNameOffset, 56);
  bytes.writeUInt32LE(header.backingNameBytes, 60);
  return bytes;
}
