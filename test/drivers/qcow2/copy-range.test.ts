/**
 * Copies by the kernel out of and into qcow2 images of every kind, with guests writing to the target meanwhile: the
 * content is as if it had been read and written, and `qemu-img check` finds nothing.
 */

import { rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import { Perm } from '../../../src/block/contract/request.ts';
import type { BlockNode } from '../../../src/block/graph/node.ts';
import { wrapped } from '../../../src/block/io/callbacks.ts';
import { coCopyOnRead } from '../../../src/block/io/copy-on-read.ts';
import { canCopyRange, coCopyRange } from '../../../src/block/io/copy-range.ts';
import type { BlockLayer } from '../../../src/block/layer.ts';
import { openFromOptions } from '../../../src/block/open/open.ts';
import { requirePeer } from '../../peers/requires.ts';
import { checkImage, peer, scratch, testLayer } from './open-layer.ts';
import { createRandom, type Random } from './random.ts';

const KiB = 1024;
const BYTES = 8 * 1024 * KiB;
const ROUNDS = 40;

let dir = '';
let layer: BlockLayer;
let closeLayer: () => Promise<void>;

beforeAll(() => {
  dir = scratch();
  ({ layer, close: closeLayer } = testLayer('letmein'));
});

afterAll(async () => {
  await closeLayer();
  rmSync(dir, { recursive: true, force: true });
});

const OWNER = { describe: () => 'the test', drainedBegin: () => undefined, drainedEnd: () => undefined };

interface Kind {
  readonly name: string;
  /** Options of `qemu-img create`. */
  readonly create: string;
  readonly clusterKiB: number;
  readonly backing?: boolean;
  readonly snapshot?: boolean;
  readonly compressed?: boolean;
}

const KINDS: readonly Kind[] = [
  { name: 'plain', create: '', clusterKiB: 64 },
  { name: 'small clusters', create: 'cluster_size=4k', clusterKiB: 4 },
  { name: 'version 2', create: 'compat=0.10', clusterKiB: 64 },
  { name: 'subclusters', create: 'extended_l2=on', clusterKiB: 64 },
  { name: 'data file', create: 'data_file=DATA', clusterKiB: 64 },
  { name: 'preallocated', create: 'preallocation=metadata', clusterKiB: 64 },
  { name: 'backing image', create: '', clusterKiB: 64, backing: true },
  { name: 'snapshot', create: '', clusterKiB: 64, snapshot: true },
  { name: 'compressed', create: '', clusterKiB: 64, compressed: true },
  { name: 'one-bit refcounts', create: 'refcount_bits=1', clusterKiB: 64 },
];

function pattern(random: Random, bytes: number): Buffer {
  const content = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; at += 512) content.fill(1 + random.below(255), at, at + 512);
  return content;
}

/** Makes an image of that kind, and returns the content it has. */
function make(kind: Kind, name: string, random: Random): { readonly file: string; readonly content: Buffer } {
  const file = path.join(dir, name);
  let content: Buffer = Buffer.alloc(BYTES);
  const options = kind.create.replace('DATA', `${file}.data`);
  const backing: string[] = [];
  if (kind.backing) {
    content = pattern(random, BYTES);
    writeFileSync(`${file}.base`, content);
    backing.push('-b', `${file}.base`, '-F', 'raw');
  }
  peer(
    'qemu-img',
    ...['create', '-q', '-f', 'qcow2', ...backing],
    ...(options === '' ? [] : ['-o', options]),
    ...[file, `${BYTES}`],
  );
  const part = { offset: 1024 * KiB, bytes: 1024 * KiB, value: 0x5a };
  const flags = kind.compressed ? '-c' : '-q';
  peer('qemu-io', '-f', 'qcow2', '-c', `write ${flags} -P ${part.value} ${part.offset} ${part.bytes}`, file);
  content.fill(part.value, part.offset, part.offset + part.bytes);
  if (kind.snapshot) peer('qemu-img', 'snapshot', '-c', 's', file);
  return { file, content };
}

async function open(file: string, more: object = {}): Promise<BlockNode> {
  return openFromOptions(layer, { driver: 'qcow2', file: { driver: 'file', filename: file }, ...more });
}

async function content(node: BlockNode): Promise<Buffer> {
  const mem = allocateIoMemory(BYTES);
  await wrapped.preadv(node, 0, BYTES, vectorOf(mem), 0);
  return Buffer.from(mem.buf);
}

