/**
 * A virtio-blk device over a backend: serves the requests of its queues.
 *
 * All requests that a queue holds are started together, those that need no waiting are finished in the turn, and the
 * guest hears once of all that have finished. Before the device goes to sleep it looks at the rings for a short while.
 * Whatever transports kicks and memory is not known here.
 */

import { plug, unplug } from '../aio/defer.ts';
import { copyFromVector, type IoSegment, type IoVector, sliceVector } from '../aio/memory.ts';
import { Spinner } from '../aio/spin.ts';
import type { BackendIo } from '../block/contract/backend-io.ts';
import { Req } from '../block/contract/request.ts';
import {
  ID_BYTES,
  RANGE_BYTES,
  RANGE_SECTORS_MAX,
  RANGE_UNMAP,
  REQUEST_HEADER_BYTES,
  RequestStatus,
  RequestType,
  SECTOR_BYTES,
} from './block.ts';
import type { Chain, DeviceQueue } from './device-queue.ts';

/** Longest time for requests before others in this process get their turn. */
const TURN_MS = 2;
/** What is taken of a queue before the time is looked at: a request costs its bytes, and so much for each part. */
const BATCH_BYTES = 4 * 1024 * 1024;
const PART_BYTES = 4096;
/** Longer reads and writes are carried out piece by piece: below, some need memory for all of a piece. */
const PIECE_BYTES = 32 * 1024 * 1024;
/** Bytes of reads and writes under way from which on no more are taken. */
const UNDER_WAY_BYTES_MAX = 256 * 1024 * 1024;

export interface BlockDeviceSettings {
  readonly io: BackendIo;
  readonly sizeBytes: () => number;
  readonly writable: boolean;
  readonly blockBytes: number;
  /** Answer to GET_ID; at most 20 bytes count. */
  readonly id: string;
  readonly log: (message: string) => void;
}

export class BlockDevice {
  /** Off: every write is on stable storage before it is answered. */
  writeback = true;
  paused = false;
  /** Those at work. */
  readonly queues = new Set<DeviceQueue>();
  readonly #settings: BlockDeviceSettings;
  readonly #spinner = new Spinner();
  readonly #header = Buffer.alloc(Math.max(REQUEST_HEADER_BYTES, RANGE_BYTES));
  /** Queues with requests given back that the guest does not know of yet. */
  readonly #unpublished = new Set<DeviceQueue>();
  /** Requests started and not given back, over all queues. */
  #pending = 0;
  /** Bytes of those that could not be carried out at once. */
  #bytesUnderWay = 0;
  #publishing = false;
  #again = false;
  /** How many wait for everything under way to end. */
  #settling = 0;
  #whenIdle: (() => void)[] = [];

  constructor(settings: BlockDeviceSettings) {
    this.#settings = settings;
  }

  // ---- queues ------------------------------------------------------------------------------------------------

