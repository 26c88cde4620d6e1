/**
 * QMP listeners (`--qmp`): unlike a monitor on a character device, a listener serves several clients at once.
 */

import type { Socket } from 'node:net';
import type { SocketAddress } from '../schema/generated/types.ts';
import { hasHungUp } from '../src/aio/host/hang-up.ts';
import { listenOn } from '../src/aio/sockets.ts';
import type { QmpListenOptions } from './arguments/qmp-address.ts';
import { type OpenSession, peerName, type SessionHost } from './sessions.ts';
import { type PassedSockets, passedSocket } from './systemd/sockets.ts';

/** Clients of one listener; more are turned away. */
const MAX_CLIENTS = 256;

export interface QmpListener {
  /** Where clients connect: "unix:/path", "ws://127.0.0.1:8000/?token=...". */
  readonly url: string;
  /** Stops listening and ends the sessions when what was written to them is sent. */
  close(): void;
}

/** Serves one client over a socket. */
function serveSocket(socket: Socket, host: SessionHost, pretty: boolean, peer: string): OpenSession | null {
  if (socket.destroyed) return null;
  const session = host.open(
    {
      send: (text) => !socket.writable || socket.write(text, 'latin1'),
      close: () => socket.destroy(),
      pause: () => socket.pause(),
      resume: () => socket.resume(),
      isGone: () => hasHungUp(socket),
    },
    pretty,
    peer,
  );
  socket.on('data', (data) => session.receive(data));
  socket.on('drain', () => session.drained());
  socket.once('end', () => session.endOfInput(() => socket.end()));
  socket.once('close', () => session.disconnected());
  socket.resume();
  return session;
}

interface Client {
  readonly sinceMs: number;
  session: OpenSession | null;
}

/** How long a client may take to negotiate before it makes way for another. */
const NEGOTIATION_MS = 5000;

/** Cuts off the oldest of the clients that have not negotiated; false when there is none that had its time. */
function makeWay(clients: ReadonlyMap<Socket, Client>): boolean {
  const latest = performance.now() - NEGOTIATION_MS;
  for (const [socket, { sinceMs, session }] of clients) {
    if (sinceMs > latest || session?.negotiated === true) continue;
    socket.destroy();
    return true;
  }
  return false;
}

function urlOf(address: SocketAddress): string {
  switch (address.type) {
    case 'inet':
      return `tcp:${address.host}:${address.port}`;
    case 'unix':
      return `unix:${address.path}`;
    case 'vsock':
      return `vsock:${address.cid}:${address.port}`;
    case 'fd':
      return `fd:${address.str}`;
  }
}

async function listenSocket(
  address: SocketAddress,
  host: SessionHost,
  pretty: boolean,
): Promise<QmpListener> {
  const clients = new Map<Socket, Client>();
  const accept = (socket: Socket): void => {
    socket.on('error', () => undefined); // 'close' follows
    const peer = peerName(socket);
    if (clients.size >= MAX_CLIENTS && !makeWay(clients)) {
      host.refused(peer, `there are ${MAX_CLIENTS} already`);
      socket.destroy();
      return;
    }
    const client: Client = { sinceMs: performance.now(), session: null };
    clients.set(socket, client);
    socket.once('close', () => clients.delete(socket));
    host.whenServing(() => {
      client.session = serveSocket(socket, host, pretty, peer);
    });
  };
  const listener = await listenOn(address, accept, {
    pauseOnConnect: true,
    allowHalfOpen: true,
    allowInheritedFd: true,
  });
  const [bound = address] = listener.addresses;
  return {
    url: urlOf(bound),
    close: () => {
      listener.close();
      for (const socket of clients.keys()) socket.destroySoon();
    },
  };
}

function serveStdio(host: SessionHost, pretty: boolean): QmpListener {
  const { stdin, stdout } = process;
  stdout.on('error', () => undefined);
  stdin.on('error', () => undefined);
  host.whenServing(() => {
    const session = host.open(
      {
        send: (text) => stdout.write(text, 'latin1'),
        close: () => stdin.pause(),
        pause: () => stdin.pause(),
        resume: () => stdin.resume(),
      },
      pretty,
      'stdio',
    );
    stdout.on('drain', () => session.drained());
    stdin.on('data', (data: Buffer) => session.receive(data));
  });
  return { url: 'stdio', close: () => stdin.pause() };
}

/** Starts a listener. `sockets`: those that have been passed to the process. */
export async function startQmpListener(
  options: QmpListenOptions,
  host: SessionHost,
  sockets: PassedSockets = new Map(),
): Promise<QmpListener> {
  const { address, pretty } = options;
  switch (address.kind) {
    case 'stdio':
      return serveStdio(host, pretty);
    case 'unix':
      return listenSocket({ type: 'unix', path: address.path }, host, pretty);
    case 'tcp':
      return listenSocket({ type: 'inet', host: address.host, port: address.port }, host, pretty);
    case 'fd':
      return listenSocket({ type: 'fd', str: passedSocket(sockets, address.name) }, host, pretty);
    case 'ws':
    case 'ws-fd': {
      // Loaded when wanted: most runs have no WebSocket.
      const { startWebSocketListener } = await import('./websocket.ts');
      const place = 'name' in address ? { fd: Number(passedSocket(sockets, address.name)) } : address;
      return startWebSocketListener(place, options, host, MAX_CLIENTS);
    }
  }
}
