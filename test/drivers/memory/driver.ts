/**
 * A protocol driver over memory. What becomes of what happens to the disk is its owner's: recorder.ts writes it down,
 * faulty-disk.ts fails, fuzz-disk.ts counts.
 */

import { copyFromVector, type IoVector } from '../../../src/aio/memory.ts';
import type { BlockDriver } from '../../../src/block/contract/driver.ts';
import { Req, Status } from '../../../src/block/contract/request.ts';

export type Change =
  | { readonly kind: 'write'; readonly offset: number; readonly bytes: number; readonly vec: IoVector }
  /** `mayUnmap`: zeroes that need no space. */
  | { readonly kind: 'zero'; readonly offset: number; readonly bytes: number; readonly mayUnmap: boolean }
  | { readonly kind: 'discard'; readonly offset: number; readonly bytes: number }
  | { readonly kind: 'truncate'; readonly length: number };

export interface MemoryDisk {
  /** Bytes of its content. */
  length(): number;
  /** Fills `target` with what is at `offset`; zeroes behind the end. */
  read(offset: number, target: Buffer): void;
  /** Waits as long as a read takes; absent: not at all. */
  beforeRead?(bytes: number): Promise<void>;
  afterRead?(): Promise<void>;
  change(change: Change): Promise<void>;
  flush(): Promise<void>;
  /** Bytes that it takes up (default: its length). */
  allocated?(): number;
}

/** A turn of the event loop. */
export function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** The bytes that are to be written. */
export function contentOf({ bytes, vec }: { readonly bytes: number; readonly vec: IoVector }): Buffer {
  const data = Buffer.alloc(bytes);
  copyFromVector(vec, data);
  return data;
}

/** Bytes [offset, offset + target.length) of `content`, zeroes behind its end. */
export function readContent(content: Buffer, offset: number, target: Buffer): void {
  const there = content.copy(target, 0, Math.min(offset, content.length));
  target.fill(0, there);
}

/** The driver `name` over a disk. */
export function memoryDriver(name: string, disk: MemoryDisk): BlockDriver {
  return {
    name,
    kind: 'protocol',
    growsWithZeroes: true,
    supportedWriteFlags: 0,
    supportedZeroFlags: Req.mayUnmap | Req.noFallback,
    open: async () => null,
    async preadv(_node, _guard, offset, bytes, vec) {
      await disk.beforeRead?.(bytes);
      let at = offset;
      for (const { mem, start, length } of vec.segments) {
        disk.read(at, mem.buf.subarray(start, start + length));
        at += length;
      }
      await disk.afterRead?.();
    },
    pwritev: (_node, _guard, offset, bytes, vec) => disk.change({ kind: 'write', offset, bytes, vec }),
    pwriteZeroes: (_node, _guard, offset, bytes, flags) =>
      disk.change({ kind: 'zero', offset, bytes, mayUnmap: (flags & Req.mayUnmap) !== 0 }),
    async pdiscard(_node, _guard, offset, bytes) {
      const within = Math.min(bytes, disk.length() - offset);
      if (within > 0) await disk.change({ kind: 'discard', offset, bytes: within });
    },
    truncate: (_node, _guard, length) => disk.change({ kind: 'truncate', length }),
    flush: () => disk.flush(),
    blockStatus: async (node, _guard, _wantZero, offset, bytes) => ({
      bytes,
      flags: Status.data | Status.offsetValid,
      map: offset,
      file: node,
    }),
    getLength: async () => disk.length(),
    getAllocatedFileSize: async () => disk.allocated?.() ?? disk.length(),
  };
}