  /** Serves all queues that are ready, and looks out for more for a while. */
  serve(): void {
    const endMs = performance.now() + TURN_MS;
    const look = (): boolean => {
      for (const queue of this.queues) if (this.#isServed(queue) && queue.hasAvailable) return true;
      return false;
    };
    do {
      for (const queue of this.queues) {
        if (!this.#isServed(queue)) continue;
        queue.disableKicks();
        while (this.#serveQueue(queue)) if (performance.now() > endMs) break;
      }
      if (performance.now() > endMs) {
        this.#serveSoon();
        return;
      }
    } while (this.#pending === 0 && this.#spinner.spin(look));
    for (const queue of this.queues) if (this.#isServed(queue)) queue.enableKicks();
    // What came in between has not kicked.
    if (look()) this.#serveSoon();
  }

  #serveSoon(): void {
    if (this.#again) return;
    this.#again = true;
    setImmediate(() => {
      this.#again = false;
      this.serve();
    });
  }

  #isServed(queue: DeviceQueue): boolean {
    return (
      queue.ready &&
      queue.started &&
      queue.enabled &&
      !this.paused &&
      this.#settling === 0 &&
      this.#bytesUnderWay < UNDER_WAY_BYTES_MAX
    );
  }

  /** Starts what the queue holds; whether there was anything. */
  #serveQueue(queue: DeviceQueue): boolean {
    let chain = queue.take();
    if (chain === null) return this.#reportBroken(queue);
    plug();
    try {
      // What finishes meanwhile has to be told to the guest some time.
      for (let left = BATCH_BYTES; chain !== null; chain = left > 0 ? queue.take() : null) {
        left -= chain.readableBytes + chain.writableBytes;
        left -= (chain.readable.length + chain.writable.length) * PART_BYTES;
        this.start(queue, chain);
      }
    } finally {
      unplug();
    }
    queue.publish();
    return true;
  }

  #reportBroken(queue: DeviceQueue): false {
    if (queue.broken !== null && queue.started) {
      queue.started = false;
      this.#settings.log(`a virtqueue is broken: ${queue.broken}`);
      this.queues.delete(queue);
    }
    return false;
  }

  /** Starts what an earlier session has left unfinished in a queue, whether it is served or not. */
  startUnfinished(queue: DeviceQueue): void {
    while (queue.hasUnfinished) {
      const chain = queue.take();
      if (chain !== null) this.start(queue, chain);
    }
    queue.publish();
  }

  /**
   * Resolves when no request is under way any more, be it of one queue or of all. Of all: none are taken meanwhile, or
   * a guest that always has some under way would never let it come to an end.
   */
  async settle(queue?: DeviceQueue): Promise<void> {
    const busy = (): boolean => (queue === undefined ? this.#pending : queue.pending) > 0;
    if (queue === undefined) this.#settling++;
    while (busy()) await new Promise<void>((resolve) => this.#whenIdle.push(resolve));
    for (const one of this.#unpublished) one.publish();
    this.#unpublished.clear();
    if (queue !== undefined) return;
    this.#settling--;
    // After what the caller does now.
    this.#serveSoon();
  }

  // ---- requests ----------------------------------------------------------------------------------------------

  /** Starts a request; it is given back to its queue when it has finished. */
  start(queue: DeviceQueue, chain: Chain): void {
    const { readableBytes, writableBytes } = chain;
    this.#pending++;
    if (readableBytes < REQUEST_HEADER_BYTES || writableBytes < 1) {
      // There is no place for an answer that could be relied on.
      queue.fail('a request without header or status');
      this.#pending--;
      queue.give(chain, 0);
      return;
    }
    const header = this.#header;
    copyStart(chain.readable, header, REQUEST_HEADER_BYTES);
    const type = header.readUInt32LE(0);
    const sector = header.readUInt32LE(8) + header.readUInt32LE(12) * 4294967296;
    switch (type) {
      case RequestType.read:
        this.#read(queue, chain, sector * SECTOR_BYTES);
        break;
      case RequestType.write:
        this.#write(queue, chain, sector * SECTOR_BYTES);
        break;
      case RequestType.flush:
        this.#finishLater(queue, chain, 0, this.#settings.io.flush());
        break;
      case RequestType.getId:
        this.#getId(queue, chain);
        break;
      case RequestType.discard:
      case RequestType.writeZeroes:
        this.#changeRange(queue, chain, type === RequestType.discard);
        break;
      default:
        this.#finish(queue, chain, RequestStatus.unsupported, 0);
    }
  }

  /** Whether a range is inside the disk, begins with a block and is made of whole sectors, as the original wants it. */
  #isValid(offset: number, bytes: number): boolean {
    const { blockBytes, sizeBytes } = this.#settings;
    return offset % blockBytes === 0 && bytes % SECTOR_BYTES === 0 && offset + bytes <= sizeBytes();
  }

  #read(queue: DeviceQueue, chain: Chain, offset: number): void {
    const bytes = chain.writableBytes - 1;
    if (!this.#isValid(offset, bytes)) {
      this.#finish(queue, chain, RequestStatus.ioError, 0);
      return;
    }
    const vector = dataOf(chain.writable, 0, bytes);
    const { io } = this.#settings;
    if (bytes === 0 || io.tryPreadv(offset, bytes, vector))
      this.#finish(queue, chain, RequestStatus.ok, bytes);
    else if (bytes <= PIECE_BYTES)
      this.#transferLater(queue, chain, bytes, bytes, io.preadv(offset, bytes, vector, 0));
    else {
      const pieces = inPieces(vector, (at, piece) => io.preadv(offset + at, piece.bytes, piece, 0));
      this.#transferLater(queue, chain, bytes, bytes, pieces);
    }
  }

  #write(queue: DeviceQueue, chain: Chain, offset: number): void {
    const bytes = chain.readableBytes - REQUEST_HEADER_BYTES;
    if (!this.#settings.writable || !this.#isValid(offset, bytes)) {
      this.#finish(queue, chain, RequestStatus.ioError, 0);
      return;
    }
    const vector = dataOf(chain.readable, REQUEST_HEADER_BYTES, bytes);
    const { io } = this.#settings;
    if (bytes === 0 || (this.writeback && io.tryPwritev(offset, bytes, vector)))
      this.#finish(queue, chain, RequestStatus.ok, 0);
    else if (bytes <= PIECE_BYTES)
      this.#transferLater(queue, chain, bytes, 0, io.pwritev(offset, bytes, vector, this.#writeFlags));
    else {
      const flags = this.#writeFlags;
      const pieces = inPieces(vector, (at, piece) => io.pwritev(offset + at, piece.bytes, piece, flags));
      this.#transferLater(queue, chain, bytes, 0, pieces);
    }
  }

  get #writeFlags(): number {
    return this.writeback ? 0 : Req.fua;
  }

  #getId(queue: DeviceQueue, chain: Chain): void {
    const bytes = Math.min(chain.writableBytes - 1, ID_BYTES);
    const id = Buffer.alloc(ID_BYTES);
    id.write(this.#settings.id, 'utf8');
    let at = 0;
    for (const { mem, start, length } of dataOf(chain.writable, 0, bytes).segments) {
      mem.buf.set(id.subarray(at, at + length), start);
      at += length;
    }
    this.#finish(queue, chain, RequestStatus.ok, bytes);
  }

  #changeRange(queue: DeviceQueue, chain: Chain, isDiscard: boolean): void {
    const { io, writable } = this.#settings;
    if (!writable || chain.readableBytes !== REQUEST_HEADER_BYTES + RANGE_BYTES) {
      const status =
        writable && chain.readableBytes > REQUEST_HEADER_BYTES + RANGE_BYTES
          ? RequestStatus.unsupported
          : RequestStatus.ioError;
      this.#finish(queue, chain, status, 0);
      return;
    }
    const range = this.#header;
    copyFromVector(dataOf(chain.readable, REQUEST_HEADER_BYTES, RANGE_BYTES), range);
    const offset = (range.readUInt32LE(0) + range.readUInt32LE(4) * 4294967296) * SECTOR_BYTES;
    const sectors = range.readUInt32LE(8);
    const flags = range.readUInt32LE(12);
    if ((flags & ~(isDiscard ? 0 : RANGE_UNMAP)) !== 0) {
      this.#finish(queue, chain, RequestStatus.unsupported, 0);
      return;
    }
    const bytes = sectors * SECTOR_BYTES;
    if (sectors > RANGE_SECTORS_MAX || !this.#isValid(offset, bytes)) {
      this.#finish(queue, chain, RequestStatus.ioError, 0);
      return;
    }
    const unmap = (flags & RANGE_UNMAP) !== 0 ? Req.mayUnmap : 0;
    this.#finishLater(
      queue,
      chain,
      0,
      isDiscard ? io.pdiscard(offset, bytes) : io.pwriteZeroes(offset, bytes, unmap | this.#writeFlags),
    );
  }

