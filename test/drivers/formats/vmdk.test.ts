/** vmdk: random guests against a model. */

import { rmSync } from 'node:fs';
import { afterAll, expect, test } from 'vitest';
import { requirePeer } from '../../peers/requires.ts';
import { scratch } from '../qcow2/open-layer.ts';
import { type FormatModel, formatModelRun } from './format-model.ts';

const folder = scratch();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const RUNS = Number(process.env.MODEL_RUNS ?? 1);
const MIB = 1 << 20;
const common = { format: 'vmdk', blockBytes: 64 * 1024, steps: 40, engine: 'io_uring', check: true } as const;
const CASES: Readonly<Record<string, FormatModel>> = {
  'of the original': { ...common, create: {}, maker: 'original', sizeBytes: 3 * MIB + 512 },
  'of ours': { ...common, create: {}, maker: 'ours', sizeBytes: 3 * MIB + 512 },
  'with zeroed grains over a backing file': {
    ...common,
    create: { zeroed_grain: 'on' },
    maker: 'ours',
    sizeBytes: 3 * MIB,
    backingBytes: 2 * MIB + 512,
  },
  'over a backing file, on threads': {
    ...common,
    engine: 'threads',
    create: {},
    maker: 'original',
    sizeBytes: 2 * MIB,
    backingBytes: 3 * MIB,
  },
  flat: {
    ...common,
    create: { subformat: 'monolithicFlat' },
    maker: 'ours',
    sizeBytes: 2 * MIB,
    check: false,
  },
  'in pieces': {
    ...common,
    create: { subformat: 'twoGbMaxExtentSparse' },
    maker: 'ours',
    sizeBytes: 2 * MIB,
  },
};

for (const [name, settings] of Object.entries(CASES)) {
  test(`a random guest on an image ${name}`, async (context) => {
    requirePeer(context, 'qemu-img');
    for (let seed = 1; seed <= RUNS; seed++) expect(await formatModelRun(seed, settings, folder)).toBe(null);
  });
}
