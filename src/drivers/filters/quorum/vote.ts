/** Votes among the children of a quorum: on the content of a read, and on the error to give. */

import type { IoVector } from '../../../aio/memory.ts';
import { isEqual } from '../compare.ts';

/** What one child gave. */
export interface Ballot<T> {
  /** Index of the child in the quorum. */
  readonly child: number;
  readonly value: T;
}

/** Ballots of equal value, in the order in which they came. */
export interface Version<T> {
  readonly value: T;
  readonly ballots: Ballot<T>[];
}

/** Ballots by value, in the order in which each value came first. */
export function countVotes<T>(
  ballots: readonly Ballot<T>[],
  equal: (a: T, b: T) => boolean,
): readonly Version<T>[] {
  const versions: Version<T>[] = [];
  for (const ballot of ballots) {
    const version = versions.find(({ value }) => equal(value, ballot.value));
    if (version === undefined) versions.push({ value: ballot.value, ballots: [ballot] });
    else version.ballots.push(ballot);
  }
  return versions;
}

/** The version with most ballots; of several the one that came last, as in the original. */
export function winnerOf<T>(versions: readonly Version<T>[]): Version<T> | undefined {
  return versions.reduce<Version<T> | undefined>(
    (best, version) => (best === undefined || version.ballots.length >= best.ballots.length ? version : best),
    undefined,
  );
}

/** The errno that most children failed with; 0 when none did. */
export function votedErrno(errnos: readonly number[]): number {
  const ballots = errnos.map((value, child) => ({ child, value })).filter(({ value }) => value !== 0);
  return winnerOf(countVotes(ballots, (a, b) => a === b))?.value ?? 0;
}

export function countContents(ballots: readonly Ballot<IoVector>[]): readonly Version<IoVector>[] {
  return countVotes(ballots, isEqual);
}
