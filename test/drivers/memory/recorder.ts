/**
 * Memory that records what happens to it, and the power cuts that follow from a recording.
 *
 * A cut loses any part of what was written after the last completed flush began: whole writes, and of a write any of
 * its 512-byte sectors. What completed before that flush began is there.
 */

import type { BlockDriver } from '../../../src/block/contract/driver.ts';
import type { Random } from '../qcow2/random.ts';
import { type Change, contentOf, memoryDriver, readContent, turn } from './driver.ts';

export const SECTOR = 512;

type Entry =
  | { readonly kind: 'write'; readonly offset: number; readonly data: Buffer }
  | { readonly kind: 'zero'; readonly offset: number; readonly bytes: number }
  | { readonly kind: 'truncate'; readonly length: number }
  | { readonly kind: 'flush-begin'; readonly id: number }
  | { readonly kind: 'flush-end'; readonly id: number }
  /** A moment of the test. */
  | { readonly kind: 'mark' };

export interface Recording {
  readonly initial: Buffer;
  readonly log: Entry[];
  /** The content as it is now. */
  data: Buffer;
}

export function createRecording(initial: Buffer): Recording {
  return { initial, log: [], data: Buffer.from(initial) };
}

/** The content with one more entry. */
function applyEntry(data: Buffer, entry: Entry): Buffer {
  switch (entry.kind) {
    case 'write': {
      const end = entry.offset + entry.data.length;
      const grown = end > data.length ? Buffer.concat([data, Buffer.alloc(end - data.length)]) : data;
      entry.data.copy(grown, entry.offset);
      return grown;
    }
    case 'zero': {
      const end = entry.offset + entry.bytes;
      const grown = end > data.length ? Buffer.concat([data, Buffer.alloc(end - data.length)]) : data;
      grown.fill(0, entry.offset, end);
      return grown;
    }
    case 'truncate':
      return entry.length <= data.length
        ? Buffer.from(data.subarray(0, entry.length))
        : Buffer.concat([data, Buffer.alloc(entry.length - data.length)]);
    default:
      return data;
  }
}

/** What the log holds of a change. */
function entryOf(change: Change): Entry {
  switch (change.kind) {
    case 'write':
      return { kind: 'write', offset: change.offset, data: contentOf(change) };
    case 'truncate':
      return change;
    default:
      return { kind: 'zero', offset: change.offset, bytes: change.bytes };
  }
}

/** The driver `recorder`; every operation takes a random number of turns before and after it takes effect. */
export function recorderDriver(recording: Recording, random: Random): BlockDriver {
  const turns = async (): Promise<void> => {
    for (let left = random.below(3); left > 0; left--) await turn();
  };
  let flushes = 0;
  return memoryDriver('recorder', {
    length: () => recording.data.length,
    beforeRead: turns,
    read: (offset, target) => readContent(recording.data, offset, target),
    afterRead: turns,
    async change(change) {
      const entry = entryOf(change);
      await turns();
      recording.log.push(entry);
      recording.data = applyEntry(recording.data, entry);
      await turns();
    },
    async flush() {
      const id = flushes++;
      recording.log.push({ kind: 'flush-begin', id });
      await turns();
      recording.log.push({ kind: 'flush-end', id });
    },
  });
}

/** Index of the log from which on, at a cut before entry `end`, nothing is certain. */
function durableUpTo(log: readonly Entry[], end: number): number {
  const begins = new Map<number, number>();
  let durable = 0;
  for (let at = 0; at < end; at++) {
    const entry = log[at]!;
    if (entry.kind === 'flush-begin') begins.set(entry.id, at);
    if (entry.kind === 'flush-end') durable = Math.max(durable, begins.get(entry.id)!);
  }
  return durable;
}

/** How much of the uncertain tail reaches the disk. */
export type Loss = 'nothing-lost' | 'everything-lost' | 'some-lost' | 'torn';

/** The file after a power cut before entry `end` of the log. */
export function cut({ initial, log }: Recording, end: number, loss: Loss, random: Random): Buffer {
  let data: Buffer = Buffer.from(initial);
  const durable = durableUpTo(log, end);
  for (let at = 0; at < end; at++) {
    const entry = log[at]!;
    if (at < durable || loss === 'nothing-lost') {
      data = applyEntry(data, entry);
      continue;
    }
    if (loss === 'everything-lost') continue;
    if (loss === 'torn' && entry.kind === 'write' && random.below(2) === 0) {
      for (let from = 0; from < entry.data.length; ) {
        // Sectors of the file, not of the write.
        const to = Math.min(entry.data.length, from + SECTOR - ((entry.offset + from) % SECTOR));
        if (random.below(2) === 0) {
          const part = entry.data.subarray(from, to);
          data = applyEntry(data, { kind: 'write', offset: entry.offset + from, data: part });
        }
        from = to;
      }
    } else if (random.below(2) === 0) {
      data = applyEntry(data, entry);
    }
  }
  return data;
}
