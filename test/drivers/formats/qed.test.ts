/** qed: random guests against a model beside the original, its flag, damaged images. */

import { rmSync } from 'node:fs';
import { afterAll, expect, test } from 'vitest';
import { requirePeer } from '../../peers/requires.ts';
import { scratch } from '../qcow2/open-layer.ts';
import { type FormatModel, formatModelRun } from './format-model.ts';

const folder = scratch();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const RUNS = Number(process.env.MODEL_RUNS ?? 1);
const KIB = 1024;
const MIB = KIB * KIB;
const common = { format: 'qed', blockBytes: 64 * KIB, steps: 40, check: true, sizeBytes: 4 * MIB } as const;
const CASES: Readonly<Record<string, FormatModel>> = {
  'of the original': { ...common, create: {}, maker: 'original', engine: 'io_uring' },
  'of ours': { ...common, create: {}, maker: 'ours', engine: 'threads' },
  // With tables of one cluster the original cannot open what it has just made.
  'with small clusters and tables': {
    ...common,
    create: { cluster_size: '4096', table_size: '2' },
    maker: 'ours',
    engine: 'io_uring',
    blockBytes: 4 * KIB,
    sizeBytes: 9 * MIB + 512,
  },
  'with the largest tables': {
    ...common,
    create: { cluster_size: '65536', table_size: '16' },
    maker: 'original',
    engine: 'io_uring',
  },
  'over a backing file': {
    ...common,
    create: { cluster_size: '4096', table_size: '2' },
    maker: 'ours',
    engine: 'io_uring',
    blockBytes: 4 * KIB,
    sizeBytes: 3 * MIB,
    backingBytes: 2 * MIB + 1536,
  },
  'over a longer backing file': {
    ...common,
    create: {},
    maker: 'original',
    engine: 'threads',
    sizeBytes: 2 * MIB,
    backingBytes: 3 * MIB,
  },
};

for (const [name, settings] of Object.entries(CASES)) {
  test(`a random guest on an image ${name}`, async (context) => {
    requirePeer(context, 'qemu-img');
    for (let seed = 1; seed <= RUNS; seed++) expect(await formatModelRun(seed, settings, folder)).toBe(null);
  });
}
