/**
 * The header of a qcow image (version 1), big-endian:
 *
 * | offset | bytes | field |
 * |---|---|---|
 * | 0 | 4 | magic "QFI\xfb" |
 * | 4 | 4 | version: 1 |
 * | 8 | 8 + 4 | offset and bytes of the backing file's name; 0: none |
 * | 20 | 4 | time of the backing file, unused |
 * | 24 | 8 | size of the disk in bytes |
 * | 32 | 1 | bits of a cluster's size |
 * | 33 | 1 | bits of the number of entries in an L2 table |
 * | 36 | 4 | encryption: 0 none, 1 AES |
 * | 40 | 8 | offset of the L1 table |
 *
 * Entries of tables are 64-bit offsets; 0: none. In L2 tables bit 63 says that the cluster is compressed: the bits of a
 * cluster's size below it are the length, the rest is the offset, of a raw deflate stream.
 * Source of the facts: "The QCOW Image Format", Mark McLoughlin; images of qemu-img.
 */

import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { QCOW_MAGIC } from './probe.ts';

export const HEADER_BYTES = 48;
export const CRYPT_AES = 1;
const MAX_BACKING_NAME_BYTES = 1023;
const MAX_L1_BYTES = 2 ** 31 - 1;

export interface QcowHeader {
  readonly backingNameOffset: number;
  readonly backingNameBytes: number;
  readonly size: number;
  readonly clusterBits: number;
  readonly l2Bits: number;
  readonly crypt: number;
  readonly l1Offset: number;
}

function invalid(message: string, hint?: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL, ...(hint !== undefined && { hint }) });
}

/** Entries of the L1 table of a disk. */
export function l1Entries({
  size,
  clusterBits,
  l2Bits,
}: Pick<QcowHeader, 'size' | 'clusterBits' | 'l2Bits'>) {
  return Math.ceil(size / 2 ** (clusterBits + l2Bits));
}

/** Reads and checks a header; the texts are the original's. `fileBytes`: length of the file it is in. */
export function parseHeader(bytes: Buffer, fileBytes: number): QcowHeader {
  if (bytes.readUInt32BE(0) !== QCOW_MAGIC) throw invalid('Image not in qcow format');
  const version = bytes.readUInt32BE(4);
  if (version !== 1) {
    const hint = version === 2 || version === 3 ? "Try the 'qcow2' driver instead." : undefined;
    throw new BlockError(`qcow (v1) does not support qcow version ${version}`, {
      errno: E.ENOTSUP,
      ...(hint !== undefined && { hint }),
    });
  }
  const header: QcowHeader = {
    backingNameOffset: Number(bytes.readBigUInt64BE(8)),
    backingNameBytes: bytes.readUInt32BE(16),
    size: Number(bytes.readBigUInt64BE(24)),
    clusterBits: bytes.readUInt8(32),
    l2Bits: bytes.readUInt8(33),
    crypt: bytes.readUInt32BE(36),
    l1Offset: Number(bytes.readBigUInt64BE(40)),
  };
  const { size, clusterBits, l2Bits, crypt, l1Offset } = header;
  if (size <= 1) throw invalid('Image size is too small (must be at least 2 bytes)');
  if (clusterBits < 9 || clusterBits > 16) throw invalid('Cluster size must be between 512 and 64k');
  // The size of a table in bytes.
  if (l2Bits < 9 - 3 || l2Bits > 16 - 3) throw invalid('L2 table size must be between 512 and 64k');
  if (crypt > CRYPT_AES) throw invalid('invalid encryption method in qcow header');
  const l1Bytes = l1Entries(header) * 8;
  if (!Number.isSafeInteger(size) || l1Bytes > MAX_L1_BYTES) throw invalid('Image too large');
  if (l1Offset < HEADER_BYTES || l1Offset + l1Bytes > fileBytes)
    throw invalid(`L1 table offset ${BigInt(l1Offset)} is invalid: the table is not inside the file`);
  if (header.backingNameOffset !== 0) {
    if (header.backingNameBytes > MAX_BACKING_NAME_BYTES) throw invalid('Backing file name too long');
    if (header.backingNameOffset + header.backingNameBytes > fileBytes)
      throw invalid('Backing file name is not inside the file');
  }
  return header;
}

export function encodeHeader(header: QcowHeader): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES);
  bytes.writeUInt32BE(QCOW_MAGIC, 0);
  bytes.writeUInt32BE(1, 4);
  bytes.writeBigUInt64BE(BigInt(header.backingNameOffset), 8);
  bytes.writeUInt32BE(header.backingNameBytes, 16);
  bytes.writeBigUInt64BE(BigInt(header.size), 24);
  bytes.writeUInt8(header.clusterBits, 32);
  bytes.writeUInt8(header.l2Bits, 33);
  bytes.writeUInt32BE(header.crypt, 36);
  bytes.writeBigUInt64BE(BigInt(header.l1Offset), 40);
  return bytes;
}
