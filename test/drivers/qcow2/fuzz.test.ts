/**
 * Runs the fuzzer for a bounded time. FUZZ_SECONDS sets another time, FUZZ_SEED the first seed (a failure names its
 * own; with FUZZ_SECONDS=0 only that one is run).
 */

import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { createEngine } from '../../../src/aio/create-engine.ts';
import { limitMs } from '../../patience.ts';
import { type Change, damaged } from '../../peers/qcow2-damages.ts';
import { FuzzFailure, loadCorpus, runCase, runImage, startWatchdog } from './fuzz.ts';
import { createRandom } from './random.ts';

const SECONDS = Number(process.env.FUZZ_SECONDS ?? 20);
const FIRST_SEED = Number(process.env.FUZZ_SEED ?? 1);
const HANG_MS = limitMs(30_000);

const { engine } = createEngine('threads');

beforeAll(() => {
  // The driver tells of corruption there, thousands of times.
  vi.spyOn(process.stderr, 'write').mockReturnValue(true);
});

afterAll(() => {
  vi.restoreAllMocks();
  engine.close();
});

test('images as they are raise nothing', async () => {
  for (const { name, image } of loadCorpus()) {
    for (let seed = 1; seed <= 3; seed++) await runImage(engine, image, createRandom(seed), [], name);
  }
});

/** Damages that once did harm, and what it was. */
const REGRESSIONS: readonly {
  readonly name: string;
  readonly base: string;
  readonly changes: readonly Change[];
}[] = [
  {
    name: 'a write in place whose cluster is a table left its allocation behind: later writes waited for ever',
    base: 'bitmaps',
    changes: [
      { at: 2056, u64: 0x9840 },
      { at: 2104, u64: 0x8000000000000401n },
    ],
  },
  {
    name: 'an L1 entry out of line, met by a zero write that is no whole cluster',
    base: 'zstd',
    changes: [{ at: 12288, u64: 0x00fffffffffffe00n }],
  },
  {
    name: 'no refcount block for the header: it was made there again and again',
    base: 'external',
    changes: [{ cut: 2250 }],
  },
  { name: 'marking bitmaps in use hit the L1 table', base: 'bitmaps', changes: [{ at: 37, u8: 32 }] },
  {
    name: 'a snapshot of compressed clusters far away computed a refcount table for them',
    base: 'plain512',
    changes: [
      { at: 35670, u64: -1 },
      { at: 35678, u64: -1 },
      { at: 35686, u64: -1 },
    ],
  },
];

test.each(REGRESSIONS)('$name', async ({ base, changes }) => {
  const { image } = loadCorpus().find(({ name }) => name === base)!;
  for (let seed = 1; seed <= 8; seed++) {
    await runImage(engine, damaged(image, changes), createRandom(seed), [], `${base}, uses ${seed}`);
  }
});

test('damaged images', async () => {
  const corpus = loadCorpus();
  const watchdog = startWatchdog(HANG_MS);
  const failures: string[] = [];
  const end = Date.now() + SECONDS * 1000;
  let seed = FIRST_SEED;
  try {
    do {
      watchdog.begin(seed);
      try {
        await runCase(engine, corpus, seed);
      } catch (error) {
        if (!(error instanceof FuzzFailure)) throw error;
        failures.push(error.message);
      }
      seed++;
    } while (Date.now() < end && failures.length < 5);
  } finally {
    watchdog.stop();
  }
  expect(failures.join('\n\n')).toBe('');
  expect(seed).toBeGreaterThan(FIRST_SEED);
});
