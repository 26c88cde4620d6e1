/**
 * Large reads, one at a time: each is begun when the socket has room for all of it, and sent before the next one is read.
 * Until then it waits here.
 *
 * Where the pages that hold the data may be lent (BackendIo.lendPages), the socket is given the pages themselves and nothing
 * is copied: sendfile(2). What is lent is not of one moment: the client sees the pages as they are when it takes them. A
 * write that is answered in between shows in a read that was begun before and whose reply the client has not got yet;
 * the two are concurrent for every client, and a read may see all, nothing or a part of a write beside it (not even
 * a sector is of one moment for a client that takes it in two pieces; nor is it for two processes at one file on ext4). It
 * is the way in which the kernel's NFS server answers reads. That is true only of bytes that stay what they are, bytes of the
 * disk at that offset, until the client has read them, so lending is allowed by name and not by default:
 * - a file, and raw over a file, do. A page that is cut off, punched out or deleted keeps its content for the socket.
 * - formats that map do not: a freed cluster is given to another part of the disk, and the client would read that.
 * - filters do not, nor what reads through them: the reader of a snapshot (snapshot-access, copy-before-write) has to get
 *   what was there before a write that waits for this very read; a mirror's source is somebody else's once it is given up.
 * - a backing image is read through its overlay, which does not.
 * What nobody can take back is a reply in the socket of a client that does not read: it is held by its pages for as long, at
 * most a send buffer full. A file that is given another purpose *in place* meanwhile would show in it.
 *
 * Everything else is read into a buffer, which the processor's cache still holds from the read before, and copied into the
 * socket at once. TLS goes the usual way (executor.ts).
 */

import type { ByteStream } from '../../aio/engine.ts';
import { pread } from '../../aio/ffi.ts';
import type { LentPages } from '../../block/contract/backend-io.ts';
import { STRAIGHT_READ_MIN } from '../protocol/limits.ts';
import { type BufferPool, HEADROOM_BYTES, type RequestBuffer, setPayload } from './buffers.ts';
import type { Slot } from './executor.ts';
import type { NbdExport } from './export.ts';
import type { ReplyQueue } from './reply-queue.ts';

export interface StraightReadsOwner {
  /** Has been answered. */
  readSent(slot: Slot): void;
  /** Is to be read into a buffer, and answered from there. */
  readIntoBuffer(slot: Slot): void;
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
    if (slot.length < STRAIGHT_READ_MIN || this.#stream.sendPages === undefined) return false;
    if (this.#waiting.length > 0 || !this.#begin(slot)) this.#waiting.push(slot);
    return true;
  }

  /** The socket may have room again. */
  goOn(): void {
    // A reply that goes out at once comes back here.
    if (this.#isSending) return;
    while (this.#waiting.length > 0 && this.#begin(this.#waiting[0]!)) this.#waiting.shift();
  }

  /** False: there is no room yet. */
  #begin(slot: Slot): boolean {
    this.#isSending = true;
    try {
      if (!this.#hasRoom(slot.length)) return false;
      if (this.#lend(slot)) {
        this.#owner.readSent(slot);
      } else {
        this.#owner.readIntoBuffer(slot);
        this.#replies.flushNow();
      }
      return true;
    } finally {
      this.#isSending = false;
    }
  }

  #hasRoom(bytes: number): boolean {
    // Where there is nobody any more there is nothing to wait for.
    if (this.#stream.closed) return true;
    // What is being sent ends in goOn().
    if (!this.#replies.flushNow()) return false;
    if (this.#stream.hasRoomFor(bytes)) return true;
    if (!this.#isWatching) this.#stream.whenWritable(this.#onWritable);
    this.#isWatching = true;
    return false;
  }

  /** Answers with the pages of the file, if they may be lent. */
  #lend(slot: Slot): boolean {
    const { offset, length } = slot;
    const { backend } = this.#exp;
    if (this.#stream.closed) return false;
    const startMs = performance.now();
    const pages = backend.lendPages(offset, length);
    if (pages === null) return false;
    const isSent = this.#replies.pages(slot, pages, length, slot.charge, (from) =>
      this.#readRest(pages, length, from),
    );
    if (isSent) backend.pagesLent(length, performance.now() - startMs);
    return isSent;
  }

  /** Reads what has not gone out, from `from` on, into a buffer; null: that fails. The pages were there a moment ago. */
  #readRest({ fd, fileOffset }: LentPages, length: number, from: number): RequestBuffer | null {
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
