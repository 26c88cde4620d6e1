/** Compressed grains: reading one whole, and keeping the last few, because guests read them in pieces. */

import { promisify } from 'node:util';
import { inflate } from 'node:zlib';
import { copyToVector, type IoVector } from '../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BlockChild } from '../../../block/graph/node.ts';
import { E } from '../../../errors/errno.ts';
import { ioError } from '../../../errors/error.ts';
import { readBytes } from '../shared/table-io.ts';
import { GRAIN_MARKER_BYTES } from './sparse-header.ts';

const inflateGrain: (data: Buffer, options: { readonly maxOutputLength: number }) => Promise<Buffer> =
  promisify(inflate);

/** Memory for the grains of one extent. */
const CACHE_BYTES = 2 * 1024 * 1024;
/** Larger compressed grains are refused: those of VMware have 64 KiB. */
export const MAX_PACKED_GRAIN_BYTES = 16 * 1024 * 1024;

/** Grains by their offset in the file, the oldest first. */
export type GrainCache = Map<number, Promise<Buffer>>;

/** Reads `vec.bytes` from `within` bytes of the grain at `host`. */
export async function readGrain(
  cache: GrainCache,
  child: BlockChild,
  guard: GraphReadGuard,
  grain: { readonly host: number; readonly bytes: number; readonly markers: boolean },
  within: number,
  vec: IoVector,
): Promise<void> {
  let content = cache.get(grain.host);
  if (content === undefined) {
    content = unpack(child, guard, grain);
    content.catch(() => cache.delete(grain.host));
    cache.set(grain.host, content);
    const most = Math.max(1, Math.floor(CACHE_BYTES / grain.bytes));
    for (const host of cache.keys()) {
      if (cache.size <= most) break;
      cache.delete(host);
    }
  }
  const data = await content;
  if (within + vec.bytes > data.length) throw ioError(E.EIO);
  copyToVector(vec, data.subarray(within, within + vec.bytes));
}

async function unpack(
  child: BlockChild,
  guard: GraphReadGuard,
  { host, bytes, markers }: { readonly host: number; readonly bytes: number; readonly markers: boolean },
): Promise<Buffer> {
  // Data that cannot be made smaller is a little larger: enough to have it with the first read.
  const guess = Math.min(bytes + 512, child.node.totalBytes - host);
  if (guess <= GRAIN_MARKER_BYTES) throw ioError(E.EIO);
  const first = await readBytes(child, guard, host, guess);
  const dataAt = markers ? GRAIN_MARKER_BYTES : 0;
  const length = markers ? first.readUInt32LE(8) : guess;
  if (length === 0 || length > 2 * bytes + 512 || host + dataAt + length > child.node.totalBytes + 512)
    throw ioError(E.EIO);
  let data = first.subarray(dataAt, dataAt + length);
  if (data.length < length) data = await readBytes(child, guard, host + dataAt, length);
  try {
    return await inflateGrain(data, { maxOutputLength: bytes });
  } catch {
    throw ioError(E.EIO);
  }
}
