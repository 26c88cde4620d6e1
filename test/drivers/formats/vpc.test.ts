/** vpc: random guests against a model. */

import { rmSync } from 'node:fs';
import { afterAll, expect, test } from 'vitest';
import { requirePeer } from '../../peers/requires.ts';
import { scratch } from '../qcow2/open-layer.ts';
import { type FormatModel, formatModelRun } from './format-model.ts';

const folder = scratch();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const RUNS = Number(process.env.MODEL_RUNS ?? 1);
const MIB = 1 << 20;
const common = { format: 'vpc', blockBytes: 2 * MIB, steps: 30 } as const;
const exact = { force_size: 'on' } as const;
const CASES: Readonly<Record<string, FormatModel>> = {
  'of the original': {
    ...common,
    create: exact,
    maker: 'original',
    engine: 'io_uring',
    sizeBytes: 9 * MIB + 512,
  },
  'of ours, by its geometry': {
    ...common,
    create: {},
    maker: 'ours',
    engine: 'io_uring',
    sizeBytes: 9 * MIB + 512,
  },
  'fixed, on threads': {
    ...common,
    create: { ...exact, subformat: 'fixed' },
    maker: 'ours',
    engine: 'threads',
    sizeBytes: 5 * MIB,
  },
};

for (const [name, settings] of Object.entries(CASES)) {
  test(`a random guest on an image ${name}`, async (context) => {
    requirePeer(context, 'qemu-img');
    for (let seed = 1; seed <= RUNS; seed++) expect(await formatModelRun(seed, settings, folder)).toBe(null);
  });
}
