/**
 * Formats that are only read: dmg, cloop, bochs. Images of other software where there is any, images made here by the
 * formats' descriptions for the rest, read by the original as well; damaged ones.
 */

import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { deflateSync } from 'node:zlib';
import { afterAll, describe, expect, test } from 'vitest';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import { wrapped } from '../../../src/block/io/callbacks.ts';
import { openFromOptions } from '../../../src/block/open/open.ts';
import { BlockError } from '../../../src/errors/error.ts';
import { requirePeer } from '../../peers/requires.ts';
import { peer, scratch, testLayer } from '../qcow2/open-layer.ts';
import { createRandom } from '../qcow2/random.ts';

const folder = scratch();
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const IMAGES = path.join(import.meta.dirname, 'images');
const SECTOR = 512;
const KIB = 1024;

async function content(driver: string, file: string): Promise<Buffer> {
  const { layer, close } = testLayer();
  try {
    const node = await openFromOptions(layer, {
      driver,
      'read-only': true,
      file: { driver: 'file', filename: file, 'read-only': true },
    });
    // A damaged image may say that it is as large as it likes.
    const length = Math.min(node.totalBytes, 16 * KIB * KIB);
    const memory = allocateIoMemory(length);
    // In odd pieces, many at once.
    const piece = 37 * SECTOR + 100;
    const reads: Promise<void>[] = [];
    for (let at = 0; at < length; at += piece) {
      const bytes = Math.min(piece, length - at);
      reads.push(wrapped.preadv(node, at, bytes, vectorOf(memory, at, bytes), 0));
    }
    const results = await Promise.allSettled(reads);
    for (const result of results) if (result.status === 'rejected') throw result.reason;
    return memory.buf;
  } finally {
    await close();
  }
}

function readByOriginal(driver: string, file: string): Buffer {
  const raw = path.join(folder, 'original.raw');
  peer('qemu-img', 'convert', '-f', driver, '-O', 'raw', file, raw);
  return readFileSync(raw);
}

/** Changed and cut images: an error with an errno, or content; never anything else. */
async function damage(driver: string, file: string, runs: number): Promise<void> {
  const whole = readFileSync(file);
  const random = createRandom(Number(process.env.FUZZ_SEED ?? 1));
  const damaged = path.join(folder, `damaged.${driver}`);
  for (let run = 0; run < runs; run++) {
    const bytes = Buffer.from(whole);
    const places = [Math.min(600, bytes.length), bytes.length];
    for (let i = random.below(4); i >= 0; i--) bytes[random.below(random.pick(places))] = random.below(256);
    // The trailer of a dmg and its property list are at the end.
    if (driver === 'dmg') bytes[bytes.length - 1 - random.below(9000)] = random.below(256);
    writeFileSync(damaged, random.below(5) === 0 ? bytes.subarray(0, random.below(bytes.length)) : bytes);
    await content(driver, damaged).catch((error: unknown) => {
      if (!(error instanceof BlockError)) throw error;
    });
  }
}

// ---- dmg -----------------------------------------------------------------------------------------------------

const CONTENT_OF_SAMPLES = 'a99720a126a9e6bcbfb7b7b97771942e3f90ce197d507d4b4b1aee588d111f21';

interface ChunkMade {
  readonly type: number;
  readonly plain: Buffer;
  readonly packed: Buffer;
}

/** A disk image of one table with these chunks, the data behind a gap of `offset` bytes. */
function makeDmg(chunks: readonly ChunkMade[], offset: number): Buffer {
  const table = Buffer.alloc(204 + 40 * (chunks.length + 1));
  table.writeUInt32BE(0x6d697368, 0);
  table.writeUInt32BE(chunks.length + 1, 200);
  let sector = 0;
  let host = 0;
  chunks.forEach(({ type, plain, packed }, i) => {
    const at = 204 + 40 * i;
    table.writeUInt32BE(type, at);
    table.writeBigUInt64BE(BigInt(sector), at + 8);
    table.writeBigUInt64BE(BigInt(plain.length / SECTOR), at + 16);
    table.writeBigUInt64BE(BigInt(host), at + 24);
    table.writeBigUInt64BE(BigInt(packed.length), at + 32);
    sector += plain.length / SECTOR;
    host += packed.length;
  });
  table.writeUInt32BE(0xffffffff, 204 + 40 * chunks.length);
  table.writeBigUInt64BE(BigInt(sector), 16);
  const list = Buffer.from(
    `<plist><dict><key>resource-fork</key><dict><key>blkx</key><array><dict><key>Data</key><data>\n${table.toString('base64')}\n</data></dict></array></dict></dict></plist>`,
  );
  const trailer = Buffer.alloc(SECTOR);
  trailer.write('koly', 0);
  trailer.writeUInt32BE(4, 4);
  trailer.writeUInt32BE(SECTOR, 8);
  trailer.writeBigUInt64BE(BigInt(offset), 24);
  trailer.writeBigUInt64BE(BigInt(host), 32);
  trailer.writeUInt32BE(1, 60);
  trailer.writeBigUInt64BE(BigInt(offset + host), 216);
  trailer.writeBigUInt64BE(BigInt(list.length), 224);
  trailer.writeBigUInt64BE(BigInt(sector), 492);
  return Buffer.concat([Buffer.alloc(offset), ...chunks.map(({ packed }) => packed), list, trailer]);
}

