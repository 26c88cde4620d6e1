/**
 * A client's lasting relation to one export: connections come and go, requests stay.
 *
 * States: `connected`; `delayed`, when the connection was lost and requests wait for the next one, for as long as
 * reconnect-delay says; `failing`, when that time is over (or there was none) and requests fail at once; `closed`.
 * In the middle two a connection is tried for again and again. A lost connection gives its unfinished requests back,
 * and they are sent again, oldest first. A server that takes connections and answers nothing does not start the delay
 * anew, and a request that has seen several connections break the protocol fails: nothing waits for ever on a
 * server that only looks alive.
 *
 * Where the server promises that several connections see the same data (CAN_MULTI_CONN), more are opened when the
 * load asks for them. The promise covers flushes.
 */

import type { IoVector } from '../../aio/memory.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, ioError } from '../../errors/error.ts';
import {
  CLIENT_CONNECTION_LOAD,
  CLIENT_EXTRA_CONNECT_MAX_MS,
  CLIENT_HANDSHAKE_MAX_MS,
  CLIENT_MAX_SPOILT,
  CLIENT_RETRY_MAX_MS,
  CLIENT_RETRY_MIN_MS,
} from '../protocol/limits.ts';
import { Command, ExportFlag } from '../protocol/messages.ts';
import { type ClientTarget, connectToExport } from './connect.ts';
import type { ClientConnection, ClientConnectionOwner } from './connection.ts';
import type { RemoteExport } from './handshake.ts';
import { ProtocolViolation } from './receiver.ts';
import { ClientRequest } from './request.ts';

export interface ClientSessionSettings {
  readonly target: ClientTarget;
  /** How long requests wait for a new connection; 0: they fail at once. */
  readonly reconnectDelayMs: number;
  /** How long the first connection is tried for; 0: one attempt. */
  readonly openTimeoutMs: number;
  /** Most connections at a time. */
  readonly maxConnections: number;
  /** Gives up the first connection. */
  readonly signal?: AbortSignal;
  /** Told of what no request reports. */
  readonly warn: (message: string) => void;
}

/** The user gave up the requests under way. */
class RequestsCancelled extends BlockError {}

/** An extent as the server describes it. */
export interface RemoteExtent {
  readonly bytes: number;
  readonly flags: number;
}

/** Opens an export. Throws BlockError in the original's words. */
export async function openSession(settings: ClientSessionSettings): Promise<ClientSession> {
  const session = new ClientSession(settings);
  await session.connect();
  return session;
}

export class ClientSession implements ClientConnectionOwner {
  readonly #settings: ClientSessionSettings;
  readonly #closing = new AbortController();
  #state: 'connected' | 'delayed' | 'failing' | 'closed' = 'failing';
  #connections: ClientConnection[] = [];
  /** Requests that wait for room or for a connection, oldest first. */
  #queue: ClientRequest[] = [];
  #serial = 0;
  #delayTimer: NodeJS.Timeout | null = null;
  /** performance.now() at which waiting requests fail. */
  #deadlineMs = 0;
  #reconnecting: Promise<void> | null = null;
  #openingExtra: Promise<void> | null = null;
  #mayOpenExtra = false;
  #exp: RemoteExport | null = null;

  constructor(settings: ClientSessionSettings) {
    this.#settings = settings;
  }

  /** The export as it was when it was first opened; later connections offer no less. */
  get exp(): RemoteExport {
    return this.#exp as RemoteExport;
  }

  // ---- requests ----------------------------------------------------------------------------------------------

