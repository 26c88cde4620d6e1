/**
 * The transmission phase as a client: many requests under way at once on one connection, answered in any order.
 *
 * A cookie is the number of the request's slot and a generation that tells it from earlier users of the slot, so a
 * reply is matched by one look into an array, and a stale or invented cookie is found out. A request ends when it has
 * been answered and the kernel is done with its data. When the connection is lost, whatever the reason, it is closed,
 * the reads and writes under way end, and only then are the unfinished requests given back: nothing touches their
 * memory any more.
 *
 * What a server sends is taken in by client/receiver.ts.
 */

import type { ByteStream } from '../../aio/engine.ts';
import { E } from '../../errors/errno.ts';
import { assert, BlockError, errnoError } from '../../errors/error.ts';
import { CLIENT_CLOSE_MAX_MS, CLIENT_MAX_REQUESTS } from '../protocol/limits.ts';
import { Command } from '../protocol/messages.ts';
import type { ReceiveBuffer } from '../protocol/receive-buffer.ts';
import type { OpenedConnection, RemoteExport } from './handshake.ts';
import { ClientReceiver, ProtocolViolation } from './receiver.ts';
import { ClientRequest } from './request.ts';
import { ClientSender } from './sender.ts';

export interface ClientConnectionOwner {
  /** A request has ended and there is room for another one; called before the request's own `done`. */
  requestDone(connection: ClientConnection): void;
  /** The connection is lost. `unfinished`: requests that were not answered, oldest first. */
  connectionLost(
    connection: ClientConnection,
    reason: BlockError,
    unfinished: readonly ClientRequest[],
  ): void;
}

export class ClientConnection {
  readonly exp: RemoteExport;
  readonly #stream: ByteStream;
  readonly #owner: ClientConnectionOwner;
  readonly #sender: ClientSender;
  readonly #receiver: ClientReceiver;
  /** Requests under way by slot. */
  readonly #slots: (ClientRequest | null)[] = new Array(CLIENT_MAX_REQUESTS).fill(null);
  readonly #free: number[] = Array.from(
    { length: CLIENT_MAX_REQUESTS },
    (_, i) => CLIENT_MAX_REQUESTS - 1 - i,
  );
  #generation = 0;
  #state: 'open' | 'closing' | 'lost' = 'open';
  readonly #receiving: Promise<void>;
  /** A request has been answered. */
  progressed = false;

  constructor({ stream, exp }: OpenedConnection, rx: ReceiveBuffer, owner: ClientConnectionOwner) {
    this.exp = exp;
    this.#stream = stream;
    this.#owner = owner;
    this.#sender = new ClientSender(stream, exp.extended, {
      requestsSent: (requests) => this.#requestsSent(requests),
      sendFailed: (errno) => this.#lose(errnoError('Connection lost', errno)),
    });
    this.#receiver = new ClientReceiver(stream, rx, exp, {
      findRequest: (slot, generation) => this.#find(slot, generation),
      replied: (request) => this.#replied(request),
    });
    this.#receiving = this.#receiver.run().then(
      () => this.#lose(errnoError('Connection lost', E.ECONNRESET)),
      (error: unknown) =>
        this.#lose(error instanceof BlockError ? error : new ProtocolViolation(String(error))),
    );
  }

  get isOpen(): boolean {
    return this.#state === 'open';
  }

  /** Requests under way. */
  get inFlight(): number {
    return CLIENT_MAX_REQUESTS - this.#free.length;
  }

  get isFull(): boolean {
    return this.#free.length === 0;
  }

  /** Sends a request; there must be room, and the connection must be open. */
  submit(request: ClientRequest): void {
    const slot = this.#free.pop();
    assert(slot !== undefined && this.#state === 'open', 'request on a full or closed connection');
    request.reset();
    request.slot = slot;
    this.#generation = (this.#generation + 1) >>> 0;
    request.generation = this.#generation;
    this.#slots[slot] = request;
    this.#sender.send(request);
  }

  /** Takes leave of the server and closes. Requests under way must have ended. Resolves when all is at rest. */
  async close(): Promise<void> {
    if (this.#state === 'open') {
      assert(this.inFlight === 0, 'connection closed with requests under way');
      this.#state = 'closing';
      const bye = new ClientRequest(Command.DISC, 0, 0, 0, null, () => undefined);
      bye.slot = 0;
      this.#sender.send(bye);
      // A server that does not even read must not hold us up.
      const timer = setTimeout(() => this.#stream.close(), CLIENT_CLOSE_MAX_MS);
      await new Promise<void>((resolve) => process.nextTick(resolve));
      await this.#sender.idle();
      clearTimeout(timer);
    }
    this.#stream.close();
    await this.#receiving;
    await this.#sender.idle();
  }

  /** Gives the connection up: as if it had been lost. */
  abandon(reason: BlockError): void {
    this.#lose(reason);
  }

  #find(slot: number, generation: number): ClientRequest | null {
    const request = slot < CLIENT_MAX_REQUESTS ? this.#slots[slot]! : null;
    return request !== null && request.generation === generation && request.started && !request.replied
      ? request
      : null;
  }

  #replied(request: ClientRequest): void {
    request.replied = true;
    if (request.sent) this.#finish(request);
  }

  #requestsSent(requests: readonly ClientRequest[]): void {
    for (const request of requests) {
      request.sent = true;
      if (request.replied && request.type !== Command.DISC) this.#finish(request);
    }
  }

  #finish(request: ClientRequest): void {
    this.progressed = true;
    this.#slots[request.slot] = null;
    this.#free.push(request.slot);
    this.#owner.requestDone(this);
    request.done(request.errno);
  }

  #lose(reason: BlockError): void {
    if (this.#state !== 'open') return;
    this.#state = 'lost';
    this.#stream.close();
    this.#sender.stop();
    void this.#giveBack(reason);
  }

  async #giveBack(reason: BlockError): Promise<void> {
    await this.#receiving;
    await this.#sender.idle();
    const requests = this.#slots.filter((request) => request !== null);
    const unfinished = requests.filter((request) => !request.replied).sort((a, b) => a.serial - b.serial);
    for (const request of requests) if (request.replied) request.done(request.errno);
    this.#owner.connectionLost(this, reason, unfinished);
  }
}
