/**
 * The numbers of the qcow2 format: magic, feature bits, bits of table entries, limits.
 *
 * Entries are 64-bit big-endian; here they are handled as a high and a low half (uint32), because the hot paths
 * must not allocate BigInts. Source of the facts: the qcow2 specification (docs/interop/qcow2).
 * Reading and writing the header is header.ts.
 */

export const Incompat = { dirty: 1, corrupt: 2, dataFile: 4, compressionType: 8, extendedL2: 16 } as const;
/** Incompatible features this driver knows. */
export const INCOMPAT_KNOWN = 31;
export const Compat = { lazyRefcounts: 1 } as const;
export const Autoclear = { bitmaps: 1, dataFileRaw: 2 } as const;
export const AUTOCLEAR_KNOWN = 3;

export const Extension = {
  end: 0x00000000,
  backingFormat: 0xe2792aca,
  featureNames: 0x6803f857,
  bitmaps: 0x23852875,
  encryption: 0x0537be77,
  dataFile: 0x44415441,
} as const;

export const Crypt = { none: 0, aes: 1, luks: 2 } as const;

export const MIN_CLUSTER_BITS = 9;
export const MAX_CLUSTER_BITS = 21;
/** Largest L1 table in bytes, refcount table in bytes, snapshot count and table bytes: as the original accepts. */
export const MAX_L1_BYTES = 32 * 1024 * 1024;
export const MAX_REFTABLE_BYTES = 8 * 1024 * 1024;
export const MAX_SNAPSHOTS = 65536;
export const MAX_SNAPSHOT_TABLE_BYTES = 1024 * MAX_SNAPSHOTS;
export const MAX_SNAPSHOT_EXTRA_BYTES = 1024;
/** Bitmaps, bytes of their directory, bytes of one with all of its clusters allocated: as the original accepts. */
export const MAX_BITMAPS = 65535;
export const MAX_BITMAP_DIRECTORY_BYTES = 1024 * MAX_BITMAPS;
export const MAX_BITMAP_BYTES = 512 * 1024 * 1024;
/** Host offsets have 56 bits; ours stay exact below 2^53. */
export const MAX_HOST_OFFSET = 2 ** 53;

export const SUBCLUSTERS = 32;

/** High half of an entry: refcount is exactly one. */
export const HI_COPIED = 0x80000000;
/** High half: compressed cluster. */
export const HI_COMPRESSED = 0x40000000;
/** Low half of a standard entry without subclusters: reads as zeroes. */
export const LO_ZERO = 1;
/** Offset bits 9..55 in both halves. */
export const HI_OFFSET = 0x00ffffff;
export const LO_OFFSET = 0xfffffe00;
/** Reserved bits of L1 entries and standard L2 entries. */
export const HI_RESERVED = 0x3f000000;
export const LO_RESERVED = 0x000001fe;

const TWO_32 = 2 ** 32;

/** The host offset in an L1 or standard L2 entry. */
export function entryOffset(hi: number, lo: number): number {
  return (hi & HI_OFFSET) * TWO_32 + ((lo & LO_OFFSET) >>> 0);
}

/** High half of an entry that points to `offset`. */
export function offsetHi(offset: number): number {
  return Math.floor(offset / TWO_32);
}

/** Low half of an entry that points to `offset`. */
export function offsetLo(offset: number): number {
  return (offset % TWO_32) >>> 0;
}

/** 64-bit big-endian read as a number; values above 2^53 lose low bits and are out of every accepted range. */
export function readU64(view: DataView, at: number): number {
  return view.getUint32(at) * TWO_32 + view.getUint32(at + 4);
}

export function writeU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, offsetHi(value));
  view.setUint32(at + 4, offsetLo(value));
}

export function viewOf(buf: Uint8Array): DataView {
  return new DataView(buf.buffer, buf.byteOffset, buf.byteLength);
}

/** Where compressed data lies. */
export interface CompressedExtent {
  readonly offset: number;
  /** Bytes from `offset` to the end of the last 512-byte sector counted by the entry. */
  readonly bytes: number;
}

/**
 * Decodes a compressed L2 entry: x = 62 - (clusterBits - 8) bits of host byte offset, then the number of additional
 * 512-byte sectors (specification, "Compressed Clusters Descriptor").
 */
export function decodeCompressed(hi: number, lo: number, clusterBits: number): CompressedExtent {
  // x is at least 49 (2 MiB clusters), so the split lies in the high half.
  const hiBits = 62 - (clusterBits - 8) - 32;
  const offset = (hi & ((1 << hiBits) - 1)) * TWO_32 + lo;
  const sectors = ((hi & 0x3fffffff) >>> hiBits) + 1;
  return { offset, bytes: sectors * 512 - (offset % 512) };
}

/** High half of the compressed entry for data at [offset, offset+bytes); the low half is the offset's. */
export function encodeCompressedHi(offset: number, bytes: number, clusterBits: number): number {
  const hiBits = 62 - (clusterBits - 8) - 32;
  const sectors = Math.floor((offset + bytes - 1) / 512) - Math.floor(offset / 512);
  return (HI_COMPRESSED | (sectors << hiBits) | offsetHi(offset)) >>> 0;
}
