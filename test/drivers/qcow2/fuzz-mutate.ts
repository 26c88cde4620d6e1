/** Damages images at random, where it hurts: headers, tables and their entries, rather than guest data. */

import type { Random } from './random.ts';

interface Region {
  readonly at: number;
  readonly bytes: number;
}

const U64_OFFSET = 0x00fffffffffffe00n;

/** Tables of an undamaged image, and its header. */
function regionsOf(image: Buffer): Region[] {
  const clusterBytes = 2 ** image.readUInt32BE(20);
  const u64 = (at: number): number => Number(image.readBigUInt64BE(at) & U64_OFFSET);
  const header = { at: 0, bytes: 112 };
  const l1 = { at: u64(40), bytes: image.readUInt32BE(36) * 8 };
  const refcountTable = { at: u64(48), bytes: clusterBytes };
  const regions: Region[] = [header, header, { at: 104, bytes: 400 }, l1, l1, refcountTable];
  for (const table of [l1, refcountTable]) {
    for (let at = table.at; at < table.at + table.bytes && at + 8 <= image.length; at += 8) {
      const offset = u64(at);
      if (offset === 0 || offset >= image.length) continue;
      // The beginning of a table is where its entries are.
      regions.push({ at: offset, bytes: clusterBytes }, { at: offset, bytes: 64 });
    }
  }
  if (image.readUInt32BE(60) > 0) {
    regions.push({ at: u64(64), bytes: 200 });
    const inactive = u64(u64(64));
    if (inactive > 0 && inactive < image.length) regions.push({ at: inactive, bytes: 64 });
  }
  const bitmaps = image.indexOf(Buffer.from([0x23, 0x85, 0x28, 0x75]));
  if (bitmaps > 0 && bitmaps < clusterBytes) {
    const directory = u64(bitmaps + 24);
    regions.push({ at: bitmaps, bytes: 32 }, { at: directory, bytes: 80 });
    const table = u64(directory);
    if (table > 0 && table < image.length) regions.push({ at: table, bytes: 16 });
  }
  regions.push({ at: 0, bytes: image.length });
  return regions.filter(({ at, bytes }) => bytes > 0 && at < image.length);
}

const FLAGS = [0n, 0n, 1n, 1n << 62n, 1n << 63n, (1n << 63n) | 1n, 3n << 62n];
const NUMBERS = [
  0n,
  1n,
  2n,
  7n,
  8n,
  0x200n,
  0x7fffffffn,
  0x80000000n,
  0xffffffffn,
  1n << 53n,
  1n << 55n,
].concat([(1n << 56n) - 512n, (1n << 62n) - 1n, (1n << 63n) - 1n, 1n << 63n, (1n << 64n) - 1n]);

function interesting(image: Buffer, random: Random): bigint {
  const clusterBytes = 2 ** image.readUInt32BE(20) || 512;
  const clusters = Math.max(1, Math.ceil(image.length / Math.min(clusterBytes, 2 ** 21)));
  switch (random.below(5)) {
    case 0:
      return random.pick(NUMBERS);
    case 1:
      return BigInt(random.below(256));
    case 2:
      return BigInt(image.length) + BigInt(random.below(3) - 1) * BigInt(clusterBytes);
    case 3:
      // Somewhere in the file, as an entry of a table would say it.
      return (BigInt(random.below(clusters)) * BigInt(clusterBytes)) | random.pick(FLAGS);
    default:
      return (BigInt(random.below(image.length)) & ~511n) | random.pick(FLAGS);
  }
}

/** A damaged copy of `base`; what has been done to it is in `log`. */
export function mutate(base: Buffer, random: Random, log: string[]): Buffer {
  let image = Buffer.from(base);
  const regions = regionsOf(base);
  for (let left = 1 + random.below(4); left > 0; left--) {
    const region = random.pick(regions);
    const most = Math.min(region.bytes, base.length - region.at);
    const at = region.at + random.below(most);
    const aligned = at - (at % 8);
    const kind = random.below(12);
    if (aligned + 8 > image.length) continue;
    if (kind < 5) {
      const value = BigInt.asUintN(64, interesting(base, random));
      log.push(`u64 at ${aligned} = 0x${value.toString(16)}`);
      image.writeBigUInt64BE(value, aligned);
    } else if (kind < 7) {
      const value = Number(BigInt.asUintN(32, interesting(base, random)));
      const word = at - (at % 4);
      log.push(`u32 at ${word} = ${value}`);
      image.writeUInt32BE(value, word);
    } else if (kind < 9) {
      const bit = random.below(8);
      log.push(`bit ${bit} at ${at}`);
      image[at]! ^= 1 << bit;
    } else if (kind === 9) {
      const other = random.pick(regions);
      const from = other.at - (other.at % 8);
      const bytes = Math.min(8 << random.below(4), image.length - aligned, Math.max(0, image.length - from));
      if (bytes <= 0) continue;
      log.push(`copy ${bytes} from ${from} to ${aligned}`);
      image.copy(image, aligned, from, from + bytes);
    } else if (kind === 10) {
      const bytes = 1 << random.below(10);
      const value = random.pick([0, 0, 255, random.below(256)]);
      log.push(`fill ${bytes} at ${at} with ${value}`);
      image.fill(value, at, Math.min(image.length, at + bytes));
    } else {
      const length = random.pick([random.below(base.length), aligned, at - (at % 512)]);
      log.push(`cut at ${length}`);
      image = image.subarray(0, length);
    }
  }
  return image;
}