function someText(bytes: number): Buffer {
  return Buffer.alloc(bytes, 'what is easily compressed, again and again. ');
}

describe('dmg', () => {
  for (const kind of ['adc', 'bzip2', 'lzfse']) {
    test(`of macOS, ${kind}`, async () => {
      const read = await content('dmg', path.join(IMAGES, `hfsplus_${kind}.dmg`));
      expect(createHash('sha256').update(read).digest('hex')).toBe(CONTENT_OF_SAMPLES);
    });
  }

  test('every kind of chunk', async () => {
    const noise = randomBytes(64 * KIB);
    const text = someText(96 * KIB);
    const none = Buffer.alloc(0);
    const pipe = (program: string, input: Buffer): Buffer => execFileSync(program, ['-c'], { input });
    const chunks: ChunkMade[] = [
      { type: 1, plain: noise, packed: noise },
      { type: 0, plain: Buffer.alloc(3 * SECTOR), packed: none },
      { type: 0x80000005, plain: text, packed: deflateSync(text) },
      { type: 2, plain: Buffer.alloc(100 * SECTOR), packed: none },
      { type: 0x80000006, plain: text, packed: pipe('bzip2', text) },
      { type: 0x80000008, plain: text, packed: pipe('xz', text) },
      { type: 0x80000005, plain: noise, packed: deflateSync(noise) },
    ];
    const file = path.join(folder, 'all.dmg');
    writeFileSync(file, makeDmg(chunks, 1000));
    const read = await content('dmg', file);
    expect(read.equals(Buffer.concat(chunks.map(({ plain }) => plain)))).toBe(true);
  });

  test('zlib chunks beside the original', async (context) => {
    requirePeer(context, 'qemu-img');
    const chunks = Array.from({ length: 20 }, (_, i) => {
      const plain = i % 3 === 0 ? randomBytes(8 * KIB) : someText(16 * KIB);
      return { type: 0x80000005, plain, packed: deflateSync(plain) };
    });
    const file = path.join(folder, 'zlib.dmg');
    writeFileSync(file, makeDmg(chunks, 0));
    expect((await content('dmg', file)).equals(readByOriginal('dmg', file))).toBe(true);
  });

  test('encrypted, overlapping, and what is none', async () => {
    const file = path.join(folder, 'wrong.dmg');
    writeFileSync(file, Buffer.concat([Buffer.from('encrcdsa'), Buffer.alloc(4096)]));
    await expect(content('dmg', file)).rejects.toThrow('Encrypted disk images of macOS are not supported');
    writeFileSync(file, Buffer.alloc(4096));
    await expect(content('dmg', file)).rejects.toThrow('Could not locate UDIF trailer in dmg file');
  });

  test('damaged', async () => {
    for (const kind of ['adc', 'bzip2', 'lzfse'])
      await damage('dmg', path.join(IMAGES, `hfsplus_${kind}.dmg`), Number(process.env.FUZZ_RUNS ?? 40));
  }, 60_000);
});

// ---- cloop ---------------------------------------------------------------------------------------------------

