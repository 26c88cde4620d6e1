/**
 * The send side of a client's connection: requests are gathered and go out in one write of many segments.
 *
 * What is submitted in one turn of the event loop is sent together; what is submitted while a write is under way goes
 * with the next one. Headers lie one behind the other in one area, so that sixty-four reads are one segment.
 */

import { deferCall, isPlugged } from '../../aio/defer.ts';
import { type ByteStream, sendAll } from '../../aio/engine.ts';
import { allocateIoMemory, type IoMemory, type IoSegment } from '../../aio/memory.ts';
import { CoQueue } from '../../coroutine/co-queue.ts';
import { CLIENT_MAX_REQUESTS, MAX_REPLY_SEGMENTS } from '../protocol/limits.ts';
import {
  Command,
  CommandFlag,
  EXTENDED_REQUEST_MAGIC,
  Layouts,
  REQUEST_MAGIC,
} from '../protocol/messages.ts';
import type { ClientRequest } from './request.ts';

const TWO_32 = 0x1_0000_0000;

export interface ClientSenderOwner {
  /** Nothing of these requests is waiting to be sent. */
  requestsSent(requests: readonly ClientRequest[]): void;
  /** `errno` positive. */
  sendFailed(errno: number): void;
}

export class ClientSender {
  readonly #stream: ByteStream;
  readonly #extended: boolean;
  readonly #headerBytes: number;
  readonly #owner: ClientSenderOwner;
  readonly #headers: IoMemory;
  readonly #view: DataView;
  readonly #segments: IoSegment[] = [];
  #queue: ClientRequest[] = [];
  #batch: ClientRequest[] = [];
  #scheduled = false;
  #isWriting = false;
  readonly #idle = new CoQueue();
  #failed = false;
  readonly #flush = (): void => {
    this.#scheduled = false;
    this.#sendNext();
  };
  readonly #written = (result: number): void => this.#finishBatch(result);

  constructor(stream: ByteStream, extended: boolean, owner: ClientSenderOwner) {
    this.#stream = stream;
    this.#extended = extended;
    this.#headerBytes = extended ? Layouts.extendedRequest.bytes : Layouts.request.bytes;
    this.#owner = owner;
    this.#headers = allocateIoMemory(CLIENT_MAX_REQUESTS * this.#headerBytes);
    const { buf } = this.#headers;
    this.#view = new DataView(buf.buffer, buf.byteOffset, buf.length);
  }

  /** Sends the request with what else is submitted in this turn. Its slot and generation are set. */
  send(request: ClientRequest): void {
    this.#queue.push(request);
    if (this.#scheduled || this.#isWriting) return;
    this.#scheduled = true;
    if (isPlugged()) deferCall(this.#flush, undefined);
    else process.nextTick(this.#flush);
  }

  /** Resolves when no write is under way: nobody looks at a request's data any more. */
  async idle(): Promise<void> {
    while (this.#isWriting) await this.#idle.wait();
  }

  /** Sends nothing any more. */
  stop(): void {
    this.#failed = true;
    this.#queue.length = 0;
  }

  #sendNext(): void {
    if (this.#isWriting || this.#queue.length === 0 || this.#failed) return;
    const queue = this.#queue;
    const segments = this.#segments;
    segments.length = 0;
    let used = 0;
    let headersFrom = 0;
    let count = 0;
    for (const request of queue) {
      if (count === CLIENT_MAX_REQUESTS || segments.length > MAX_REPLY_SEGMENTS) break;
      this.#writeHeader(request, used);
      used += this.#headerBytes;
      count++;
      request.started = true;
      if (request.type !== Command.WRITE) continue;
      segments.push({ mem: this.#headers, start: headersFrom, length: used - headersFrom });
      headersFrom = used;
      segments.push(...request.vec!.segments);
    }
    if (used > headersFrom)
      segments.push({ mem: this.#headers, start: headersFrom, length: used - headersFrom });
    if (count === queue.length) {
      this.#queue = this.#batch;
      this.#queue.length = 0;
      this.#batch = queue;
    } else {
      this.#batch = queue.splice(0, count);
    }
    this.#isWriting = true;
    sendAll(this.#stream, segments, 0, this.#written);
  }

  #writeHeader(request: ClientRequest, at: number): void {
    const view = this.#view;
    const { type, offset, length } = request;
    const payload = this.#extended && type === Command.WRITE ? CommandFlag.payloadLength : 0;
    view.setUint32(at, this.#extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC);
    view.setUint16(at + 4, request.flags | payload);
    view.setUint16(at + 6, type);
    view.setUint32(at + 8, request.generation);
    view.setUint32(at + 12, request.slot);
    view.setUint32(at + 16, offset / TWO_32);
    view.setUint32(at + 20, offset % TWO_32);
    if (this.#extended) {
      view.setUint32(at + 24, length / TWO_32);
      view.setUint32(at + 28, length % TWO_32);
    } else {
      view.setUint32(at + 24, length);
    }
  }

  #finishBatch(result: number): void {
    this.#isWriting = false;
    this.#idle.wakeAll();
    if (result < 0) {
      this.#failed = true;
      this.#owner.sendFailed(-result);
      return;
    }
    const batch = this.#batch;
    this.#owner.requestsSent(batch);
    batch.length = 0;
    this.#sendNext();
  }
}
