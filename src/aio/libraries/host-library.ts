/**
 * Libraries of the host that a driver needs and most hosts do not have: loaded when the first node of the driver is opened.
 *
 * A library's own threads never call JavaScript: what they finish is told by a descriptor. Calls that may wait run on
 * libuv's thread pool (callPooled).
 */

import koffi from 'koffi';
import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';

export type HostLibrary = ReturnType<typeof koffi.load>;

/** Loads `file`, which `user` needs; the error says which Debian package has it. */
export function loadHostLibrary(user: string, file: string, debianPackage: string): HostLibrary {
  try {
    return koffi.load(file);
  } catch (error) {
    throw new BlockError(`Driver '${user}' needs the library ${file} (Debian package ${debianPackage})`, {
      errno: E.ENOENT,
      cause: error,
    });
  }
}

/** A zeroed cell for a pointer or a 64-bit number that a library fills in. */
export function pointerCell(): Buffer {
  return Buffer.allocUnsafeSlow(8).fill(0);
}

/** What was put in the cell. */
export function cellValue(cell: Buffer): number {
  return Number(cell.readBigUInt64LE(0));
}
