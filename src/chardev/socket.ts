/**
 * Socket devices: a server that serves one client at a time, or a client that may connect again when it loses its
 * server.
 *
 * Model: at most one peer is connected; while there is one, further clients of a server wait, accepted but neither
 * read nor written, until the peer leaves. Whether a user is attached makes no difference to who is connected: without
 * one the peer is simply not read.
 */

import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { ChardevSocket, SocketAddress } from '../../schema/generated/types.ts';
import { connectTo, flattenAddress, type Listener, listenOn } from '../aio/sockets.ts';
import { BlockError, reasonOf } from '../errors/error.ts';
import type { TlsCredentials } from '../objects/tls-creds.ts';
import type { ObjectTree } from '../objects/tree.ts';
import { type BackendEvents, type ChardevBackend, ignore } from './backend.ts';
import { addressText, peerText } from './socket-names.ts';
import { TELNET_GREETINGS, telnetFilter } from './telnet.ts';

/** Clients that may wait for their turn; more are turned away. */
const MAX_WAITING = 16;

export interface SocketEnvironment {
  readonly objects: ObjectTree;
  /** Tells the log of trouble that no command reports. */
  readonly warn: (message: string) => void;
  /** The device's name for such messages. */
  readonly id: string;
  readonly allowInheritedFd: boolean;
  /** Rejects when the daemon ends. */
  readonly aborted: Promise<never>;
}

interface Settings {
  readonly address: SocketAddress;
  readonly server: boolean;
  readonly noDelay: boolean;
  readonly telnet: 'telnet' | 'tn3270' | null;
  readonly websocket: boolean;
  /** Milliseconds between attempts of a client; 0: one attempt. */
  readonly reconnectMs: number;
  readonly credentials: TlsCredentials | null;
  readonly authzId: string | null;
}

/** Checks the options against each other, in the original's order and words. */
function parseSettings(options: ChardevSocket, { objects }: SocketEnvironment): Settings {
  const address = flattenAddress(options.addr);
  const server = options.server ?? true;
  if (options.reconnect !== undefined && options['reconnect-ms'] !== undefined) {
    throw new BlockError("'reconnect' and 'reconnect-ms' are mutually exclusive");
  }
  const reconnectMs = Math.max(0, options['reconnect-ms'] ?? (options.reconnect ?? 0) * 1000);
  if (server && reconnectMs > 0) {
    throw new BlockError("'reconnect' option is incompatible with socket in server listen mode");
  }
  if (!server && options.websocket === true) throw new BlockError('Websocket client is not implemented');
  if (!server && options.wait !== undefined) {
    throw new BlockError("'wait' option is incompatible with socket in client connect mode");
  }
  const { 'tls-creds': credsId, 'tls-authz': authzId } = options;
  if (authzId !== undefined && credsId === undefined) {
    throw new BlockError("'tls_authz' option requires 'tls_creds' option");
  }
  const credentials = credsId === undefined ? null : objects.tlsCreds(credsId, server ? 'server' : 'client');
  if (credentials !== null && address.type === 'unix') {
    throw new BlockError("'tls_creds' option is incompatible with 'unix' address type");
  }
  return {
    address,
    server,
    noDelay: options.nodelay ?? false,
    telnet: options.tn3270 === true ? 'tn3270' : options.telnet === true ? 'telnet' : null,
    websocket: options.websocket ?? false,
    reconnectMs,
    credentials,
    authzId: authzId ?? null,
  };
}

/** State of one socket device; see the head of the file for the model. */
class SocketChannel {
  readonly #settings: Settings;
  readonly #environment: SocketEnvironment;
  readonly #waiting: Socket[] = [];
  #peer: Duplex | null = null;
  /** The connection below the peer: for its addresses. */
  #connection: Socket | null = null;
  #preparing = false;
  #events: BackendEvents | null = null;
  #reading = true;
  #filter: (data: Buffer) => Buffer = (data) => data;
  #listener: Listener | null = null;
  #reconnectTimer: NodeJS.Timeout | null = null;
  #reported = false;
  #closed = false;
  #onFirstPeer: () => void = ignore;

