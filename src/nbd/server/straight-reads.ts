/**
 * Large reads without a copy of ours: from a mapping of the file straight into the socket, in the turn in which the
 * place was looked up, so that no cluster can change hands in between.
 *
 * Such a read is started only when the socket has room for all of it; until then it waits here. What the socket does not
 * take after all is read into a buffer within the same turn. What cannot be mapped goes the usual way (executor.ts).
 */

import type { ByteStream } from '../../aio/engine.ts';
import { pread } from '../../aio/ffi.ts';
import type { MappedPlace } from '../../block/contract/backend-io.ts';
import { STRAIGHT_READ_MIN } from '../protocol/limits.ts';
import { type BufferPool, HEADROOM_BYTES, type RequestBuffer, setPayload } from './buffers.ts';
import type { Slot } from './executor.ts';
import type { NbdExport } from './export.ts';
import type { ReplyQueue } from './reply-queue.ts';

export interface StraightReadsOwner {
  /** Has been answered. */
  readSent(slot: Slot): void;
  /** Cannot be read like this: the usual way. */
  readOtherwise(slot: Slot): void;
}

export class StraightReads {
  readonly #exp: NbdExport;
  readonly #stream: ByteStream;
  readonly #pool: BufferPool;
  readonly #replies: ReplyQueue;
  readonly #owner: StraightReadsOwner;
  /** Reads for which the socket has no room yet, oldest first. */
  #waiting: Slot[] = [];
  #isWatching = false;
  #isSending = false;
  readonly #onWritable = (): void => {
    this.#isWatching = false;
    this.goOn();
  };

  constructor(
    exp: NbdExport,
    stream: ByteStream,
    pool: BufferPool,
    replies: ReplyQueue,
    owner: StraightReadsOwner,
  ) {
    this.#exp = exp;
    this.#stream = stream;
    this.#pool = pool;
    this.#replies = replies;
    this.#owner = owner;
  }

  /** Takes the read over; false: it is none for here. */
  offer(slot: Slot): boolean {
    if (slot.length < STRAIGHT_READ_MIN || !this.#stream.sendsFromAnyMemory) return false;
    const answer = this.#waiting.length > 0 ? 'later' : this.#send(slot);
    if (answer === 'no') return false;
    if (answer === 'later') this.#waiting.push(slot);
    else this.#owner.readSent(slot);
    return true;
  }

  /** The socket may have room again. */
  goOn(): void {
    // A reply that goes out at once comes back here.
    if (this.#isSending) return;
    while (this.#waiting.length > 0) {
      const slot = this.#waiting[0]!;
      const answer = this.#send(slot);
      if (answer === 'later') return;
      this.#waiting.shift();
      if (answer === 'sent') this.#owner.readSent(slot);
      else this.#owner.readOtherwise(slot);
    }
  }

  #send(slot: Slot): 'sent' | 'later' | 'no' {
    this.#isSending = true;
    try {
      return this.#trySend(slot);
    } finally {
      this.#isSending = false;
    }
  }

  #trySend(slot: Slot): 'sent' | 'later' | 'no' {
    const { offset, length } = slot;
    if (this.#stream.closed) return 'no';
    // What is being sent ends in goOn().
    if (!this.#replies.flushNow()) return 'later';
    if (!this.#stream.hasRoomFor(length)) {
      if (!this.#isWatching) this.#stream.whenWritable(this.#onWritable);
      this.#isWatching = true;
      return 'later';
    }
    const { backend } = this.#exp;
    const startMs = performance.now();
    const place = backend.mapRead(offset, length);
    if (place === null) return 'no';
    const isSent = this.#replies.straight(slot, place.addr, length, slot.charge, (from) =>
      this.#readRest(place, length, from),
    );
    if (!isSent) return 'no';
    backend.mappedReadDone(length, performance.now() - startMs);
    return 'sent';
  }

  /** Reads what has not gone out, from `from` on, into a buffer; null: that fails. The pages are there. */
  #readRest({ fd, fileOffset }: MappedPlace, length: number, from: number): RequestBuffer | null {
    const buffer = this.#pool.take(length);
    setPayload(buffer, length);
    const { mem } = buffer;
    for (let at = from; at < length; ) {
      const bytes = pread(fd, mem.addr + HEADROOM_BYTES + at, length - at, fileOffset + at);
      if (bytes < 0) {
        this.#pool.give(buffer);
        return null;
      }
      if (bytes === 0) {
        // The file has become shorter: what was behind its end reads as zeroes.
        mem.buf.fill(0, HEADROOM_BYTES + at, HEADROOM_BYTES + length);
        break;
      }
      at += bytes;
    }
    return buffer;
  }
}
