/**
 * Memory for requests that a library may go on with after they have been given up here: it is the driver's own, and is
 * used again by later requests. Part of what network drivers share.
 */

import { allocateIoMemory, type IoMemory } from '../../aio/memory.ts';

export interface OwnMemory {
  /** Memory of at least `bytes`. */
  take(bytes: number): IoMemory;
  /** Back from a request that is over. What is not given back is collected as anything else. */
  give(memory: IoMemory): void;
}

/** Sizes that are kept, and how many of each: new memory costs page faults and garbage collections. */
const CLASSES = [
  { bytes: 64 * 1024, count: 64 },
  { bytes: 512 * 1024, count: 16 },
  { bytes: 2 * 1024 * 1024, count: 8 },
] as const;

export function createOwnMemory(): OwnMemory {
  const free = CLASSES.map(({ bytes, count }) => ({ bytes, count, memory: [] as IoMemory[] }));
  return {
    take(bytes) {
      const fit = free.find((each) => bytes <= each.bytes);
      return fit?.memory.pop() ?? allocateIoMemory(fit?.bytes ?? bytes);
    },
    give(memory) {
      const fit = free.find(({ bytes }) => bytes === memory.buf.length);
      if (fit !== undefined && fit.memory.length < fit.count) fit.memory.push(memory);
    },
  };
}
