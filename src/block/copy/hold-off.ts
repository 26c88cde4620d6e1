/**
 * How often a way that was tried in vain is left out before it is tried again: twice as often after each failure in a row.
 * What the way is (within a turn, by the kernel), and what is done meanwhile, is the caller's.
 */

export interface HoldOff {
  /** Pieces that still go another way. */
  left: number;
  /** How many that will be the next time. */
  next: number;
  readonly first: number;
  readonly most: number;
}

/** Nothing is left out yet; `first` pieces are after the first failure, `most` at most. */
export function createHoldOff(first: number, most: number): HoldOff {
  return { left: 0, next: first, first, most };
}

/** It was in vain. */
export function holdOff(hold: HoldOff): void {
  hold.left = hold.next;
  hold.next = Math.min(hold.next * 2, hold.most);
}

/** It has worked: the next failure counts as the first. */
export function worked(hold: HoldOff): void {
  hold.next = hold.first;
}
