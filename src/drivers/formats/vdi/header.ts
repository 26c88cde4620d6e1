/**
 * The header of a VDI image (VirtualBox), all fields little-endian:
 *
 * | offset | bytes | field |
 * |---|---|---|
 * | 0x00 | 64 | text, ends in a line feed |
 * | 0x40 | 4 | signature 0xbeda107f |
 * | 0x44 | 4 | version, major in the high half; 1.1 here |
 * | 0x48 | 4 | bytes of the header from here on |
 * | 0x4c | 4 | type: 1 dynamic, 2 static (all blocks have their place) |
 * | 0x50 | 4 + 256 | flags, comment |
 * | 0x154 | 4 | offset of the block map |
 * | 0x158 | 4 | offset of the first block |
 * | 0x15c | 12 | cylinders, heads, sectors of old images |
 * | 0x168 | 4 + 4 | bytes of a sector: 512; unused |
 * | 0x170 | 8 | size of the disk in bytes |
 * | 0x178 | 4 | bytes of a block |
 * | 0x17c | 4 | bytes in front of the data of each block |
 * | 0x180 | 4 + 4 | blocks of the disk, blocks in the file |
 * | 0x188 | 4 x 16 | UUIDs: image, last snapshot, link (parent's), parent's last snapshot |
 *
 * The block map has a 32-bit number for each block of the disk: its number in the file, 0xffffffff never written,
 * 0xfffffffe reads as zeroes.
 *
 * Source of the facts: VirtualBox documentation and forum description of VDI 1.1; images of VirtualBox and qemu-img.
 */

import { randomBytes } from 'node:crypto';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { readU64Le, viewOf } from '../shared/table-io.ts';
import { VDI_SIGNATURE } from './probe.ts';

export const HEADER_BYTES = 512;
export const ALLOCATED_COUNT_AT = 0x184;
const TEXT = '<<< QEMU VM Virtual Disk Image >>>\n';
const VERSION_1_1 = 0x00010001;
/** Bytes from 0x48 to the end of the fields. */
const HEADER_SIZE_FIELD = 0x180;
export const TYPE_DYNAMIC = 1;
export const TYPE_STATIC = 2;
export const DEFAULT_BLOCK_BYTES = 1024 * 1024;
/** Blocks of a disk, and bytes of one with blocks of the usual size: what the original makes and reads at most. */
const MAX_BLOCKS = 536870784;
export const MAX_DISK_BYTES = MAX_BLOCKS * DEFAULT_BLOCK_BYTES;

export const UNALLOCATED = 0xffffffff;
export const ZEROED = 0xfffffffe;

export interface VdiHeader {
  readonly type: number;
  readonly mapOffset: number;
  readonly dataOffset: number;
  readonly diskBytes: number;
  readonly blockBytes: number;
  /** Bytes in front of the data of each block. */
  readonly extraBytes: number;
  readonly blocks: number;
  allocated: number;
  /** The sector as it is on the disk. */
  readonly sector: Buffer;
}

function unsupported(what: string): BlockError {
  return new BlockError(`unsupported VDI image (${what})`, { errno: E.ENOTSUP });
}

/** Throws when a disk is larger than such an image can be. */
export function checkDiskSize(bytes: number): void {
  if (bytes <= MAX_DISK_BYTES) return;
  throw new BlockError(
    `Unsupported VDI image size (size is 0x${BigInt(bytes).toString(16)}, max supported is 0x${MAX_DISK_BYTES.toString(16)})`,
    { errno: E.ENOTSUP },
  );
}

