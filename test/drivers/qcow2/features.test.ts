/**
 * Images of every kind, in both directions: written by QEMU and read here, written here and read by QEMU. Content must
 * be equal, `qemu-img check` clean, and the block status what `qemu-img map` says.
 */

import { copyFileSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import { Perm, Req, Status } from '../../../src/block/contract/request.ts';
import type { BlockNode } from '../../../src/block/graph/node.ts';
import { co, wrapped } from '../../../src/block/io/callbacks.ts';
import { blockStatusAbove } from '../../../src/block/io/status-chain.ts';
import type { BlockLayer } from '../../../src/block/layer.ts';
import { openFromOptions } from '../../../src/block/open/open.ts';
import { requirePeer } from '../../peers/requires.ts';
import { checkImage, peer, scratch, testLayer } from './open-layer.ts';
import { createRandom, type Random } from './random.ts';

const KiB = 1024;
const MiB = 1024 * KiB;

let dir = '';
let layer: BlockLayer;
let closeLayer: () => Promise<void>;

beforeAll(() => {
  dir = scratch();
  ({ layer, close: closeLayer } = testLayer());
});

afterAll(async () => {
  await closeLayer();
  rmSync(dir, { recursive: true, force: true });
});

const at = (name: string): string => path.join(dir, name);

function io(file: string, ...commands: readonly string[]): void {
  peer('qemu-io', '-f', 'qcow2', ...commands.flatMap((command) => ['-c', command]), file);
}

function openImage(file: string, extra: object = {}): Promise<BlockNode> {
  return openFromOptions(layer, {
    driver: 'qcow2',
    file: { driver: 'file', filename: file },
    discard: 'unmap',
    ...extra,
  });
}

const OWNER = { describe: () => 'the test', drainedBegin: () => undefined, drainedEnd: () => undefined };

/** Opens the image, and closes it when `use` is done. */
async function withImage<T>(file: string, extra: object, use: (node: BlockNode) => Promise<T>): Promise<T> {
  const node = await openImage(file, extra);
  const perm = 'read-only' in extra ? Perm.consistentRead : Perm.all;
  const backend = await layer.createBackend(node, { perm, shared: Perm.all }, OWNER);
  try {
    return await use(node);
  } finally {
    await backend.close();
  }
}

async function readAll(node: BlockNode): Promise<Buffer> {
  const total = node.totalBytes;
  const content = Buffer.alloc(total);
  for (let offset = 0; offset < total; offset += 256 * KiB) {
    const bytes = Math.min(256 * KiB, total - offset);
    const mem = allocateIoMemory(bytes);
    await wrapped.preadv(node, offset, bytes, vectorOf(mem), 0);
    mem.buf.copy(content, offset);
  }
  return content;
}

/** The content as the original reads it. */
function contentByQemu(file: string, source: readonly string[] = ['-f', 'qcow2', file]): Buffer {
  const raw = `${file}.raw`;
  peer('qemu-img', 'convert', '-U', '-O', 'raw', ...source, raw);
  const content = readFileSync(raw);
  rmSync(raw);
  return content;
}

function expectSame(ours: Buffer, theirs: Buffer): void {
  expect(ours.length).toBe(theirs.length);
  // A diff of megabytes helps nobody.
  if (ours.equals(theirs)) return;
  const first = ours.findIndex((byte, index) => byte !== theirs[index]);
  expect(`content differs at ${first}`).toBe('equal content');
}

// ---- block status --------------------------------------------------------------------------------------------

interface Extent {
  readonly start: number;
  length: number;
  readonly zero: boolean;
  readonly data: boolean;
  readonly offset?: number;
}

/** The map through the backing chain. */
async function mapOf(node: BlockNode): Promise<Extent[]> {
  const extents: Extent[] = [];
  for (let start = 0; start < node.totalBytes; ) {
    const left = Math.min(node.totalBytes - start, 2 ** 30);
    const { bytes, flags, map } = await layer.graphLock.withRead((guard) =>
      blockStatusAbove(node, guard, null, true, start, left),
    );
    extents.push({
      start,
      length: bytes,
      zero: (flags & Status.zero) !== 0,
      data: (flags & Status.data) !== 0,
      ...((flags & Status.offsetValid) !== 0 ? { offset: map } : {}),
    });
    start += bytes;
  }
  return extents;
}

/**
 * Extents of one kind together. Where data is in the file, holes of the file are left out: the original looks for
 * them in some images only, this driver in all.
 */
function merged(extents: readonly Extent[]): Extent[] {
  const out: Extent[] = [];
  for (const { start, length, zero, data, offset } of extents) {
    const last = out.at(-1);
    const place = data ? offset : undefined;
    const next = { start, length, data, zero: zero && place === undefined };
    const follows = last?.offset === undefined ? undefined : last.offset + last.length;
    if (last !== undefined && last.data === data && last.zero === next.zero && follows === place) {
      last.length += length;
    } else {
      out.push(place === undefined ? next : { ...next, offset: place });
    }
  }
  return out;
}

function mapByQemu(file: string): Extent[] {
  return JSON.parse(peer('qemu-img', 'map', '-U', '-f', 'qcow2', '--output=json', file)) as Extent[];
}

// ---- images written by QEMU ----------------------------------------------------------------------------------

interface Feature {
  readonly name: string;
  /** What -o of qemu-img create takes. */
  readonly create: string;
  readonly size?: number;
}

const clusterSizes = ['512', '4k', '64k', '2M'].map((size) => ({
  name: `clusters of ${size}`,
  create: `cluster_size=${size}`,
}));
const refcountWidths = [1, 2, 4, 8, 16, 32, 64].map((bits) => ({
  name: `refcounts of ${bits} bits`,
  create: `cluster_size=4k,refcount_bits=${bits}`,
}));
const preallocations = ['metadata', 'falloc', 'full'].flatMap((mode) => [
  { name: `preallocation ${mode}`, create: `preallocation=${mode},cluster_size=4k` },
  {
    name: `preallocation ${mode}, subclusters`,
    create: `preallocation=${mode},extended_l2=on,cluster_size=16k`,
  },
]);

const FEATURES: readonly Feature[] = [
  ...clusterSizes,
  ...refcountWidths,
  { name: 'version 2', create: 'compat=0.10' },
  { name: 'version 2, small clusters', create: 'compat=0.10,cluster_size=512' },
  { name: 'subclusters', create: 'extended_l2=on' },
  { name: 'subclusters, small', create: 'extended_l2=on,cluster_size=16k' },
  { name: 'subclusters, large', create: 'extended_l2=on,cluster_size=2M' },
  { name: 'zstd', create: 'compression_type=zstd' },
  { name: 'zstd, subclusters', create: 'compression_type=zstd,extended_l2=on' },
  { name: 'lazy refcounts', create: 'lazy_refcounts=on,cluster_size=4k' },
  { name: 'external data file', create: 'data_file=$F.data' },
  { name: 'external data file, raw', create: 'data_file=$F.data,data_file_raw=on' },
  { name: 'external data file, subclusters', create: 'data_file=$F.data,extended_l2=on,cluster_size=16k' },
  ...preallocations,
  { name: 'size of no whole cluster', create: 'cluster_size=64k', size: 3 * MiB + 512 * 7 },
];

const SIZE = 3 * MiB;

function create({ name, create: options, size = SIZE }: Feature, side: string): string {
  const file = at(`${name.replaceAll(/\W/g, '-')}-${side}`);
  const text = options.replaceAll('$F', file);
  peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', text, file, String(size));
  return file;
}

/** Random changes by the original. */
function fillByQemu(file: string, random: Random): void {
  const commands: string[] = [];
  for (let i = 0; i < 24; i++) {
    const unit = random.pick([512, 512, 4096, 65536]);
    const offset = Math.floor(random.below(SIZE - 300 * KiB) / unit) * unit;
    const bytes = unit * (1 + random.below(4));
    commands.push(
      random.pick([
        `write -P ${1 + i} ${offset} ${bytes}`,
        `write -P ${1 + i} ${offset} ${bytes}`,
        `write -z ${offset} ${bytes}`,
        `write -z -u ${offset} ${bytes}`,
        `discard ${offset} ${bytes}`,
      ]),
    );
  }
  io(file, ...commands);
}

async function compareReading(file: string, extra: object = {}): Promise<void> {
  await withImage(file, { 'read-only': true, ...extra }, async (node) => {
    expectSame(await readAll(node), contentByQemu(file));
    expect(merged(await mapOf(node))).toEqual(merged(mapByQemu(file)));
  });
}

describe('images written by QEMU', () => {
  for (const [index, feature] of FEATURES.entries()) {
    test(feature.name, async (context) => {
      requirePeer(context, 'qemu-img', 'qemu-io');
      const file = create(feature, 'theirs');
      fillByQemu(file, createRandom(index + 1));
      await compareReading(file);
    });
  }

  test.each(['zlib', 'zstd'])('compressed by %s', async (type) => {
    for (const clusters of ['512', '4k', '64k', '2M']) {
      const plain = create({ name: `plain ${type} ${clusters}`, create: 'cluster_size=64k' }, 'theirs');
      fillByQemu(plain, createRandom(77));
      const file = at(`compressed-${type}-${clusters}`);
      const options = `compression_type=${type},cluster_size=${clusters}`;
      peer('qemu-img', 'convert', '-c', '-f', 'qcow2', '-O', 'qcow2', '-o', options, plain, file);
      io(file, 'write -P 200 100k 3k');
      await compareReading(file);
    }
  });

  test('internal snapshots: the active state, with clusters shared', async () => {
    const file = create({ name: 'snapshots', create: 'cluster_size=4k' }, 'theirs');
    for (const seed of [1, 2, 3]) {
      fillByQemu(file, createRandom(seed));
      peer('qemu-img', 'snapshot', '-c', `s${seed}`, file);
    }
    fillByQemu(file, createRandom(4));
    await compareReading(file);
  });

  test('a dirty image is repaired when it is opened for writing', async () => {
    const file = create({ name: 'dirty', create: 'lazy_refcounts=on,cluster_size=4k' }, 'theirs');
    try {
      io(file, 'write -P 1 0 300k', 'write -P 2 1M 10k', 'flush', 'abort');
    } catch {
      // It ends by a signal.
    }
    expect(checkImage(file).status).not.toBe(0);
    const content = contentByQemu(file);
    await withImage(file, {}, async (node) => expectSame(await readAll(node), content));
    expect(checkImage(file)).toMatchObject({ status: 0 });
  });
});

// ---- images written here -------------------------------------------------------------------------------------

/** Random changes by the driver, and the same in `model`. */
async function changeHere(node: BlockNode, model: Buffer, random: Random, compress: boolean): Promise<void> {
  const { clusterSizeBytes } = await layer.graphLock.withRead((guard) => co.getInfo(node, guard));
  for (let i = 0; i < 40; i++) {
    const unit = random.pick([1, 512, 4096, 65536]);
    const offset = Math.floor(random.below(model.length - 260 * KiB) / unit) * unit;
    const bytes = unit * (1 + random.below(4));
    const mem = allocateIoMemory(bytes);
    switch (random.below(compress ? 6 : 5)) {
      case 0:
        await wrapped.pwriteZeroes(node, offset, bytes, random.pick([0, Req.mayUnmap]));
        model.fill(0, offset, offset + bytes);
        break;
      case 1: {
        // What a discarded range reads as is not ours to choose: it is written over.
        await wrapped.pdiscard(node, offset, bytes);
        mem.buf.fill(i + 1);
        await wrapped.pwritev(node, offset, bytes, vectorOf(mem), 0);
        model.fill(i + 1, offset, offset + bytes);
        break;
      }
      case 5: {
        const start = offset - (offset % clusterSizeBytes);
        const length = Math.min(clusterSizeBytes, model.length - start);
        const cluster = allocateIoMemory(length);
        cluster.buf.fill(0x40 + i);
        // A cluster that is there already cannot be compressed.
        await wrapped.pdiscard(node, start, length);
        await wrapped.pwritevCompressed(node, start, length, vectorOf(cluster));
        model.fill(0x40 + i, start, start + length);
        break;
      }
      default:
        mem.buf.fill(0x80 + i);
        await wrapped.pwritev(node, offset, bytes, vectorOf(mem), 0);
        model.fill(0x80 + i, offset, offset + bytes);
    }
  }
}

describe('images written here', () => {
  for (const [index, feature] of FEATURES.entries()) {
    test(feature.name, async (context) => {
      requirePeer(context, 'qemu-img', 'qemu-io');
      const file = create(feature, 'ours');
      // Content of both hands in one image.
      fillByQemu(file, createRandom(index + 100));
      const model = contentByQemu(file);
      const compress = !feature.create.includes('data_file');
      await withImage(file, {}, (node) => changeHere(node, model, createRandom(index + 200), compress));
      expect(checkImage(file)).toMatchObject({ status: 0 });
      expectSame(contentByQemu(file), model);
      await compareReading(file);
    });
  }
});

// ---- backing files -------------------------------------------------------------------------------------------

describe('backing files', () => {
  function overlay(name: string, backing: string, format: string | null, size = SIZE): string {
    const file = at(name);
    // Relative names are relative to the image.
    peer(
      'qemu-img',
      'create',
      '-q',
      '-f',
      'qcow2',
      '-u',
      '-F',
      format ?? 'raw',
      '-b',
      backing,
      file,
      String(size),
    );
    if (format === null) {
      // The original makes no such images any more: the extension with the format becomes one nobody knows.
      const image = readFileSync(file);
      image.writeUInt32BE(0x12345678, image.indexOf(Buffer.from([0xe2, 0x79, 0x2a, 0xca])));
      writeFileSync(file, image);
    }
    return file;
  }

  function base(name: string, bytes: number): string {
    writeFileSync(at(name), Buffer.alloc(bytes, 0x5a));
    return name;
  }

  test('raw, by a relative name, shorter and longer than the overlay', async (context) => {
    requirePeer(context, 'qemu-img', 'qemu-io');
    base('short.raw', MiB + 512);
    base('long.raw', 5 * MiB);
    for (const name of ['short', 'long']) {
      const file = overlay(`over-${name}`, `${name}.raw`, 'raw', SIZE);
      fillByQemu(file, createRandom(5));
      await compareReading(file);
      const model = contentByQemu(file);
      await withImage(file, {}, (node) => changeHere(node, model, createRandom(6), true));
      expect(checkImage(file)).toMatchObject({ status: 0 });
      expectSame(contentByQemu(file), model);
    }
  });

  test('a chain of three, subclusters in between', async (context) => {
    requirePeer(context, 'qemu-img', 'qemu-io');
    base('chain.raw', 2 * MiB);
    const one = overlay('chain-1', 'chain.raw', 'raw', SIZE);
    fillByQemu(one, createRandom(7));
    const two = at('chain-2');
    peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'extended_l2=on', '-b', one, '-F', 'qcow2', two);
    fillByQemu(two, createRandom(8));
    const three = overlay('chain-3', 'chain-2', 'qcow2');
    fillByQemu(three, createRandom(9));
    await compareReading(three);
    const model = contentByQemu(three);
    await withImage(three, {}, (node) => changeHere(node, model, createRandom(10), true));
    expect(checkImage(three)).toMatchObject({ status: 0 });
    expectSame(contentByQemu(three), model);
  });

  test('without a format in the image: it is probed', async (context) => {
    requirePeer(context, 'qemu-img');
    const below = create({ name: 'probed', create: 'cluster_size=64k' }, 'base');
    fillByQemu(below, createRandom(11));
    const file = overlay('probing', below, null, SIZE);
    await withImage(file, { 'read-only': true }, async (node) => {
      expect(node.child('backing')?.node.driver.name).toBe('qcow2');
      expectSame(await readAll(node), contentByQemu(file));
    });
  });

  test('a missing one is named; backing null does without', async (context) => {
    requirePeer(context, 'qemu-img');
    const file = overlay('orphan', 'gone.qcow2', null, SIZE);
    await expect(openImage(file)).rejects.toThrow(
      `Could not open backing file: Could not open '${at('gone.qcow2')}': No such file or directory`,
    );
    await withImage(file, { backing: null }, async (node) =>
      expectSame(await readAll(node), Buffer.alloc(SIZE)),
    );
  });

  test('another backing image than the one named', async (context) => {
    requirePeer(context, 'qemu-img');
    base('named.raw', SIZE);
    writeFileSync(at('other.raw'), Buffer.alloc(SIZE, 0x33));
    const file = overlay('renamed', 'named.raw', 'raw');
    const backing = { driver: 'raw', file: { driver: 'file', filename: at('other.raw') } };
    await withImage(file, { backing }, async (node) =>
      expectSame(await readAll(node), Buffer.alloc(SIZE, 0x33)),
    );
  });
});

test('an external data file given by the user', async (context) => {
  requirePeer(context, 'qemu-img', 'qemu-io');
  const file = create({ name: 'moved data', create: 'data_file=$F.data' }, 'theirs');
  fillByQemu(file, createRandom(12));
  const content = contentByQemu(file);
  copyFileSync(`${file}.data`, at('moved.data'));
  truncateSync(`${file}.data`, 0);
  await withImage(
    file,
    { 'read-only': true, 'data-file': { driver: 'file', filename: at('moved.data') } },
    async (node) => expectSame(await readAll(node), content),
  );
});