function expectSame(ours: Buffer, wanted: Buffer): void {
  if (ours.equals(wanted)) return;
  expect(`differs at ${ours.findIndex((byte, index) => byte !== wanted[index])}`).toBe('the same');
}

interface Range {
  readonly offset: number;
  readonly bytes: number;
}

/** Ranges that do not overlap, each within one part of the disk. */
function ranges(random: Random, count: number, unit: number): Range[] {
  const part = BYTES / count;
  return Array.from({ length: count }, (_, index) => {
    const first = random.below(part / unit);
    const units = 1 + random.below(part / unit - first);
    return { offset: index * part + first * unit, bytes: units * unit };
  });
}

async function write(node: BlockNode, { offset, bytes }: Range, data: Buffer): Promise<void> {
  const mem = allocateIoMemory(bytes);
  data.copy(mem.buf, 0, offset, offset + bytes);
  await wrapped.pwritev(node, offset, bytes, vectorOf(mem), 0);
}

test.for(KINDS)('into and out of: $name', async (kind, context) => {
  requirePeer(context, 'qemu-img', 'qemu-io');
  const random = createRandom(KINDS.indexOf(kind) + 1);
  const { file, content: model } = make(kind, `t${KINDS.indexOf(kind)}.qcow2`, random);
  const data = pattern(random, BYTES);
  const sourceFile = path.join(dir, `s${KINDS.indexOf(kind)}.qcow2`);
  writeFileSync(`${sourceFile}.raw`, data);
  peer('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', `${sourceFile}.raw`, sourceFile);
  const source = await open(sourceFile, { 'read-only': true });
  const users = await layer.createBackend(source, { perm: Perm.consistentRead, shared: Perm.all }, OWNER);
  const target = await open(file);
  const backend = await layer.createBackend(target, { perm: Perm.all, shared: Perm.all }, OWNER);
  let copies = 0;
  try {
    await layer.graphLock.withRead(async (guard) => expect(canCopyRange(source, target, guard)).toBe(true));
    for (let round = 0; round < ROUNDS; round++) {
      // Aligned to clusters or not, next to writes of guests into the same clusters.
      const unit = random.below(3) === 0 ? 512 : kind.clusterKiB * KiB;
      const guest = pattern(random, BYTES);
      await Promise.all(
        ranges(random, 4, unit).map(async (range, index) => {
          const { offset, bytes } = range;
          if (index % 2 === 1 && random.below(2) === 0) {
            await write(target, range, guest);
            guest.copy(model, offset, offset, offset + bytes);
            return;
          }
          const copied = await layer.graphLock.withRead((guard) =>
            coCopyRange(source, guard, offset, target, offset, bytes),
          );
          if (copied) copies++;
          else await write(target, range, data);
          data.copy(model, offset, offset, offset + bytes);
        }),
      );
      if (round % 10 === 0) expectSame(await content(target), model);
    }
    expectSame(await content(target), model);
    expect(copies).toBeGreaterThan(ROUNDS / 2);
    // And back, over what is data, zero, compressed and in the backing image.
    const back = path.join(dir, 'back.raw');
    writeFileSync(back, Buffer.alloc(BYTES));
    const sink = await openFromOptions(layer, { driver: 'file', filename: back });
    const sinkUsers = await layer.createBackend(sink, { perm: Perm.all, shared: Perm.all }, OWNER);
    for (const range of ranges(random, 8, 512)) {
      const { offset, bytes } = range;
      const copied = await layer.graphLock.withRead((guard) =>
        coCopyRange(target, guard, offset, sink, offset, bytes),
      );
      if (!copied) continue;
      const mem = allocateIoMemory(bytes);
      await wrapped.preadv(sink, offset, bytes, vectorOf(mem), 0);
      expectSame(mem.buf, model.subarray(offset, offset + bytes));
    }
    await sinkUsers.close();
    expect([source.inFlight, target.inFlight, sink.inFlight]).toEqual([0, 0, 0]);
  } finally {
    await backend.close();
    await users.close();
  }
  expect(checkImage(file)).toMatchObject({ status: 0 });
  const reopened = await open(file, { 'read-only': true });
  const reader = await layer.createBackend(reopened, { perm: Perm.consistentRead, shared: Perm.all }, OWNER);
  expectSame(await content(reopened), model);
  await reader.close();
});

