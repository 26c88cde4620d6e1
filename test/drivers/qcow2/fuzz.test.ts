/**
 * Runs the fuzzer for a bounded time. FUZZ_SECONDS sets another time, FUZZ_SEED the first seed (a failure names its
 * own; with FUZZ_SECONDS=0 only that one is run).
 */

import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { createEngine } from '../../../src/aio/create-engine.ts';
import { FuzzFailure, loadCorpus, runCase, runImage, startWatchdog } from './fuzz.ts';
import { createRandom } from './random.ts';

const SECONDS = Number(process.env.FUZZ_SECONDS ?? 20);
const FIRST_SEED = Number(process.env.FUZZ_SEED ?? 1);
const HANG_MS = 30_000;

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

test('damaged images', { timeout: (SECONDS + 60) * 1000 }, async () => {
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
