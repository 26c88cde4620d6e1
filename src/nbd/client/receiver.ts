/**
 * What a client hears: replies, simple ones and chunks, taken in as they come.
 *
 * The server is not trusted: cookies, lengths, offsets and the number of chunks are checked before anything is kept,
 * and what does not fit the request is a ProtocolViolation, which ends the connection. Data of large reads are
 * received straight into the request's memory; small ones come many at a time and are copied.
 */

import type { ByteStream } from '../../aio/engine.ts';
import { fillVector, type IoVector, sliceVector } from '../../aio/memory.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, errnoError } from '../../errors/error.ts';
import { CLIENT_MAX_CHUNK_BYTES, CLIENT_MAX_ERROR_CHUNKS, DIRECT_RECEIVE_MIN } from '../protocol/limits.ts';
import {
  Chunk,
  ChunkFlag,
  Command,
  EXTENDED_REPLY_MAGIC,
  join64,
  Layouts,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from '../protocol/messages.ts';
import type { ReceiveBuffer } from '../protocol/receive-buffer.ts';
import type { RemoteExport } from './handshake.ts';
import { type ClientRequest, errnoOfNbd } from './request.ts';

/** Read this much at a time while large answers come in: their data should go past the receive buffer. */
const BULK_FILL_BYTES = 4096;
/** Reads of the socket in one go: then others have their turn. */
const MAX_ROUNDS = 16;
/** Chunk types with this bit are errors. */
const ERROR_BIT = 0x8000;

export interface ClientReceiverOwner {
  /** The request under way with this cookie; null when there is none, or it has been answered. */
  findRequest(slot: number, generation: number): ClientRequest | null;
  /** The answer to the request is complete. */
  replied(request: ClientRequest): void;
}

/** The server broke the protocol. */
export class ProtocolViolation extends BlockError {}

export class ClientReceiver {
  readonly #stream: ByteStream;
  readonly #rx: ReceiveBuffer;
  readonly #exp: RemoteExport;
  readonly #owner: ClientReceiverOwner;
  readonly #chunkHeadBytes: number;

  /** Data on their way: whose, where in the request's vector they go, and whether they end the answer. */
  #request: ClientRequest | null = null;
  #at = 0;
  #left = 0;
  #last = false;
  /** Payload of no interest, still to be passed over. */
  #skip = 0;
  #bulk = false;

  constructor(stream: ByteStream, rx: ReceiveBuffer, exp: RemoteExport, owner: ClientReceiverOwner) {
    this.#stream = stream;
    this.#rx = rx;
    this.#exp = exp;
    this.#owner = owner;
    this.#chunkHeadBytes = exp.extended ? Layouts.extendedReply.bytes : Layouts.structuredReply.bytes;
  }

  /** Takes in replies until the server ends the connection in order; throws when it fails or breaks the protocol. */
  run(): Promise<void> {
    return new Promise((resolve, reject) => {
      const end = (error: unknown): void => {
        this.#stream.watchReadable(null);
        if (error === null) resolve();
        else reject(error);
      };
      this.#stream.watchReadable(() => {
        try {
          return this.#receiveNow(end);
        } catch (error) {
          end(error);
          return 1;
        }
      });
      // What came with the end of the handshake is there already.
      try {
        this.#parse();
      } catch (error) {
        end(error);
      }
    });
  }

  /** Takes in what has arrived; how many pieces there were. Calls `end` at the end of the stream. */
  #receiveNow(end: (error: unknown) => void): number {
    let found = 0;
    for (let round = 0; round < MAX_ROUNDS; round++) {
      const received =
        this.#request !== null && this.#left >= DIRECT_RECEIVE_MIN
          ? this.#receiveDirect()
          : this.#rx.receive(this.#stream, this.#bulk ? BULK_FILL_BYTES : undefined);
      if (received === -E.EAGAIN) break;
      if (received <= 0) {
        end(received === 0 ? null : errnoError('Connection lost', -received));
        return found + 1;
      }
      found += 1 + this.#parse();
      // Room was left: nothing more is there.
      if (this.#request === null && this.#rx.hasRoom && !this.#bulk) break;
    }
    return found;
  }

  /** Everything that has arrived is taken in before more is asked for; how many pieces. */
  #parse(): number {
    let pieces = 0;
    while (this.#parseOne()) pieces++;
    return pieces;
  }

  /** Receives into the request's own memory. */
  #receiveDirect(): number {
    const { segments } = sliceVector((this.#request as ClientRequest).vec as IoVector, this.#at, this.#left);
    const { mem, start, length } = segments[0]!;
    const received = this.#stream.receive(mem, start, length);
    this.#bulk = true;
    if (received > 0) this.#took(received);
    return received;
  }

  #took(bytes: number): void {
    this.#at += bytes;
    this.#left -= bytes;
    if (this.#left > 0) return;
    const request = this.#request as ClientRequest;
    this.#request = null;
    if (this.#last) this.#complete(request);
  }

  /** Takes in the next piece of what has arrived; false when more must arrive first. */
  #parseOne(): boolean {
    const rx = this.#rx;
    if (this.#skip > 0) {
      const bytes = Math.min(this.#skip, rx.available);
      rx.start += bytes;
      this.#skip -= bytes;
      return bytes > 0;
    }
    if (this.#request !== null) return this.#copyData(this.#request);
    const { start, view, available } = rx;
    if (available < Layouts.simpleReply.bytes) return false;
    const magic = view.getUint32(start);
    if (magic === SIMPLE_REPLY_MAGIC && !this.#exp.extended) {
      this.#parseSimple(start);
      return true;
    }
    if (
      magic !== (this.#exp.extended ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC) ||
      !this.#exp.structured
    )
      throw new ProtocolViolation(`invalid magic (got 0x${magic.toString(16)})`);
    return this.#parseChunk(start);
  }

  #copyData(request: ClientRequest): boolean {
    const rx = this.#rx;
    const bytes = Math.min(rx.available, this.#left);
    if (bytes === 0) return false;
    const source = rx.mem.buf.subarray(rx.start, rx.start + bytes);
    const { segments } = request.vec as IoVector;
    if (segments.length === 1) {
      const { mem, start } = segments[0]!;
      mem.buf.set(source, start + this.#at);
    } else {
      let from = 0;
      for (const { mem, start, length } of sliceVector(request.vec as IoVector, this.#at, bytes).segments) {
        mem.buf.set(source.subarray(from, from + length), start);
        from += length;
      }
    }
    rx.start += bytes;
    if (this.#left < DIRECT_RECEIVE_MIN) this.#bulk = false;
    this.#took(bytes);
    return true;
  }

  /** The request a reply with its cookie at `position` belongs to. */
  #requestAt(position: number): ClientRequest {
    const { view } = this.#rx;
    const request = this.#owner.findRequest(view.getUint32(position + 4), view.getUint32(position));
    if (request === null) throw new ProtocolViolation('Unexpected cookie in a reply');
    return request;
  }

  #parseSimple(start: number): void {
    const rx = this.#rx;
    const error = rx.view.getUint32(start + 4);
    const request = this.#requestAt(start + 8);
    const needsChunks = request.type === Command.READ || request.type === Command.BLOCK_STATUS;
    if (this.#exp.structured && needsChunks)
      throw new ProtocolViolation('Protocol error: simple reply when structured reply chunk was expected');
    rx.start += Layouts.simpleReply.bytes;
    if (error !== 0) {
      request.errno = errnoOfNbd(error);
      this.#owner.replied(request);
    } else if (request.type === Command.READ) {
      request.received = request.length;
      this.#expectData(request, 0, request.length, true);
    } else {
      this.#owner.replied(request);
    }
  }

  #expectData(request: ClientRequest, at: number, bytes: number, last: boolean): void {
    this.#request = request;
    this.#at = at;
    this.#left = bytes;
    this.#last = last;
    // Nothing to come: the answer may be complete.
    if (bytes === 0) this.#took(0);
  }

  /** False: the part of the chunk that must be there as a whole is not there yet. */
  #parseChunk(start: number): boolean {
    const rx = this.#rx;
    const { view } = rx;
    if (rx.available < this.#chunkHeadBytes) return false;
    const type = view.getUint16(start + 6);
    const request = this.#requestAt(start + 8);
    const payload = this.#exp.extended
      ? join64(view.getUint32(start + 24), view.getUint32(start + 28))
      : view.getUint32(start + 16);
    const last = (view.getUint16(start + 4) & ChunkFlag.done) !== 0;
    const whole = this.#bytesToSee(request, type, payload);
    if (rx.available < this.#chunkHeadBytes + whole) return false;
    const at = start + this.#chunkHeadBytes;
    rx.start = at + whole;
    this.#skip = type === Chunk.OFFSET_DATA ? 0 : payload - whole;
    switch (type) {
      case Chunk.NONE:
        if (!last)
          throw new ProtocolViolation(
            'Protocol error: NBD_REPLY_TYPE_NONE chunk without NBD_REPLY_FLAG_DONE flag set',
          );
        break;
      case Chunk.OFFSET_DATA:
        this.#startData(request, join64(view.getUint32(at), view.getUint32(at + 4)), payload - whole, last);
        return true;
      case Chunk.OFFSET_HOLE:
        this.#takeHole(request, join64(view.getUint32(at), view.getUint32(at + 4)), view.getUint32(at + 8));
        break;
      case Chunk.BLOCK_STATUS:
      case Chunk.BLOCK_STATUS_EXT:
        this.#takeExtent(request, type, at);
        break;
      default:
        this.#takeError(request, view.getUint32(at));
    }
    if (last) this.#complete(request);
    return true;
  }

  /** Checks type and length of a chunk; how much of its payload is looked at as a whole. */
  #bytesToSee(request: ClientRequest, type: number, payload: number): number {
    const invalid = (): ProtocolViolation =>
      new ProtocolViolation(
        `Protocol error: invalid payload of ${payload} bytes for reply chunk of type ${type}`,
      );
    switch (type) {
      case Chunk.NONE:
        if (payload !== 0) throw invalid();
        return 0;
      case Chunk.OFFSET_DATA: {
        const head = Layouts.chunkOffsetData.bytes;
        if (
          request.type !== Command.READ ||
          payload <= head ||
          payload - head > request.length - request.received
        )
          throw invalid();
        return head;
      }
      case Chunk.OFFSET_HOLE:
        if (request.type !== Command.READ || payload !== Layouts.chunkOffsetHole.bytes) throw invalid();
        return payload;
      case Chunk.BLOCK_STATUS:
      case Chunk.BLOCK_STATUS_EXT: {
        const ext = type === Chunk.BLOCK_STATUS_EXT;
        const head = ext ? Layouts.chunkBlockStatusExt.bytes : Layouts.chunkBlockStatus.bytes;
        const extent = ext ? Layouts.extentExt.bytes : Layouts.extent.bytes;
        if (
          request.type !== Command.BLOCK_STATUS ||
          ext !== this.#exp.extended ||
          payload > CLIENT_MAX_CHUNK_BYTES
        )
          throw invalid();
        if (payload < head + extent || (payload - head) % extent !== 0) throw invalid();
        return head + extent;
      }
      default:
        if ((type & ERROR_BIT) === 0)
          throw new ProtocolViolation(`Protocol error: unexpected reply type ${type}`);
        if (payload < Layouts.chunkError.bytes || payload > CLIENT_MAX_CHUNK_BYTES) throw invalid();
        return Layouts.chunkError.bytes;
    }
  }

  /** Position of a piece of the answer within the request's data. */
  #place(request: ClientRequest, offset: number, bytes: number): number {
    const at = offset - request.offset;
    if (!(at >= 0 && bytes > 0 && at + bytes <= request.length))
      throw new ProtocolViolation('Protocol error: server sent chunk exceeding requested region');
    request.received += bytes;
    if (request.received > request.length)
      throw new ProtocolViolation('Protocol error: server sent a part of the requested region twice');
    return at;
  }

  #startData(request: ClientRequest, offset: number, bytes: number, last: boolean): void {
    this.#expectData(request, this.#place(request, offset, bytes), bytes, last);
  }

  #takeHole(request: ClientRequest, offset: number, bytes: number): void {
    const at = this.#place(request, offset, bytes);
    fillVector(sliceVector(request.vec as IoVector, at, bytes), 0);
  }

  #takeExtent(request: ClientRequest, type: number, at: number): void {
    const { view } = this.#rx;
    if (view.getUint32(at) !== this.#exp.contextId)
      throw new ProtocolViolation(`Protocol error: unexpected context id ${view.getUint32(at)}`);
    if (request.extentBytes > 0)
      throw new ProtocolViolation('Protocol error: several status chunks in one reply');
    if (type === Chunk.BLOCK_STATUS) {
      request.extentBytes = view.getUint32(at + 4);
      request.extentFlags = view.getUint32(at + 8);
    } else {
      request.extentBytes = join64(view.getUint32(at + 8), view.getUint32(at + 12));
      request.extentFlags = view.getUint32(at + 20);
    }
    if (request.extentBytes === 0)
      throw new ProtocolViolation('Protocol error: server sent status chunk with zero length');
  }

  #takeError(request: ClientRequest, error: number): void {
    request.errors++;
    if (error === 0) throw new ProtocolViolation('Protocol error: server sent error chunk without error');
    if (request.errors > CLIENT_MAX_ERROR_CHUNKS)
      throw new ProtocolViolation('Protocol error: endless reply');
    if (request.errno === 0) request.errno = errnoOfNbd(error);
  }

  #complete(request: ClientRequest): void {
    if (request.errno === 0) {
      if (request.type === Command.READ && request.received < request.length)
        throw new ProtocolViolation('Protocol error: server left out a part of the requested region');
      if (request.type === Command.BLOCK_STATUS && request.extentBytes === 0)
        throw new ProtocolViolation('Protocol error: server did not reply with any status extents');
    }
    this.#owner.replied(request);
  }
}
