/**
 * The work of a mirror job: copying until source and target are the same, keeping them so, and the end of it in a
 * drained section.
 *
 * The loop is the only one that starts copies. It comes to rest (no copy under way) before it pauses. When the job is
 * asked to end, the source is drained and what is still dirty is copied before anybody writes again; that is begun only
 * when little is left, so that users are not held up for long.
 */

import { nextTurn } from '../../aio/host/turns.ts';
import { dirtyBytes } from '../../block/bitmaps/dirty-bitmap.ts';
import { asksKernel } from '../../block/copy/mover.ts';
import { type DrainedSection, drainedBeginAll } from '../../block/graph/drain.ts';
import { wrapped } from '../../block/io/callbacks.ts';
import { asError, copyInTurn, mayCopy, nextRange, startCopy } from './copy.ts';
import { setCopyMode } from './graph.ts';
import { failed, type Mirror, remainingBytes } from './state.ts';

/** Job control as the loop sees it. */
export interface LoopControl {
  /** The job is cancelled by force: stop at once. */
  isCancelled(): boolean;
  /** There is a reason to rest. */
  mustPause(): boolean;
  /** Rests while there is a reason to. */
  pausePoint(): Promise<void>;
  /** Sleeps, or until woken; then a pause point. */
  sleep(milliseconds: number): Promise<void>;
  /** So much is being copied. */
  count(bytes: number): void;
  /** The limit of speed; 0: none. */
  bytesPerSecond(): number;
  /** Milliseconds until more may be copied. */
  delayMs(): number;
  setRemaining(bytes: number): void;
  isReady(): boolean;
  becomeReady(): void;
  /** The user wants an end: by completion, or by a cancellation that keeps the copy. */
  mustEnd(): boolean;
  /** The job begins to end because of a command: lets it be answered before. */
  letCommandReturn(): Promise<void>;
}

const EVEN_BYTES = 64 * 1024;
/** How often an idle job looks for new writes. */
const IDLE_MS = 100;
/** Users are held up for about so long by the last copies. */
const SWITCH_MS = 50;
/** Bounds of what is copied while users are held up. */
const SWITCH_MIN_BYTES = 1024 * 1024;
const SWITCH_MAX_BYTES = 64 * 1024 * 1024;
/** Under steady writing there may be no moment at which nothing is dirty; so long little must have been left. */
const NEARLY_MS = 200;

/**
 * Copies until the job has to end. Returns the drained section in which source and target are the same; null when the
 * job has failed (`mirror.failure`) or was cancelled.
 */
export async function mirrorLoop(mirror: Mirror, control: LoopControl): Promise<DrainedSection | null> {
  let nearly: Nearly | null = null;
  for (;;) {
    if (mirror.failure !== null || control.isCancelled()) {
      await atRest(mirror);
      if (mirror.failure === null) await control.letCommandReturn();
      return null;
    }
    if (control.mustPause()) {
      await atRest(mirror);
      await control.pausePoint();
      continue;
    }
    if (mirror.change !== null) {
      await atRest(mirror);
      await changeCopyMode(mirror);
      continue;
    }
    control.setRemaining(remainingBytes(mirror));
    const nowMs = performance.now();
    const waitMs = Math.max(control.delayMs(), mirror.retryAtMs - nowMs);

    nearly = remainingBytes(mirror) <= switchBytes(mirror) ? (nearly ?? beginNearly(mirror, nowMs)) : null;
    const isSame = dirtyBytes(mirror.bitmap) === 0 && mirror.ops.size === 0;
    if (waitMs <= 0 && (isSame || (nearly !== null && isSteady(mirror, nearly, nowMs)))) {
      if (!control.isReady()) {
        await atRest(mirror);
        if (await flushTarget(mirror)) {
          control.setRemaining(remainingBytes(mirror));
          control.becomeReady();
        }
        continue;
      }
      if (control.mustEnd()) {
        await control.letCommandReturn();
        await atRest(mirror);
        const section = await settle(mirror, control);
        if (section !== null) return section;
        continue;
      }
    }

    const range = waitMs <= 0 && mayCopy(mirror) ? nextRange(mirror) : null;
    if (range !== null) {
      const most = mostBytes(mirror, control.bytesPerSecond()) ?? range.bytes;
      const part = { offset: range.offset, bytes: Math.min(range.bytes, most) };
      control.count(copyInTurn(mirror, part) || (await startCopy(mirror, part)));
      // A copy within the page cache is done by now, and nobody else has had a turn.
      await nextTurn();
    } else if (mirror.copies > 0) {
      await mirror.changed.wait();
    } else if (waitMs > 0 || isSame) {
      await control.sleep(waitMs > 0 ? waitMs : IDLE_MS);
    } else {
      // Users write everywhere where something is dirty.
      await mirror.changed.wait();
    }
  }
}

