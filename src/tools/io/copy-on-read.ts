/** -C: what is read from a backing image is copied into the image. */

import { allocateIoMemory, vectorOf } from '../../aio/memory.ts';
import { Req, Status } from '../../block/contract/request.ts';
import { infoOrNull, wrapped } from '../../block/io/callbacks.ts';
import type { ToolImage } from '../common/environment.ts';

/** Most that is copied at once, in bytes; a multiple of every cluster size. */
const MAX_COPY_BYTES = 2 * 1024 * 1024;

/**
 * Copies the clusters that a range touches and the image does not have. The caller sees to it that no other request
 * runs meanwhile: a write between reading a cluster and writing it back would be lost.
 */
export async function copyOnRead({ node, backend }: ToolImage, offset: number, bytes: number): Promise<void> {
  if (offset + bytes > node.totalBytes) return;
  const cluster = (await infoOrNull(node))?.clusterSizeBytes || 1;
  const end = Math.min(Math.ceil((offset + bytes) / cluster) * cluster, node.totalBytes);
  for (let at = Math.floor(offset / cluster) * cluster; at < end; ) {
    const status = await wrapped.blockStatus(node, false, at, Math.min(end - at, MAX_COPY_BYTES));
    if (status.bytes === 0) return;
    if ((status.flags & Status.allocated) === 0) {
      const memory = allocateIoMemory(status.bytes);
      const vec = vectorOf(memory, 0, status.bytes);
      await backend.preadv(at, status.bytes, vec, 0);
      const isZero = memory.buf.subarray(0, status.bytes).every((byte) => byte === 0);
      if (isZero) await backend.pwriteZeroes(at, status.bytes, Req.writeUnchanged);
      else await backend.pwritev(at, status.bytes, vec, Req.writeUnchanged);
    }
    at += status.bytes;
  }
}
