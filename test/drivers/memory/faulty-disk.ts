/**
 * Memory on which I/O fails when the test says so: number n of what changes the disk, once or
 * from then on, or whatever needs more space than there is.
 */

import type { BlockDriver } from '../../../src/block/contract/driver.ts';
import { E } from '../../../src/errors/errno.ts';
import { ioError } from '../../../src/errors/error.ts';
import { contentOf, memoryDriver, readContent, turn } from './driver.ts';

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

function failMaybe(disk: FaultyDisk): void {
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

function punch(disk: FaultyDisk, offset: number, bytes: number): void {
  const end = Math.min(offset + bytes, disk.data.length);
  if (end > offset) disk.data.fill(0, offset, end);
  for (let page = Math.ceil(offset / PAGE); (page + 1) * PAGE <= end; page++) disk.pages.delete(page);
}

function write(disk: FaultyDisk, offset: number, data: Buffer): void {
  const written = takeSpace(disk, offset, data.length);
  grow(disk, offset + written);
  data.copy(disk.data, offset, 0, written);
  if (written === data.length) return;
  disk.hit = true;
  throw ioError(E.ENOSPC);
}

function writeZeroes(disk: FaultyDisk, offset: number, bytes: number): void {
  if (takeSpace(disk, offset, bytes) < bytes) throw ioError(E.ENOSPC);
  grow(disk, offset + bytes);
  disk.data.fill(0, offset, offset + bytes);
}

function truncate(disk: FaultyDisk, length: number): void {
  if (length > disk.data.length) grow(disk, length);
  disk.data = Buffer.from(disk.data.subarray(0, length));
  for (const page of disk.pages) if (page * PAGE >= length) disk.pages.delete(page);
}

/** The driver `faulty`. */
export function faultyDriver(disk: FaultyDisk): BlockDriver {
  return memoryDriver('faulty', {
    length: () => disk.data.length,
    allocated: () => disk.pages.size * PAGE,
    beforeRead: turn,
    read: (offset, target) => readContent(disk.data, offset, target),
    async change(change) {
      await turn();
      failMaybe(disk);
      if (change.kind === 'truncate') truncate(disk, change.length);
      else if (change.kind === 'write') write(disk, change.offset, contentOf(change));
      else if (change.kind === 'zero' && !change.mayUnmap) writeZeroes(disk, change.offset, change.bytes);
      else {
        punch(disk, change.offset, change.bytes);
        grow(disk, change.offset + change.bytes);
      }
    },
    async flush() {
      await turn();
      failMaybe(disk);
    },
  });
}
