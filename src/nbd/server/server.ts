/**
 * The NBD server: its listener, its connections and the names of its exports.
 *
 * Here: who may connect and when, and the way of a connection through its phases. Not here: what QMP knows of the
 * server and of exports (src/exports).
 */

import type { Socket } from 'node:net';
import type { SocketAddress } from '../../../schema/generated/types.ts';
import type { AioEngine, ByteStream } from '../../aio/engine.ts';
import { type Listener, listenOn } from '../../aio/sockets.ts';
import { LISTEN_BACKLOG, MAX_WAITING_CONNECTIONS } from '../protocol/limits.ts';
import { ConnectionEnded, ReceiveBuffer } from '../protocol/receive-buffer.ts';
import { BufferPool } from './buffers.ts';
import type { NbdExport } from './export.ts';
import { type NegotiatedClient, NegotiationError, type NegotiationHost, negotiate } from './negotiation.ts';
import type { TlsSettings } from './tls.ts';
import { Transmission } from './transmission.ts';

/** Takes a line of the log about a client. What was refused is a warning; who comes and goes is information. */
export type ClientLog = (
  message: string,
  details?: Readonly<Record<string, string | number>>,
  level?: 'info' | 'warn',
) => void;

export interface NbdServerSettings {
  readonly address: SocketAddress;
  readonly tls: TlsSettings | null;
  /** Clients at a time, those still shaking hands included; 0: no limit. */
  readonly maxConnections: number;
  /** Seconds until a client must be through the handshake; 0: no limit. */
  readonly handshakeMaxSeconds: number;
  /** The address comes from the command line, where it may name an inherited descriptor. */
  readonly allowInheritedFd: boolean;
  /** Calls its argument once clients may be served (they may come while the daemon is set up); default: at once. */
  readonly whenServing?: (serve: () => void) => void;
  readonly log: ClientLog;
  /** The last client that had come through the handshake has gone. */
  readonly onIdle?: () => void;
}

export class NbdServer {
  readonly #engine: AioEngine;
  readonly #settings: NbdServerSettings;
  readonly #pool = new BufferPool();
  readonly #exports = new Map<string, NbdExport>();
  /** Streams of the connections being served. */
  readonly #streams = new Set<ByteStream>();
  readonly #connections = new Set<Promise<void>>();
  /** Accepted by the kernel, but above the limit: not greeted yet. */
  readonly #waiting: Socket[] = [];
  #listener: Listener | null = null;
  #stopped = false;
  readonly #startTls: NegotiationHost['startTls'];

  /** A server that does not listen yet: see start(). */
  constructor(engine: AioEngine, settings: NbdServerSettings) {
    this.#engine = engine;
    this.#settings = settings;
    const { tls } = settings;
    // node:tls is loaded when the first client wants it.
    this.#startTls =
      tls === null
        ? null
        : async (stream, received) => (await import('./tls.ts')).startTls(stream, received, tls);
  }

