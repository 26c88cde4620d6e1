/**
 * Tracked requests: the list of requests inside a node, so that a serialising request can wait for overlapping ones
 * and keep others out.
 *
 * An intrusive doubly linked list: adding and removing is constant time and allocates nothing but the request.
 */

import { CoQueue } from '../../coroutine/co-queue.ts';

/** What a tracked request does: for whoever looks at it. */
export type TrackedKind = 'read' | 'write' | 'discard' | 'truncate' | 'copy' | 'other';

export interface TrackedRequest {
  readonly kind: TrackedKind;
  /** When it began, as performance.now() tells. */
  readonly startMs: number;
  /** Counts up within the list: a larger id began later. */
  readonly id: number;
  readonly offset: number;
  readonly bytes: number;
  /** Range other requests must keep out of; wider than the request after markSerialising. */
  overlapOffset: number;
  overlapEnd: number;
  serialising: boolean;
  /** Waits for another request; two requests that wait for each other are told apart by this. */
  waitingFor: TrackedRequest | null;
  previous: TrackedRequest | null;
  next: TrackedRequest | null;
  /** Made when somebody waits for this request. */
  waiters: CoQueue | null;
}

export interface TrackedList {
  /** Newest. */
  first: TrackedRequest | null;
  /** Oldest. */
  last: TrackedRequest | null;
  serialising: number;
  /** Id of the newest request there ever was; 0 before the first. */
  lastId: number;
}

export function createTrackedList(): TrackedList {
  return { first: null, last: null, serialising: 0, lastId: 0 };
}

/** Adds a request over [offset, offset+bytes). */
export function beginTracked(
  list: TrackedList,
  offset: number,
  bytes: number,
  kind: TrackedKind,
): TrackedRequest {
  const request: TrackedRequest = {
    kind,
    startMs: performance.now(),
    id: ++list.lastId,
    offset,
    bytes,
    overlapOffset: offset,
    overlapEnd: offset + bytes,
    serialising: false,
    waitingFor: null,
    previous: null,
    next: list.first,
    waiters: null,
  };
  if (list.first !== null) list.first.previous = request;
  else list.last = request;
  list.first = request;
  return request;
}

/** Removes a request and wakes those who waited for it. */
export function endTracked(list: TrackedList, request: TrackedRequest): void {
  if (request.previous !== null) request.previous.next = request.next;
  else list.first = request.next;
  if (request.next !== null) request.next.previous = request.previous;
  else list.last = request.previous;
  if (request.serialising) list.serialising--;
  request.waiters?.wakeAll();
}

/** Makes the request serialising over its range widened to `align` bytes. */
export function markSerialising(list: TrackedList, request: TrackedRequest, align: number): void {
  if (!request.serialising) list.serialising++;
  request.serialising = true;
  const start = Math.floor(request.offset / align) * align;
  const end = Math.ceil((request.offset + request.bytes) / align) * align;
  request.overlapOffset = Math.min(request.overlapOffset, start);
  request.overlapEnd = Math.max(request.overlapEnd, end);
}

/**
 * Waits until no overlapping request conflicts: two requests conflict when at least one of them serialises. Of two
 * that would wait for each other only the later does.
 */
export async function waitSerialising(list: TrackedList, request: TrackedRequest): Promise<void> {
  for (;;) {
    const conflict = findConflict(list, request);
    if (conflict === null) return;
    request.waitingFor = conflict;
    conflict.waiters ??= new CoQueue();
    await conflict.waiters.wait();
    request.waitingFor = null;
  }
}

/** Whether any request is under way in [offset, end). */
export function hasRequestIn(list: TrackedList, offset: number, end: number): boolean {
  for (let each = list.first; each !== null; each = each.next)
    if (each.overlapOffset < end && offset < each.overlapEnd) return true;
  return false;
}

function findConflict(list: TrackedList, request: TrackedRequest): TrackedRequest | null {
  for (let other = list.first; other !== null; other = other.next) {
    if (other === request || !(other.serialising || request.serialising)) continue;
    if (other.overlapOffset >= request.overlapEnd || other.overlapEnd <= request.overlapOffset) continue;
    // Whoever waits for us, directly or through others, goes after us.
    if (other.waitingFor !== null) continue;
    return other;
  }
  return null;
}
