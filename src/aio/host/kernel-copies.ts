/**
 * Whether the kernel does better at copying from one open file to another than we do by reading and writing.
 *
 * It does where nothing has to be copied: where the file system lets files share blocks, or where a server has the files
 * and copies by itself. Elsewhere copy_file_range(2) is a read and a write as well, in smaller steps, on another thread, and
 * it begins to write to the disk what may change again. No time is taken to find out: the file system says so.
 */

import { statfsSync } from 'node:fs';
import { E } from '../../errors/errno.ts';
import { addressOf, ioctlNumber } from '../ffi.ts';

/** File systems of servers that copy by themselves; linux/magic.h, and fs/smb/client for SMB. */
const REMOTE_TYPES: ReadonlySet<number> = new Set([
  0x6969, // NFS, from 4.2 on
  0xff534d42, // CIFS
  0xfe534d42, // SMB2 and later
  0x00c36400, // Ceph
]);

const FICLONERANGE = 0x4020940d;

/** statfs(2): what kind of file system an open file is on; -1 where nobody tells. */
function fileSystemType(fd: number): number {
  try {
    return statfsSync(`/proc/self/fd/${fd}`).type;
  } catch {
    return -1;
  }
}

/** Whether data that the kernel copies from `from` to `to` are shared, or copied by their server. `to` is open for writing. */
export function kernelSharesData(from: number, to: number): boolean {
  const type = fileSystemType(to);
  // A server would be asked for what follows.
  if (REMOTE_TYPES.has(type)) return fileSystemType(from) === type;
  return canShareBlocks(from, to);
}

/**
 * Asks for blocks to be shared from a place that is no block's and behind the end of every file, so that none are:
 * EINVAL says that this place is wrong, EOPNOTSUPP that no place is right, EXDEV that the files are too far apart.
 */
function canShareBlocks(from: number, to: number): boolean {
  // struct file_clone_range: src_fd s64, src_offset u64, src_length u64, dest_offset u64.
  const range = Buffer.allocUnsafeSlow(32);
  range.writeBigInt64LE(BigInt(from), 0);
  range.writeBigUInt64LE(2n ** 62n + 1n, 8);
  range.writeBigUInt64LE(1n, 16);
  range.writeBigUInt64LE(1n, 24);
  return ioctlNumber(to, FICLONERANGE, addressOf(range)) === -E.EINVAL;
}
