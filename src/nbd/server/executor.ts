/**
 * Carrying out the requests of a connection: from a checked request to its reply.
 *
 * Plain reads and writes go straight to the backend and come back through two functions made once per request
 * record. Everything else runs in one async function per request; the commands themselves are in commands.ts.
 */

import type { ByteStream } from '../../aio/engine.ts';
import { isZeroVector } from '../../aio/memory.ts';
import { Req } from '../../block/contract/request.ts';
import { ShortIo } from '../../block/io/short-io.ts';
import { Chunk, Command, CommandFlag, NbdError } from '../protocol/messages.ts';
import type { ReceiveBuffer } from '../protocol/receive-buffer.ts';
import { type BufferPool, HEADROOM_BYTES, type RequestBuffer, setPayload } from './buffers.ts';
import {
  blockStatusPayload,
  findPieces,
  flush,
  prefetch,
  readPieces,
  trim,
  writeZeroes,
} from './commands.ts';
import type { MetaContext } from './contexts.ts';
import { RequestError, requestError } from './errors.ts';
import type { NbdExport } from './export.ts';
import type { ReplyQueue } from './reply-queue.ts';
import type { NbdRequest } from './request.ts';
import { StraightReads } from './straight-reads.ts';

/** Holes of files begin and end with blocks of this size: a read inside one is all data or all hole. */
const BLOCK_BYTES = 4096;

/** A write could not be made at once: so many go by a buffer of their own without being tried before. */
const WRITES_AFTER_MISS = 16;

/** A pooled request with its two ends: what the backend's promise calls. */
export interface Slot extends NbdRequest {
  readonly done: () => void;
  readonly failed: (error: unknown) => void;
  /** For the short way. */
  readonly short: ShortIo;
  /** A read of which nobody knows whether it has holes. */
  mayHaveHoles: boolean;
  /** Ids of the contexts a BLOCK_STATUS request is restricted to; null: all. */
  filter: readonly number[] | null;
}

/** What was negotiated for the connection. */
export interface ExecutorSettings {
  readonly exp: NbdExport;
  readonly structured: boolean;
  readonly extended: boolean;
  readonly contexts: readonly MetaContext[];
  readonly stream: ByteStream;
}

export class Executor {
  readonly #exp: NbdExport;
  readonly #structured: boolean;
  readonly #extended: boolean;
  readonly #contexts: readonly MetaContext[];
  readonly #pool: BufferPool;
  readonly #replies: ReplyQueue;
  readonly #straight: StraightReads;
  readonly #freeSlots: Slot[] = [];
  /** Writes that are not tried from where they were received: the last one could not be made at once. */
  #skipWritesNow = 0;

