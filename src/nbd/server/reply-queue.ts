/**
 * The send side of a connection: replies are gathered and go out in one write of many segments.
 *
 * Everything that finishes in one turn of the event loop is sent together; what finishes while a write is under way
 * goes with the next one. A reply to a read is one segment, header and data side by side in the request's buffer;
 * headers without data are laid one behind the other in an area of their own, so that sixty-four acknowledged
 * writes are one segment of a kilobyte.
 *
 * Every reply carries a charge, which the connection gets back when the reply has been sent: that is how a client
 * that does not read its replies stops being served.
 */

import { deferCall, isPlugged } from '../../aio/defer.ts';
import { type ByteStream, sendAll } from '../../aio/engine.ts';
import { allocateIoMemory, type IoMemory, type IoSegment } from '../../aio/memory.ts';
import type { LentPages } from '../../block/contract/backend-io.ts';
import { MAX_REPLY_SEGMENTS } from '../protocol/limits.ts';
import {
  Chunk,
  ChunkFlag,
  EXTENDED_REPLY_MAGIC,
  Layouts,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from '../protocol/messages.ts';
import { type BufferPool, HEADROOM_BYTES, type RequestBuffer } from './buffers.ts';

export type ReplyStyle = 'simple' | 'structured' | 'extended';

/** Whom a reply answers. */
export interface ReplyTo {
  /** The client's cookie, in two halves of 32 bits. */
  readonly cookieHigh: number;
  readonly cookieLow: number;
  /** Offset of the request, in two halves: extended replies repeat it, be it what it may. */
  readonly offsetHigh: number;
  readonly offsetLow: number;
}

const SIMPLE_BYTES = Layouts.simpleReply.bytes;
const STRUCTURED_BYTES = Layouts.structuredReply.bytes;
const EXTENDED_BYTES = Layouts.extendedReply.bytes;
const DATA_HEAD_BYTES = Layouts.chunkOffsetData.bytes;
const DONE_DATA = (ChunkFlag.done << 16) | Chunk.OFFSET_DATA;

/** First and largest size of an area for headers. */
const AREA_MIN_BYTES = 1024;
const AREA_MAX_BYTES = 64 * 1024;

interface MutableSegment {
  readonly mem: IoMemory;
  readonly start: number;
  length: number;
}

/** Replies that go out in one write. */
class Batch {
  segments: IoSegment[] = [];
  readonly buffers: RequestBuffer[] = [];
  /** Sum of the segments' lengths. */
  bytes = 0;
  charge = 0;
  replies = 0;
  /** Memory for headers. */
  area: IoMemory;
  view: DataView;
  used = 0;
  /** The segment at the end of `segments` when it is one of headers. */
  #last: MutableSegment | null = null;

  constructor() {
    this.area = allocateIoMemory(AREA_MIN_BYTES);
    this.view = new DataView(this.area.buf.buffer, this.area.buf.byteOffset, AREA_MIN_BYTES);
  }

  /** Position in `view` for `bytes` of header, which belong to the reply stream from now on. */
  reserve(bytes: number): number {
    if (this.used + bytes > this.area.buf.length) this.#replaceArea(bytes);
    const at = this.used;
    this.used += bytes;
    this.bytes += bytes;
    if (this.#last !== null) {
      this.#last.length += bytes;
    } else {
      this.#last = { mem: this.area, start: at, length: bytes };
      this.segments.push(this.#last);
    }
    return at;
  }

  push(segment: IoSegment): void {
    this.segments.push(segment);
    this.bytes += segment.length;
    this.#last = null;
  }

  /** The full area stays alive through the segments that point into it. */
  #replaceArea(bytes: number): void {
    const size = Math.max(Math.min(this.area.buf.length * 2, AREA_MAX_BYTES), bytes);
    this.area = allocateIoMemory(size);
    this.view = new DataView(this.area.buf.buffer, this.area.buf.byteOffset, size);
    this.used = 0;
    this.#last = null;
  }

  reset(): void {
    this.segments.length = 0;
    this.buffers.length = 0;
    this.bytes = 0;
    this.charge = 0;
    this.replies = 0;
    this.used = 0;
    this.#last = null;
  }
}

/** What the queue tells its connection. */
export interface ReplyQueueOwner {
  /** Replies worth `charge` have been sent, or never will be. */
  repliesSent(replies: number, charge: number): void;
  sendFailed(): void;
}

export class ReplyQueue {
  readonly #stream: ByteStream;
  readonly #style: ReplyStyle;
  readonly #pool: BufferPool;
  readonly #owner: ReplyQueueOwner;
  /** Full batches before `#current`. */
  readonly #full: Batch[] = [];
  #current = new Batch();
  #spare: Batch | null = null;
  #sending: Batch | null = null;
  #scheduled = false;
  #failed = false;
  /** Within the call that sends: what ends there has waited for nothing. */
  #isSending = false;
  readonly #flush = (): void => this.#sendNext();
  readonly #written = (result: number): void => {
    const waited = !this.#isSending;
    this.#finishBatch(result);
    if (waited) this.#sendNext();
  };

  constructor(stream: ByteStream, style: ReplyStyle, pool: BufferPool, owner: ReplyQueueOwner) {
    this.#stream = stream;
    this.#style = style;
    this.#pool = pool;
    this.#owner = owner;
  }

  /** Data of a read: all of `buffer`'s payload. The buffer goes back to the pool when it was sent. */
  data(to: ReplyTo, buffer: RequestBuffer, charge: number): void {
    const { view, payload, reply } = buffer;
    const bytes = payload.length;
    if (this.#style === 'simple') {
      const at = HEADROOM_BYTES - SIMPLE_BYTES;
      view.setUint32(at, SIMPLE_REPLY_MAGIC);
      view.setUint32(at + 4, 0);
      view.setUint32(at + 8, to.cookieHigh);
      view.setUint32(at + 12, to.cookieLow);
      reply.start = at;
    } else {
      const chunkOffsetAt = HEADROOM_BYTES - DATA_HEAD_BYTES;
      view.setUint32(chunkOffsetAt, to.offsetHigh);
      view.setUint32(chunkOffsetAt + 4, to.offsetLow);
      reply.start = chunkOffsetAt - this.#chunkHeadBytes;
      this.#writeChunkHead(view, reply.start, to, DONE_DATA, bytes + DATA_HEAD_BYTES);
    }
    reply.length = HEADROOM_BYTES - reply.start + bytes;
    const batch = this.#current;
    batch.push(reply);
    batch.buffers.push(buffer);
    this.#added(batch, charge);
  }

  /** Sends what there is; whether nothing is left to be sent. */
  flushNow(): boolean {
    if (this.#sending === null) this.#sendNext();
    return this.#sending === null;
  }

  /**
   * Data of a read that the stream sends by the pages of a file (the stream has sendPages); nothing else is waiting to be
   * sent. What the socket does not take, or the file has no more, is brought by `readRest`: a buffer with the payload from
   * a position on, or null when it cannot be had, which ends the connection. False: nothing has been sent.
   */
  pages(
    to: ReplyTo,
    { fd, fileOffset }: LentPages,
    bytes: number,
    charge: number,
    readRest: (from: number) => RequestBuffer | null,
  ): boolean {
    if (this.#failed) return false;
    const batch = this.#current;
    const headBytes = this.#dataHead(batch, to, bytes);
    const headSent = this.#stream.send(batch.segments, 0);
    if (headSent <= 0) {
      batch.reset();
      return false;
    }
    const from = headSent < headBytes ? 0 : Math.max(0, this.#stream.sendPages!(fd, fileOffset, bytes));
    const buffer = from === bytes ? null : readRest(from);
    if (buffer !== null) {
      batch.push({ mem: buffer.mem, start: HEADROOM_BYTES + from, length: bytes - from });
      batch.buffers.push(buffer);
    }
    batch.charge = charge;
    batch.replies = 1;
    this.#current = this.#takeSpare();
    this.#sending = batch;
    if (buffer === null) {
      this.#finishBatch(from === bytes ? bytes : -1);
    } else {
      this.#isSending = true;
      sendAll(this.#stream, batch.segments, headSent, this.#written);
      this.#isSending = false;
    }
    return true;
  }

  /** Puts the head of a reply with `bytes` of data into the batch; its length. */
  #dataHead(batch: Batch, to: ReplyTo, bytes: number): number {
    if (this.#style === 'simple') {
      const at = batch.reserve(SIMPLE_BYTES);
      batch.view.setUint32(at, SIMPLE_REPLY_MAGIC);
      batch.view.setUint32(at + 4, 0);
      batch.view.setUint32(at + 8, to.cookieHigh);
      batch.view.setUint32(at + 12, to.cookieLow);
      return SIMPLE_BYTES;
    }
    const headBytes = this.#chunkHeadBytes + DATA_HEAD_BYTES;
    const at = batch.reserve(headBytes);
    this.#writeChunkHead(batch.view, at, to, DONE_DATA, bytes + DATA_HEAD_BYTES);
    batch.view.setUint32(at + headBytes - DATA_HEAD_BYTES, to.offsetHigh);
    batch.view.setUint32(at + headBytes - DATA_HEAD_BYTES + 4, to.offsetLow);
    return headBytes;
  }

  /** A request without data that succeeded. */
  acknowledge(to: ReplyTo, charge: number): void {
    if (this.#style === 'extended') {
      this.chunk(to, Chunk.NONE, true, 0);
      this.#added(this.#current, charge);
      return;
    }
    this.#simple(to, 0, charge);
  }

  #simple(to: ReplyTo, error: number, charge: number): void {
    const batch = this.#current;
    const at = batch.reserve(SIMPLE_BYTES);
    const { view } = batch;
    view.setUint32(at, SIMPLE_REPLY_MAGIC);
    view.setUint32(at + 4, error);
    view.setUint32(at + 8, to.cookieHigh);
    view.setUint32(at + 12, to.cookieLow);
    this.#added(batch, charge);
  }

  /** A request that failed. The text goes out when replies are chunks. */
  error(to: ReplyTo, error: number, text: string, charge: number): void {
    if (this.#style === 'simple') {
      this.#simple(to, error, charge);
      return;
    }
    const bytes = Buffer.from(text);
    const head = Layouts.chunkError.bytes;
    const at = this.chunk(to, Chunk.ERROR, true, head + bytes.length, head + bytes.length);
    const { area } = this.#current;
    Layouts.chunkError.write(area.buf, { error, textLength: bytes.length }, at);
    bytes.copy(area.buf, at + head);
    this.#added(this.#current, charge);
  }

  /** A read of nothing, or of what turned out to be one hole. */
  hole(to: ReplyTo, offset: number, length: number, done: boolean): void {
    const at = this.chunk(
      to,
      Chunk.OFFSET_HOLE,
      done,
      Layouts.chunkOffsetHole.bytes,
      Layouts.chunkOffsetHole.bytes,
    );
    Layouts.chunkOffsetHole.write(this.#current.area.buf, { offset: BigInt(offset), length }, at);
  }

  /** Head of a chunk of data; the data follow as a segment of their own. */
  dataPart(to: ReplyTo, offset: number, data: IoSegment, done: boolean): void {
    const at = this.chunk(to, Chunk.OFFSET_DATA, done, DATA_HEAD_BYTES + data.length, DATA_HEAD_BYTES);
    Layouts.chunkOffsetData.write(this.#current.area.buf, { offset: BigInt(offset) }, at);
    this.#current.push(data);
  }

  /** A chunk whose whole payload is `payload`. */
  payloadChunk(to: ReplyTo, type: number, done: boolean, payload: IoMemory): void {
    const { length } = payload.buf;
    this.chunk(to, type, done, length);
    this.#current.push({ mem: payload, start: 0, length });
  }

  /**
   * Head of a chunk with `payloadBytes` of payload, the first `inlineBytes` of which are to be written by the caller
   * into the current area, at the position returned.
   */
  chunk(to: ReplyTo, type: number, done: boolean, payloadBytes: number, inlineBytes = 0): number {
    const headBytes = this.#chunkHeadBytes;
    const at = this.#current.reserve(headBytes + inlineBytes);
    this.#writeChunkHead(this.#current.view, at, to, (done ? ChunkFlag.done << 16 : 0) | type, payloadBytes);
    return at + headBytes;
  }

  /** Ends a reply made of chunks: `buffer`, if any, goes back to the pool when they were sent. */
  endChunks(buffer: RequestBuffer | null, charge: number): void {
    if (buffer !== null) this.#current.buffers.push(buffer);
    this.#added(this.#current, charge);
  }

  get #chunkHeadBytes(): number {
    return this.#style === 'extended' ? EXTENDED_BYTES : STRUCTURED_BYTES;
  }

  #writeChunkHead(view: DataView, at: number, to: ReplyTo, flagsAndType: number, payloadBytes: number): void {
    const extended = this.#style === 'extended';
    view.setUint32(at, extended ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC);
    view.setUint32(at + 4, flagsAndType);
    view.setUint32(at + 8, to.cookieHigh);
    view.setUint32(at + 12, to.cookieLow);
    if (extended) {
      view.setUint32(at + 16, to.offsetHigh);
      view.setUint32(at + 20, to.offsetLow);
      view.setUint32(at + 24, 0);
      view.setUint32(at + 28, payloadBytes);
    } else {
      view.setUint32(at + 16, payloadBytes);
    }
  }

  /** A reply is complete. */
  #added(batch: Batch, charge: number): void {
    batch.charge += charge;
    batch.replies++;
    // Room is left for the chunks of one more reply: how many those can be is bounded by the reader of extents.
    if (batch.segments.length > MAX_REPLY_SEGMENTS / 2) {
      this.#full.push(batch);
      this.#current = this.#takeSpare();
    }
    if (this.#sending !== null || this.#scheduled) return;
    this.#scheduled = true;
    // What finishes while requests are being started goes out when all of them have been; else after all
    // microtasks: whatever finishes in this turn goes out in the same write.
    if (isPlugged()) deferCall(this.#flush, undefined);
    else process.nextTick(this.#flush);
  }

  #takeSpare(): Batch {
    const spare = this.#spare ?? new Batch();
    this.#spare = null;
    return spare;
  }

  /** Sends all there is, until a write has to wait. */
  #sendNext(): void {
    this.#scheduled = false;
    while (this.#sending === null) {
      let batch = this.#full.shift();
      if (batch === undefined) {
        if (this.#current.replies === 0) return;
        batch = this.#current;
        this.#current = this.#takeSpare();
      }
      this.#sending = batch;
      const sent = this.#failed ? -1 : this.#stream.send(batch.segments, 0);
      if (this.#failed || sent === batch.bytes) {
        this.#finishBatch(sent);
        continue;
      }
      this.#isSending = true;
      sendAll(this.#stream, batch.segments, Math.max(sent, 0), this.#written);
      this.#isSending = false;
    }
  }

  #finishBatch(result: number): void {
    const batch = this.#sending as Batch;
    const { buffers, charge, replies } = batch;
    for (const buffer of buffers) this.#pool.give(buffer);
    batch.reset();
    this.#spare = batch;
    this.#sending = null;
    if (result < 0 && !this.#failed) {
      this.#failed = true;
      this.#owner.sendFailed();
    }
    this.#owner.repliesSent(replies, charge);
  }
}
