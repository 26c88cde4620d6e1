/**
 * The commands of the transmission phase that are more than one call of the backend.
 *
 * Plain reads and writes do not come here: transmission.ts hands them to the backend directly. Functions here throw
 * RequestError, with the texts of the original.
 */

import { allocateIoMemory, type IoMemory } from '../../aio/memory.ts';
import { type DirtyBitmap, nextDirty } from '../../block/bitmaps/dirty-bitmap.ts';
import { Req } from '../../block/contract/request.ts';
import { MAX_EXTENTS } from '../protocol/limits.ts';
import { BaseAllocation, BITMAP_DIRTY, CommandFlag, Layouts } from '../protocol/messages.ts';
import type { BufferPool, RequestBuffer } from './buffers.ts';
import { HEADROOM_BYTES, setPayload } from './buffers.ts';
import { ContextId, type MetaContext } from './contexts.ts';
import { requestError, requestErrorWithReason } from './errors.ts';
import type { NbdExport } from './export.ts';
import type { NbdRequest } from './request.ts';

/** How far ahead to ask where the holes are: the answer serves later reads too. */
const STATUS_LOOKAHEAD_BYTES = 1024 * 1024 * 1024;

/** A read that falls into more pieces is sent as plain data. */
const MAX_PIECES = 128;

/** CACHE reads this much at a time. */
const CACHE_STEP_BYTES = 1024 * 1024;

/** A part of a read: data or a hole. */
export interface Piece {
  readonly offset: number;
  readonly bytes: number;
  readonly hole: boolean;
}

/** All data so far reaches stable storage. */
export async function flush(exp: NbdExport): Promise<void> {
  try {
    await exp.backend.flush();
  } catch (error) {
    throw requestError('flush failed', error);
  }
}

/** Splits the request's range into data and holes. */
export async function findPieces(exp: NbdExport, request: NbdRequest): Promise<Piece[]> {
  const { offset, length } = request;
  const end = offset + length;
  try {
    // One question about the region the range is in answers it for most reads, and can be remembered.
    const from = exp.dataMap.regionStart(offset);
    const ahead = Math.max(Math.min(exp.sizeBytes - from, STATUS_LOOKAHEAD_BYTES), end - from);
    // What is wrong elsewhere in the region is no concern of this read.
    const first = await exp.backend.blockStatus(from, ahead).catch((error: unknown) => {
      if (from === offset) throw error;
      return null;
    });
    if (first !== null && from + first.bytes >= end) {
      if (!first.zero) exp.dataMap.remember(from, from + first.bytes);
      return [{ offset, bytes: length, hole: first.zero }];
    }
    const pieces: Piece[] = [];
    for (let at = offset; at < end; ) {
      const extent = await exp.backend.blockStatus(at, end - at);
      const bytes = Math.min(extent.bytes, end - at);
      if (bytes <= 0) break;
      const last = pieces.at(-1);
      if (last !== undefined && last.hole === extent.zero) {
        pieces[pieces.length - 1] = { offset: last.offset, bytes: last.bytes + bytes, hole: last.hole };
      } else {
        pieces.push({ offset: at, bytes, hole: extent.zero });
      }
      at += bytes;
      if (pieces.length > MAX_PIECES) return [{ offset, bytes: length, hole: false }];
    }
    return pieces;
  } catch (error) {
    throw requestErrorWithReason('unable to check for holes', error);
  }
}

/** Reads the data pieces into their places in `buffer`. */
export async function readPieces(
  exp: NbdExport,
  request: NbdRequest,
  buffer: RequestBuffer,
  pieces: readonly Piece[],
): Promise<void> {
  try {
    for (const { offset, bytes, hole } of pieces) {
      if (hole) continue;
      const segment = { mem: buffer.mem, start: HEADROOM_BYTES + offset - request.offset, length: bytes };
      await exp.backend.preadv(offset, bytes, { segments: [segment], bytes }, 0);
    }
  } catch (error) {
    throw requestError('reading from file failed', error);
  }
}

/** TRIM, and a flush when the client wants to be sure. */
export async function trim(exp: NbdExport, request: NbdRequest): Promise<void> {
  const { offset, length } = request;
  exp.dataMap.forget(offset, offset + length);
  try {
    if (length > 0) await exp.backend.pdiscard(offset, length);
  } catch (error) {
    throw requestError('discard failed', error);
  }
  if ((request.flags & CommandFlag.fua) !== 0) await flush(exp);
}

