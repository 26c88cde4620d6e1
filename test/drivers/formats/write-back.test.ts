/** When formats but qcow2 write their tables back by themselves: not while writes go on, and not much later. */

import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import type { BlockChild, BlockNode } from '../../../src/block/graph/node.ts';
import {
  type BlockMap,
  createFound,
  type MappedState,
} from '../../../src/drivers/formats/shared/mapped-image.ts';
import { TableCache } from '../../../src/drivers/formats/shared/table-cache.ts';
import { createWriteBack, scheduleWriteBack } from '../../../src/drivers/formats/shared/write-back.ts';

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] }));
afterEach(() => void vi.useRealTimers());

/** An image of one table, which changes when told to, and the rounds there have been. */
function image(): { readonly change: () => void; readonly rounds: () => number } {
  const cache = new TableCache(4096, 64);
  const table = cache.create(0);
  cache.markClean(table);
  let rounds = 0;
  const state: MappedState = { found: createFound(), allocations: [], writeBack: createWriteBack() };
  const map: BlockMap<MappedState> = {
    lookup: () => null,
    writeBack: {
      tableFiles: () => [{ child: {} as BlockChild, cache, endBytes: 4096 }],
      async prepare() {
        rounds++;
      },
      write: async () => undefined,
    },
  };
  const node = {
    state,
    ...{ children: [], readOnly: false, inFlight: 0, idle: { wakeAll: () => undefined } },
    layer: { graphLock: { withRead: (use: (guard: object) => unknown) => use({}) } },
  } as unknown as BlockNode<MappedState>;
  const change = (): void => {
    cache.markDirty(table);
    scheduleWriteBack(map, node);
  };
  return { change, rounds: () => rounds };
}

async function writeOn(change: () => void, seconds: number): Promise<void> {
  for (let i = 0; i < seconds * 4; i++) {
    change();
    await vi.advanceTimersByTimeAsync(250);
  }
}

test('once, when writes have ended', async () => {
  const { change, rounds } = image();
  await writeOn(change, 4);
  expect(rounds()).toBe(0);
  await vi.advanceTimersByTimeAsync(2000);
  expect(rounds()).toBe(1);
  await vi.advanceTimersByTimeAsync(60_000);
  expect(rounds()).toBe(1);
});

test('every five seconds of writes that never end', async () => {
  const { change, rounds } = image();
  await writeOn(change, 4);
  expect(rounds()).toBe(0);
  await writeOn(change, 2);
  expect(rounds()).toBe(1);
  await writeOn(change, 6);
  expect(rounds()).toBe(2);
});
