/**
 * The transmission phase of an NBD server connection: requests in, replies out.
 *
 * The way of a request: one read of the socket brings many; all complete ones are parsed and handed to the backend
 * without waiting for each other; what they answer goes out together (reply-queue.ts). Reads and writes go straight
 * to the backend and come back through two functions made once per request record (executor.ts): no await, no closure.
 *
 * A request counts its charge (its size and an overhead) from its arrival until its reply was sent. Above the limit,
 * and while the export is drained, the connection stops parsing and reading: that is the whole of the backpressure.
 */

import { plug, unplug } from '../../aio/defer.ts';
import type { ByteStream } from '../../aio/engine.ts';
import { clientMemory } from '../../aio/host/client-memory.ts';
import { E } from '../../errors/errno.ts';
import { DIRECT_RECEIVE_MIN, MAX_IN_FLIGHT_BYTES, MAX_PAYLOAD } from '../protocol/limits.ts';
import {
  Command,
  CommandFlag,
  EXTENDED_REQUEST_MAGIC,
  join64,
  Layouts,
  NbdError,
  REQUEST_MAGIC,
} from '../protocol/messages.ts';
import type { ReceiveBuffer } from '../protocol/receive-buffer.ts';
import { type BufferPool, HEADROOM_BYTES, type RequestBuffer, setPayload } from './buffers.ts';
import type { MetaContext } from './contexts.ts';
import { RequestError } from './errors.ts';
import { Executor, type Slot } from './executor.ts';
import type { ExportClient, NbdExport } from './export.ts';
import type { NegotiatedClient } from './negotiation.ts';
import { ReplyQueue, type ReplyQueueOwner } from './reply-queue.ts';
import { chargeOf, findFault, isLengthLimited, tooLong } from './request.ts';

const COMPACT_BYTES = Layouts.request.bytes;
const EXTENDED_BYTES = Layouts.extendedRequest.bytes;
const FILTER_HEAD_BYTES = Layouts.blockStatusFilter.bytes;
/** Read this much at a time while large writes come in: their data should go past the receive buffer. */
const BULK_FILL_BYTES = 4096 + EXTENDED_BYTES;

/** Reads of the socket in one go: then others have their turn. */
const MAX_ROUNDS = 16;

/** What comes after parsing stopped. */
type Next = 'fill' | 'direct' | 'skip' | 'wait' | 'leave';

export class Transmission implements ExportClient, ReplyQueueOwner {
  readonly #exp: NbdExport;
  readonly #stream: ByteStream;
  readonly #rx: ReceiveBuffer;
  readonly #pool: BufferPool;
  readonly #executor: Executor;
  readonly #structured: boolean;
  readonly #extended: boolean;
  readonly #headerBytes: number;
  readonly #magic: number;
  readonly #contexts: readonly MetaContext[];

  /** Sum of the charges of the requests that have no sent reply yet, and their number. */
  #inFlightBytes = 0;
  #inFlight = 0;
  /** A write whose data is received straight into its buffer, and how much of it has come. */
  #direct: Slot | null = null;
  #directReceived = 0;
  /** Payload of a refused request, still to be passed over. */
  #skipBytes = 0;
  #bulk = false;
  #closed = false;
  /** Requests that have come so far. */
  #requests = 0;
  /** Inside receiveNow; something has happened meanwhile that may let it go on. */
  #isReceiving = false;
  /** The parser waits for a reply to have been sent, or for the end of a drained section. */
  #isHeldUp = false;
  #again = false;
  /** The client has said all it will. */
  #isOver = false;
  #wake: (() => void) | null = null;
  /** What went wrong in our own code. */
  #failure: { readonly error: unknown } | null = null;
  readonly #onMemory = (): void => void this.#receiveNow();
  readonly #holder = clientMemory.open(() => this.disconnect());
  readonly #onReadable = (): number => this.#receiveNow();

  constructor(client: NegotiatedClient, rx: ReceiveBuffer, pool: BufferPool) {
    this.#exp = client.exp;
    this.#stream = client.stream;
    this.#stream.owed = () => this.#inFlight;
    this.#rx = rx;
    this.#pool = pool;
    this.#structured = client.structured;
    this.#extended = client.extended;
    this.#headerBytes = client.extended ? EXTENDED_BYTES : COMPACT_BYTES;
    this.#magic = client.extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC;
    this.#contexts = client.contexts;
    const style = client.extended ? 'extended' : client.structured ? 'structured' : 'simple';
    this.#executor = new Executor(client, pool, new ReplyQueue(client.stream, style, pool, this));
  }

