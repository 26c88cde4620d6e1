/** vhdx: random guests against a model. */

import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';
import { afterAll, expect, test } from 'vitest';
import { requirePeer } from '../../peers/requires.ts';
import { runTool, TOOLS } from '../../peers/tool-diff.ts';
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

test('the log of an image that was not closed is replayed, in memory when it is opened read-only', async (context) => {
  requirePeer(context, 'qemu-img', 'qemu-io');
  const packed = readFileSync(path.join(import.meta.dirname, 'corpus/log.vhdx.gz'));
  const image = gunzipSync(packed);
  for (const name of ['ours.vhdx', 'theirs.vhdx']) writeFileSync(path.join(folder, name), image);
  const run = (program: string, ...argv: readonly string[]) => runTool(program, argv, folder);
  // The original refuses to read before it has repaired.
  expect((await run(TOOLS.img.theirs, 'convert', '-O', 'raw', 'theirs.vhdx', 'theirs.raw')).status).toBe(1);
  expect((await run(TOOLS.img.theirs, 'check', '-r', 'all', 'theirs.vhdx')).status).toBe(0);
  expect((await run(TOOLS.img.theirs, 'convert', '-O', 'raw', 'theirs.vhdx', 'theirs.raw')).status).toBe(0);
  expect((await run(TOOLS.img.ours, 'convert', '-O', 'raw', 'ours.vhdx', 'ours.raw')).status).toBe(0);
  const expected = readFileSync(path.join(folder, 'theirs.raw'));
  expect(readFileSync(path.join(folder, 'ours.raw')).equals(expected)).toBe(true);
  expect(readFileSync(path.join(folder, 'ours.vhdx')).equals(image)).toBe(true);
  const repaired = await run(TOOLS.img.ours, 'check', '-r', 'all', 'ours.vhdx');
  expect(repaired.stdout).toContain('1 corruptions');
  expect((await run(TOOLS.img.theirs, 'convert', '-O', 'raw', 'ours.vhdx', 'ours.raw')).status).toBe(0);
  expect(readFileSync(path.join(folder, 'ours.raw')).equals(expected)).toBe(true);
});
