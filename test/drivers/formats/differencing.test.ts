/**
 * Differencing images of VHD and VHDX, which nothing installed here can make: built by hand after the specifications,
 * over parents that the original makes, and read back byte for byte.
 */

import { randomBytes } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  encodeHeader,
  encodeRegions,
  Guid,
  HEADER_AT,
  MIB,
  REGIONS_AT,
} from '../../../src/drivers/formats/vhdx/layout.ts';
import { checksum, newDynamic, newFooter, shapeOf, Type } from '../../../src/drivers/formats/vpc/footer.ts';
import { hasPeer } from '../../peers/requires.ts';
import { runTool, TOOLS } from '../../peers/tool-diff.ts';
import { peer, scratch } from '../qcow2/open-layer.ts';

const folder = scratch();
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const SIZE = 8 * MIB;
const parentContent = Buffer.alloc(SIZE);
for (let at = 0; at < SIZE; at++) parentContent[at] = 1 + ((at * 13 + (at >> 10)) % 250);
/** Sectors that the child has: some in a block that is there in part, and the whole of another one. */
const ownSectors = new Set([0, 3, 4, 5, 17, 4095, ...Array.from({ length: 4096 }, (_, i) => 8192 + i)]);
const expected = Buffer.from(parentContent);
for (const sector of ownSectors) expected.fill(0xee, sector * 512, sector * 512 + 512);
const BLOCK = 2 * MIB;

beforeAll(() => {
  if (!hasPeer('qemu-img')) return;
  writeFileSync(path.join(folder, 'parent.raw'), parentContent);
  const convert = (format: string, options: string, name: string): string =>
    peer(
      'qemu-img',
      'convert',
      '-f',
      'raw',
      '-O',
      format,
      '-o',
      options,
      path.join(folder, 'parent.raw'),
      path.join(folder, name),
    );
  convert('vpc', 'force_size=on', 'Parent.vhd');
  convert('vhdx', 'block_size=2M', 'Parent.vhdx');
});

function vhd(parentUuid: Buffer): Buffer {
  const shape = shapeOf(SIZE, true);
  const entries = SIZE / BLOCK;
  const footer = newFooter(shape, Type.differencing, true);
  const dynamic = newDynamic(1536, entries);
  parentUuid.copy(dynamic, 40);
  const locator = Buffer.from('.\\Parent.vhd', 'utf16le');
  const locatorAt = 2048;
  dynamic.write('W2ru', 576, 'latin1');
  dynamic.writeUInt32BE(512, 580);
  dynamic.writeUInt32BE(locator.length, 584);
  dynamic.writeBigUInt64BE(BigInt(locatorAt), 592);
  dynamic.writeUInt32BE(checksum(dynamic, 36), 36);
  const table = Buffer.alloc(512, 0xff);
  const blocks: Buffer[] = [];
  let sector = 5;
  for (let block = 0; block < entries; block++) {
    const own = [...ownSectors].filter((each) => Math.floor((each * 512) / BLOCK) === block);
    if (own.length === 0) continue;
    table.writeUInt32BE(sector, block * 4);
    const part = Buffer.alloc(512 + BLOCK, 0x55).fill(0, 0, 512);
    for (const each of own) {
      const within = each - (block * BLOCK) / 512;
      part[within >> 3]! |= 0x80 >> (within & 7);
      part.fill(0xee, 512 + within * 512, 1024 + within * 512);
    }
    blocks.push(part);
    sector += part.length / 512;
  }
  return Buffer.concat([
    footer,
    dynamic,
    table,
    Buffer.alloc(512, locator).fill(0, locator.length),
    ...blocks,
    footer,
  ]);
}