  /** Serves the client until it leaves or is disconnected, and all its requests are finished. */
  async run(): Promise<void> {
    try {
      this.#receiveNow();
      while (!this.#isOver) await this.#pause();
      // Whether it left or broke the protocol: what is under way is still answered.
      while (this.#inFlight > 0) await this.#pause();
      if (this.#failure !== null) throw this.#failure.error;
    } finally {
      this.disconnect();
      while (this.#inFlight > 0) await this.#pause();
      clientMemory.close(this.#holder);
    }
  }

  /** Ends the connection at once; run() returns when the requests under way have ended. */
  disconnect(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#stream.close();
    this.#receiveNow();
  }

  /** The export is no longer drained. */
  resume(): void {
    this.#receiveNow();
  }

  repliesSent(replies: number, charge: number): void {
    this.#inFlight -= replies;
    this.#inFlightBytes -= charge;
    clientMemory.remove(this.#holder, charge);
    this.#executor.goOn();
    if (this.#isHeldUp || this.#isReceiving) this.#receiveNow();
    if (this.#isOver) this.#wakeUp();
  }

  sendFailed(): void {
    this.disconnect();
  }

  #pause(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }

  /** Lets run() look again. */
  #wakeUp(): void {
    const wake = this.#wake;
    this.#wake = null;
    wake?.();
  }

  // ---- receiving ---------------------------------------------------------------------------------------------

  /**
   * Takes in all that has arrived, and starts it; how many requests. Then the stream is watched, unless it is
   * for us to go on: when held up (receiveNow is called again), or when it is over.
   */
  #receiveNow(): number {
    if (this.#isOver) return 0;
    if (this.#isReceiving) {
      this.#again = true;
      return 0;
    }
    this.#isReceiving = true;
    this.#isHeldUp = false;
    const before = this.#requests;
    let isDrained = false;
    let next: Next = 'leave';
    try {
      for (let round = 0; !this.#closed; round++) {
        next = this.#parsePlugged();
        // A reply that has been sent meanwhile may be what it waits for.
        if (next === 'wait' && this.#again) continue;
        if (next === 'wait' || next === 'leave' || isDrained || round >= MAX_ROUNDS) break;
        const received = this.#take(next);
        if (received === -E.EAGAIN) break;
        if (received <= 0) {
          next = 'leave';
          break;
        }
        // Room was left: nothing more is there.
        isDrained = next === 'fill' && !this.#bulk && this.#rx.hasRoom;
      }
    } catch (error) {
      this.#failure = { error };
      next = 'leave';
    }
    this.#isReceiving = false;
    if (next === 'leave' || this.#closed) {
      this.#leave();
    } else {
      this.#isHeldUp = next === 'wait';
      this.#stream.watchReadable(this.#isHeldUp ? null : this.#onReadable);
    }
    return this.#requests - before;
  }

  /** Requests, and replies that are ready by then: one submission. */
  #parsePlugged(): Next {
    this.#again = false;
    plug();
    try {
      return this.#parse();
    } finally {
      unplug();
    }
  }

  /** Nothing more is taken in. */
  #leave(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#stream.watchReadable(null);
    if (this.#direct !== null) this.#discard(this.#direct);
    this.#direct = null;
    this.#wakeUp();
  }

  /** Receives what is next: bytes, 0 at the end, or -errno. */
  #take(next: 'fill' | 'direct' | 'skip'): number {
    if (next === 'direct') return this.#receiveDirect();
    const received = this.#rx.receive(this.#stream, this.#bulk ? BULK_FILL_BYTES : undefined);
    if (next === 'skip' && received > 0) this.#skipBytes -= this.#consume(this.#skipBytes);
    return received;
  }

  #consume(most: number): number {
    const bytes = Math.min(most, this.#rx.available);
    this.#rx.start += bytes;
    return bytes;
  }

  /** Receives more of a write's data into its buffer. */
  #receiveDirect(): number {
    const { mem, payload } = (this.#direct as Slot).buffer as RequestBuffer;
    const received = this.#stream.receive(
      mem,
      HEADROOM_BYTES + this.#directReceived,
      payload.length - this.#directReceived,
    );
    if (received > 0) this.#directReceived += received;
    return received;
  }

  /** Goes on with what had to wait for more to arrive; null when requests may be parsed. */
  #finishPending(): Next | null {
    if (this.#skipBytes > 0) return 'skip';
    const slot = this.#direct;
    if (slot === null) return null;
    if (this.#directReceived < (slot.buffer as RequestBuffer).payload.length) return 'direct';
    if (this.#exp.paused) return 'wait';
    this.#direct = null;
    this.#bulk = true;
    this.#executor.startWrite(slot);
    return null;
  }

  /** Parses and starts every request that has arrived in full. */
  #parse(): Next {
    this.#exp.dataMap.tick(performance.now());
    let next = this.#finishPending();
    while (next === null) next = this.#parseOne();
    return next;
  }

  /** Parses one request; null when the next one may follow. */
  #parseOne(): Next | null {
    const rx = this.#rx;
    const at = rx.start;
    const available = rx.end - at;
    if (available < this.#headerBytes) return 'fill';
    if (this.#exp.paused) return 'wait';
    const { view } = rx;
    const extended = this.#extended;
    const magic = view.getUint32(at);
    const type = view.getUint16(at + 6);
    const flags = view.getUint16(at + 4);
    const length = extended
      ? join64(view.getUint32(at + 24), view.getUint32(at + 28))
      : view.getUint32(at + 24);
    const hasPayload = extended ? (flags & CommandFlag.payloadLength) !== 0 : type === Command.WRITE;
    const charge = chargeOf(type, length, this.#contexts.length);
    // Either a reply of this connection ends the wait, or what others give back.
    if (this.#inFlight > 0 && this.#inFlightBytes + charge > MAX_IN_FLIGHT_BYTES) return 'wait';
    if (!clientMemory.fits(charge, this.#inFlight === 0)) {
      clientMemory.wait(this.#onMemory);
      return 'wait';
    }

    if (type === Command.WRITE && hasPayload && length <= MAX_PAYLOAD && magic === this.#magic) {
      if (this.#awaitPayload(length, available - this.#headerBytes)) return 'fill';
    }
    const slot = this.#executor.takeSlot();
    slot.type = type;
    slot.flags = flags;
    slot.cookieHigh = view.getUint32(at + 8);
    slot.cookieLow = view.getUint32(at + 12);
    slot.offsetHigh = view.getUint32(at + 16);
    slot.offsetLow = view.getUint32(at + 20);
    slot.offset = join64(slot.offsetHigh, slot.offsetLow);
    slot.length = length;
    slot.charge = charge;
    this.#requests++;
    this.#inFlight++;
    this.#inFlightBytes += charge;
    clientMemory.add(this.#holder, charge);
    rx.start = at + this.#headerBytes;

    if (magic !== this.#magic) {
      this.#executor.refuse(
        slot,
        new RequestError(NbdError.EINVAL, `invalid magic (got 0x${magic.toString(16)})`),
      );
      return 'leave';
    }
    if (type === Command.DISC) {
      this.#discard(slot);
      return 'leave';
    }
    if (length > MAX_PAYLOAD && (isLengthLimited(type) || hasPayload)) {
      this.#executor.refuse(slot, tooLong(length));
      // What follows cannot be told from data, and reading it all would cost too much.
      return hasPayload || type === Command.WRITE ? 'leave' : null;
    }
    return this.#accept(slot, hasPayload);
  }

  /** Whether to wait for the rest of a write's data in the receive buffer, rather than receive it directly. */
  #awaitPayload(length: number, arrived: number): boolean {
    if (arrived >= length) return false;
    const { mem } = this.#rx;
    return length - arrived < DIRECT_RECEIVE_MIN && this.#headerBytes + length <= mem.buf.length;
  }

  /** Checks a request and starts it, or refuses it and passes over its payload. */
  #accept(slot: Slot, hasPayload: boolean): Next | null {
    const { type, length } = slot;
    if (this.#extended && hasPayload !== (type === Command.WRITE))
      return this.#acceptOddPayload(slot, hasPayload);
    const fault = findFault(slot, this.#exp, this.#structured, this.#extended);
    if (fault !== null) {
      this.#executor.refuse(slot, fault);
      return hasPayload ? this.#skipPayload(length) : null;
    }
    if (type === Command.READ) {
      this.#executor.startRead(slot);
      return null;
    }
    if (type !== Command.WRITE) {
      this.#executor.startCommand(slot);
      return null;
    }
    return this.#takePayload(slot);
  }

  /** A command other than WRITE with a payload, or WRITE without one: only with extended headers. */
  #acceptOddPayload(slot: Slot, hasPayload: boolean): Next | null {
    if (slot.type !== Command.BLOCK_STATUS) {
      const text = hasPayload ? 'unexpected payload' : 'payload length flag missing';
      this.#executor.refuse(slot, new RequestError(NbdError.EINVAL, `${text} in command ${slot.type}`));
      return hasPayload ? this.#skipPayload(slot.length) : null;
    }
    if (!hasPayload) {
      const fault = findFault(slot, this.#exp, this.#structured, true);
      if (fault !== null) this.#executor.refuse(slot, fault);
      else this.#executor.startCommand(slot);
      return null;
    }
    return this.#acceptFilter(slot);
  }

  /** BLOCK_STATUS with a list of contexts: the length is that of the payload, the effect length is inside. */
  #acceptFilter(slot: Slot): Next | null {
    const rx = this.#rx;
    const payloadBytes = slot.length;
    const ids = (payloadBytes - FILTER_HEAD_BYTES) / 4;
    // No valid list is longer than the contexts there are; the rest need not even be looked at.
    if (!Number.isInteger(ids) || ids < 1 || ids > this.#contexts.length) {
      this.#executor.refuse(
        slot,
        new RequestError(NbdError.EINVAL, 'invalid context list in command block status'),
      );
      return this.#skipPayload(payloadBytes);
    }
    if (rx.available < payloadBytes) {
      // A few bytes are missing: parse the whole request again when they are there.
      rx.start -= this.#headerBytes;
      this.#discard(slot);
      return 'fill';
    }
    const { view, start } = rx;
    slot.length = join64(view.getUint32(start), view.getUint32(start + 4));
    const filter: number[] = [];
    for (let i = 0; i < ids; i++) filter.push(view.getUint32(start + FILTER_HEAD_BYTES + i * 4));
    rx.start += payloadBytes;
    const known = filter.every((id) => this.#contexts.some((context) => context.id === id));
    const fault = findFault(slot, this.#exp, this.#structured, true);
    if (!known || new Set(filter).size < filter.length) {
      this.#executor.refuse(
        slot,
        new RequestError(NbdError.EINVAL, 'invalid context list in command block status'),
      );
    } else if (fault !== null) {
      this.#executor.refuse(slot, fault);
    } else {
      slot.filter = filter;
      this.#executor.startCommand(slot);
    }
    return null;
  }

  #skipPayload(bytes: number): Next | null {
    this.#skipBytes = bytes - this.#consume(bytes);
    return this.#skipBytes > 0 ? 'skip' : null;
  }

  /** Writes from the receive buffer what can be written at once; else moves the data to a buffer of their own. */
  #takePayload(slot: Slot): Next | null {
    const rx = this.#rx;
    const { length } = slot;
    if (rx.available >= length) {
      this.#bulk = false;
      if (this.#executor.writeNow(slot, rx)) return null;
    }
    const buffer = this.#pool.take(length);
    slot.buffer = buffer;
    setPayload(buffer, length);
    const arrived = Math.min(length, rx.end - rx.start);
    rx.mem.buf.copy(buffer.mem.buf, HEADROOM_BYTES, rx.start, rx.start + arrived);
    rx.start += arrived;
    if (arrived < length) {
      this.#direct = slot;
      this.#directReceived = arrived;
      return 'direct';
    }
    this.#executor.startWrite(slot);
    return null;
  }

  /** Forgets a request that gets no answer. */
  #discard(slot: Slot): void {
    this.#inFlight--;
    this.#inFlightBytes -= slot.charge;
    clientMemory.remove(this.#holder, slot.charge);
    this.#executor.release(slot);
  }
}