function makeCloop(blockBytes: number, plain: Buffer): Buffer {
  const script =
    '#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\nexit $?\n';
  const blocks: Buffer[] = [];
  for (let at = 0; at < plain.length; at += blockBytes)
    blocks.push(deflateSync(plain.subarray(at, at + blockBytes)));
  const head = Buffer.alloc(136 + 8 * (blocks.length + 1));
  head.write(script, 0);
  head.writeUInt32BE(blockBytes, 128);
  head.writeUInt32BE(blocks.length, 132);
  let offset = head.length;
  blocks.forEach((block, i) => {
    head.writeBigUInt64BE(BigInt(offset), 136 + 8 * i);
    offset += block.length;
  });
  head.writeBigUInt64BE(BigInt(offset), 136 + 8 * blocks.length);
  return Buffer.concat([head, ...blocks]);
}

describe('cloop', () => {
  const plain = Buffer.concat([randomBytes(256 * KIB), Buffer.alloc(128 * KIB), someText(640 * KIB)]);

  for (const blockBytes of [512, 64 * KIB]) {
    test(`blocks of ${blockBytes}`, async (context) => {
      requirePeer(context, 'qemu-img');
      const file = path.join(folder, `${blockBytes}.cloop`);
      writeFileSync(file, makeCloop(blockBytes, plain));
      expect((await content('cloop', file)).equals(plain)).toBe(true);
      expect(readByOriginal('cloop', file).equals(plain)).toBe(true);
    });
  }

  test('damaged', async () => {
    const file = path.join(folder, 'small.cloop');
    writeFileSync(file, makeCloop(4096, plain.subarray(200 * KIB, 300 * KIB)));
    await damage('cloop', file, Number(process.env.FUZZ_RUNS ?? 100));
  }, 60_000);
});

// ---- bochs ---------------------------------------------------------------------------------------------------

/** An image of `bytes` whose sectors are written where `isWritten` says so; extents are in the file in reverse order. */
function makeBochs(
  version: 1 | 2,
  bytes: number,
  extentBytes: number,
  isWritten: (sector: number) => boolean,
) {
  const extents = Math.ceil(bytes / extentBytes);
  const bitmapBytes = Math.ceil(extentBytes / SECTOR / 8 / SECTOR) * SECTOR;
  const head = Buffer.alloc(SECTOR);
  head.write('Bochs Virtual HD Image', 0);
  head.write('Redolog', 32);
  head.write('Growing', 48);
  head.writeUInt32LE(version * 0x10000, 64);
  head.writeUInt32LE(SECTOR, 68);
  head.writeUInt32LE(extents, 72);
  head.writeUInt32LE(bitmapBytes, 76);
  head.writeUInt32LE(extentBytes, 80);
  head.writeBigUInt64LE(BigInt(bytes), version === 1 ? 84 : 88);
  const catalog = Buffer.alloc(4 * extents, 0xff);
  const plain = Buffer.alloc(bytes);
  const parts: Buffer[] = [];
  for (let extent = extents - 1; extent >= 0; extent--) {
    const bitmap = Buffer.alloc(bitmapBytes);
    const data = Buffer.alloc(extentBytes);
    let any = false;
    for (let i = 0; i < extentBytes / SECTOR; i++) {
      const sector = (extent * extentBytes) / SECTOR + i;
      // What was never written must not show.
      randomBytes(SECTOR).copy(data, i * SECTOR);
      if (sector * SECTOR >= bytes || !isWritten(sector)) continue;
      any = true;
      bitmap[i >> 3] = bitmap[i >> 3]! | (1 << (i & 7));
      data.copy(plain, sector * SECTOR, i * SECTOR, (i + 1) * SECTOR);
    }
    if (!any) continue;
    catalog.writeUInt32LE(parts.length / 2, 4 * extent);
    parts.push(bitmap, data);
  }
  return { image: Buffer.concat([head, catalog, ...parts]), plain };
}

describe('bochs', () => {
  for (const version of [1, 2] as const) {
    test(`version ${version}`, async (context) => {
      requirePeer(context, 'qemu-img');
      const made = makeBochs(
        version,
        1024 * KIB,
        64 * KIB,
        (sector) => sector % 300 < 100 && sector % 7 !== 3,
      );
      const file = path.join(folder, `v${version}.bochs`);
      writeFileSync(file, made.image);
      expect((await content('bochs', file)).equals(made.plain)).toBe(true);
      expect(readByOriginal('bochs', file).equals(made.plain)).toBe(true);
    });
  }

  test('damaged', async () => {
    const file = path.join(folder, 'small.bochs');
    writeFileSync(file, makeBochs(2, 64 * KIB, 8 * KIB, (sector) => sector % 3 === 0).image);
    await damage('bochs', file, Number(process.env.FUZZ_RUNS ?? 100));
  }, 60_000);
});
