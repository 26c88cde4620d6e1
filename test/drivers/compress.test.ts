/**
 * Compressed clusters as bytes: what QEMU compressed is decompressed here, what is compressed here QEMU reads, and
 * streams no writer makes are treated as QEMU treats them.
 */

import { execFileSync, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { constants, deflateRawSync } from 'node:zlib';
import fc from 'fast-check';
import { afterAll, expect, test } from 'vitest';
import { allocateIoMemory } from '../../src/aio/memory.ts';
import {
  type CompressionType,
  compressCluster,
  compressNow,
  decompressCluster,
  decompressNow,
  zstdAvailable,
} from '../../src/drivers/compress/codec.ts';
import { requirePeer } from '../peers/requires.ts';

const CLUSTER = 64 * 1024;
const TYPES: readonly CompressionType[] = zstdAvailable() ? ['zlib', 'zstd'] : ['zlib'];
const dir = mkdtempSync(path.join(tmpdir(), 'qblockd-compress-'));
const imageFile = path.join(dir, 'image.qcow2');
afterAll(() => rmSync(dir, { recursive: true, force: true }));

/** Text-like content that compresses, different in every cluster. */
function content(bytes: number): Buffer {
  const words = Array.from({ length: 64 }, () => randomBytes(6).toString('hex'));
  let text = '';
  while (text.length < bytes) text += `${words[Math.floor(Math.random() * words.length)]} ${text.length}\n`;
  return Buffer.from(text.slice(0, bytes));
}

/** A qcow2 image of one compressed 64 KiB cluster that holds `data`, made of the specification's tables by hand. */
function imageOf(type: CompressionType, data: Buffer): Buffer {
  const image = Buffer.alloc(CLUSTER * 5 + Math.ceil((data.length + 1) / CLUSTER) * CLUSTER);
  image.write('QFI\xfb', 0, 'latin1');
  image.writeUInt32BE(3, 4);
  image.writeUInt32BE(16, 20);
  image.writeBigUInt64BE(BigInt(CLUSTER), 24);
  image.writeUInt32BE(1, 36);
  image.writeBigUInt64BE(BigInt(CLUSTER * 3), 40);
  image.writeBigUInt64BE(BigInt(CLUSTER), 48);
  image.writeUInt32BE(1, 56);
  image.writeBigUInt64BE(type === 'zstd' ? 8n : 0n, 72);
  image.writeUInt32BE(4, 96);
  image.writeUInt32BE(112, 100);
  image[104] = type === 'zstd' ? 1 : 0;
  image.writeBigUInt64BE(BigInt(CLUSTER * 2), CLUSTER);
  for (let cluster = 0; cluster < 6; cluster++) image.writeUInt16BE(1, CLUSTER * 2 + 2 * cluster);
  image.writeBigUInt64BE((1n << 63n) | BigInt(CLUSTER * 4), CLUSTER * 3);
  const moreSectors = BigInt(Math.ceil(data.length / 512) - 1);
  image.writeBigUInt64BE((1n << 62n) | (moreSectors << 54n) | BigInt(CLUSTER * 5), CLUSTER * 4);
  data.copy(image, CLUSTER * 5);
  return image;
}

/** The guest's view of the image in `imageFile`, as QEMU reads it; null when it cannot. */
function qemuReads(): Buffer | null {
  const raw = path.join(dir, 'out.raw');
  const { status } = spawnSync('qemu-img', ['convert', '-O', 'raw', imageFile, raw], { stdio: 'ignore' });
  return status === 0 ? readFileSync(raw) : null;
}

/** Compressed clusters of a 64 KiB-cluster image: for each the guest offset and its sectors. */
function compressedClusters(image: Buffer): { guestOffset: number; sectors: Buffer }[] {
  const l1 = Number(image.readBigUInt64BE(40));
  const l1Entries = image.readUInt32BE(36);
  const found: { guestOffset: number; sectors: Buffer }[] = [];
  for (let i = 0; i < l1Entries * 8192; i++) {
    const l2 = Number(image.readBigUInt64BE(l1 + 8 * Math.floor(i / 8192)) & 0x00fffffffffffe00n);
    const entry = l2 === 0 ? 0n : image.readBigUInt64BE(l2 + 8 * (i % 8192));
    if ((entry & (1n << 62n)) === 0n) continue;
    const start = Number(entry & ((1n << 54n) - 1n));
    const sectors = Number((entry >> 54n) & 0xffn) + 1;
    const end = Math.floor(start / 512) * 512 + sectors * 512;
    found.push({ guestOffset: i * CLUSTER, sectors: image.subarray(start, end) });
  }
  return found;
}

test.each(TYPES)('%s: what goes in comes out, with any bytes behind it', async (type) => {
  const clusterBytes = fc.constantFrom(512, 4096, CLUSTER, 2 * 1024 * 1024);
  await fc.assert(
    fc.asyncProperty(clusterBytes, fc.nat(600), async (bytes, rest) => {
      const data = content(bytes);
      const compressed = await compressCluster(type, data);
      if (compressed === null) return bytes === 512;
      expect(compressed.length).toBeLessThan(bytes);
      const padded = Buffer.concat([compressed, randomBytes(rest)]);
      return (await decompressCluster(type, padded, bytes)).equals(data);
    }),
    { numRuns: 30 },
  );
});

test.each(TYPES)('%s: data that does not shrink is refused', async (type) => {
  expect(await compressCluster(type, randomBytes(CLUSTER))).toBeNull();
});

test.each(TYPES)('%s: many clusters at once', async (type) => {
  const some = Array.from({ length: 8 }, () => content(4096));
  const clusters = Array.from({ length: 1000 }, (_, i) => some[i % some.length] ?? Buffer.alloc(0));
  const compressed = await Promise.all(clusters.map((cluster) => compressCluster(type, cluster)));
  const back = await Promise.all(
    compressed.map((data) => decompressCluster(type, data ?? Buffer.alloc(0), 4096)),
  );
  back.forEach((data, i) => {
    expect(data.equals(clusters[i] ?? Buffer.alloc(0))).toBe(true);
  });
});

test.for(TYPES)('%s: clusters that QEMU compressed', async (type, context) => {
  requirePeer(context, 'qemu-img');
  const raw = path.join(dir, 'in.raw');
  const data = Buffer.concat([content(20 * CLUSTER), Buffer.alloc(CLUSTER), content(5 * CLUSTER)]);
  writeFileSync(raw, data);
  execFileSync('qemu-img', [
    ...['convert', '-c', '-O', 'qcow2', '-o', `compression_type=${type}`, raw, imageFile],
  ]);
  const clusters = compressedClusters(readFileSync(imageFile));
  expect(clusters).toHaveLength(25);
  for (const { guestOffset, sectors } of clusters) {
    const back = await decompressCluster(type, sectors, CLUSTER);
    expect(back.equals(data.subarray(guestOffset, guestOffset + CLUSTER))).toBe(true);
  }
});

test.for(TYPES)('%s: QEMU decompresses our clusters', async (type, context) => {
  requirePeer(context, 'qemu-img');
  for (const data of [content(CLUSTER), Buffer.alloc(CLUSTER, 7), Buffer.alloc(CLUSTER)]) {
    const compressed = await compressCluster(type, data);
    writeFileSync(imageFile, imageOf(type, compressed ?? Buffer.alloc(0)));
    expect(qemuReads()?.equals(data)).toBe(true);
  }
});

/** Streams no ordinary writer makes. */
async function strangeStreams(type: CompressionType): Promise<[string, Buffer][]> {
  const compressed = async (bytes: number) =>
    (await compressCluster(type, Buffer.alloc(bytes, 7))) ?? Buffer.alloc(0);
  const whole = await compressed(CLUSTER);
  return [
    ['too long', await compressed(CLUSTER + 1000)],
    ['much too long', await compressed(8 * CLUSTER)],
    ['too short', await compressed(CLUSTER - 1000)],
    ['two parts', Buffer.concat([await compressed(CLUSTER - 1000), await compressed(1000)])],
    ['end cut', whole.subarray(0, -1)],
    ['cut in the middle', whole.subarray(0, whole.length / 2)],
    ['garbage', Buffer.alloc(600, 1)],
    ['zeroes', Buffer.alloc(600)],
    ['ones', Buffer.alloc(600, 0xff)],
    ['followed by another', Buffer.concat([whole, whole])],
  ];
}

test.for(TYPES)('%s: strange streams are taken or refused as by QEMU', async (type, context) => {
  requirePeer(context, 'qemu-img');
  for (const [name, data] of await strangeStreams(type)) {
    writeFileSync(imageFile, imageOf(type, data));
    const theirs = qemuReads();
    const sectors = Buffer.concat([data, Buffer.alloc(-data.length & 511)]);
    const ours = await decompressCluster(type, sectors, CLUSTER).catch((error: Error) => error);
    if (theirs === null) expect(ours, name).toMatchObject({ errno: 5, message: 'Input/output error' });
    else expect(Buffer.isBuffer(ours) && ours.equals(theirs), name).toBe(true);
  }
});

test('zstd: skippable frames, frames with checksum, and one with a wrong checksum', async (context) => {
  if (!zstdAvailable()) context.skip('no zstd');
  // A skippable frame, then 64 KiB of zeroes in a checksummed frame of one RLE block, written by hand (RFC 8878).
  const skippable = Buffer.from('502a4d1804000000' + '01020304', 'hex');
  const frame = Buffer.from('28b52ffd' + '24' + '00' + '00' + '00', 'hex');
  const empty = Buffer.concat([frame.subarray(0, 5), Buffer.from('00' + '010000' + '99e9d851', 'hex')]);
  const zeroes = (await compressCluster('zstd', Buffer.alloc(CLUSTER))) ?? Buffer.alloc(0);
  expect(await decompressCluster('zstd', Buffer.concat([skippable, empty, zeroes]), CLUSTER)).toEqual(
    Buffer.alloc(CLUSTER),
  );
  const wrong = Buffer.from(empty);
  wrong[wrong.length - 1] = 0;
  await expect(decompressCluster('zstd', Buffer.concat([wrong, zeroes]), CLUSTER)).rejects.toThrow(
    'Input/output error',
  );
});

test('zstd: thousands of empty frames end early', async (context) => {
  if (!zstdAvailable()) context.skip('no zstd');
  const empty = Buffer.from('28b52ffd' + '20' + '00' + '010000', 'hex');
  await expect(decompressCluster('zstd', Buffer.concat(Array(100_000).fill(empty)), CLUSTER)).rejects.toThrow(
    'Input/output error',
  );
});

test.each(TYPES)('%s: mutated streams give an error or a cluster, never more', async (type) => {
  const whole = (await compressCluster(type, content(CLUSTER))) ?? Buffer.alloc(0);
  for (let i = 0; i < 300; i++) {
    const mutated = Buffer.from(whole);
    for (let k = 0; k < 3; k++) mutated[Math.floor(Math.random() * mutated.length)] = Math.random() * 256;
    const result = await decompressCluster(type, mutated, CLUSTER).catch((error: Error) => error);
    if (Buffer.isBuffer(result)) expect(result).toHaveLength(CLUSTER);
    else expect(result).toMatchObject({ errno: 5 });
  }
});

test('zlib: a window of 32 KiB is decompressed as far as QEMU does', async (context) => {
  requirePeer(context, 'qemu-img');
  const half = randomBytes(20_000);
  const data = Buffer.concat([half, half, Buffer.alloc(CLUSTER - 40_000)]);
  for (const stream of [
    deflateRawSync(data, { windowBits: 15 }),
    deflateRawSync(data, { strategy: constants.Z_FIXED }),
  ]) {
    writeFileSync(imageFile, imageOf('zlib', stream));
    const theirs = qemuReads();
    const sectors = Buffer.concat([stream, Buffer.alloc(-stream.length & 511)]);
    const ours = await decompressCluster('zlib', sectors, CLUSTER).catch(() => null);
    expect(ours === null).toBe(theirs === null);
    if (theirs !== null) expect(ours?.equals(theirs)).toBe(true);
  }
});

/** What decompressNow makes of it, given as many times as it takes for it not to pass; null: nothing. */
function unpackedNow(type: CompressionType, data: Buffer, bytes: number): Buffer | null {
  const [input, output] = [allocateIoMemory(data.length), allocateIoMemory(bytes)];
  data.copy(input.buf);
  const [from, to] = [
    { address: input.addr, length: data.length },
    { address: output.addr, length: bytes },
  ];
  // A busy machine may make it pass for a while.
  for (let i = 0; i < 1000; i++) if (decompressNow(type, input.buf, from, to)) return output.buf;
  return null;
}

test.each(TYPES)('%s: within the turn as on the thread pool', async (type) => {
  let refused = 0;
  for (const bytes of [4096, CLUSTER]) {
    const data = content(bytes);
    const whole = (await compressCluster(type, data)) ?? Buffer.alloc(0);
    for (const rest of [0, 1, 600])
      expect(unpackedNow(type, Buffer.concat([whole, randomBytes(rest)]), bytes)?.equals(data)).toBe(true);
    // More content than a cluster has room for, and less.
    const longer = await decompressCluster(type, whole, bytes - 512).catch(() => null);
    expect(unpackedNow(type, whole, bytes - 512)).toEqual(longer);
    expect(unpackedNow(type, whole, bytes + 512)).toBeNull();
    for (let i = 0; i < 40; i++) {
      const mutated = Buffer.from(whole);
      for (let k = 0; k < 3; k++) mutated[Math.floor(Math.random() * mutated.length)] = Math.random() * 256;
      const now = unpackedNow(type, mutated, bytes);
      const pooled = await decompressCluster(type, mutated, bytes).catch(() => null);
      // What is refused now is left to the thread pool; what is not must be the same.
      if (now === null) refused++;
      else expect(pooled?.equals(now)).toBe(true);
    }
  }
  expect(refused).toBeGreaterThan(0);
});

test('zstd: compressed within the turn, or not made smaller', async (context) => {
  if (!TYPES.includes('zstd')) context.skip('no libzstd here');
  const input = allocateIoMemory(CLUSTER);
  const output = allocateIoMemory(CLUSTER - 1);
  const pack = (data: Buffer): Buffer | null => {
    data.copy(input.buf);
    for (;;) {
      const bytes = compressNow(
        'zstd',
        { address: input.addr, length: CLUSTER },
        { address: output.addr, length: CLUSTER - 1 },
      );
      if (bytes !== undefined) return bytes === null ? null : output.buf.subarray(0, bytes);
    }
  };
  const data = content(CLUSTER);
  expect((await decompressCluster('zstd', pack(data) ?? Buffer.alloc(0), CLUSTER)).equals(data)).toBe(true);
  expect(pack(randomBytes(CLUSTER))).toBeNull();
});
