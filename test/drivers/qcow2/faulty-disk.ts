/**
 * A protocol driver over memory on which I/O fails when the test says so: number n of what changes the disk, once or
 * from then on, or whatever needs more space than there is.
 */

import { copyFromVector, copyToVector } from '../../../src/aio/memory.ts';
import type { BlockDriver } from '../../../src/block/contract/driver.ts';
import { Req, Status } from '../../../src/block/contract/request.ts';
import { ioError } from '../../../src/errors/error.ts';

const PAGE = 512;

export interface FaultyDisk {
  data: Buffer;
  /** Changes until one fails; Infinity: none does. */
  left: number;
  /** After the first failure everything fails until it is healed. */
  persistent: boolean;
  errno: number;
  /** Whether something has failed. */
  hit: boolean;
  /** Pages that may hold something at a time; Infinity: any number. */
  capacityPages: number;
  readonly pages: Set<number>;
}

export function faultyDisk(content: Buffer): FaultyDisk {
  const disk: FaultyDisk = {
    data: Buffer.from(content),
    left: Number.POSITIVE_INFINITY,
    persistent: false,
    errno: 5,
    hit: false,
    capacityPages: Number.POSITIVE_INFINITY,
    pages: new Set(),
  };
  for (let page = 0; page * PAGE < content.length; page++) disk.pages.add(page);
  return disk;
}

export function heal(disk: FaultyDisk): void {
  disk.left = Number.POSITIVE_INFINITY;
  disk.persistent = false;
}

function change(disk: FaultyDisk): void {
  if (--disk.left > 0) return;
  if (disk.left < 0 && !disk.persistent) return;
  disk.hit = true;
  throw ioError(disk.errno);
}

function grow(disk: FaultyDisk, end: number): void {
  if (end > disk.data.length) disk.data = Buffer.concat([disk.data, Buffer.alloc(end - disk.data.length)]);
}

/** Takes pages one by one, as a file system does: what there is space for is written. Returns the bytes written. */
function takeSpace(disk: FaultyDisk, offset: number, bytes: number): number {
  for (let page = Math.floor(offset / PAGE); page * PAGE < offset + bytes; page++) {
    if (disk.pages.has(page)) continue;
    if (disk.pages.size >= disk.capacityPages) return Math.max(0, page * PAGE - offset);
    disk.pages.add(page);
  }
  return bytes;
}

/** The driver `faulty`. */
export function faultyDriver(disk: FaultyDisk): BlockDriver {
  const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
  const punch = async (offset: number, bytes: number): Promise<void> => {
    await turn();
    change(disk);
    const end = Math.min(offset + bytes, disk.data.length);
    if (end > offset) disk.data.fill(0, offset, end);
    for (let page = Math.ceil(offset / PAGE); (page + 1) * PAGE <= end; page++) disk.pages.delete(page);
  };
  return {
    name: 'faulty',
    kind: 'protocol',
    growsWithZeroes: true,
    supportedWriteFlags: 0,
    supportedZeroFlags: Req.mayUnmap | Req.noFallback,
    open: async () => null,
    async preadv(_node, _guard, offset, bytes, vec) {
      await turn();
      const part = Buffer.alloc(bytes);
      disk.data.copy(part, 0, Math.min(offset, disk.data.length), offset + bytes);
      copyToVector(vec, part);
    },
    async pwritev(_node, _guard, offset, bytes, vec) {
      await turn();
      change(disk);
      const data = Buffer.alloc(bytes);
      copyFromVector(vec, data);
      const written = takeSpace(disk, offset, bytes);
      grow(disk, offset + written);
      data.copy(disk.data, offset, 0, written);
      if (written === bytes) return;
      disk.hit = true;
      throw ioError(28);
    },
    async pwriteZeroes(_node, _guard, offset, bytes, flags) {
      if ((flags & Req.mayUnmap) === 0) {
        await turn();
        change(disk);
        if (takeSpace(disk, offset, bytes) < bytes) throw ioError(28);
        grow(disk, offset + bytes);
        disk.data.fill(0, offset, offset + bytes);
        return;
      }
      await punch(offset, bytes);
      grow(disk, offset + bytes);
    },
    pdiscard: (_node, _guard, offset, bytes) => punch(offset, bytes),
    async truncate(_node, _guard, length) {
      await turn();
      change(disk);
      if (length > disk.data.length) grow(disk, length);
      disk.data = Buffer.from(disk.data.subarray(0, length));
      for (const page of disk.pages) if (page * PAGE >= length) disk.pages.delete(page);
    },
    async flush() {
      await turn();
      change(disk);
    },
    blockStatus: async (node, _guard, _wantZero, offset, bytes) => ({
      bytes,
      flags: Status.data | Status.offsetValid,
      map: offset,
      file: node,
    }),
    getLength: async () => disk.data.length,
    getAllocatedFileSize: async () => disk.pages.size * PAGE,
  };
}
