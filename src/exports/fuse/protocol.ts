/**
 * FUSE's wire format: numbers of requests and flags, and where their fields are. Integers are in the machine's order.
 *
 * | request            | bytes | fields                                                                           |
 * | ------------------ | ----- | -------------------------------------------------------------------------------- |
 * | header             |    40 | length u32, opcode u32, unique u64, node u64, uid u32, gid u32, pid u32, u32      |
 * | INIT               |    64 | major u32, minor u32, max readahead u32, flags u32, flags2 u32                    |
 * | SETATTR            |    88 | valid u32, -, handle u64, size u64, -, times, mode u32 at 68, uid u32 at 76, gid   |
 * | READ, WRITE        |    40 | handle u64, offset u64, size u32, flags ... (a write's data follows)              |
 * | FALLOCATE          |    32 | handle u64, offset u64, length u64, mode u32                                      |
 * | LSEEK              |    24 | handle u64, offset u64, whence u32                                                |
 *
 * Source of the facts: linux/fuse.h, protocol 7.38.
 */

export const Opcode = {
  FORGET: 2,
  GETATTR: 3,
  SETATTR: 4,
  OPEN: 14,
  READ: 15,
  WRITE: 16,
  STATFS: 17,
  RELEASE: 18,
  FSYNC: 20,
  FLUSH: 25,
  INIT: 26,
  DESTROY: 38,
  BATCH_FORGET: 42,
  FALLOCATE: 43,
  LSEEK: 46,
} as const;

export const IN_HEADER_BYTES = 40;
export const OUT_HEADER_BYTES = 16;
/** Fields of READ and WRITE. */
export const IO_HEAD_BYTES = 40;

/** Positions in a request, from its first byte. */
export const In = {
  length: 0,
  opcode: 4,
  unique: 8,
  initMajor: 40,
  initMinor: 44,
  initReadahead: 48,
  initFlags: 52,
  initFlags2: 56,
  setattrValid: 40,
  setattrSize: 56,
  setattrMode: 108,
  setattrUid: 116,
  setattrGid: 120,
  ioOffset: 48,
  ioSize: 56,
  fallocateOffset: 48,
  fallocateLength: 56,
  fallocateMode: 64,
  lseekOffset: 48,
  lseekWhence: 56,
} as const;

export const PROTOCOL_MAJOR = 7;
/** The newest minor version whose structures are used here. */
export const PROTOCOL_MINOR = 36;

/** Flags of INIT; those above bit 31 are in flags2. */
export const InitFlag = {
  asyncRead: 1 << 0,
  /** Opening with O_TRUNC does not cut off anything: a shell's redirection must not cost the disk. */
  atomicTruncate: 1 << 3,
  bigWrites: 1 << 5,
  asyncDirectIo: 1 << 15,
  maxPages: 1 << 22,
  extended: 1 << 30,
} as const;

export const InitFlag2 = {
  /** Shared mappings of files with direct I/O (Linux 6.6). */
  directIoMmap: 1 << 4,
} as const;

export const OpenFlag = { directIo: 1 << 0, parallelDirectWrites: 1 << 6 } as const;

export const AttrValid = {
  mode: 1 << 0,
  uid: 1 << 1,
  gid: 1 << 2,
  size: 1 << 3,
  fileHandle: 1 << 6,
  lockOwner: 1 << 9,
  killSuidGid: 1 << 11,
} as const;

export const NOTIFY_INVALIDATE_INODE = 2;

/** The one inode: the root of the mount, a regular file. */
export const ROOT_INODE = 1;

/** Most data of one request. */
export const MAX_IO_BYTES = 1024 * 1024;
const PAGE_BYTES = 4096;
export const MAX_IO_PAGES = MAX_IO_BYTES / PAGE_BYTES;

const TWO_32 = 4294967296;

/** An unsigned 64-bit field; exact below 2^53, and never rounded below it. */
export function readU64(view: DataView, at: number): number {
  return view.getUint32(at, true) + view.getUint32(at + 4, true) * TWO_32;
}

export function writeU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value >>> 0, true);
  view.setUint32(at + 4, Math.floor(value / TWO_32), true);
}
