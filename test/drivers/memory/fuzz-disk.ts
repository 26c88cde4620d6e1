/**
 * Memory for hostile images: it counts what is written and read, and is full at some size.
 *
 * The content it is made of is shared, not copied: pages that change are copied, so an image of many MiB costs what is
 * done to it.
 */

import type { BlockDriver } from '../../../src/block/contract/driver.ts';
import { E } from '../../../src/errors/errno.ts';
import { ioError } from '../../../src/errors/error.ts';
import { contentOf, memoryDriver, readContent, turn } from './driver.ts';

export const DISK_FULL_BYTES = 32 * 1024 * 1024;

const PAGE_BYTES = 16 * 1024;

export interface FuzzDisk {
  /** What it held at first; not to be changed as long as the disk is used. */
  readonly content: Buffer;
  /** What differs from `content`, by index. */
  readonly pages: Map<number, Buffer>;
  length: number;
  /** Calls that changed something. */
  writes: number;
  /** Bytes of the reads so far. */
  bytesRead: number;
}

export function createDisk(content: Buffer): FuzzDisk {
  return { content, pages: new Map(), length: content.length, writes: 0, bytesRead: 0 };
}

/** The page of some index, for writing. */
function pageOf(disk: FuzzDisk, index: number): Buffer {
  const there = disk.pages.get(index);
  if (there !== undefined) return there;
  const page = Buffer.allocUnsafe(PAGE_BYTES);
  readContent(disk.content, index * PAGE_BYTES, page);
  disk.pages.set(index, page);
  return page;
}

/** Parts of [offset, end) by page. */
function* partsOf(offset: number, end: number): Generator<{ index: number; start: number; length: number }> {
  for (let at = offset; at < end; ) {
    const start = at % PAGE_BYTES;
    const length = Math.min(PAGE_BYTES - start, end - at);
    yield { index: Math.floor(at / PAGE_BYTES), start, length };
    at += length;
  }
}

/** Fills `target` with what is at `offset`; zeroes behind the end. */
export function readDisk(disk: FuzzDisk, offset: number, target: Buffer): void {
  const end = Math.max(offset, Math.min(offset + target.length, disk.length));
  target.fill(0, end - offset);
  let done = 0;
  for (const { index, start, length } of partsOf(offset, end)) {
    const part = target.subarray(done, done + length);
    const page = disk.pages.get(index);
    if (page === undefined) readContent(disk.content, index * PAGE_BYTES + start, part);
    else page.copy(part, 0, start, start + length);
    done += length;
  }
}

function zero(disk: FuzzDisk, offset: number, end: number): void {
  for (const { index, start, length } of partsOf(offset, end))
    pageOf(disk, index).fill(0, start, start + length);
}

function reserve(disk: FuzzDisk, end: number): void {
  if (end > DISK_FULL_BYTES) throw ioError(E.ENOSPC);
  // What a cut left behind the end must not come back.
  zero(disk, disk.length, Math.min(end, Math.max(disk.length, disk.content.length)));
  disk.length = Math.max(disk.length, end);
}

function truncate(disk: FuzzDisk, length: number): void {
  reserve(disk, length);
  zero(disk, length, disk.length);
  disk.length = length;
}

function write(disk: FuzzDisk, offset: number, data: Buffer): void {
  let done = 0;
  for (const { index, start, length } of partsOf(offset, offset + data.length)) {
    data.copy(pageOf(disk, index), start, done, done + length);
    done += length;
  }
}

export function fuzzDriver(name: string, disk: FuzzDisk): BlockDriver {
  return memoryDriver(name, {
    length: () => disk.length,
    read(offset, target) {
      disk.bytesRead += target.length;
      readDisk(disk, offset, target);
    },
    async change(change) {
      disk.writes++;
      if (change.kind === 'truncate') {
        truncate(disk, change.length);
        return;
      }
      await turn();
      const { offset, bytes } = change;
      if (change.kind !== 'discard') reserve(disk, offset + bytes);
      if (change.kind === 'write') write(disk, offset, contentOf(change));
      else zero(disk, offset, Math.min(offset + bytes, disk.length));
    },
    flush: turn,
  });
}
