/**
 * Active writes of a mirror: in copy mode write-blocking, users' writes go to the source and then to the target before
 * they are answered. Called by the filter, in the users' coroutines; see state.ts for who waits for whom.
 *
 * A user's write succeeds when the source has it. What then fails on the target makes the range dirty.
 */

import type { IoVector } from '../../aio/memory.ts';
import { resetDirty, setDirty } from '../../block/bitmaps/dirty-bitmap.ts';
import type { GraphReadGuard } from '../../block/contract/guard.ts';
import { Req } from '../../block/contract/request.ts';
import type { CopyFailure } from '../../block/copy/mover.ts';
import { co } from '../../block/io/callbacks.ts';
import type { MirrorWrites } from '../../drivers/filters/mirror-top.ts';
import { asError, copyRange } from './copy.ts';
import { beginOp, endOp, type Mirror, opFailed, opIn } from './state.ts';

/** What the target has to do itself; it is flushed when the job completes. */
const TARGET_FLAGS = ~Req.fua;

type Write = (guard: GraphReadGuard, toTarget: boolean) => Promise<void>;

/** The writes of a mirror in copy mode write-blocking. */
export function activeWrites(mirror: Mirror): MirrorWrites {
  const { source, target } = mirror;
  return {
    pwritev: (guard, offset, bytes, vec: IoVector, flags) =>
      writeBoth(mirror, guard, offset, bytes, (held, toTarget) =>
        toTarget
          ? co.pwritev(target, held, offset, bytes, vec, flags & TARGET_FLAGS)
          : co.pwritev(source, held, offset, bytes, vec, flags),
      ),
    pwriteZeroes: (guard, offset, bytes, flags) =>
      writeBoth(mirror, guard, offset, bytes, (held, toTarget) =>
        toTarget
          ? co.pwriteZeroes(target, held, offset, bytes, flags & TARGET_FLAGS & ~Req.noFallback)
          : co.pwriteZeroes(source, held, offset, bytes, flags),
      ),
    async pdiscard(guard, offset, bytes) {
      // What a discard leaves behind differs from image to image: the source is looked at again.
      try {
        await co.pdiscard(source, guard, offset, bytes);
      } finally {
        if (source.settings.discardUnmap) setDirty(mirror.bitmap, offset, bytes);
      }
    },
  };
}

async function writeBoth(
  mirror: Mirror,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  write: Write,
): Promise<void> {
  // A part of a cluster of the target would be filled up with what is below the target now: whole ones are copied.
  const whole = mirror.alignBytes > mirror.bitmap.granularityBytes;
  const from = whole ? Math.floor(offset / mirror.alignBytes) * mirror.alignBytes : offset;
  const to = whole
    ? Math.min(Math.ceil((offset + bytes) / mirror.alignBytes) * mirror.alignBytes, mirror.lengthBytes)
    : offset + bytes;
  const op = beginOp(mirror, from, to, true);
  try {
    for (let other = opIn(mirror, from, to, op.id); other !== null; other = opIn(mirror, from, to, op.id)) {
      const { waiters } = other;
      await mirror.source.layer.graphLock.suspended(guard, () => waiters.wait());
    }
    try {
      await write(guard, false);
    } catch (error) {
      setDirty(mirror.bitmap, offset, bytes);
      throw error;
    }
    if (isTargetOut(mirror)) {
      setDirty(mirror.bitmap, offset, bytes);
      return;
    }
    const failure = whole
      ? await copyRange(mirror, guard, from, to - from)
      : await writeTarget(guard, write, from);
    if (failure !== null) {
      opFailed(mirror, from, to - from, failure.isRead, asError(failure.error));
      return;
    }
    inSync(mirror, from, to);
    mirror.host.copied(bytes);
  } finally {
    endOp(mirror, op);
  }
}

async function writeTarget(guard: GraphReadGuard, write: Write, offset: number): Promise<CopyFailure | null> {
  try {
    await write(guard, true);
    return null;
  } catch (error) {
    return { error, isRead: false, offset };
  }
}

/**
 * Whether writes are left to the copies: the target has just failed, until it is tried again; or it is in a drained
 * section, which holds up the job and not the users of the source.
 */
function isTargetOut({ failure, retryAtMs, target }: Mirror): boolean {
  return failure !== null || target.quiesced > 0 || performance.now() < retryAtMs;
}

/** [from, to) is the same on both sides: blocks that lie within it are clean, others stay as they are. */
function inSync(mirror: Mirror, from: number, to: number): void {
  const { bitmap, lengthBytes } = mirror;
  const { granularityBytes } = bitmap;
  const first = Math.ceil(from / granularityBytes) * granularityBytes;
  const last = to >= lengthBytes ? lengthBytes : Math.floor(to / granularityBytes) * granularityBytes;
  if (first < last) resetDirty(bitmap, first, last - first);
}