function vhdx(parentDataGuid: string): Buffer {
  const bat = { offset: 2 * MIB, bytes: MIB };
  const metadata = { offset: 3 * MIB, bytes: MIB };
  const image = Buffer.alloc(4 * MIB + MIB + 4 * BLOCK);
  image.write('vhdxfile', 0, 'latin1');
  const guids = { fileGuid: randomBytes(16), dataGuid: randomBytes(16), logGuid: Buffer.alloc(16) };
  for (const [slot, at] of HEADER_AT.entries())
    encodeHeader({ slot, sequence: BigInt(slot + 1), ...guids, logBytes: MIB, logOffset: MIB }).copy(
      image,
      at,
    );
  for (const at of REGIONS_AT) encodeRegions({ bat, metadata }).copy(image, at);
  const parameters = Buffer.alloc(8);
  parameters.writeUInt32LE(BLOCK, 0);
  parameters.writeUInt32LE(2, 4);
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(SIZE));
  const sectorSize = Buffer.from([0, 2, 0, 0]);
  const pairs = [
    ['parent_linkage', parentDataGuid],
    ['relative_path', '.\\Parent.vhdx'],
  ] as const;
  const texts: Buffer[] = [];
  const locator = Buffer.alloc(20 + pairs.length * 12);
  locator.write(Guid.vhdxLocator, 0, 'hex');
  locator.writeUInt16LE(pairs.length, 18);
  let textAt = locator.length;
  for (const [i, pair] of pairs.entries()) {
    const [key, value] = pair.map((text) => Buffer.from(text, 'utf16le')) as [Buffer, Buffer];
    locator.writeUInt32LE(textAt, 20 + i * 12);
    locator.writeUInt32LE(textAt + key.length, 24 + i * 12);
    locator.writeUInt16LE(key.length, 28 + i * 12);
    locator.writeUInt16LE(value.length, 30 + i * 12);
    texts.push(key, value);
    textAt += key.length + value.length;
  }
  const items = [
    [Guid.fileParameters, parameters],
    [Guid.diskSize, size],
    [Guid.logicalSector, sectorSize],
    [Guid.physicalSector, sectorSize],
    [Guid.parentLocator, Buffer.concat([locator, ...texts])],
  ] as const;
  image.write('metadata', metadata.offset, 'latin1');
  image.writeUInt16LE(items.length, metadata.offset + 10);
  let valueAt = 65536;
  for (const [i, [id, value]] of items.entries()) {
    const at = metadata.offset + 32 + i * 32;
    image.write(id, at, 'hex');
    image.writeUInt32LE(valueAt, at + 16);
    image.writeUInt32LE(value.length, at + 20);
    image.writeUInt32LE(4, at + 24);
    value.copy(image, metadata.offset + valueAt);
    valueAt += value.length;
  }
  // A block that is there in part, one that is there as a whole, the bitmap behind all entries of the chunk.
  const entry = (index: number, mib: number, state: number): void => {
    image.writeBigUInt64LE((BigInt(mib) << 20n) | BigInt(state), bat.offset + index * 8);
  };
  const ratio = (2 ** 23 * 512) / BLOCK;
  entry(0, 5, 7);
  entry(1, 7, 7);
  entry(2, 9, 6);
  entry(ratio, 4, 6);
  for (const sector of ownSectors) {
    const block = Math.floor((sector * 512) / BLOCK);
    const host = (5 + block * 2) * MIB + ((sector * 512) % BLOCK);
    image.fill(0xee, host, host + 512);
    image[4 * MIB + (sector >> 3)]! |= 1 << (sector & 7);
  }
  return image;
}

/** The GUID as text that has these bytes on the disk. */
function guidText(bytes: Buffer): string {
  const hex = (from: number, to: number): string => bytes.toString('hex', from, to);
  const swapped = (from: number, to: number): string => hex(from, to).match(/../g)!.reverse().join('');
  return `{${swapped(0, 4)}-${swapped(4, 6)}-${swapped(6, 8)}-${hex(8, 10)}-${hex(10, 16)}}`;
}

async function contentOf(name: string): Promise<Buffer | string> {
  const outcome = await runTool(TOOLS.img.ours, ['convert', '-O', 'raw', name, 'out.raw'], folder);
  return outcome.status === 0 ? readFileSync(path.join(folder, 'out.raw')) : outcome.stderr;
}

test.skipIf(!hasPeer('qemu-img'))('VHD: sectors by the bitmaps, the others from the parent', async () => {
  const parent = readFileSync(path.join(folder, 'Parent.vhd'));
  writeFileSync(path.join(folder, 'child.vhd'), vhd(parent.subarray(68, 84)));
  expect(expected.equals((await contentOf('child.vhd')) as Buffer)).toBe(true);
  writeFileSync(path.join(folder, 'other.vhd'), vhd(Buffer.alloc(16, 1)));
  expect(await contentOf('other.vhd')).toContain('is not the parent of this differencing image');
});

test.skipIf(!hasPeer('qemu-img'))('VHDX: sectors by the bitmaps, the others from the parent', async () => {
  const parent = readFileSync(path.join(folder, 'Parent.vhdx'));
  const newer = parent.readBigUInt64LE(0x10008) > parent.readBigUInt64LE(0x20008) ? 0x10000 : 0x20000;
  const link = guidText(parent.subarray(newer + 32, newer + 48));
  writeFileSync(path.join(folder, 'child.vhdx'), vhdx(link));
  expect(expected.equals((await contentOf('child.vhdx')) as Buffer)).toBe(true);
  writeFileSync(path.join(folder, 'other.vhdx'), vhdx('{11111111-2222-3333-4444-555555555555}'));
  expect(await contentOf('other.vhdx')).toContain('is not the parent of this differencing image');
});
