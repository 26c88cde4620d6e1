/** The length of files on Gluster volumes, and the allocation of what is new in them. */

import type { Callable } from '../../../aio/host/pooled-calls.ts';
import type { Libgfapi } from '../../../aio/libraries/libgfapi.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';

/** Makes a file of `from` bytes `to` bytes long; `call` runs a call on its handle and throws what comes of it. */
export async function resizeFile(
  { pooled }: Libgfapi,
  call: (fn: Callable, ...args: readonly number[]) => Promise<unknown>,
  from: number,
  to: number,
  prealloc: string,
): Promise<void> {
  switch (prealloc) {
    case 'off':
      await call(pooled.ftruncate, to, 0, 0);
      return;
    case 'falloc':
    case 'full':
      if (to < from)
        throw new BlockError('Preallocation is not supported for shrinking', { errno: E.ENOTSUP });
      if (to === from) return;
      if (prealloc === 'falloc') await call(pooled.fallocate, 0, from, to - from);
      else {
        await call(pooled.ftruncate, to, 0, 0);
        await call(pooled.zerofill, from, to - from);
      }
      return;
    default:
      throw new BlockError(`Unsupported preallocation mode: ${prealloc}`, { errno: E.ENOTSUP });
  }
}