  constructor(settings: Settings, environment: SocketEnvironment) {
    this.#settings = settings;
    this.#environment = environment;
  }

  // ---- connecting --------------------------------------------------------------------------------------------

  async listen(): Promise<void> {
    this.#listener = await listenOn(this.#settings.address, (socket) => this.#accept(socket), {
      pauseOnConnect: true,
      allowHalfOpen: true,
      allowInheritedFd: this.#environment.allowInheritedFd,
    });
  }

  /** Resolves when the first peer is there. */
  firstPeer(): Promise<void> {
    return new Promise((resolve) => {
      this.#onFirstPeer = resolve;
      if (this.#peer !== null) resolve();
    });
  }

  /** Connects; without `reconnect` a failure is thrown, with it tried again. */
  async connect(): Promise<void> {
    const { address, reconnectMs } = this.#settings;
    try {
      const socket = await connectTo(address, { allowInheritedFd: this.#environment.allowInheritedFd });
      socket.on('error', ignore);
      if (this.#closed) socket.destroy();
      else await this.#prepare(socket);
      this.#reported = false;
    } catch (error) {
      if (reconnectMs === 0) throw error;
      if (!this.#reported) {
        const reason = reasonOf(error);
        this.#environment.warn(`Unable to connect character device ${this.#environment.id}: ${reason}`);
      }
      this.#reported = true;
      this.#scheduleReconnect();
    }
  }

  #scheduleReconnect(): void {
    const { reconnectMs } = this.#settings;
    if (reconnectMs === 0 || this.#closed) return;
    this.#reconnectTimer = setTimeout(() => void this.connect(), reconnectMs);
  }

  #accept(socket: Socket): void {
    socket.on('error', ignore); // the 'close' that follows is what counts
    if (this.#peer === null && !this.#preparing) void this.#prepare(socket);
    else if (this.#waiting.length < MAX_WAITING) this.#waiting.push(socket);
    else socket.destroy();
  }

  #serveNext(): void {
    const next = this.#waiting.shift();
    if (next !== undefined) void this.#prepare(next);
  }

  /** Makes a socket the peer, after the TLS handshake if there is to be one. */
  async #prepare(socket: Socket): Promise<void> {
    const { credentials, noDelay, websocket } = this.#settings;
    if (noDelay && this.#settings.address.type === 'inet') socket.setNoDelay(true);
    if (credentials === null && !websocket) {
      this.#setPeer(socket, socket);
      return;
    }
    this.#preparing = true;
    const secure = credentials === null ? socket : await this.#startTls(socket, credentials);
    const peer = secure !== null && websocket ? await this.#startWebSocket(secure) : secure;
    this.#preparing = false;
    if (peer !== null && !this.#closed) this.#setPeer(peer, socket);
    else {
      peer?.destroy();
      if (this.#settings.server) this.#serveNext();
      else this.#scheduleReconnect();
    }
  }

  async #startTls(socket: Socket, credentials: TlsCredentials): Promise<Socket | null> {
    const { startTlsClient, startTlsServer } = await import('./tls-session.ts');
    const { address, server, authzId } = this.#settings;
    if (!server) return startTlsClient(socket, credentials, address.type === 'inet' ? address.host : '');
    const findAuthorizer = authzId === null ? null : () => this.#environment.objects.authz(authzId);
    return startTlsServer(socket, credentials, findAuthorizer);
  }

  async #startWebSocket(socket: Socket): Promise<Duplex | null> {
    return (await import('./websocket.ts')).startWebSocket(socket);
  }

  #setPeer(socket: Duplex, connection: Socket): void {
    const { telnet } = this.#settings;
    this.#peer = socket;
    this.#connection = connection;
    if (telnet !== null) {
      this.#filter = telnetFilter(telnet);
      if (this.#settings.server) socket.write(TELNET_GREETINGS[telnet]);
    }
    socket.on('data', (data: Buffer) => {
      const kept = telnet === null ? data : this.#filter(data);
      if (kept.length > 0) this.#events?.received(kept);
    });
    socket.on('drain', () => this.#events?.drained());
    socket.once('end', () => {
      if (this.#events === null) socket.end();
      else this.#events.ended();
    });
    socket.once('close', () => this.#lostPeer(socket));
    if (socket.destroyed) {
      this.#lostPeer(socket);
      return;
    }
    this.#applyReading();
    this.#events?.opened();
    this.#onFirstPeer();
  }

  #lostPeer(socket: Duplex): void {
    if (this.#peer !== socket) return;
    this.#peer = null;
    this.#events?.closed();
    if (this.#closed) return;
    if (this.#settings.server) this.#serveNext();
    else this.#scheduleReconnect();
  }

  // ---- the backend's side ------------------------------------------------------------------------------------

  #applyReading(): void {
    if (this.#events !== null && this.#reading) this.#peer?.resume();
    else this.#peer?.pause();
  }

  start(events: BackendEvents): void {
    this.#events = events;
    if (this.#peer !== null) events.opened();
    this.#applyReading();
  }

  stop(): void {
    this.#events = null;
    this.#applyReading();
  }

  setReading(reading: boolean): void {
    if (reading === this.#reading) return;
    this.#reading = reading;
    this.#applyReading();
  }

  write(data: Buffer): void {
    const peer = this.#peer;
    if (peer === null || !peer.writable) return;
    // In telnet a byte 255 of data is sent twice; QMP output is ASCII and has none.
    peer.write(data);
  }

  get backlogBytes(): number {
    return this.#peer?.writableLength ?? 0;
  }

  disconnect(): void {
    this.#peer?.destroy();
  }

  finish(): void {
    this.#peer?.end();
  }

  get connected(): boolean {
    return this.#peer !== null;
  }

  /** The address as qom-get shows it: that of the listening socket, or of the peer to connect to. */
  get address(): SocketAddress {
    return this.#listener?.addresses[0] ?? this.#settings.address;
  }

  filename(): string {
    const { server, telnet, websocket } = this.#settings;
    const spoken = telnet !== null ? 'telnet' : websocket ? 'websocket' : 'tcp';
    // A connection speaks what was agreed on.
    const protocol = telnet === 'tn3270' ? 'tcp' : spoken;
    const { address } = this;
    return this.#peer === null || this.#connection === null
      ? `disconnected:${addressText(address, server, protocol)}`
      : peerText(this.#connection, address, server, protocol);
  }

  close(): void {
    this.#closed = true;
    this.#events = null;
    if (this.#reconnectTimer !== null) clearTimeout(this.#reconnectTimer);
    this.#listener?.close();
    for (const socket of this.#waiting.splice(0)) socket.destroy();
    const peer = this.#peer;
    this.#peer = null;
    // What was written (the reply to `quit`) is sent before the connection goes.
    peer?.end();
    this.#connection?.destroySoon();
  }
}

async function waitForPeer(channel: SocketChannel, { warn, aborted }: SocketEnvironment): Promise<void> {
  warn(`info: QEMU waiting for connection on: ${channel.filename()}`);
  try {
    await Promise.race([channel.firstPeer(), aborted]);
  } catch (error) {
    channel.close();
    throw error;
  }
}

/** Opens a socket device: listens, and waits for the first client when `wait` says so; or connects. */
export async function openSocket(
  options: ChardevSocket,
  environment: SocketEnvironment,
): Promise<ChardevBackend> {
  const settings = parseSettings(options, environment);
  const channel = new SocketChannel(settings, environment);
  if (settings.server) {
    await channel.listen();
    if (options.wait === true) await waitForPeer(channel, environment);
  } else if (settings.reconnectMs > 0) {
    void channel.connect();
  } else {
    await channel.connect();
  }
  return {
    kind: 'socket',
    typeName: 'chardev-socket',
    accessors: { connected: { get: () => channel.connected }, addr: { get: () => ({ ...channel.address }) } },
    filename: () => channel.filename(),
    start: (events) => channel.start(events),
    stop: () => channel.stop(),
    write: (data) => channel.write(data),
    backlogBytes: () => channel.backlogBytes,
    setReading: (reading) => channel.setReading(reading),
    disconnect: () => channel.disconnect(),
    finish: () => channel.finish(),
    close: () => channel.close(),
  };
}
