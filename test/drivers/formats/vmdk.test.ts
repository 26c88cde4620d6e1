/** vmdk: random guests against a model, and extents as ESX has them. */

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

/** Extents as ESX has them, by their descriptors' type; content as the original reads it. */
const ESX: readonly (readonly [
  type: string,
  sectors: number,
  file: string,
  blocks: Readonly<Record<number, number>>,
])[] = [
  ['VMFSSPARSE', 8192, 'cowd.vmdk', { 0: 1, 1: 2, 5: 3, 1000: 4, 1023: 5 }],
  ['SESPARSE', 32768, 'sesparse-extent.vmdk', { 0: 9, 2: 8, 3: 7, 999: 6 }],
];

for (const [type, sectors, file, blocks] of ESX) {
  test(`${type}, alone and over a backing file`, async () => {
    const packed = readFileSync(path.join(import.meta.dirname, 'corpus', `${file}.gz`));
    writeFileSync(path.join(folder, file), gunzipSync(packed));
    const text = (parent: string) =>
      `# Disk DescriptorFile\nversion=1\nCID=12345678\n${parent}createType="custom"\nRW ${sectors} ${type} "${file}"\n`;
    writeFileSync(path.join(folder, 'esx.vmdk'), text('parentCID=ffffffff\n'));
    const expected = Buffer.alloc(sectors * 512);
    for (const [block, value] of Object.entries(blocks))
      expected.fill(value, Number(block) * 4096, Number(block) * 4096 + 4096);
    const read = async (name = 'esx.vmdk'): Promise<Buffer> => {
      const outcome = await runTool(TOOLS.img.ours, ['convert', '-O', 'raw', name, 'esx.raw'], folder);
      expect(outcome).toMatchObject({ status: 0, stderr: '' });
      return readFileSync(path.join(folder, 'esx.raw'));
    };
    expect((await read()).equals(expected)).toBe(true);
    // Without a descriptor.
    expect((await read(file)).equals(expected)).toBe(true);
    // Over a flat base: what the delta does not have shows, and nothing else.
    writeFileSync(path.join(folder, 'base.raw'), Buffer.alloc(sectors * 512, 0xaa));
    const base = `# Disk DescriptorFile\nversion=1\nCID=abcd0123\nparentCID=ffffffff\ncreateType="vmfs"\nRW ${sectors} VMFS "base.raw"\n`;
    writeFileSync(path.join(folder, 'base.vmdk'), base);
    writeFileSync(
      path.join(folder, 'esx.vmdk'),
      text('parentCID=abcd0123\nparentFileNameHint="/vmfs/volumes/x/base.vmdk"\n'),
    );
    const above = await read();
    for (const [block, value] of Object.entries(blocks)) expect(above[Number(block) * 4096]).toBe(value);
    expect(above[4 * 4096]).toBe(0xaa);
    // Another base than the delta was made for must not show.
    writeFileSync(path.join(folder, 'base.vmdk'), base.replace('abcd0123', 'abcd0124'));
    const refused = await runTool(TOOLS.img.ours, ['convert', '-O', 'raw', 'esx.vmdk', 'esx.raw'], folder);
    expect(refused.stderr).toContain('Invalid argument');
  });
}
