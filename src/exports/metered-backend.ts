/**
 * The backend as an export's clients reach it: every request is counted and timed, and waits its turn where the
 * export has limits.
 *
 * Here: counting and waiting. Not here: the counters (statistics.ts), the limits (src/block/throttle), the I/O.
 */

import type { IoVector } from '../aio/memory.ts';
import type { BlockBackend } from '../block/backend.ts';
import type { BackendDepth, BackendExtent, BackendIo, LentPages } from '../block/contract/backend-io.ts';
import type { ShortIo } from '../block/io/short-io.ts';
import {
  count,
  type Direction,
  mayBegin,
  type ThrottleMember,
  waitTurn,
} from '../block/throttle/throttle-group.ts';
import type { ExportStatistics, RequestCounters } from './statistics.ts';

export class MeteredBackend implements BackendIo {
  readonly #backend: BlockBackend;
  readonly #statistics: ExportStatistics;
  readonly #limits: ThrottleMember | null;

  /** `limits`: the export's membership in a throttle group, if it has one. */
  constructor(backend: BlockBackend, statistics: ExportStatistics, limits: ThrottleMember | null) {
    this.#backend = backend;
    this.#statistics = statistics;
    this.#limits = limits;
  }

  preadv(offset: number, bytes: number, vec: IoVector, flags: number): Promise<void> {
    const startMs = performance.now();
    const wait = this.#turn('read', bytes);
    const request =
      wait === null
        ? this.#backend.preadv(offset, bytes, vec, flags)
        : wait.then(() => this.#backend.preadv(offset, bytes, vec, flags));
    return counted(this.#statistics.read, bytes, startMs, request);
  }

  pwritev(offset: number, bytes: number, vec: IoVector, flags: number): Promise<void> {
    const startMs = performance.now();
    const wait = this.#turn('write', bytes);
    const request =
      wait === null
        ? this.#backend.pwritev(offset, bytes, vec, flags)
        : wait.then(() => this.#backend.pwritev(offset, bytes, vec, flags));
    return counted(this.#statistics.write, bytes, startMs, request);
  }

  tryPreadv(offset: number, bytes: number, vec: IoVector, short: ShortIo | null = null): boolean {
    const startMs = performance.now();
    const limits = this.#limits;
    if (limits !== null && !mayBegin(limits, 'read')) return false;
    if (!this.#backend.tryPreadv(offset, bytes, vec, short)) return false;
    if (limits !== null) count(limits, 'read', bytes);
    if (short?.isWaiting) {
      short.observer = this.#statistics.read;
      short.startMs = startMs;
    } else {
      this.#statistics.read.done(bytes, performance.now() - startMs);
    }
    return true;
  }

  tryPwritev(offset: number, bytes: number, vec: IoVector, short: ShortIo | null = null): boolean {
    const startMs = performance.now();
    const limits = this.#limits;
    if (limits !== null && !mayBegin(limits, 'write')) return false;
    if (!this.#backend.tryPwritev(offset, bytes, vec, short)) return false;
    if (limits !== null) count(limits, 'write', bytes);
    if (short?.isWaiting) {
      short.observer = this.#statistics.write;
      short.startMs = startMs;
    } else {
      this.#statistics.write.done(bytes, performance.now() - startMs);
    }
    return true;
  }

  lendPages(offset: number, bytes: number): LentPages | null {
    if (this.#limits !== null && !mayBegin(this.#limits, 'read')) return null;
    return this.#backend.lendPages(offset, bytes);
  }

  pagesLent(bytes: number, elapsedMs: number): void {
    if (this.#limits !== null) count(this.#limits, 'read', bytes);
    this.#statistics.read.done(bytes, elapsedMs);
  }

  pwriteZeroes(offset: number, bytes: number, flags: number): Promise<void> {
    const startMs = performance.now();
    const wait = this.#turn('write', bytes);
    const request =
      wait === null
        ? this.#backend.pwriteZeroes(offset, bytes, flags)
        : wait.then(() => this.#backend.pwriteZeroes(offset, bytes, flags));
    return counted(this.#statistics['write-zeroes'], bytes, startMs, request);
  }

  pdiscard(offset: number, bytes: number): Promise<void> {
    const startMs = performance.now();
    const wait = this.#turn('write', bytes);
    const request =
      wait === null
        ? this.#backend.pdiscard(offset, bytes)
        : wait.then(() => this.#backend.pdiscard(offset, bytes));
    return counted(this.#statistics.discard, bytes, startMs, request);
  }

  flush(): Promise<void> {
    return counted(this.#statistics.flush, 0, performance.now(), this.#backend.flush());
  }

  blockStatus(offset: number, bytes: number): Promise<BackendExtent> {
    return this.#backend.blockStatus(offset, bytes);
  }

  allocationDepth(offset: number, bytes: number): Promise<BackendDepth> {
    return this.#backend.allocationDepth(offset, bytes);
  }

  getLength(): Promise<number> {
    return this.#backend.getLength();
  }

  get requestAlignmentBytes(): number {
    return this.#backend.requestAlignmentBytes;
  }

  get maxTransferBytes(): number {
    return this.#backend.maxTransferBytes;
  }

  get readOnly(): boolean {
    return this.#backend.readOnly;
  }

  get statusIsCostly(): boolean {
    return this.#backend.statusIsCostly;
  }

  get nodeName(): string {
    return this.#backend.nodeName;
  }

  /** Null: the request may begin, and has been counted. */
  #turn(direction: Direction, bytes: number): Promise<void> | null {
    const limits = this.#limits;
    if (limits === null) return null;
    if (!mayBegin(limits, direction)) return waitTurn(limits, direction, bytes);
    count(limits, direction, bytes);
    return null;
  }
}

/** The request, counted when it ends. */
function counted(
  counters: RequestCounters,
  bytes: number,
  startMs: number,
  request: Promise<void>,
): Promise<void> {
  return request.then(
    () => counters.done(bytes, performance.now() - startMs),
    (error: unknown) => {
      counters.failed++;
      throw error;
    },
  );
}
