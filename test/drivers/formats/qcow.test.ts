/** qcow: random guests against a model beside the original, compressed clusters, legacy encryption. */

import { randomBytes } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import type { BlockNode } from '../../../src/block/graph/node.ts';
import { wrapped } from '../../../src/block/io/callbacks.ts';
import { openFromOptions } from '../../../src/block/open/open.ts';
import { requirePeer } from '../../peers/requires.ts';
import { peer, scratch, testLayer } from '../qcow2/open-layer.ts';
import { createRandom } from '../qcow2/random.ts';
import { createOurs, type FormatModel, formatModelRun } from './format-model.ts';

const folder = scratch();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const RUNS = Number(process.env.MODEL_RUNS ?? 1);
const KIB = 1024;
const MIB = KIB * KIB;
const common = { format: 'qcow', blockBytes: 4 * KIB, steps: 40, sizeBytes: 4 * MIB } as const;
const CASES: Readonly<Record<string, FormatModel>> = {
  'of the original': { ...common, create: {}, maker: 'original', engine: 'io_uring' },
  'of ours': { ...common, create: {}, maker: 'ours', engine: 'threads', sizeBytes: 5 * MIB + 512 },
  'over a backing file': {
    ...common,
    create: {},
    maker: 'ours',
    engine: 'io_uring',
    blockBytes: 512,
    sizeBytes: MIB,
    backingBytes: MIB / 2 + 1536,
  },
  'over a longer backing file': {
    ...common,
    create: {},
    maker: 'original',
    engine: 'io_uring',
    blockBytes: 512,
    sizeBytes: MIB,
    backingBytes: MIB + 1536,
  },
};

for (const [name, settings] of Object.entries(CASES)) {
  test(`a random guest on an image ${name}`, async (context) => {
    requirePeer(context, 'qemu-img');
    for (let seed = 1; seed <= RUNS; seed++) expect(await formatModelRun(seed, settings, folder)).toBe(null);
  });
}

/** Half of it shrinks. */
function content(bytes: number): Buffer {
  const data = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; at += 128 * KIB) {
    randomBytes(64 * KIB).copy(data, at);
    data.fill(`text ${at} `, at + 64 * KIB, at + 128 * KIB);
  }
  return data;
}

/** Opens the image in `file` for writing, runs `action` with the node, and closes it. */
async function withNode(file: string, action: (node: BlockNode) => Promise<void>): Promise<void> {
  const { layer, close } = testLayer();
  try {
    const node = await openFromOptions(layer, { driver: 'qcow', file: { driver: 'file', filename: file } });
    await action(node);
    await wrapped.flush(node);
    await layer.closeNode(node);
  } finally {
    await close();
  }
}

// The original's own `convert -c` into this format fails.
test('compressed clusters: written, read by the original, and changed in part', async (context) => {
  requirePeer(context, 'qemu-img');
  const file = path.join(folder, 'ours.qcow');
  const back = path.join(folder, 'ours.raw');
  const model = content(MIB);
  const readByOriginal = (): Buffer => {
    peer('qemu-img', 'convert', '-f', 'qcow', '-O', 'raw', file, back);
    return readFileSync(back);
  };
  await createOurs('qcow', file, { size: String(MIB) });
  await withNode(file, async (node) => {
    for (let at = 0; at < MIB; at += 64 * KIB) {
      const memory = allocateIoMemory(64 * KIB);
      model.copy(memory.buf, 0, at);
      await wrapped.pwritevCompressed(node, at, 64 * KIB, vectorOf(memory));
    }
  });
  expect(readByOriginal().equals(model)).toBe(true);
  expect(readFileSync(file).length).toBeLessThan(0.6 * MIB);
  const random = createRandom(1);
  await withNode(file, async (node) => {
    const memory = allocateIoMemory(MIB);
    await wrapped.preadv(node, 0, MIB, vectorOf(memory), 0);
    expect(memory.buf.equals(model)).toBe(true);
    await Promise.all(
      Array.from({ length: 40 }, async (_, i) => {
        const from = i * 25_000 + random.below(5000);
        const part = allocateIoMemory(1 + random.below(6000));
        part.buf.fill(i + 1);
        part.buf.copy(model, from);
        await wrapped.pwritev(node, from, part.buf.length, vectorOf(part), 0);
      }),
    );
  });
  expect(readByOriginal().equals(model)).toBe(true);
});

test('legacy encryption is read, and written to by nobody', async (context) => {
  requirePeer(context, 'qemu-img');
  const raw = path.join(folder, 'e.raw');
  const file = path.join(folder, 'e.qcow');
  const model = content(256 * KIB);
  writeFileSync(raw, model);
  const secret = ['--object', 'secret,id=s,data=hunter2'];
  const options = 'encrypt.format=aes,encrypt.key-secret=s';
  peer('qemu-img', 'convert', ...secret, '-f', 'raw', '-O', 'qcow', '-o', options, raw, file);
  const { layer, close } = testLayer('hunter2');
  const definition = {
    driver: 'qcow',
    encrypt: { format: 'aes', 'key-secret': 's' },
    file: { driver: 'file', filename: file },
  };
  try {
    await expect(openFromOptions(layer, definition)).rejects.toThrow('can only be opened read-only');
    const node = await openFromOptions(layer, { ...definition, 'read-only': true });
    const memory = allocateIoMemory(model.length);
    await wrapped.preadv(node, 0, model.length, vectorOf(memory), 0);
    expect(memory.buf.equals(model)).toBe(true);
  } finally {
    await close();
  }
});