  /** As finishLater, for reads and writes of `bytes` bytes: there are not too many of them under way. */
  #transferLater(
    queue: DeviceQueue,
    chain: Chain,
    bytes: number,
    written: number,
    request: Promise<void>,
  ): void {
    this.#bytesUnderWay += bytes;
    const finish = (status: number, count: number): void => {
      const wasFull = this.#bytesUnderWay >= UNDER_WAY_BYTES_MAX;
      this.#bytesUnderWay -= bytes;
      this.#finishAsync(queue, chain, status, count);
      if (wasFull) this.#serveSoon();
    };
    request.then(
      () => finish(RequestStatus.ok, written),
      () => finish(RequestStatus.ioError, 0),
    );
  }

  #finishLater(queue: DeviceQueue, chain: Chain, bytes: number, request: Promise<void>): void {
    request.then(
      () => this.#finishAsync(queue, chain, RequestStatus.ok, bytes),
      () => this.#finishAsync(queue, chain, RequestStatus.ioError, 0),
    );
  }

  #finishAsync(queue: DeviceQueue, chain: Chain, status: number, bytes: number): void {
    this.#finish(queue, chain, status, bytes);
    this.#unpublished.add(queue);
    if (this.#publishing) return;
    this.#publishing = true;
    // When the continuations of everything that finished in this turn have run.
    process.nextTick(this.#publish);
  }

  readonly #publish = (): void => {
    this.#publishing = false;
    for (const queue of this.#unpublished) queue.publish();
    this.#unpublished.clear();
    const waiting = this.#whenIdle;
    this.#whenIdle = [];
    for (const wake of waiting) wake();
  };

  /** Writes the status and gives the request back. `bytes`: what was written before the status. */
  #finish(queue: DeviceQueue, chain: Chain, status: number, bytes: number): void {
    const last = chain.writable[chain.writable.length - 1]!;
    last.mem.buf[last.start + last.length - 1] = status;
    this.#pending--;
    queue.give(chain, bytes + 1);
  }
}

/** Does `transfer` for one piece of the vector after another, each with its place in it. */
async function inPieces(
  vector: IoVector,
  transfer: (at: number, piece: IoVector) => Promise<void>,
): Promise<void> {
  for (let at = 0; at < vector.bytes; at += PIECE_BYTES)
    await transfer(at, sliceVector(vector, at, Math.min(PIECE_BYTES, vector.bytes - at)));
}

/** Copies the first bytes of a list of segments. */
function copyStart(segments: readonly IoSegment[], target: Buffer, bytes: number): void {
  let at = 0;
  for (const { mem, start, length } of segments) {
    const take = Math.min(length, bytes - at);
    for (let i = 0; i < take; i++) target[at + i] = mem.buf[start + i]!;
    at += take;
    if (at === bytes) return;
  }
}

/** `bytes` bytes from `from` on of a list of segments. */
function dataOf(segments: readonly IoSegment[], from: number, bytes: number): IoVector {
  const first = segments[0]!;
  const last = segments[segments.length - 1]!;
  // As drivers do it: header and status have descriptors of their own.
  if (from > 0 && first.length === from) return { segments: segments.slice(1), bytes };
  if (from === 0 && last.length === 1) return { segments: segments.slice(0, -1), bytes };
  const all = { segments, bytes: segments.reduce((sum, segment) => sum + segment.length, 0) };
  return sliceVector(all, from, bytes);
}