  /** Starts to listen; throws BlockError. */
  async start(): Promise<void> {
    const { address, allowInheritedFd } = this.#settings;
    const accept = (socket: Socket): void => {
      socket.on('error', () => socket.destroy());
      if (this.#settings.whenServing === undefined) this.#accept(socket);
      else this.#settings.whenServing(() => this.#accept(socket));
    };
    this.#listener = await listenOn(address, accept, {
      pauseOnConnect: true,
      allowHalfOpen: true,
      backlog: LISTEN_BACKLOG,
      allowInheritedFd,
    });
  }

  /** Addresses listened on. */
  get addresses(): readonly SocketAddress[] {
    return this.#listener?.addresses ?? [];
  }

  get maxConnections(): number {
    return this.#settings.maxConnections;
  }

  /** Clients being served, those still shaking hands included. */
  get connectionCount(): number {
    return this.#streams.size;
  }

  findExport(name: string): NbdExport | null {
    return this.#exports.get(name) ?? null;
  }

  listExports(): Iterable<NbdExport> {
    return this.#exports.values();
  }

  /** Offers an export under its name, which must be free. */
  addExport(exp: NbdExport): void {
    this.#exports.set(exp.name, exp);
  }

  /** No new clients for this export. */
  removeExport(exp: NbdExport): void {
    if (this.#exports.get(exp.name) === exp) this.#exports.delete(exp.name);
  }

  /** Stops listening and ends all connections; resolves when the last one has gone. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#listener?.close();
    for (const socket of this.#waiting.splice(0)) socket.destroy();
    for (const stream of this.#streams) stream.close();
    await Promise.all(this.#connections);
    this.#pool.clear();
  }

  // ---- connections -------------------------------------------------------------------------------------------

  #accept(socket: Socket): void {
    if (socket.destroyed) return;
    if (this.#stopped || this.#waiting.length >= MAX_WAITING_CONNECTIONS) {
      if (!this.#stopped)
        this.#settings.log('client refused: too many are waiting', { peer: peerName(socket) }, 'warn');
      socket.destroy();
      return;
    }
    const { maxConnections } = this.#settings;
    if (maxConnections > 0 && this.#streams.size >= maxConnections) {
      this.#waiting.push(socket);
      const { log } = this.#settings;
      log(
        'client waits: max-connections are being served',
        { peer: peerName(socket), maxConnections },
        'warn',
      );
      socket.once('close', () => {
        const index = this.#waiting.indexOf(socket);
        if (index >= 0) this.#waiting.splice(index, 1);
      });
      return;
    }
    this.#serveSocket(socket);
  }

  #serveSocket(socket: Socket): void {
    socket.setNoDelay(true);
    const peer = peerName(socket);
    const stream = this.#engine.adoptSocket(socket);
    this.#streams.add(stream);
    const connection = this.#serve(stream, peer).finally(() => {
      stream.close();
      this.#streams.delete(stream);
      this.#connections.delete(connection);
      this.#serveWaiting();
    });
    this.#connections.add(connection);
  }

  #serveWaiting(): void {
    for (;;) {
      const socket = this.#waiting.shift();
      if (socket === undefined) return;
      socket.removeAllListeners('close');
      if (socket.destroyed) continue;
      this.#serveSocket(socket);
      return;
    }
  }

  /** One connection from greeting to end. Never rejects. */
  async #serve(stream: ByteStream, peer: string): Promise<void> {
    const { log } = this.#settings;
    const rx = new ReceiveBuffer();
    try {
      const client = await this.#shakeHands(stream, rx, peer);
      // The export may have been removed while the last reply was on its way.
      if (client === null || this.findExport(client.exp.name) !== client.exp) return;
      const details = { peer, export: client.exp.name };
      log('client connected', details, 'info');
      await this.#transmit(client, rx);
      log('client disconnected', details, 'info');
      // This connection is still counted.
      if (this.#streams.size === 1) this.#settings.onIdle?.();
    } catch (error) {
      if (this.#stopped) return;
      if (error instanceof NegotiationError || error instanceof ConnectionEnded) {
        log(
          `option negotiation failed: ${error.message}`,
          { peer },
          error instanceof ConnectionEnded ? 'info' : 'warn',
        );
      } else {
        log(
          `NBD connection failed: ${error instanceof Error ? (error.stack ?? error.message) : error}`,
          { peer },
          'warn',
        );
      }
    }
  }

  async #shakeHands(stream: ByteStream, rx: ReceiveBuffer, peer: string): Promise<NegotiatedClient | null> {
    const { handshakeMaxSeconds } = this.#settings;
    let timer: NodeJS.Timeout | null = null;
    if (handshakeMaxSeconds > 0) {
      const milliseconds = Math.min(handshakeMaxSeconds * 1000, 2 ** 31 - 1);
      timer = setTimeout(() => {
        this.#settings.log(
          'client refused: the handshake took too long',
          { peer, handshakeMaxSeconds },
          'warn',
        );
        stream.close();
      }, milliseconds).unref();
    }
    try {
      return await negotiate(stream, rx, {
        findExport: (name) => {
          const exp = this.findExport(name);
          // The name is the client's: a line of the log takes no more than a line of it.
          if (exp === null)
            this.#settings.log(
              'client asks for an export that is not there',
              { peer, export: name.slice(0, 80) },
              'warn',
            );
          return exp;
        },
        listExports: () => this.listExports(),
        startTls: this.#startTls,
      });
    } finally {
      if (timer !== null) clearTimeout(timer);
    }
  }

  async #transmit(client: NegotiatedClient, rx: ReceiveBuffer): Promise<void> {
    const transmission = new Transmission(client, rx, this.#pool);
    client.exp.attach(transmission);
    try {
      await transmission.run();
    } finally {
      client.exp.detach(transmission);
    }
  }
}

/** Who is at the other end, for the log. */
function peerName({ remoteAddress, remotePort }: Socket): string {
  return remoteAddress === undefined ? 'unix' : `${remoteAddress}:${remotePort}`;
}
