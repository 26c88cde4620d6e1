/**
 * A guest's memory as the device sees it: regions mapped from the front end's descriptors.
 *
 * Descriptors hold guest-physical addresses, ring addresses are the front end's own. Every range is checked here, and
 * nowhere else: what comes out lies in mapped memory.
 */

import type { IoSegment } from '../aio/memory.ts';
import { mapSharedMemory, type SharedMemory, WINDOW_BYTES } from '../aio/shared-memory.ts';

/** A region as the front end tells it. */
export interface RegionInfo {
  readonly guestAddress: number;
  readonly bytes: number;
  readonly userAddress: number;
  readonly mapOffset: number;
}

interface Region extends RegionInfo {
  readonly memory: SharedMemory;
}

/** The largest address that is exact as a number, with room for a length. */
const ADDRESS_MAX = 2 ** 52;

export class GuestMemory {
  #regions: readonly Region[] = [];
  /** Most ranges are where the last one was. */
  #last: Region | null = null;

  get regionCount(): number {
    return this.#regions.length;
  }

  /** Maps a region; the caller keeps `fd`. False: it makes no sense, or cannot be mapped. */
  add(info: RegionInfo, fd: number): boolean {
    const { guestAddress, userAddress, bytes, mapOffset } = info;
    const ends = [guestAddress + bytes, userAddress + bytes, mapOffset + bytes];
    if (bytes === 0 || ends.some((end) => !(end <= ADDRESS_MAX))) return false;
    const overlaps = this.#regions.some(
      (other) => guestAddress < other.guestAddress + other.bytes && other.guestAddress < guestAddress + bytes,
    );
    if (overlaps) return false;
    const memory = mapSharedMemory(fd, mapOffset, bytes);
    if (memory === null) return false;
    this.#regions = [...this.#regions, { ...info, memory }];
    return true;
  }

  /** Takes away a region; nothing may use it any more. False: there is no such region. */
  remove(info: RegionInfo): boolean {
    const region = this.#regions.find(
      (one) =>
        one.guestAddress === info.guestAddress &&
        one.userAddress === info.userAddress &&
        one.bytes === info.bytes,
    );
    if (region === undefined) return false;
    this.#regions = this.#regions.filter((one) => one !== region);
    this.#last = null;
    region.memory.unmap();
    return true;
  }

  /** Takes away everything; nothing may use it any more. */
  clear(): void {
    for (const { memory } of this.#regions) memory.unmap();
    this.#regions = [];
    this.#last = null;
  }

  /** Adds guest memory [address, address+length) to `segments`. False: not all of it is mapped. */
  append(address: number, length: number, segments: IoSegment[]): boolean {
    let at = address;
    let left = length;
    while (left > 0) {
      const region = this.#find(at);
      if (region === null) return false;
      const offset = at - region.guestAddress;
      const within = offset % WINDOW_BYTES;
      const take = Math.min(left, region.bytes - offset, WINDOW_BYTES - within);
      segments.push({
        mem: region.memory.window(Math.floor(offset / WINDOW_BYTES)),
        start: within,
        length: take,
      });
      at += take;
      left -= take;
    }
    return true;
  }

  #find(address: number): Region | null {
    const last = this.#last;
    if (last !== null && address >= last.guestAddress && address < last.guestAddress + last.bytes)
      return last;
    for (const region of this.#regions) {
      if (address >= region.guestAddress && address < region.guestAddress + region.bytes) {
        this.#last = region;
        return region;
      }
    }
    return null;
  }

  /** The guest's address of a part that append() has found; null when its region has gone. */
  addressOf({ mem, start }: IoSegment): number | null {
    for (const { memory, guestAddress, bytes } of this.#regions) {
      const count = Math.ceil(bytes / WINDOW_BYTES);
      for (let window = 0; window < count; window++)
        if (memory.window(window) === mem) return guestAddress + window * WINDOW_BYTES + start;
    }
    return null;
  }

  /** `length` bytes at the front end's address, in one piece; null where there are none. */
  ringPart(userAddress: number, length: number): IoSegment | null {
    for (const region of this.#regions) {
      const offset = userAddress - region.userAddress;
      if (offset < 0 || offset + length > region.bytes) continue;
      const within = offset % WINDOW_BYTES;
      if (within + length > WINDOW_BYTES) return null;
      return { mem: region.memory.window(Math.floor(offset / WINDOW_BYTES)), start: within, length };
    }
    return null;
  }
}
