/** parallels: random guests against a model beside the original, both kinds of image, its mark, check, bitmaps. */

import { createHash } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { nextDirty } from '../../../src/block/bitmaps/dirty-bitmap.ts';
import { openFromOptions } from '../../../src/block/open/open.ts';
import { requirePeer } from '../../peers/requires.ts';
import { peer, scratch, testLayer } from '../qcow2/open-layer.ts';
import { type FormatModel, formatModelRun } from './format-model.ts';

const folder = scratch();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const RUNS = Number(process.env.MODEL_RUNS ?? 1);
const KIB = 1024;
const MIB = KIB * KIB;
const common = { format: 'parallels', steps: 40, check: true } as const;
const CASES: Readonly<Record<string, FormatModel>> = {
  'of the original': {
    ...common,
    create: {},
    maker: 'original',
    engine: 'io_uring',
    blockBytes: MIB,
    sizeBytes: 9 * MIB,
  },
  'of ours': {
    ...common,
    create: { cluster_size: '65536' },
    maker: 'ours',
    engine: 'threads',
    blockBytes: 64 * KIB,
    sizeBytes: 4 * MIB + 512,
  },
  'with the smallest clusters': {
    ...common,
    create: { cluster_size: '512' },
    maker: 'ours',
    engine: 'io_uring',
    blockBytes: 512,
    sizeBytes: MIB,
  },
};

for (const [name, settings] of Object.entries(CASES)) {
  test(`a random guest on an image ${name}`, async (context) => {
    requirePeer(context, 'qemu-img');
    for (let seed = 1; seed <= RUNS; seed++) expect(await formatModelRun(seed, settings, folder)).toBe(null);
  });
}

const IN_USE_AT = 44;

/** An image of the original with 64 KiB clusters, of which the first, the third and the fourth are written. */
function sample(name: string): string {
  const file = path.join(folder, name);
  peer('qemu-img', 'create', '-q', '-f', 'parallels', '-o', 'cluster_size=64k', file, '1M');
  peer('qemu-io', '-c', 'write -P 1 0 64k', '-c', 'write -P 3 128k 128k', file);
  return file;
}

function patch(file: string, change: (image: Buffer) => void): void {
  const image = readFileSync(file);
  change(image);
  writeFileSync(file, image);
}

async function opens(file: string, more: object = {}): Promise<void> {
  const { layer, close } = testLayer();
  try {
    await openFromOptions(layer, { driver: 'parallels', file: { driver: 'file', filename: file }, ...more });
  } finally {
    await close();
  }
}

test('an image that was not closed is refused, and marked while it is open', async (context) => {
  requirePeer(context, 'qemu-img', 'qemu-io');
  const file = sample('mark.hdd');
  const { layer, close } = testLayer();
  await openFromOptions(layer, { driver: 'parallels', file: { driver: 'file', filename: file } });
  expect(readFileSync(file).toString('latin1', IN_USE_AT, IN_USE_AT + 4)).toBe('Ynot');
  await close();
  expect(readFileSync(file).readUInt32LE(IN_USE_AT)).toBe(0);
  patch(file, (image) => image.write('Ynot', IN_USE_AT, 'latin1'));
  await expect(opens(file)).rejects.toThrow('Image was not closed correctly; cannot be opened read/write');
  await opens(file, { 'read-only': true });
});

test('two clusters in one place: not opened for writing', async (context) => {
  requirePeer(context, 'qemu-img', 'qemu-io');
  const file = sample('twice.hdd');
  patch(file, (image) => image.writeUInt32LE(image.readUInt32LE(64), 72));
  await expect(opens(file)).rejects.toThrow('has the same place in the image as another one');
  await opens(file, { 'read-only': true });
});

test('dirty bitmaps of the format extension', async (context) => {
  requirePeer(context, 'qemu-img', 'qemu-io');
  const file = sample('bitmaps.hdd');
  const clusterBytes = 64 * KIB;
  const image = readFileSync(file);
  const end = Math.ceil(image.length / clusterBytes) * clusterBytes;
  const extension = Buffer.alloc(clusterBytes);
  const bits = Buffer.alloc(clusterBytes);
  bits[0] = 0b101;
  extension.writeBigUInt64LE(0xab234cef23dcea87n, 0);
  extension.writeBigUInt64LE(0x20385fae252cb34an, 24);
  extension.writeUInt32LE(40, 24 + 16);
  extension.writeBigUInt64LE(BigInt(MIB / 512), 48);
  Buffer.from('00112233445566778899aabbccddeeff', 'hex').copy(extension, 56);
  extension.writeUInt32LE(128, 72);
  extension.writeUInt32LE(1, 76);
  extension.writeBigUInt64LE(BigInt((end + clusterBytes) / 512), 80);
  createHash('md5').update(extension.subarray(24)).digest().copy(extension, 8);
  image.writeBigUInt64LE(BigInt(end / 512), 56);
  writeFileSync(file, Buffer.concat([image, Buffer.alloc(end - image.length), extension, bits]));
  const { layer, close } = testLayer();
  try {
    const node = await openFromOptions(layer, {
      driver: 'parallels',
      'read-only': true,
      file: { driver: 'file', filename: file },
    });
    const bitmap = node.dirtyBitmaps.byName.get('00112233-4455-6677-8899-aabbccddeeff');
    expect(bitmap).toBeDefined();
    expect(nextDirty(bitmap!, 0)).toMatchObject({ offset: 0, bytes: 65536 });
    expect(nextDirty(bitmap!, 65536)).toMatchObject({ offset: 131072, bytes: 65536 });
    expect(nextDirty(bitmap!, 196608)).toBeNull();
  } finally {
    await close();
  }
});