  /** Sends a request and waits for its end. Throws ioError. `vec` holds exactly `length` bytes. */
  request(type: number, flags: number, offset: number, length: number, vec: IoVector | null): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#start(
        new ClientRequest(type, flags, offset, length, vec, (errno) => {
          if (errno === 0) resolve();
          else reject(ioError(errno));
        }),
      );
    });
  }

  /** The first extent of the range in the context that was wished for. */
  blockStatus(flags: number, offset: number, length: number): Promise<RemoteExtent> {
    return new Promise((resolve, reject) => {
      const request = new ClientRequest(Command.BLOCK_STATUS, flags, offset, length, null, (errno) => {
        if (errno === 0) resolve({ bytes: request.extentBytes, flags: request.extentFlags });
        else reject(ioError(errno));
      });
      this.#start(request);
    });
  }

  #start(request: ClientRequest): void {
    request.serial = this.#serial++;
    if (this.#state === 'failing' || this.#state === 'closed') {
      request.done(E.EIO);
      return;
    }
    const connection = this.#queue.length > 0 ? null : this.#pick();
    if (connection === null) this.#queue.push(request);
    else connection.submit(request);
  }

  /** The connection with most room; null when there is none. */
  #pick(): ClientConnection | null {
    let best: ClientConnection | null = null;
    for (const connection of this.#connections) {
      if (connection.isOpen && !connection.isFull && (best === null || connection.inFlight < best.inFlight))
        best = connection;
    }
    if (best !== null && best.inFlight >= CLIENT_CONNECTION_LOAD && this.#mayOpenExtra) this.#openExtra();
    return best;
  }

  #pump(): void {
    while (this.#queue.length > 0 && this.#state === 'connected') {
      const connection = this.#pick();
      if (connection === null) return;
      connection.submit(this.#queue.shift() as ClientRequest);
    }
  }

  requestDone(): void {
    if (this.#queue.length > 0) this.#pump();
  }

  // ---- losing a connection -----------------------------------------------------------------------------------

  connectionLost(
    connection: ClientConnection,
    reason: BlockError,
    unfinished: readonly ClientRequest[],
  ): void {
    this.#connections = this.#connections.filter((other) => other !== connection);
    const again: ClientRequest[] = [];
    if (reason instanceof RequestsCancelled) this.#failQueue();
    for (const request of unfinished) {
      if (reason instanceof RequestsCancelled) request.spoilt = CLIENT_MAX_SPOILT;
      if (reason instanceof ProtocolViolation) request.spoilt++;
      if (request.spoilt < CLIENT_MAX_SPOILT) again.push(request);
      else request.done(E.EIO);
    }
    this.#queue = [...again, ...this.#queue].sort((one, other) => one.serial - other.serial);
    if (reason instanceof ProtocolViolation) this.#settings.warn(reason.message);
    if (this.#state === 'closed') this.#failQueue();
    else if (this.#connections.length > 0) {
      this.#mayOpenExtra = false;
      this.#pump();
    } else {
      this.#wentDown(connection.progressed);
    }
  }

  #wentDown(progressed: boolean): void {
    const nowMs = performance.now();
    if (progressed || this.#deadlineMs === 0) this.#deadlineMs = nowMs + this.#settings.reconnectDelayMs;
    const leftMs = this.#deadlineMs - nowMs;
    if (leftMs > 0) {
      this.#state = 'delayed';
      this.#delayTimer = setTimeout(() => this.#fail(), leftMs);
    } else {
      this.#fail();
    }
    this.#reconnecting ??= this.#reconnect(progressed).finally(() => {
      this.#reconnecting = null;
    });
  }

  /** The time is over: requests fail until there is a connection. */
  #fail(): void {
    this.#state = 'failing';
    this.#stopDelay();
    this.#failQueue();
  }

  #failQueue(): void {
    for (const request of this.#queue.splice(0)) request.done(E.EIO);
  }

  #stopDelay(): void {
    if (this.#delayTimer !== null) clearTimeout(this.#delayTimer);
    this.#delayTimer = null;
  }

  // ---- connecting --------------------------------------------------------------------------------------------

  /** The first connection. */
  async connect(): Promise<void> {
    const { signal } = this.#settings;
    const giveUp = (): void => this.#closing.abort();
    signal?.addEventListener('abort', giveUp);
    if (signal?.aborted === true) giveUp();
    try {
      await this.#tryFirst();
    } finally {
      signal?.removeEventListener('abort', giveUp);
    }
  }

  async #tryFirst(): Promise<void> {
    const { openTimeoutMs, target } = this.#settings;
    const deadlineMs = performance.now() + openTimeoutMs;
    let pauseMs = CLIENT_RETRY_MIN_MS;
    for (;;) {
      const leftMs = deadlineMs - performance.now();
      try {
        const timeoutMs = openTimeoutMs === 0 ? CLIENT_HANDSHAKE_MAX_MS : Math.max(leftMs, 1);
        this.#connected(await connectToExport(target, this, this.#closing.signal, timeoutMs));
        return;
      } catch (error) {
        if (this.#closing.signal.aborted || performance.now() + pauseMs >= deadlineMs) throw error;
      }
      await this.#sleep(pauseMs);
      pauseMs = Math.min(pauseMs * 2, CLIENT_RETRY_MAX_MS);
    }
  }

  #connected(connection: ClientConnection): void {
    this.#exp ??= connection.exp;
    this.#connections = [connection];
    this.#state = 'connected';
    this.#mayOpenExtra =
      (connection.exp.flags & ExportFlag.canMultiConn) !== 0 && this.#settings.maxConnections > 1;
    this.#stopDelay();
    this.#pump();
  }

  /** Tries until there is a connection or the session is closed. */
  async #reconnect(atOnce: boolean): Promise<void> {
    let pauseMs = CLIENT_RETRY_MIN_MS;
    if (!atOnce) await this.#sleep(pauseMs);
    while (!this.#closing.signal.aborted) {
      try {
        const { signal } = this.#closing;
        const connection = await connectToExport(
          this.#settings.target,
          this,
          signal,
          CLIENT_HANDSHAKE_MAX_MS,
        );
        if (signal.aborted) {
          await connection.close();
          return;
        }
        const fault = findLess(this.exp, connection.exp);
        if (fault === null) {
          this.#connected(connection);
          return;
        }
        this.#settings.warn(`the server is back, but ${fault}`);
        await connection.close();
      } catch (error) {
        if (!(error instanceof BlockError)) throw error;
      }
      await this.#sleep(pauseMs);
      pauseMs = Math.min(pauseMs * 2, CLIENT_RETRY_MAX_MS);
    }
  }

  /** Resolves after the time, or when the session is closed. */
  #sleep(ms: number): Promise<void> {
    const { signal } = this.#closing;
    return new Promise((resolve) => {
      const end = (): void => {
        clearTimeout(timer);
        signal.removeEventListener('abort', end);
        resolve();
      };
      const timer = setTimeout(end, ms);
      signal.addEventListener('abort', end);
      if (signal.aborted) end();
    });
  }

  /** One more connection, if the server lets us. */
  #openExtra(): void {
    if (this.#openingExtra !== null || this.#connections.length >= this.#settings.maxConnections) return;
    this.#openingExtra = this.#tryExtra().finally(() => {
      this.#openingExtra = null;
    });
  }

  async #tryExtra(): Promise<void> {
    const { signal } = this.#closing;
    try {
      const extra = await connectToExport(this.#settings.target, this, signal, CLIENT_EXTRA_CONNECT_MAX_MS);
      if (this.#state === 'connected' && findLess(this.exp, extra.exp) === null) {
        this.#connections.push(extra);
        this.#pump();
        return;
      }
      this.#mayOpenExtra = false;
      await extra.close();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      // It works with fewer.
      this.#mayOpenExtra = false;
    }
  }

  // ---- the end -----------------------------------------------------------------------------------------------

  /** Gives up all requests under way: they fail. Later ones fail until there is a connection again. */
  cancelRequests(): void {
    if (this.#state === 'delayed') this.#fail();
    for (const connection of this.#connections) {
      if (connection.inFlight > 0) connection.abandon(new RequestsCancelled('Requests were cancelled'));
    }
  }

  /** Takes leave of the server. Requests that are still waiting fail. Resolves when nothing is left. */
  async close(): Promise<void> {
    this.#state = 'closed';
    this.#stopDelay();
    this.#closing.abort();
    this.#failQueue();
    const connections = this.#connections;
    for (const connection of connections) {
      if (connection.inFlight > 0) connection.abandon(new RequestsCancelled('The session was closed'));
    }
    await Promise.all(connections.map((connection) => connection.close()));
    await this.#reconnecting;
    await this.#openingExtra;
  }
}

/** What a later connection lacks of what the first one promised; null: nothing. */
function findLess(first: RemoteExport, later: RemoteExport): string | null {
  const granted =
    ExportFlag.sendFlush |
    ExportFlag.sendFua |
    ExportFlag.sendTrim |
    ExportFlag.sendWriteZeroes |
    ExportFlag.sendCache |
    ExportFlag.sendFastZero;
  if (later.sizeBytes < first.sizeBytes) return 'its export is smaller than it was';
  if ((later.flags & ~first.flags & ExportFlag.readOnly) !== 0) return 'its export is read-only now';
  if ((first.flags & ~later.flags & granted) !== 0) return 'it no longer offers all commands';
  if (later.minBlockBytes > Math.max(first.minBlockBytes, 1)) return 'its blocks are larger than they were';
  if (later.maxPayloadBytes < first.maxPayloadBytes) return 'it takes only smaller requests than before';
  if (first.contextId !== null && later.contextId === null) return 'it no longer tells block status';
  if (first.extended && !later.extended) return 'it no longer takes 64-bit requests';
  return null;
}
