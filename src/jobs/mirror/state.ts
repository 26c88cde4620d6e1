/**
 * A mirror at work: the record, and the list of what is under way in it.
 *
 * The target equals the source everywhere but in ranges that are dirty in `bitmap` or that an operation works on:
 * - a copy (copy.ts) cleans its range in the bitmap, then reads the source and writes the target; what fails is made
 *   dirty again;
 * - an active write (active.ts), made for a user of the filter in copy mode write-blocking, writes the source and then
 *   the target.
 * Two operations never work on one range at a time. Copies look for ranges where nobody is at work and so never wait;
 * an active write waits for what began before it. Copies cover whole blocks of the bitmap, so no write to a part of a
 * block can slip in between the reading and the writing of a copy: in copy mode background every write to the source
 * makes its blocks dirty when it is done (the I/O path does), and what was copied meanwhile is copied again.
 *
 * All sizes in bytes. One coroutine, the job's, starts copies (loop.ts); everything here is its own and the
 * operations', except what job control reads.
 */

import { type DirtyBitmap, dirtyBytes, setDirty } from '../../block/bitmaps/dirty-bitmap.ts';
import type { Mover } from '../../block/copy/mover.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { CoQueue } from '../../coroutine/co-queue.ts';
import type { MirrorTopNode } from '../../drivers/filters/mirror-top.ts';
import type { BlockError } from '../../errors/error.ts';

export type CopyMode = 'background' | 'write-blocking';

/** What the job does about an error, after it has told the user. */
export type ErrorAction = 'report' | 'ignore' | 'stop';

/** The job as the mirror sees it. */
export interface MirrorHost {
  /** An operation failed: applies the job's policy and reports. `isRead`: on the source. */
  onError(isRead: boolean, error: BlockError): ErrorAction;
  /** Bytes copied. */
  copied(bytes: number): void;
}

export interface CopyModeChange {
  readonly to: CopyMode;
  /** Called once, with what prevented the change, if anything did. */
  done(error: unknown): void;
}

export interface MirrorOp {
  readonly id: number;
  readonly offset: number;
  end: number;
  readonly isActive: boolean;
  /** Woken when the operation ends. */
  readonly waiters: CoQueue;
}

export interface Mirror {
  readonly source: BlockNode;
  readonly target: BlockNode;
  readonly filter: MirrorTopNode;
  /** On the source. */
  readonly bitmap: DirtyBitmap;
  readonly lengthBytes: number;
  /** Copies begin and end at multiples of this (or at the end): at least the bitmap's granularity. */
  readonly alignBytes: number;
  /** How data gets to the target. */
  readonly mover: Mover;
  /** Copies through memory at a time. */
  readonly maxCopies: number;
  readonly host: MirrorHost;

  copyMode: CopyMode;
  /** A change of the copy mode that was asked for; the loop makes it when it comes to rest. */
  change: CopyModeChange | null;
  /** In order of their beginning. */
  readonly ops: Set<MirrorOp>;
  lastId: number;
  copies: number;
  /** Bytes that copies and active writes work on. */
  bytesInFlight: number;
  /** Woken when an operation ends. */
  readonly changed: CoQueue;
  /** Where to look for the next range. */
  cursor: number;
  /** Where the source was found to have data, and how long to believe it; null: nobody has looked. */
  knownData: { readonly offset: number; readonly end: number; readonly untilMs: number } | null;
  /** The first error that ends the job. */
  failure: BlockError | null;
  /** Errors so far. */
  errors: number;
  /**
   * What the job does in a drained section of its nodes: it rests when told to; it is beginning a section of its own,
   * and has nothing under way; it copies the rest in its own section.
   */
  drain: 'rests' | 'begins' | 'copies';
  /** Data and zeroes copied, and the time at least one copy was under way. */
  copiedBytes: number;
  busyMs: number;
  busySinceMs: number;
  /** performance.now() before which nothing is copied, so that what fails again and again does not keep all busy. */
  retryAtMs: number;
}

export function createMirror(
  given: Pick<
    Mirror,
    'source' | 'target' | 'filter' | 'bitmap' | 'alignBytes' | 'mover' | 'maxCopies' | 'host' | 'copyMode'
  >,
): Mirror {
  return {
    ...given,
    lengthBytes: given.source.totalBytes,
    change: null,
    ops: new Set(),
    lastId: 0,
    copies: 0,
    bytesInFlight: 0,
    changed: new CoQueue(),
    cursor: 0,
    knownData: null,
    failure: null,
    errors: 0,
    drain: 'rests',
    copiedBytes: 0,
    busyMs: 0,
    busySinceMs: 0,
    retryAtMs: 0,
  };
}

/** Work that is left: dirty or being worked on. */
export function remainingBytes(mirror: Mirror): number {
  return Math.min(dirtyBytes(mirror.bitmap), mirror.lengthBytes) + mirror.bytesInFlight;
}

export function beginOp(mirror: Mirror, offset: number, end: number, isActive: boolean): MirrorOp {
  const op = { id: ++mirror.lastId, offset, end, isActive, waiters: new CoQueue() };
  mirror.ops.add(op);
  mirror.bytesInFlight += end - offset;
  return op;
}

export function endOp(mirror: Mirror, op: MirrorOp): void {
  mirror.ops.delete(op);
  mirror.bytesInFlight -= op.end - op.offset;
  op.waiters.wakeAll();
  mirror.changed.wakeAll();
}

/** The end of the operation is not needed: it is dirty again, and others may have it. */
export function shrinkOp(mirror: Mirror, op: MirrorOp, end: number): void {
  setDirty(mirror.bitmap, end, op.end - end);
  mirror.bytesInFlight -= op.end - end;
  op.end = end;
}

/** The oldest operation in [offset, end) that is older than `id`; null when there is none. */
export function opIn(mirror: Mirror, offset: number, end: number, id = Infinity): MirrorOp | null {
  for (const op of mirror.ops) {
    if (op.id >= id) return null;
    if (op.offset < end && offset < op.end) return op;
  }
  return null;
}

/** How long nothing is copied after an error. */
const RETRY_MS = 100;

/** An operation failed: what it worked on must be copied (again), and the job may have to end. */
export function opFailed(
  mirror: Mirror,
  offset: number,
  bytes: number,
  isRead: boolean,
  error: BlockError,
): void {
  setDirty(mirror.bitmap, offset, bytes);
  failed(mirror, isRead, error);
}

/** Something went wrong on the source (`isRead`) or the target. */
export function failed(mirror: Mirror, isRead: boolean, error: BlockError): void {
  mirror.errors++;
  // Requests that were under way when the job was told to end or to stop are not worth more words.
  if (mirror.failure !== null || mirror.retryAtMs === Number.POSITIVE_INFINITY) return;
  const action = mirror.host.onError(isRead, error);
  if (action === 'report') mirror.failure ??= error;
  if (action === 'ignore') mirror.retryAtMs = performance.now() + RETRY_MS;
  // Until the user resumes the job.
  if (action === 'stop') mirror.retryAtMs = Number.POSITIVE_INFINITY;
}