  constructor(settings: ExecutorSettings, pool: BufferPool, replies: ReplyQueue) {
    this.#exp = settings.exp;
    this.#structured = settings.structured;
    this.#extended = settings.extended;
    this.#contexts = settings.contexts;
    this.#pool = pool;
    this.#replies = replies;
    this.#straight = new StraightReads(settings.exp, settings.stream, pool, replies, {
      readSent: (slot) => this.#freeSlots.push(slot),
      readIntoBuffer: (slot) => this.#readIntoBuffer(slot),
    });
  }

  /** Starts a READ. */
  startRead(slot: Slot): void {
    const { offset, length, flags } = slot;
    const mayHaveHoles =
      this.#structured &&
      (flags & CommandFlag.df) === 0 &&
      !this.#exp.dataMap.covers(offset, offset + length) &&
      this.#exp.backend.statusIsCostly !== true;
    if (
      length === 0 ||
      (flags & CommandFlag.fua) !== 0 ||
      (mayHaveHoles && (offset % BLOCK_BYTES) + length > BLOCK_BYTES)
    ) {
      this.startCommand(slot);
      return;
    }
    slot.mayHaveHoles = mayHaveHoles;
    if (!mayHaveHoles && this.#straight.offer(slot)) return;
    this.#readIntoBuffer(slot);
  }

  #readIntoBuffer(slot: Slot): void {
    const { offset, length } = slot;
    const buffer = this.#pool.take(length);
    slot.buffer = buffer;
    setPayload(buffer, length);
    try {
      if (!this.#exp.backend.tryPreadv(offset, length, buffer.vector, slot.short)) this.#readLong(slot);
      else if (!slot.short.isWaiting) this.#haveRead(slot);
    } catch (error) {
      this.#fail(slot, error);
    }
  }

  /** Replies have been sent: there may be room for more. */
  goOn(): void {
    this.#straight.goOn();
  }

  /** The data of a read are in its buffer. Data of one block that is not all zero has no holes: no need to ask. */
  #haveRead(slot: Slot): void {
    if (slot.mayHaveHoles && isZeroVector((slot.buffer as RequestBuffer).vector)) this.#readLong(slot);
    else this.#finish(slot);
  }

  /** A read by the long way, asking for holes first where there may be some. */
  #readLong(slot: Slot): void {
    const buffer = slot.buffer as RequestBuffer;
    if (slot.mayHaveHoles) {
      this.#pool.give(buffer);
      slot.buffer = null;
      this.startCommand(slot);
    } else {
      this.#exp.backend.preadv(slot.offset, slot.length, buffer.vector, 0).then(slot.done, slot.failed);
    }
  }

  /** Does a WRITE whose data are the next in `rx`, and takes them, if it needs no waiting; false: nothing has been done. */
  writeNow(slot: Slot, rx: ReceiveBuffer): boolean {
    const { offset, length } = slot;
    if (this.#exp.writethrough || (slot.flags & CommandFlag.fua) !== 0) return false;
    if (this.#skipWritesNow > 0) {
      this.#skipWritesNow--;
      return false;
    }
    const vector = { segments: [{ mem: rx.mem, start: rx.start, length }], bytes: length };
    try {
      if (this.#exp.backend.tryPwritev(offset, length, vector)) {
        rx.start += length;
        this.#finish(slot);
        return true;
      }
    } catch (error) {
      rx.start += length;
      this.#fail(slot, error);
      return true;
    }
    this.#skipWritesNow = WRITES_AFTER_MISS;
    return false;
  }

  /** Starts a WRITE whose data is in its buffer. */
  startWrite(slot: Slot): void {
    const flags = this.#exp.writethrough || (slot.flags & CommandFlag.fua) !== 0 ? Req.fua : 0;
    const { vector } = slot.buffer as RequestBuffer;
    try {
      if (flags !== 0 || !this.#exp.backend.tryPwritev(slot.offset, slot.length, vector, slot.short))
        this.#writeLong(slot, flags);
      else if (!slot.short.isWaiting) this.#finish(slot);
    } catch (error) {
      this.#fail(slot, error);
    }
  }

  #writeLong(slot: Slot, flags: number): void {
    const { vector } = slot.buffer as RequestBuffer;
    this.#exp.backend.pwritev(slot.offset, slot.length, vector, flags).then(slot.done, slot.failed);
  }

  /** A request on the short way that had to wait for the disk has ended. */
  #ended(slot: Slot, isDone: boolean): void {
    try {
      if (slot.type === Command.READ) {
        if (isDone) this.#haveRead(slot);
        else this.#readLong(slot);
      } else if (isDone) this.#finish(slot);
      else this.#writeLong(slot, 0);
    } catch (error) {
      this.#fail(slot, error);
    }
  }

  /** A plain read or write has succeeded. */
  #finish(slot: Slot): void {
    const { buffer, charge } = slot;
    slot.buffer = null;
    if (slot.type === Command.READ) {
      this.#replies.data(slot, buffer as RequestBuffer, charge);
    } else {
      if (buffer !== null) this.#pool.give(buffer);
      this.#replies.acknowledge(slot, charge);
    }
    this.#freeSlots.push(slot);
  }

  /** A plain read or write has failed. */
  #fail(slot: Slot, cause: unknown): void {
    const text = slot.type === Command.READ ? 'reading from file failed' : 'writing to file failed';
    this.refuse(slot, requestError(text, cause));
  }

  /** Answers with an error. */
  refuse(slot: Slot, error: RequestError): void {
    if (slot.buffer !== null) this.#pool.give(slot.buffer);
    slot.buffer = null;
    this.#replies.error(slot, error.error, error.message, slot.charge);
    this.#freeSlots.push(slot);
  }

  /** Takes back a request that gets no answer. */
  release(slot: Slot): void {
    if (slot.buffer !== null) this.#pool.give(slot.buffer);
    slot.buffer = null;
    this.#freeSlots.push(slot);
  }

  /** Starts a command that is no plain read or write. */
  startCommand(slot: Slot): void {
    void this.#runCommand(slot);
  }

  /** Never rejects. */
  async #runCommand(slot: Slot): Promise<void> {
    try {
      switch (slot.type) {
        case Command.READ:
          await this.#readWithHoles(slot);
          return;
        case Command.FLUSH:
          await flush(this.#exp);
          break;
        case Command.TRIM:
          await trim(this.#exp, slot);
          break;
        case Command.WRITE_ZEROES:
          await writeZeroes(this.#exp, slot);
          break;
        case Command.CACHE:
          await prefetch(this.#exp, slot, this.#pool);
          break;
        case Command.BLOCK_STATUS:
          await this.#blockStatus(slot);
          return;
        default:
          throw new RequestError(NbdError.EINVAL, `invalid request type (${slot.type}) received`);
      }
      this.#replies.acknowledge(slot, slot.charge);
      this.#freeSlots.push(slot);
    } catch (error) {
      this.refuse(slot, requestError('request failed', error));
    }
  }

  /** A read that may be answered with holes, or with nothing. */
  async #readWithHoles(slot: Slot): Promise<void> {
    const { offset, length, charge, flags } = slot;
    const exp = this.#exp;
    const replies = this.#replies;
    if ((flags & CommandFlag.fua) !== 0) await flush(exp);
    if (length === 0) {
      if (this.#structured) {
        replies.chunk(slot, Chunk.NONE, true, 0);
        replies.endChunks(null, charge);
      } else {
        replies.acknowledge(slot, charge);
      }
      this.#freeSlots.push(slot);
      return;
    }
    const mayFragment = this.#structured && (flags & CommandFlag.df) === 0;
    const pieces = mayFragment ? await findPieces(exp, slot) : [{ offset, bytes: length, hole: false }];
    if (pieces.some((piece) => !piece.hole)) {
      slot.buffer = this.#pool.take(length);
      setPayload(slot.buffer, length);
      await readPieces(exp, slot, slot.buffer, pieces);
    }
    const { buffer } = slot;
    slot.buffer = null;
    if (pieces.length === 1 && buffer !== null) {
      replies.data(slot, buffer, charge);
    } else {
      for (const [i, piece] of pieces.entries()) {
        const last = i === pieces.length - 1;
        if (piece.hole || buffer === null) {
          replies.hole(slot, piece.offset, piece.bytes, last);
        } else {
          const start = HEADROOM_BYTES + piece.offset - offset;
          replies.dataPart(slot, piece.offset, { mem: buffer.mem, start, length: piece.bytes }, last);
        }
      }
      replies.endChunks(buffer, charge);
    }
    this.#freeSlots.push(slot);
  }

  async #blockStatus(slot: Slot): Promise<void> {
    const { length, filter, charge } = slot;
    slot.filter = null;
    if (length === 0) throw new RequestError(NbdError.EINVAL, 'need non-zero length');
    const contexts =
      filter === null ? this.#contexts : this.#contexts.filter(({ id }) => filter.includes(id));
    if (contexts.length === 0) throw new RequestError(NbdError.EINVAL, 'CMD_BLOCK_STATUS not negotiated');
    const payloads = [];
    for (const context of contexts) {
      payloads.push(await blockStatusPayload(this.#exp, context, slot, length, this.#extended));
    }
    const type = this.#extended ? Chunk.BLOCK_STATUS_EXT : Chunk.BLOCK_STATUS;
    for (const [i, payload] of payloads.entries()) {
      this.#replies.payloadChunk(slot, type, i === payloads.length - 1, payload);
    }
    this.#replies.endChunks(null, charge);
    this.#freeSlots.push(slot);
  }

  /** A request record: a used one, or a new one with its two ends. */
  takeSlot(): Slot {
    const free = this.#freeSlots.pop();
    if (free !== undefined) return free;
    const slot: Slot = {
      type: 0,
      flags: 0,
      cookieHigh: 0,
      cookieLow: 0,
      offsetHigh: 0,
      offsetLow: 0,
      offset: 0,
      length: 0,
      buffer: null,
      charge: 0,
      filter: null,
      mayHaveHoles: false,
      short: new ShortIo((isDone) => this.#ended(slot, isDone)),
      done: () => this.#finish(slot),
      failed: (error) => this.#fail(slot, error),
    };
    return slot;
  }
}