export async function writeZeroes(exp: NbdExport, request: NbdRequest): Promise<void> {
  const { offset, length, flags } = request;
  let requestFlags = 0;
  if (exp.writethrough || (flags & CommandFlag.fua) !== 0) requestFlags |= Req.fua;
  if ((flags & CommandFlag.noHole) === 0) requestFlags |= Req.mayUnmap;
  if ((flags & CommandFlag.fastZero) !== 0) requestFlags |= Req.noFallback;
  exp.dataMap.forget(offset, offset + length);
  try {
    await exp.backend.pwriteZeroes(offset, length, requestFlags);
  } catch (error) {
    throw requestError('writing to file failed', error);
  }
}

/** Reads the range for the sake of the caches on the way. */
export async function prefetch(exp: NbdExport, request: NbdRequest, pool: BufferPool): Promise<void> {
  const end = request.offset + request.length;
  if (request.length === 0) return;
  const buffer = pool.take(Math.min(request.length, CACHE_STEP_BYTES));
  try {
    for (let at = request.offset; at < end; at += CACHE_STEP_BYTES) {
      const bytes = Math.min(CACHE_STEP_BYTES, end - at);
      setPayload(buffer, bytes);
      await exp.backend.preadv(at, bytes, buffer.vector, Req.copyOnRead | Req.prefetch);
    }
  } catch (error) {
    throw requestError('caching data failed', error);
  } finally {
    pool.give(buffer);
  }
}

// ---- block status --------------------------------------------------------------------------------------------

interface Extent {
  bytes: number;
  readonly flags: number;
}

/** Extents of one context, equal neighbours joined; with `one`, just the first. */
async function collectExtents(
  exp: NbdExport,
  context: MetaContext,
  offset: number,
  length: number,
  one: boolean,
): Promise<Extent[]> {
  if (context.bitmap !== null) return bitmapExtents(context.bitmap, offset, length, one);
  const { backend } = exp;
  const extents: Extent[] = [];
  for (let at = offset; at < offset + length; ) {
    const left = offset + length - at;
    let bytes: number;
    let flags: number;
    if (context.id === ContextId.depth) {
      const depth = await backend.allocationDepth(at, left);
      bytes = depth.bytes;
      flags = depth.depth;
    } else {
      const status = await backend.blockStatus(at, left);
      bytes = status.bytes;
      flags = (status.allocated ? 0 : BaseAllocation.hole) | (status.zero ? BaseAllocation.zero : 0);
    }
    bytes = Math.min(bytes, left);
    if (bytes <= 0) break;
    const last = extents.at(-1);
    if (last !== undefined && last.flags === flags) last.bytes += bytes;
    else if (extents.length < (one ? 1 : MAX_EXTENTS)) extents.push({ bytes, flags });
    else break;
    at += bytes;
  }
  return extents;
}

/** Extents of a bitmap, alternately clean and dirty. */
function bitmapExtents(bitmap: DirtyBitmap, offset: number, length: number, one: boolean): Extent[] {
  const end = offset + length;
  const most = one ? 1 : MAX_EXTENTS;
  const extents: Extent[] = [];
  for (let at = offset; at < end && extents.length < most; ) {
    const dirty = nextDirty(bitmap, at, end);
    const clean = (dirty?.offset ?? end) - at;
    if (clean > 0) extents.push({ bytes: clean, flags: 0 });
    if (dirty !== null && extents.length < most) extents.push({ bytes: dirty.bytes, flags: BITMAP_DIRTY });
    at += clean + (dirty?.bytes ?? 0);
  }
  return extents;
}

/** Payload of the reply chunk of one context. */
export async function blockStatusPayload(
  exp: NbdExport,
  context: MetaContext,
  request: NbdRequest,
  length: number,
  extended: boolean,
): Promise<IoMemory> {
  const one = (request.flags & CommandFlag.reqOne) !== 0;
  let extents: Extent[];
  try {
    extents = await collectExtents(exp, context, request.offset, length, one);
  } catch (error) {
    throw requestError("can't get block status", error);
  }
  const head = extended ? Layouts.chunkBlockStatusExt : Layouts.chunkBlockStatus;
  const entry = extended ? Layouts.extentExt : Layouts.extent;
  const payload = allocateIoMemory(head.bytes + extents.length * entry.bytes);
  if (extended) {
    Layouts.chunkBlockStatusExt.write(payload.buf, { contextId: context.id, count: extents.length });
  } else {
    Layouts.chunkBlockStatus.write(payload.buf, { contextId: context.id });
  }
  let at = head.bytes;
  for (const { bytes, flags } of extents) {
    if (extended) Layouts.extentExt.write(payload.buf, { length: BigInt(bytes), flags: BigInt(flags) }, at);
    else Layouts.extent.write(payload.buf, { length: bytes, flags }, at);
    at += entry.bytes;
  }
  return payload;
}