/**
 * What is copied at once with a limit of speed; null: as much as can be. What is copied within a turn or by the kernel comes in pieces so small that a
 * guest hardly notices them, unless the limit is so low that there are few of them anyway; a server takes as much at once
 * as can be given.
 */
function mostBytes({ mover, alignBytes }: Mirror, bytesPerSecond: number): number | null {
  if (bytesPerSecond === 0) return null;
  const isQuick = asksKernel(mover) || mover.turns.left === 0;
  const isFast = bytesPerSecond > mover.bufferBytes * 10;
  return isFast && isQuick ? Math.max(EVEN_BYTES, alignBytes) : mover.bufferBytes;
}

/** Little has been left since then. */
interface Nearly {
  readonly sinceMs: number;
  /** What all copies have moved when all that was left then is copied. */
  readonly copiedBytes: number;
}

function beginNearly(mirror: Mirror, sinceMs: number): Nearly {
  return { sinceMs, copiedBytes: mirror.copiedBytes + remainingBytes(mirror) };
}

/** Whether what is left is only what users have written anew. */
function isSteady({ copiedBytes }: Mirror, nearly: Nearly, nowMs: number): boolean {
  return nowMs - nearly.sinceMs >= NEARLY_MS && copiedBytes >= nearly.copiedBytes;
}

/** Makes the change that was asked for; no copy is under way. The job does not rest in the drained section it takes. */
export async function changeCopyMode(mirror: Mirror): Promise<void> {
  const { change } = mirror;
  if (change === null) return;
  mirror.change = null;
  mirror.drain = 'begins';
  let failure: unknown = null;
  try {
    if (change.to !== mirror.copyMode) await setCopyMode(mirror, change.to);
  } catch (error) {
    failure = error;
  }
  mirror.drain = 'rests';
  change.done(failure);
}

/** What can be copied in about SWITCH_MS, as far as is known. */
function switchBytes({ copiedBytes, busyMs }: Mirror): number {
  const bytes = busyMs > 0 ? (copiedBytes / busyMs) * SWITCH_MS : 0;
  return Math.min(Math.max(bytes, SWITCH_MIN_BYTES), SWITCH_MAX_BYTES);
}

/** Waits until no copy is under way. */
async function atRest(mirror: Mirror): Promise<void> {
  while (mirror.copies > 0) await mirror.changed.wait();
}

/** True when the target has everything on stable storage; a failure is reported as one of a write. */
export async function flushTarget(mirror: Mirror): Promise<boolean> {
  try {
    await wrapped.flush(mirror.target);
    return true;
  } catch (error) {
    failed(mirror, false, asError(error));
    return false;
  }
}

/**
 * Makes source and target the same while nobody writes, and returns the drained section that keeps them so. Null when
 * something failed: the section has ended. No copy must be under way.
 */
export async function settle(
  mirror: Mirror,
  control: Pick<LoopControl, 'isCancelled' | 'setRemaining'>,
): Promise<DrainedSection | null> {
  mirror.drain = 'begins';
  const section = await drainedBeginAll([mirror.source, mirror.target]);
  mirror.drain = 'copies';
  const errorsBefore = mirror.errors;
  while (mirror.errors === errorsBefore && !control.isCancelled()) {
    const range = mayCopy(mirror) ? nextRange(mirror) : null;
    if (range !== null) {
      if (copyInTurn(mirror, range) === 0) await startCopy(mirror, range);
      await nextTurn();
    } else if (mirror.copies > 0) await mirror.changed.wait();
    else break;
  }
  await atRest(mirror);
  const isSame = dirtyBytes(mirror.bitmap) === 0 && mirror.failure === null && !control.isCancelled();
  if (isSame && (await flushTarget(mirror))) {
    mirror.drain = 'begins';
    control.setRemaining(0);
    return section;
  }
  mirror.drain = 'rests';
  section.end();
  return null;
}
