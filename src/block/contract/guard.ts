/** Proofs that the graph lock is held. Only graph/lock.ts hands them out. */

declare const held: unique symbol;

/** Proof that the graph read lock is held. */
export interface GraphReadGuard {
  readonly [held]: 'read' | 'write';
}

/** Proof that the graph write lock is held. */
export interface GraphWriteGuard extends GraphReadGuard {
  readonly [held]: 'write';
}
