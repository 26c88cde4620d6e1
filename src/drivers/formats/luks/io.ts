/**
 * Reading and writing the content of luks images. Sectors are numbered from the start of the content.
 *
 * Data is decrypted where it was read to. What is written is encrypted in memory of its own, since the caller's may be
 * looked at meanwhile.
 */

import {
  allocateIoMemory,
  copyFromVector,
  copyToVector,
  type IoVector,
  vectorOf,
} from '../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { ShortRequest } from '../../../block/contract/short-request.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { co, sync } from '../../../block/io/callbacks.ts';
import { E } from '../../../errors/errno.ts';
import { ioError } from '../../../errors/error.ts';
import type { BlockCipher } from '../../crypto/block-cipher.ts';
import { decryptBulk, encryptBulk } from '../../crypto/bulk.ts';
import type { HeaderReader } from '../../crypto/luks-slots.ts';
import type { LuksNode } from './state.ts';

/** Reads the header area of `node`. */
export function headerReader(node: BlockNode, guard: GraphReadGuard): HeaderReader {
  return async (offset, bytes) => {
    const mem = allocateIoMemory(bytes);
    await co.preadv(node, guard, offset, bytes, vectorOf(mem), 0);
    return mem.buf;
  };
}

function cipherOf(node: LuksNode): BlockCipher {
  const { cipher } = node.state;
  if (cipher === null) throw ioError(E.EIO);
  return cipher;
}

/** The part of memory that `vec` is, where it is one. */
function oneSegment(vec: IoVector): Buffer | null {
  const [segment] = vec.segments;
  if (segment === undefined || vec.segments.length !== 1) return null;
  return segment.mem.buf.subarray(segment.start, segment.start + segment.length);
}

export function tryPreadv(
  node: LuksNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): boolean {
  const { cipher, file, payloadOffset } = node.state;
  if (cipher === null || bytes > cipher.inTurnBytes) return false;
  const target = oneSegment(vec);
  if (target === null || !sync.tryPreadv(file.node, guard, payloadOffset + offset, bytes, vec)) return false;
  cipher.decrypt(target, offset);
  return true;
}

export async function preadv(
  node: LuksNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const cipher = cipherOf(node);
  const { file, payloadOffset } = node.state;
  const target = oneSegment(vec);
  if (target !== null) {
    await co.preadv(file.node, guard, payloadOffset + offset, bytes, vec, 0);
    await decryptBulk(cipher, target, offset);
    return;
  }
  const mem = allocateIoMemory(bytes);
  await co.preadv(file.node, guard, payloadOffset + offset, bytes, vectorOf(mem), 0);
  await decryptBulk(cipher, mem.buf, offset);
  copyToVector(vec, mem.buf);
}

export function tryPwritev(
  node: LuksNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  short: ShortRequest | null,
): boolean {
  const { cipher, file, payloadOffset } = node.state;
  if (cipher === null || bytes > cipher.inTurnBytes) return false;
  const mem = allocateIoMemory(bytes);
  copyFromVector(vec, mem.buf);
  cipher.encrypt(mem.buf, offset);
  return sync.tryPwritev(file.node, guard, payloadOffset + offset, bytes, vectorOf(mem), short);
}

export async function pwritev(
  node: LuksNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  const cipher = cipherOf(node);
  const { file, payloadOffset } = node.state;
  const mem = allocateIoMemory(bytes);
  copyFromVector(vec, mem.buf);
  await encryptBulk(cipher, mem.buf, offset);
  await co.pwritev(file.node, guard, payloadOffset + offset, bytes, vectorOf(mem), flags);
}