/** Opens two images, the second for writing, and closes them afterwards. */
async function withBoth(source: BlockNode, target: BlockNode, section: () => Promise<void>): Promise<void> {
  const reader = await layer.createBackend(source, { perm: Perm.consistentRead, shared: Perm.all }, OWNER);
  const writer = await layer.createBackend(target, { perm: Perm.all, shared: Perm.all }, OWNER);
  try {
    await section();
  } finally {
    await writer.close();
    await reader.close();
  }
}

test('over a cluster of which the first subclusters have data', async (context) => {
  requirePeer(context, 'qemu-img', 'qemu-io');
  const random = createRandom(1);
  const data = pattern(random, BYTES);
  const sourceFile = path.join(dir, 'parts.raw');
  writeFileSync(sourceFile, data);
  const file = path.join(dir, 'parts.qcow2');
  peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'extended_l2=on', file, `${BYTES}`);
  peer('qemu-io', '-f', 'qcow2', '-c', `write -q -P 1 0 ${8 * KiB}`, file);
  const source = await openFromOptions(layer, { driver: 'file', filename: sourceFile, 'read-only': true });
  const target = await open(file);
  await withBoth(source, target, async () => {
    const bytes = 128 * KiB;
    const copied = await layer.graphLock.withRead((guard) => coCopyRange(source, guard, 0, target, 0, bytes));
    expect(copied).toBe(true);
    const wanted = Buffer.alloc(BYTES);
    data.copy(wanted, 0, 0, bytes);
    expectSame(await content(target), wanted);
  });
  expect(checkImage(file)).toMatchObject({ status: 0 });
});

test('what lies encrypted in a backing image is not copied as it is', async (context) => {
  requirePeer(context, 'qemu-img', 'qemu-io');
  const base = path.join(dir, 'encrypted.qcow2');
  const secret = ['--object', 'secret,id=key,data=letmein'];
  const encryption = 'encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10';
  // It measures its own speed, and fails now and then when the machine is busy.
  for (let attempt = 1; ; attempt++) {
    try {
      peer('qemu-img', 'create', '-q', '-f', 'qcow2', ...secret, '-o', encryption, base, `${BYTES}`);
      break;
    } catch (error) {
      if (attempt === 50) throw error;
    }
  }
  const opened = `driver=qcow2,encrypt.key-secret=key,file.filename=${base}`;
  peer('qemu-io', ...secret, '--image-opts', '-c', `write -q -P 7 0 ${1024 * KiB}`, opened);
  const top = path.join(dir, 'over-encrypted.qcow2');
  peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-u', '-b', base, '-F', 'qcow2', top, `${BYTES}`);
  const to = path.join(dir, 'plain.raw');
  writeFileSync(to, Buffer.alloc(BYTES));
  const source = await open(top, {
    'read-only': true,
    backing: {
      driver: 'qcow2',
      file: { driver: 'file', filename: base },
      encrypt: { format: 'luks', 'key-secret': 'key' },
    },
  });
  const target = await openFromOptions(layer, { driver: 'file', filename: to });
  await withBoth(source, target, async () => {
    await layer.graphLock.withRead((guard) => coCopyRange(source, guard, 0, target, 0, 1024 * KiB));
    const now = await content(target);
    expect([0, 7]).toContain(now[0]);
  });
});

test('behind the end of a backing image nothing of what is below it is copied', async (context) => {
  requirePeer(context, 'qemu-img');
  const base = path.join(dir, 'long.raw');
  writeFileSync(base, pattern(createRandom(2), BYTES));
  const [mid, top] = ['mid.qcow2', 'top.qcow2'].map((name) => path.join(dir, name)) as [string, string];
  peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', mid, `${BYTES / 2}`);
  peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', mid, '-F', 'qcow2', top, `${BYTES}`);
  const overlay = await openFromOptions(layer, {
    driver: 'qcow2',
    file: { driver: 'file', filename: top },
    backing: {
      driver: 'qcow2',
      file: { driver: 'file', filename: mid },
      backing: { driver: 'file', filename: base },
    },
  });
  const users = await layer.createBackend(overlay, { perm: Perm.all, shared: Perm.all }, OWNER);
  const before = await content(overlay);
  expect(before.subarray(BYTES / 2).every((byte) => byte === 0)).toBe(true);
  await layer.graphLock.withRead(async (guard) => {
    for (const offset of [BYTES / 2 - 256 * KiB, BYTES / 2 + 512 * KiB])
      await coCopyOnRead(overlay, guard, offset, 512 * KiB);
  });
  expectSame(await content(overlay), before);
  await users.close();
});
