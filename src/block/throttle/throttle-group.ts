/**
 * Throttling: requests of the members of a group wait until the limits they share allow them.
 *
 * A request is counted when it begins, in every bucket that its direction belongs to, and goes on at once unless one
 * of them is overfull or others of its direction wait already. Members take turns: one request each, per direction, in
 * the order in which they joined; so do the directions where one limit holds for both. A member that is being drained
 * lets its requests go on: they are counted, but do not wait.
 * Source of the facts: QEMU documentation, "The QEMU throttling infrastructure".
 *
 * The limits and the object they belong to are src/objects/throttle-group.ts. Used by the driver throttle.
 */

import type { Clock } from '../../aio/clock.ts';
import { assert } from '../../errors/error.ts';
import type { ThrottleConfig, ThrottleGroup } from '../../objects/throttle-group.ts';
import { createBucket, type LeakyBucket, leak, pour, waitSeconds } from './leaky-bucket.ts';

export type Direction = 'read' | 'write';

interface Waiter {
  readonly bytes: number;
  readonly go: () => void;
}

export interface ThrottleMember {
  readonly throttle: Throttle;
  readonly waiting: Readonly<Record<Direction, Waiter[]>>;
  /** In a drained section nobody waits. */
  readonly isDrained: () => boolean;
}

interface Buckets {
  /** Per direction those that a request of it is counted in. */
  readonly bytes: Readonly<Record<Direction, readonly LeakyBucket[]>>;
  readonly operations: Readonly<Record<Direction, readonly LeakyBucket[]>>;
  readonly all: readonly LeakyBucket[];
}

/** A group at work: its buckets, its members and who is next. */
export interface Throttle {
  readonly group: ThrottleGroup;
  readonly clock: Clock;
  readonly members: ThrottleMember[];
  /** Requests waiting, over all members. */
  readonly waiting: Record<Direction, number>;
  /** The member that went last. */
  readonly lastMember: Record<Direction, ThrottleMember | null>;
  lastDirection: Direction;
  buckets: Buckets;
  leakedUntilMs: number;
  cancelTimer: (() => void) | null;
}

const DIRECTIONS = ['read', 'write'] as const;

/** Starts limiting for a group; it goes on for as long as the group exists. */
export function createThrottle(group: ThrottleGroup, clock: Clock): Throttle {
  const throttle: Throttle = {
    group,
    clock,
    members: [],
    waiting: { read: 0, write: 0 },
    lastMember: { read: null, write: null },
    lastDirection: 'write',
    buckets: bucketsOf(group.limits),
    leakedUntilMs: clock.nowMs(),
    cancelTimer: null,
  };
  group.watchers.add(() => {
    throttle.buckets = bucketsOf(group.limits);
    throttle.leakedUntilMs = clock.nowMs();
    dispatch(throttle);
  });
  return throttle;
}

function bucketsOf(limits: Readonly<ThrottleConfig>): Buckets {
  const bucket = (name: `${'bps' | 'iops'}-${'total' | Direction}`): LeakyBucket[] =>
    limits[name] === 0
      ? []
      : [createBucket(limits[name], limits[`${name}-max`], limits[`${name}-max-length`])];
  const bytesTotal = bucket('bps-total');
  const operationsTotal = bucket('iops-total');
  const bytes = {
    read: [...bytesTotal, ...bucket('bps-read')],
    write: [...bytesTotal, ...bucket('bps-write')],
  };
  const operations = {
    read: [...operationsTotal, ...bucket('iops-read')],
    write: [...operationsTotal, ...bucket('iops-write')],
  };
  const all = new Set([bytes, operations].flatMap(({ read, write }) => [...read, ...write]));
  return { bytes, operations, all: [...all] };
}

export function joinThrottle(throttle: Throttle, isDrained: () => boolean): ThrottleMember {
  const member: ThrottleMember = { throttle, waiting: { read: [], write: [] }, isDrained };
  throttle.members.push(member);
  return member;
}

/** Leaves the group; none of the member's requests may be waiting. */
export function leaveThrottle(member: ThrottleMember): void {
  const { throttle } = member;
  const at = throttle.members.indexOf(member);
  assert(at >= 0 && member.waiting.read.length + member.waiting.write.length === 0, 'throttled requests');
  for (const direction of DIRECTIONS) {
    // The turn stays where it is in the line.
    if (throttle.lastMember[direction] === member)
      throttle.lastMember[direction] = throttle.members.at(at - 1) ?? null;
    if (throttle.lastMember[direction] === member) throttle.lastMember[direction] = null;
  }
  throttle.members.splice(at, 1);
}

