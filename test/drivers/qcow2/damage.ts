/** An editor for qcow2 images in files: reads and patches headers, table entries and refcounts, right or wrong. */

import { readFileSync, writeFileSync } from 'node:fs';

export const COPIED = 1n << 63n;
export const COMPRESSED = 1n << 62n;
export const OFFSET_MASK = 0x00fffffffffffe00n;

/** Header fields by their place: [offset, bytes]. */
const FIELDS = {
  version: [4, 4],
  size: [24, 8],
  cryptMethod: [32, 4],
  l1Entries: [36, 4],
  l1Offset: [40, 8],
  refcountTableOffset: [48, 8],
  refcountTableClusters: [56, 4],
  snapshotCount: [60, 4],
  snapshotsOffset: [64, 8],
  incompatible: [72, 8],
  compatible: [80, 8],
  autoclear: [88, 8],
} as const;
export type HeaderField = keyof typeof FIELDS;

export interface ImageEditor {
  /** The whole file. */
  readonly buf: Buffer;
  readonly clusterBytes: number;
  readonly l2EntryBytes: number;
  get(field: HeaderField): bigint;
  set(field: HeaderField, value: bigint | number): void;
  /** Place of entry `index` of the active L1 table in the file. */
  l1At(index: number): number;
  /** Place of an L2 entry, through the active L1 table. */
  l2At(l1Index: number, l2Index: number): number;
  u64(at: number): bigint;
  setU64(at: number, value: bigint | number): void;
  /** Changes the 64-bit number at `at`. */
  edit(at: number, change: (old: bigint) => bigint): void;
  /** Place of the refcount table. */
  refTableAt(index: number): number;
  refcount(cluster: number): bigint;
  setRefcount(cluster: number, value: bigint | number): void;
  /** Offset of the data of a header extension; -1 when there is none. */
  extensionAt(type: number): number;
  /** Makes the file longer by whole clusters of zeroes; index of the first new one. */
  grow(clusters: number): number;
  /** Cuts the file. */
  cut(bytes: number): void;
  save(): void;
}

/** Reads the image at `path`; `save` writes it back. */
export function editImage(path: string): ImageEditor {
  let buf = readFileSync(path);
  const clusterBytes = 2 ** buf.readUInt32BE(20);
  const u64 = (at: number): bigint => buf.readBigUInt64BE(at);
  const setU64 = (at: number, value: bigint | number): void => {
    buf.writeBigUInt64BE(BigInt.asUintN(64, BigInt(value)), at);
  };
  const get = (field: HeaderField): bigint => {
    const [at, bytes] = FIELDS[field];
    return bytes === 8 ? u64(at) : BigInt(buf.readUInt32BE(at));
  };
  const version = Number(get('version'));
  const l2EntryBytes = version >= 3 && (get('incompatible') & 16n) !== 0n ? 16 : 8;
  const refcountBits = version >= 3 ? 2 ** buf.readUInt32BE(96) : 16;
  const perBlock = (clusterBytes * 8) / refcountBits;

  /** Bit position of a refcount: its block's offset and the bit in it. */
  const refcountPlace = (cluster: number): { block: number; bit: number } => {
    const entry = u64(Number(get('refcountTableOffset')) + Math.floor(cluster / perBlock) * 8);
    if (entry === 0n) throw new Error(`no refcount block for cluster ${cluster}`);
    return { block: Number(entry), bit: (cluster % perBlock) * refcountBits };
  };
  return {
    get buf() {
      return buf;
    },
    clusterBytes,
    l2EntryBytes,
    get,
    set(field, value) {
      const [at, bytes] = FIELDS[field];
      if (bytes === 8) setU64(at, value);
      else buf.writeUInt32BE(Number(value), at);
    },
    l1At: (index) => Number(get('l1Offset')) + index * 8,
    l2At(l1Index, l2Index) {
      const table = Number(u64(Number(get('l1Offset')) + l1Index * 8) & OFFSET_MASK);
      if (table === 0) throw new Error(`no L2 table ${l1Index}`);
      return table + l2Index * l2EntryBytes;
    },
    u64,
    setU64,
    edit: (at, change) => setU64(at, change(u64(at))),
    refTableAt: (index) => Number(get('refcountTableOffset')) + index * 8,
    refcount(cluster) {
      const { block, bit } = refcountPlace(cluster);
      if (refcountBits < 8) {
        return BigInt((buf[block + (bit >> 3)]! >> (bit & 7)) & ((1 << refcountBits) - 1));
      }
      return BigInt(`0x${buf.toString('hex', block + bit / 8, block + (bit + refcountBits) / 8)}`);
    },
    setRefcount(cluster, value) {
      const { block, bit } = refcountPlace(cluster);
      if (refcountBits < 8) {
        const mask = ((1 << refcountBits) - 1) << (bit & 7);
        const at = block + (bit >> 3);
        buf[at] = (buf[at]! & ~mask) | (Number(value) << (bit & 7));
        return;
      }
      const digits = BigInt.asUintN(refcountBits, BigInt(value)).toString(16);
      buf.write(digits.padStart(refcountBits / 4, '0'), block + bit / 8, 'hex');
    },
    extensionAt(type) {
      let at = version >= 3 ? buf.readUInt32BE(100) : 72;
      while (buf.readUInt32BE(at) !== 0) {
        if (buf.readUInt32BE(at) === type) return at + 8;
        at += 8 + Math.ceil(buf.readUInt32BE(at + 4) / 8) * 8;
      }
      return -1;
    },
    grow(clusters) {
      const first = Math.ceil(buf.length / clusterBytes);
      buf = Buffer.concat([buf, Buffer.alloc((first + clusters) * clusterBytes - buf.length)]);
      return first;
    },
    cut(bytes) {
      buf = buf.subarray(0, bytes);
    },
    save: () => writeFileSync(path, buf),
  };
}
