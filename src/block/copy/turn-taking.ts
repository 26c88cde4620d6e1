/**
 * How long a job works in one turn of the event loop, and whether it is worth trying to do all without waiting: what is not
 * in the page cache seldom comes alone.
 */

import { createHoldOff, type HoldOff, holdOff, worked } from './hold-off.ts';

/** How long a job keeps everybody else from a turn, in milliseconds. */
const TURN_MS = 0.5;
/** Pieces that are left to waiting after one that could not be done within the turn; more each time. */
const FIRST_WAITING_PIECES = 16;
const MAX_WAITING_PIECES = 1024;

/** For takeTurn: pieces to be done by waiting. */
export function createTurnTaking(): HoldOff {
  return createHoldOff(FIRST_WAITING_PIECES, MAX_WAITING_PIECES);
}

/**
 * Carries out `work` unless it is a bad time for it, and returns the bytes that it has done: whole units, so that what is behind
 * them is to be done again, or all `bytes`. `work` asks after every piece whether there is time for another.
 */
export function takeTurn(
  waiting: HoldOff,
  bytes: number,
  unitBytes: number,
  work: (goesOn: (done: number) => boolean) => number,
): number {
  if (waiting.left > 0) {
    waiting.left--;
    return 0;
  }
  const endsMs = performance.now() + TURN_MS;
  const done = work((at) => at % unitBytes !== 0 || performance.now() < endsMs);
  const whole = done === bytes ? done : done - (done % unitBytes);
  if (whole > 0) worked(waiting);
  else holdOff(waiting);
  return whole;
}
