/** Damage that synchronous code meets, as an error; what is done about it is metadata/corruption.ts. */

import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import type { Qcow2Node } from './state.ts';

export class ImageCorruption extends Error {
  readonly fatal: boolean;
  /** The access that was prevented, in bytes; null when there was none. */
  readonly offset: number | null;
  readonly size: number | null;

  constructor(message: string, fatal: boolean, offset: number | null = null, size: number | null = null) {
    super(message);
    this.name = 'ImageCorruption';
    this.fatal = fatal;
    this.offset = offset;
    this.size = size;
  }
}

/** "0x1f600": how the original prints offsets. */
export function hex(value: number): string {
  return value === 0 ? '0' : `0x${BigInt(value).toString(16)}`;
}

/** Throws ENOMEDIUM once the image is known to be broken. */
export function checkAlive(node: Qcow2Node): void {
  if (node.state.dead) throw ioError(E.ENOMEDIUM);
}
