/** A protocol driver over memory for hostile images: it counts what is written, and is full at some size. */

import { copyFromVector, copyToVector } from '../../../src/aio/memory.ts';
import type { BlockDriver } from '../../../src/block/contract/driver.ts';
import { Req, Status } from '../../../src/block/contract/request.ts';
import { E } from '../../../src/errors/errno.ts';
import { ioError } from '../../../src/errors/error.ts';

export const DISK_FULL_BYTES = 32 * 1024 * 1024;

export interface FuzzDisk {
  /** The content is the first `length` bytes. */
  data: Buffer;
  length: number;
  /** Calls that changed something. */
  writes: number;
  /** Bytes of the reads so far. */
  bytesRead: number;
}

export function createDisk(content: Buffer): FuzzDisk {
  return { data: Buffer.from(content), length: content.length, writes: 0, bytesRead: 0 };
}

function reserve(disk: FuzzDisk, end: number): void {
  if (end > DISK_FULL_BYTES) throw ioError(E.ENOSPC);
  if (end > disk.data.length) {
    const grown = Buffer.alloc(Math.min(DISK_FULL_BYTES, Math.max(end, disk.data.length * 2)));
    disk.data.copy(grown, 0, 0, disk.length);
    disk.data = grown;
  }
  if (end > disk.length) {
    disk.data.fill(0, disk.length, end);
    disk.length = end;
  }
}

export function fuzzDriver(name: string, disk: FuzzDisk): BlockDriver {
  const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
  return {
    name,
    kind: 'protocol',
    growsWithZeroes: true,
    supportedWriteFlags: 0,
    supportedZeroFlags: Req.mayUnmap | Req.noFallback,
    open: async () => null,
    async preadv(_node, _guard, offset, bytes, vec) {
      disk.bytesRead += bytes;
      const part = Buffer.alloc(bytes);
      disk.data.copy(part, 0, Math.min(offset, disk.length), Math.min(offset + bytes, disk.length));
      copyToVector(vec, part);
    },
    async pwritev(_node, _guard, offset, bytes, vec) {
      disk.writes++;
      await turn();
      reserve(disk, offset + bytes);
      copyFromVector(vec, disk.data.subarray(offset, offset + bytes));
    },
    async pwriteZeroes(_node, _guard, offset, bytes) {
      disk.writes++;
      await turn();
      reserve(disk, offset + bytes);
      disk.data.fill(0, offset, offset + bytes);
    },
    async pdiscard(_node, _guard, offset, bytes) {
      disk.writes++;
      await turn();
      if (offset < disk.length) disk.data.fill(0, offset, Math.min(disk.length, offset + bytes));
    },
    async truncate(_node, _guard, length) {
      disk.writes++;
      reserve(disk, length);
      disk.length = length;
    },
    flush: turn,
    blockStatus: async (node, _guard, _wantZero, offset, bytes) => ({
      bytes,
      flags: Status.data | Status.offsetValid,
      map: offset,
      file: node,
    }),
    getLength: async () => disk.length,
    getAllocatedFileSize: async () => disk.length,
  };
}
