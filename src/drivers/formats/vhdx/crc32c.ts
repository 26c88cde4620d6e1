/** CRC-32C (Castagnoli), eight bytes at a time by tables. */

const POLYNOMIAL = 0x82f63b78;

function makeTables(): readonly Uint32Array[] {
  const tables = Array.from({ length: 8 }, () => new Uint32Array(256));
  for (let i = 0; i < 256; i++) {
    let crc = i;
    for (let bit = 0; bit < 8; bit++) crc = (crc & 1) !== 0 ? (crc >>> 1) ^ POLYNOMIAL : crc >>> 1;
    tables[0]![i] = crc >>> 0;
  }
  for (let i = 0; i < 256; i++) {
    for (let t = 1; t < 8; t++) {
      const before = tables[t - 1]![i]!;
      tables[t]![i] = ((before >>> 8) ^ tables[0]![before & 255]!) >>> 0;
    }
  }
  return tables;
}

const [T0, T1, T2, T3, T4, T5, T6, T7] = makeTables() as [
  Uint32Array,
  Uint32Array,
  Uint32Array,
  Uint32Array,
  Uint32Array,
  Uint32Array,
  Uint32Array,
  Uint32Array,
];

/** The checksum of `bytes`. */
export function crc32c(bytes: Buffer): number {
  let crc = 0xffffffff;
  let at = 0;
  for (; at + 8 <= bytes.length; at += 8) {
    const a = crc ^ bytes.readUInt32LE(at);
    const b = bytes.readUInt32LE(at + 4);
    crc =
      T7[a & 255]! ^
      T6[(a >>> 8) & 255]! ^
      T5[(a >>> 16) & 255]! ^
      T4[a >>> 24]! ^
      T3[b & 255]! ^
      T2[(b >>> 8) & 255]! ^
      T1[(b >>> 16) & 255]! ^
      T0[b >>> 24]!;
  }
  for (; at < bytes.length; at++) crc = (crc >>> 8) ^ T0[(crc ^ bytes[at]!) & 255]!;
  return ~crc >>> 0;
}

/** The checksum of `bytes` with the four at `at` taken as zeroes, as every structure with its own checksum has it. */
export function checksumWithout(bytes: Buffer, at: number): number {
  const copy = Buffer.from(bytes);
  copy.fill(0, at, at + 4);
  return crc32c(copy);
}
