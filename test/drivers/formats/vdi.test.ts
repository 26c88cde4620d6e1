/** vdi: random guests against a model, images of VirtualBox, damaged images. */

import { rmSync } from 'node:fs';
import { afterAll, expect, test } from 'vitest';
import { requirePeer } from '../../peers/requires.ts';
import { scratch } from '../qcow2/open-layer.ts';
import { type FormatModel, formatModelRun } from './format-model.ts';

const folder = scratch();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const RUNS = Number(process.env.MODEL_RUNS ?? 1);
const MIB = 1 << 20;
const common = { format: 'vdi', blockBytes: MIB, steps: 40, check: true } as const;
const CASES: Readonly<Record<string, FormatModel>> = {
  'of the original': {
    ...common,
    create: {},
    maker: 'original',
    engine: 'io_uring',
    sizeBytes: 9 * MIB + 512,
  },
  'of ours': { ...common, create: {}, maker: 'ours', engine: 'io_uring', sizeBytes: 9 * MIB + 512 },
  'static, on threads': {
    ...common,
    create: { static: 'on' },
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
