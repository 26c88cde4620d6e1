/** Damaged images of the formats of other virtual machines; more with FUZZ_CASES=100000, FUZZ_SEED=1. */

import { expect, test } from 'vitest';
import { createEngine } from '../../../src/aio/create-engine.ts';
import { loadFormats, runFormatCase } from './format-fuzz.ts';

const CASES = Number(process.env.FUZZ_CASES ?? 60);
const FIRST_SEED = Number(process.env.FUZZ_SEED ?? 1);

for (const format of ['vdi', 'vhdx', 'vmdk', 'vpc']) {
  test(
    `damaged images of ${format}`,
    async () => {
      const { engine } = createEngine('threads');
      try {
        const corpus = loadFormats([format]);
        expect(corpus.length).toBeGreaterThan(1);
        for (let seed = FIRST_SEED; seed < FIRST_SEED + CASES; seed++)
          await runFormatCase(engine, corpus, seed);
      } finally {
        engine.close();
      }
    },
    Math.max(120_000, CASES * 1000),
  );
}
