/**
 * A disk in memory behind the BackendIo contract, for tests of the NBD code without a block layer.
 *
 * Regions of `granularity` bytes are data or holes. Failures and delays can be asked for.
 */

import { copyFromVector, copyToVector, type IoVector } from '../../src/aio/memory.ts';
import type { BackendDepth, BackendExtent, BackendIo } from '../../src/block/contract/backend-io.ts';
import { Req } from '../../src/block/contract/request.ts';
import { E } from '../../src/errors/errno.ts';
import { ioError } from '../../src/errors/error.ts';

export type Operation = 'preadv' | 'pwritev' | 'pwriteZeroes' | 'pdiscard' | 'flush' | 'blockStatus';

export class FakeBackend implements BackendIo {
  readonly bytes: Buffer;
  readonly granularity = 4096;
  readonly requestAlignmentBytes: number;
  maxTransferBytes = 0;
  readonly readOnly = false;
  readonly nodeName = 'fake';
  /** Every call, as text. */
  readonly calls: string[] = [];
  /** Errno an operation fails with. */
  readonly failures = new Map<Operation, number>();
  /** When set, operations wait for it. */
  gate: Promise<void> | null = null;
  /** When set, operations take up to so many milliseconds. */
  jitterMs = 0;
  inFlight = 0;
  maxInFlight = 0;
  readonly #holes: boolean[];

  constructor(sizeBytes: number, requestAlignmentBytes = 1) {
    this.bytes = Buffer.alloc(sizeBytes);
    this.requestAlignmentBytes = requestAlignmentBytes;
    this.#holes = new Array(Math.ceil(sizeBytes / this.granularity)).fill(true);
  }

  async #enter(operation: Operation, text: string): Promise<void> {
    this.calls.push(text);
    this.inFlight++;
    this.maxInFlight = Math.max(this.maxInFlight, this.inFlight);
    try {
      if (this.gate !== null) await this.gate;
      if (this.jitterMs > 0)
        await new Promise((resolve) => setTimeout(resolve, Math.random() * this.jitterMs));
      const errno = this.failures.get(operation);
      if (errno !== undefined) throw ioError(errno);
    } finally {
      this.inFlight--;
    }
  }

  #mark(offset: number, bytes: number, hole: boolean): void {
    const first = hole ? Math.ceil(offset / this.granularity) : Math.floor(offset / this.granularity);
    const last = hole
      ? Math.floor((offset + bytes) / this.granularity)
      : Math.ceil((offset + bytes) / this.granularity);
    for (let i = first; i < last; i++) this.#holes[i] = hole;
  }

  tryPreadv(): boolean {
    return false;
  }

  tryPwritev(): boolean {
    return false;
  }

  lendPages(): null {
    return null;
  }

  pagesLent(): void {}

  async preadv(offset: number, bytes: number, vec: IoVector, flags: number): Promise<void> {
    await this.#enter('preadv', `preadv ${offset}+${bytes} ${flags}`);
    copyToVector(vec, this.bytes.subarray(offset, offset + bytes));
  }

  async pwritev(offset: number, bytes: number, vec: IoVector, flags: number): Promise<void> {
    await this.#enter('pwritev', `pwritev ${offset}+${bytes} ${flags}`);
    copyFromVector(vec, this.bytes.subarray(offset, offset + bytes));
    this.#mark(offset, bytes, false);
  }

  async pwriteZeroes(offset: number, bytes: number, flags: number): Promise<void> {
    await this.#enter('pwriteZeroes', `pwriteZeroes ${offset}+${bytes} ${flags}`);
    if ((flags & Req.noFallback) !== 0 && bytes % this.granularity !== 0) throw ioError(E.ENOTSUP);
    this.bytes.fill(0, offset, offset + bytes);
    if ((flags & Req.mayUnmap) !== 0) this.#mark(offset, bytes, true);
    else this.#mark(offset, bytes, false);
  }

  async pdiscard(offset: number, bytes: number): Promise<void> {
    await this.#enter('pdiscard', `pdiscard ${offset}+${bytes}`);
    const first = Math.ceil(offset / this.granularity) * this.granularity;
    const last = Math.floor((offset + bytes) / this.granularity) * this.granularity;
    if (last > first) {
      this.bytes.fill(0, first, last);
      this.#mark(first, last - first, true);
    }
  }

  async flush(): Promise<void> {
    await this.#enter('flush', 'flush');
  }

  async blockStatus(offset: number, bytes: number): Promise<BackendExtent> {
    await this.#enter('blockStatus', `blockStatus ${offset}+${bytes}`);
    const hole = this.#holes[Math.floor(offset / this.granularity)] ?? true;
    let end = offset;
    while (end < offset + bytes && (this.#holes[Math.floor(end / this.granularity)] ?? true) === hole) {
      end = (Math.floor(end / this.granularity) + 1) * this.granularity;
    }
    return { bytes: Math.min(end, offset + bytes) - offset, zero: hole, allocated: !hole };
  }

  async allocationDepth(_offset: number, bytes: number): Promise<BackendDepth> {
    return { bytes, depth: 1 };
  }

  async getLength(): Promise<number> {
    return this.bytes.length;
  }
}