/** Reads and checks a header; errors are the original's, in its order. `fileBytes`: length of the file. */
export function parseHeader(sector: Buffer, fileBytes: number): VdiHeader {
  const view = viewOf(sector);
  const u32 = (at: number): number => view.getUint32(at, true);
  const rawBytes = readU64Le(view, 0x170);
  if (rawBytes > MAX_DISK_BYTES) {
    const shown = view.getBigUint64(0x170, true).toString(16);
    throw new BlockError(
      `Unsupported VDI image size (size is 0x${shown}, max supported is 0x${MAX_DISK_BYTES.toString(16)})`,
      { errno: E.ENOTSUP },
    );
  }
  const diskBytes = Math.ceil(rawBytes / 512) * 512;
  const signature = u32(0x40);
  if (signature !== VDI_SIGNATURE) {
    throw new BlockError(
      `Image not in VDI format (bad signature ${signature.toString(16).padStart(8, '0')})`,
      { errno: E.EINVAL },
    );
  }
  const version = u32(0x44);
  if (version !== VERSION_1_1) throw unsupported(`version ${version >>> 16}.${version & 0xffff}`);
  const mapOffset = u32(0x154);
  const dataOffset = u32(0x158);
  if (mapOffset % 512 !== 0) throw unsupported(`unaligned block map offset 0x${mapOffset.toString(16)}`);
  if (dataOffset % 512 !== 0) throw unsupported(`unaligned data offset 0x${dataOffset.toString(16)}`);
  const sectorBytes = u32(0x168);
  if (sectorBytes !== 512) throw unsupported(`sector size ${sectorBytes} is not 512`);
  const blockBytes = u32(0x178);
  const extraBytes = u32(0x17c);
  // The original takes blocks of 1 MiB only; VirtualBox makes others when asked to.
  if (!Number.isInteger(Math.log2(blockBytes)) || blockBytes < 4096 || blockBytes > 2 ** 28)
    throw unsupported(`block size ${blockBytes} is not a power of two between 4096 and 268435456`);
  if (extraBytes % 512 !== 0 || extraBytes > blockBytes)
    throw unsupported(`extra size ${extraBytes} of blocks`);
  const blocks = u32(0x180);
  if (blocks > MAX_BLOCKS) throw unsupported(`too many blocks ${blocks}, max is ${MAX_BLOCKS}`);
  if (diskBytes > blocks * blockBytes) {
    throw unsupported(`disk size ${diskBytes}, image bitmap has room for ${blocks * blockBytes}`);
  }
  if (!isNull(sector.subarray(0x1a8, 0x1b8))) throw unsupported('non-NULL link UUID');
  if (!isNull(sector.subarray(0x1b8, 0x1c8))) throw unsupported('non-NULL parent UUID');
  const mapEnd = mapOffset + blocks * 4;
  if (mapOffset < HEADER_BYTES && blocks > 0)
    throw unsupported(`block map offset 0x${mapOffset.toString(16)} in the header`);
  if (mapEnd > fileBytes)
    throw unsupported(`block map of ${blocks} entries reaches behind the end of the file`);
  if (dataOffset < mapEnd) throw unsupported(`data offset 0x${dataOffset.toString(16)} in the block map`);
  return {
    type: u32(0x4c),
    mapOffset,
    dataOffset,
    diskBytes,
    blockBytes,
    extraBytes,
    blocks,
    allocated: u32(ALLOCATED_COUNT_AT),
    sector: Buffer.from(sector),
  };
}

function isNull(uuid: Buffer): boolean {
  return uuid.every((byte) => byte === 0);
}

/** A random UUID in the byte order of Microsoft, which VirtualBox uses. */
function randomUuid(): Buffer {
  const uuid = randomBytes(16);
  uuid[7] = (uuid[7]! & 0x0f) | 0x40;
  uuid[8] = (uuid[8]! & 0x3f) | 0x80;
  return uuid;
}

/** The header of a new image; the map follows it, then the data. */
export function newHeader(diskBytes: number, isStatic: boolean): Buffer {
  const blocks = Math.ceil(diskBytes / DEFAULT_BLOCK_BYTES);
  const sector = Buffer.alloc(HEADER_BYTES);
  sector.write(TEXT, 0, 'latin1');
  const fields: readonly (readonly [number, number])[] = [
    [0x40, VDI_SIGNATURE],
    [0x44, VERSION_1_1],
    [0x48, HEADER_SIZE_FIELD],
    [0x4c, isStatic ? TYPE_STATIC : TYPE_DYNAMIC],
    [0x154, HEADER_BYTES],
    [0x158, HEADER_BYTES + mapBytes(blocks)],
    [0x168, 512],
    [0x178, DEFAULT_BLOCK_BYTES],
    [0x180, blocks],
    [ALLOCATED_COUNT_AT, isStatic ? blocks : 0],
  ];
  for (const [at, value] of fields) sector.writeUInt32LE(value, at);
  sector.writeBigUInt64LE(BigInt(diskBytes), 0x170);
  randomUuid().copy(sector, 0x188);
  randomUuid().copy(sector, 0x198);
  return sector;
}

/** Bytes that the map takes in the file: whole sectors. */
export function mapBytes(blocks: number): number {
  return Math.ceil((blocks * 4) / 512) * 512;
}
