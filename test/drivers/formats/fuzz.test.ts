/**
 * Damaged images of the formats of other virtual machines; more with FUZZ_CASES=100000 or FUZZ_SECONDS=60 a format,
 * FUZZ_SEED=1.
 */

import { expect, test } from 'vitest';
import { createEngine } from '../../../src/aio/create-engine.ts';
import { limitMs } from '../../patience.ts';
import { startWatchdog } from '../qcow2/fuzz.ts';
import { FormatFuzzFailure, loadFormats, runFormatCase } from './format-fuzz.ts';

const SECONDS = Number(process.env.FUZZ_SECONDS ?? 0);
const CASES = Number(process.env.FUZZ_CASES ?? 60);
const FIRST_SEED = Number(process.env.FUZZ_SEED ?? 1);
const HANG_MS = limitMs(60_000);

const FORMATS = [
  ...['vdi', 'vhdx', 'vmdk', 'vpc', 'qed', 'qcow', 'parallels', 'luks'],
  // Read only.
  ...['dmg', 'cloop', 'bochs'],
];

for (const format of FORMATS) {
  test(
    `damaged images of ${format}`,
    async () => {
      const { engine } = createEngine('threads');
      const watchdog = startWatchdog(HANG_MS);
      const failures: string[] = [];
      try {
        const corpus = loadFormats([format]);
        expect(corpus.length).toBeGreaterThan(0);
        const endMs = Date.now() + SECONDS * 1000;
        const more = (seed: number): boolean => seed < FIRST_SEED + CASES || Date.now() < endMs;
        for (let seed = FIRST_SEED; more(seed) && failures.length < 5; seed++) {
          watchdog.begin(seed);
          try {
            await runFormatCase(engine, corpus, seed);
          } catch (error) {
            if (!(error instanceof FormatFuzzFailure)) throw error;
            failures.push(error.message);
          }
        }
      } finally {
        watchdog.stop();
        engine.close();
      }
      expect(failures.join('\n\n')).toBe('');
    },
    Math.max(120_000, CASES * 1000, SECONDS * 2000),
  );
}
