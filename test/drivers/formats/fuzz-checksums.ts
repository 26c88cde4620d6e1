/** Checksums of damaged images put right again: without that every damage would end at the first check. */

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

/** By format. */
export const FIXERS: Readonly<Record<string, (image: Buffer) => void>> = { vpc: fixVpc, vhdx: fixVhdx };