/** Whether a request may begin now; who lets it must call `count`. */
export function mayBegin(member: ThrottleMember, direction: Direction): boolean {
  const { throttle } = member;
  if (throttle.buckets.all.length === 0 || member.isDrained()) return true;
  if (throttle.waiting[direction] > 0) return false;
  leakUntilNow(throttle);
  return waitOf(throttle, direction) === 0;
}

/** Counts a request that begins now. */
export function count({ throttle }: ThrottleMember, direction: Direction, bytes: number): void {
  const { buckets, group } = throttle;
  if (buckets.all.length === 0) return;
  const size = group.limits['iops-size'];
  for (const bucket of buckets.bytes[direction]) pour(bucket, bytes);
  for (const bucket of buckets.operations[direction])
    pour(bucket, size > 0 && bytes > size ? bytes / size : 1);
}

/** Resolves when the request may begin; it has been counted then. For requests that may not begin at once. */
export function waitTurn(member: ThrottleMember, direction: Direction, bytes: number): Promise<void> {
  const { throttle } = member;
  return new Promise((resolve) => {
    member.waiting[direction].push({ bytes, go: resolve });
    throttle.waiting[direction]++;
    // The member may have been drained, or the limits changed, since somebody looked.
    dispatch(throttle);
  });
}

/** A drained section of the member begins: its requests that wait go on now. */
export function letAllGo(member: ThrottleMember): void {
  for (const direction of DIRECTIONS) {
    while (member.waiting[direction].length > 0) begin(member, direction);
  }
  dispatch(member.throttle);
}

function leakUntilNow(throttle: Throttle): void {
  const nowMs = throttle.clock.nowMs();
  const seconds = (nowMs - throttle.leakedUntilMs) / 1000;
  if (seconds <= 0) return;
  throttle.leakedUntilMs = nowMs;
  for (const bucket of throttle.buckets.all) leak(bucket, seconds);
}

/** Seconds until the next request of the direction may begin. */
function waitOf({ buckets }: Throttle, direction: Direction): number {
  let seconds = 0;
  for (const bucket of buckets.bytes[direction]) seconds = Math.max(seconds, waitSeconds(bucket));
  for (const bucket of buckets.operations[direction]) seconds = Math.max(seconds, waitSeconds(bucket));
  return seconds;
}

function begin(member: ThrottleMember, direction: Direction): void {
  const waiter = member.waiting[direction].shift();
  assert(waiter !== undefined, 'nobody waits');
  member.throttle.waiting[direction]--;
  count(member, direction, waiter.bytes);
  waiter.go();
}

/** Lets begin what may, and sets the timer for the rest. */
function dispatch(throttle: Throttle): void {
  throttle.cancelTimer?.();
  throttle.cancelTimer = null;
  leakUntilNow(throttle);
  let blocked = 0;
  while (blocked < DIRECTIONS.length) {
    const direction = throttle.lastDirection === 'read' ? 'write' : 'read';
    throttle.lastDirection = direction;
    const member = throttle.waiting[direction] > 0 ? nextMember(throttle, direction) : null;
    if (member !== null && (member.isDrained() || waitOf(throttle, direction) === 0)) {
      throttle.lastMember[direction] = member;
      begin(member, direction);
      blocked = 0;
    } else {
      blocked++;
    }
  }
  setTimer(throttle);
}

/** The member behind the one that went last that has something waiting. */
function nextMember({ members, lastMember }: Throttle, direction: Direction): ThrottleMember | null {
  const last = lastMember[direction];
  const start = last === null ? -1 : members.indexOf(last);
  for (let step = 1; step <= members.length; step++) {
    const member = members[(start + step) % members.length]!;
    if (member.waiting[direction].length > 0) return member;
  }
  return null;
}

function setTimer(throttle: Throttle): void {
  const waits = DIRECTIONS.filter((direction) => throttle.waiting[direction] > 0).map((direction) =>
    waitOf(throttle, direction),
  );
  if (waits.length === 0) return;
  throttle.cancelTimer = throttle.clock.after(Math.min(...waits) * 1000, () => {
    throttle.cancelTimer = null;
    dispatch(throttle);
  });
}
