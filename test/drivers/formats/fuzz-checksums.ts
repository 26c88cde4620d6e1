/** Checksums of damaged images put right again: without that every damage would end at the first check. */

import { createHash } from 'node:crypto';
import { checksumWithout } from '../../../src/drivers/formats/vhdx/crc32c.ts';
import { checksum } from '../../../src/drivers/formats/vpc/footer.ts';

function fixVpc(image: Buffer): void {
  for (const at of [0, image.length - 512]) {
    if (at < 0 || image.length < 512) continue;
    const footer = image.subarray(at, at + 512);
    if (footer.toString('latin1', 0, 8) === 'conectix') footer.writeUInt32BE(checksum(footer, 64), 64);
  }
}

function fixVhdx(image: Buffer): void {
  const fix = (at: number, bytes: number): void => {
    if (at + bytes > image.length) return;
    const part = image.subarray(at, at + bytes);
    part.writeUInt32LE(checksumWithout(part, 4), 4);
  };
  for (const at of [0x10000, 0x20000]) fix(at, 4096);
  for (const at of [0x30000, 0x40000]) fix(at, 65536);
  for (let at = 0x100000; at + 4096 <= Math.min(image.length, 0x200000); at += 4096) {
    if (image.toString('latin1', at, at + 4) !== 'loge') continue;
    const bytes = image.readUInt32LE(at + 8);
    if (bytes >= 64 && bytes <= 0x100000 && at + bytes <= image.length) fix(at, bytes);
  }
}

/** Iterations are brought down: damage that makes a key cost an hour is refused or takes it, as the header says. */
const MAX_ITERATIONS = 2000;

function fixLuks1(image: Buffer): void {
  const places = [164, ...Array.from({ length: 8 }, (_, i) => 208 + 48 * i + 4)];
  for (const at of places)
    if (image.readUInt32BE(at) > MAX_ITERATIONS) image.writeUInt32BE(MAX_ITERATIONS, at);
}

function fixLuks2(image: Buffer): void {
  const bytes = Number(image.readBigUInt64BE(8));
  if (!(bytes >= 16384 && bytes <= image.length)) return;
  const area = image.subarray(4096, bytes);
  const costs = /("(?:iterations|time|memory|cpus)":)(\d{5,})/g;
  area.write(
    area.toString('latin1').replace(costs, (_, name, digits) => `${name}${'1000'.padEnd(digits.length)}`),
    'latin1',
  );
  const header = image.subarray(0, 4096);
  header.fill(0, 448, 512);
  createHash('sha256').update(header).update(area).digest().copy(header, 448);
}

function fixLuks(image: Buffer): void {
  if (image.length < 4096 || image.toString('latin1', 0, 4) !== 'LUKS') return;
  if (image.readUInt16BE(6) === 1) fixLuks1(image);
  if (image.readUInt16BE(6) === 2) fixLuks2(image);
}

/** By format. */
export const FIXERS: Readonly<Record<string, (image: Buffer) => void>> = {
  luks: fixLuks,
  vpc: fixVpc,
  vhdx: fixVhdx,
};
/** Formats that cannot do without. */
export const ALWAYS_FIXED: readonly string[] = ['luks'];
