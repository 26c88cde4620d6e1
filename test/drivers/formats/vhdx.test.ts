/** vhdx: random guests against a model. */

import { rmSync } from 'node:fs';
import { afterAll, expect, test } from 'vitest';
import { requirePeer } from '../../peers/requires.ts';
import { scratch } from '../qcow2/open-layer.ts';
import { type FormatModel, formatModelRun } from './format-model.ts';

const folder = scratch();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const RUNS = Number(process.env.MODEL_RUNS ?? 1);
const MIB = 1 << 20;
const small = { block_size: '1048576' } as const;
const common = { format: 'vhdx', blockBytes: MIB, steps: 40, engine: 'io_uring', check: true } as const;
const CASES: Readonly<Record<string, FormatModel>> = {
  'of the original': { ...common, create: small, maker: 'original', sizeBytes: 9 * MIB + 512 },
  'of ours': { ...common, create: small, maker: 'ours', sizeBytes: 9 * MIB + 512 },
  'without zero blocks': {
    ...common,
    create: { ...small, block_state_zero: 'off', log_size: '2097152' },
    maker: 'ours',
    sizeBytes: 4 * MIB,
  },
  'fixed, on threads': {
    ...common,
    engine: 'threads',
    create: { ...small, subformat: 'fixed' },
    maker: 'ours',
    sizeBytes: 5 * MIB,
  },
};

for (const [name, settings] of Object.entries(CASES)) {
  test(`a random guest on an image ${name}`, async (context) => {
    requirePeer(context, 'qemu-img');
    for (let seed = 1; seed <= RUNS; seed++) expect(await formatModelRun(seed, settings, folder)).toBe(null);
  });
}
