/**
 * virtio-blk: requests, and the configuration space of a disk.
 *
 * | request | header 16 bytes: type u32, reserved u32, sector u64; data; status 1 byte |
 * Source of the facts: Virtual I/O Device (VIRTIO) 1.2, section 5.2; values as the original offers them.
 */

export const SECTOR_BYTES = 512;
export const REQUEST_HEADER_BYTES = 16;
export const ID_BYTES = 20;
/** A segment of discard and write-zeroes: sector u64, sectors u32, flags u32. */
export const RANGE_BYTES = 16;
export const RANGE_UNMAP = 1;
export const RANGE_SECTORS_MAX = 32768;
export const CONFIG_BYTES = 60;
export const SEGMENTS_MAX = 126;

export const RequestType = {
  read: 0,
  write: 1,
  flush: 4,
  getId: 8,
  discard: 11,
  writeZeroes: 13,
} as const;

export const RequestStatus = { ok: 0, ioError: 1, unsupported: 2 } as const;

/** Position of the one field that the driver may write. */
export const CONFIG_WRITEBACK_AT = 32;

export interface DiskGeometry {
  readonly sizeBytes: number;
  readonly blockBytes: number;
  readonly queues: number;
  readonly writeback: boolean;
}

/** struct virtio_blk_config. */
export function encodeConfig({ sizeBytes, blockBytes, queues, writeback }: DiskGeometry): Buffer {
  const config = Buffer.alloc(CONFIG_BYTES);
  config.writeBigUInt64LE(BigInt(Math.floor(sizeBytes / SECTOR_BYTES)), 0);
  config.writeUInt32LE(SEGMENTS_MAX, 12);
  config.writeUInt32LE(blockBytes, 20);
  config.writeUInt16LE(1, 26);
  config.writeUInt32LE(1, 28);
  config.writeUInt8(writeback ? 1 : 0, CONFIG_WRITEBACK_AT);
  config.writeUInt16LE(queues, 34);
  config.writeUInt32LE(RANGE_SECTORS_MAX, 36);
  config.writeUInt32LE(1, 40);
  config.writeUInt32LE(blockBytes / SECTOR_BYTES, 44);
  config.writeUInt32LE(RANGE_SECTORS_MAX, 48);
  config.writeUInt32LE(1, 52);
  config.writeUInt8(1, 56);
  return config;
}

export interface DiskConfig {
  readonly sizeBytes: number;
  readonly segmentsMax: number;
  readonly blockBytes: number;
  readonly queues: number;
  readonly discardSectorsMax: number;
  readonly writeZeroesSectorsMax: number;
}

export function decodeConfig(config: Buffer): DiskConfig {
  return {
    sizeBytes: Number(config.readBigUInt64LE(0)) * SECTOR_BYTES,
    segmentsMax: config.readUInt32LE(12),
    blockBytes: config.readUInt32LE(20),
    queues: config.readUInt16LE(34),
    discardSectorsMax: config.readUInt32LE(36),
    writeZeroesSectorsMax: config.readUInt32LE(48),
  };
}
