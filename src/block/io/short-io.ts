/**
 * The life of a short request: which nodes it is in while it waits for the disk, and its end.
 *
 * A request that waits is in flight in every node it has passed, is tracked there, and holds the graph read lock, as
 * on the long way. One that did not do all it should is no failure yet: its owner makes it again by the long way, which
 * finds out what is wrong.
 */

import { assert } from '../../errors/error.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import type { ObservedRequest, RequestObserver } from '../contract/short-request.ts';
import type { BlockNode } from '../graph/node.ts';
import type { TrackedRequest } from '../graph/tracked.ts';
import { begin, end, wrote } from './common.ts';

/** What a waiting request holds of the backend it came through. */
export interface ShortHolder {
  shortDone(guard: GraphReadGuard): void;
}

export class ShortIo implements ObservedRequest {
  isWaiting = false;
  expectedBytes = 0;
  observer: RequestObserver | null = null;
  startMs = 0;
  readonly #onEnd: (isDone: boolean) => void;
  /** The nodes it is in, bottom first, and its record in each. */
  readonly #nodes: BlockNode[] = [];
  readonly #records: TrackedRequest[] = [];
  #isWrite = false;
  #holder: ShortHolder | null = null;
  #guard: GraphReadGuard | null = null;
  readonly completed = (result: number): void => this.#end(result === this.expectedBytes);

  /** `onEnd` is called when a request that had to wait has ended, with whether all was done. */
  constructor(onEnd: (isDone: boolean) => void) {
    this.#onEnd = onEnd;
  }

  /** The request, which waits, is in this node too. */
  track(node: BlockNode, offset: number, bytes: number, isWrite: boolean): void {
    this.#nodes.push(node);
    this.#records.push(begin(node, offset, bytes, isWrite ? 'write' : 'read'));
    this.#isWrite = isWrite;
  }

  /** It came through `holder`, which is told at its end, before its owner. */
  hold(holder: ShortHolder, guard: GraphReadGuard): void {
    this.#holder = holder;
    this.#guard = guard;
  }

  #end(isDone: boolean): void {
    assert(this.isWaiting && this.#holder !== null, 'a short request ended twice');
    this.isWaiting = false;
    const nodes = this.#nodes;
    for (let i = 0; i < nodes.length; i++) {
      const node = nodes[i]!;
      const record = this.#records[i]!;
      if (isDone && this.#isWrite) wrote(node, record.offset, record.bytes);
      end(node, record);
    }
    nodes.length = 0;
    this.#records.length = 0;
    const holder = this.#holder;
    const guard = this.#guard as GraphReadGuard;
    const { observer } = this;
    this.#holder = null;
    this.#guard = null;
    this.observer = null;
    holder.shortDone(guard);
    if (isDone) observer?.done(this.expectedBytes, performance.now() - this.startMs);
    this.#onEnd(isDone);
  }
}
