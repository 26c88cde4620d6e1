/**
 * Where cached blocks lie: in memory, or in a file that has no name any more. Slots of one block each, the least used
 * given up first.
 */

import { closeSync, constants, openSync, unlinkSync } from 'node:fs';
import type { AioEngine } from '../../../aio/engine.ts';
import {
  allocateIoMemory,
  copyToVector,
  type IoMemory,
  type IoVector,
  vectorOf,
} from '../../../aio/memory.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, errnoError, errnoOf } from '../../../errors/error.ts';

export interface BlockStore {
  /** Copies [start, start + vec.bytes) of slot `slot`; false: it cannot be had. */
  read(slot: number, start: number, vec: IoVector): Promise<boolean>;
  /** Keeps the block, which starts at `start` of `memory`; false: it was not kept. */
  write(slot: number, memory: IoMemory, start: number): Promise<boolean>;
  close(): void;
}

export function memoryStore(blockBytes: number): BlockStore {
  const slots: IoMemory[] = [];
  return {
    async read(slot, start, vec) {
      copyToVector(vec, slots[slot]!.buf.subarray(start, start + vec.bytes));
      return true;
    },
    async write(slot, memory, start) {
      slots[slot] ??= allocateIoMemory(blockBytes);
      memory.buf.copy(slots[slot].buf, 0, start, start + blockBytes);
      return true;
    },
    close() {
      slots.length = 0;
    },
  };
}

/** Makes the file, which must not be there, and takes its name away at once: it goes with the daemon. */
export function fileStore(engine: AioEngine, filename: string, blockBytes: number): BlockStore {
  let fd: number;
  try {
    fd = openSync(filename, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o600);
  } catch (error) {
    throw errnoError(`Could not create '${filename}'`, errnoOf(error));
  }
  try {
    unlinkSync(filename);
  } catch (error) {
    closeSync(fd);
    throw new BlockError(`Could not remove '${filename}'`, { errno: errnoOf(error) || E.EIO });
  }
  return {
    read: async (slot, start, vec) => (await engine.readv(fd, vec, slot * blockBytes + start)) === vec.bytes,
    write: async (slot, memory, start) =>
      (await engine.writev(fd, vectorOf(memory, start, blockBytes), slot * blockBytes)) === blockBytes,
    close: () => closeSync(fd),
  };
}
