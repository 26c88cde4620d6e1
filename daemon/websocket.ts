/**
 * QMP over WebSocket: one JSON object in each text message, in both directions.
 *
 * Any web page may try to connect to a port of this host, so three things are asked of a client: the address listened
 * on is one of this host (unless `remote=on`), the Origin is absent (no browser) or names the host that was connected
 * to, and it shows the token, as `?token=...` or in an Authorization header.
 */

import { randomBytes, timingSafeEqual } from 'node:crypto';
import { rmSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, STATUS_CODES } from 'node:http';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { type WebSocket, WebSocketServer } from 'ws';
import { hasHungUp } from '../src/aio/host/hang-up.ts';
import { absoluteName, hostPath } from '../src/aio/host/names.ts';
import { BlockError, errnoError, errnoOf } from '../src/errors/error.ts';
import { JSON_LIMITS } from '../src/qmp/json-parse.ts';
import type { QmpListenOptions } from './qmp-address.ts';
import type { QmpListener } from './qmp-listener.ts';
import { peerName, type SessionHost } from './sessions.ts';

/** Output that may pile up before the session stops reading commands. */
const HIGH_WATER_BYTES = 256 * 1024;

const LOOPBACK = /^(localhost|127(\.\d+){3}|::1)$/;

/** Compares in constant time. */
function sameText(a: string, b: string): boolean {
  const [left, right] = [Buffer.from(a), Buffer.from(b)];
  return left.length === right.length && timingSafeEqual(left, right);
}

function tokenOf(request: IncomingMessage): string {
  const header = /^Bearer (.+)$/.exec(request.headers.authorization ?? '')?.[1];
  return header ?? new URL(request.url ?? '/', 'ws://localhost').searchParams.get('token') ?? '';
}

function isSameHost(origin: string, host: string | undefined): boolean {
  try {
    const page = new URL(origin);
    // Parsed alike, so that a port which is the default of the protocol is left out of both.
    return page.host !== '' && page.host === new URL(`${page.protocol}//${host}`).host;
  } catch {
    return false; // "null": a page without a place
  }
}

/** The status a client is turned away with; null: it may connect. */
export function refusalOf(request: IncomingMessage, token: string): 401 | 403 | null {
  const { origin, host } = request.headers;
  if (origin !== undefined && !isSameHost(origin, host)) return 403;
  try {
    return sameText(tokenOf(request), token) ? null : 401;
  } catch {
    return 401; // an address that is no URL
  }
}

/** What a client that is turned away may do about it. */
const REASONS = {
  401: "The token is missing or wrong: connect to ws://HOST:PORT/?token=TOKEN, or send 'Authorization: Bearer TOKEN'. The daemon shows the token when it starts, or keeps it in its token-file.",
  403: "Pages of other sites may not connect: the request's Origin is not the host that it connects to.",
  426: 'This port speaks QMP over WebSocket only: connect with a WebSocket client to ws://HOST:PORT/?token=TOKEN.',
  503: 'Too many clients are connected: try again when one has gone.',
} as const;

/** The reply to an upgrade that is refused. */
function refusalText(status: 401 | 403 | 503): string {
  const body = `${REASONS[status]}\n`;
  const head = [
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}`,
    'Connection: close',
    'Content-Type: text/plain',
  ];
  if (status === 401) head.push('WWW-Authenticate: Bearer');
  return `${[...head, `Content-Length: ${Buffer.byteLength(body)}`].join('\r\n')}\r\n\r\n${body}`;
}

function serveClient(
  client: WebSocket,
  socket: Duplex,
  host: SessionHost,
  pretty: boolean,
  peer: string,
): void {
  let congested = false;
  // What ws keeps until a message is whole: the bytes since the last one.
  let arrivedBytes = 0;
  const session = host.open(
    {
      send: (text) => {
        // The line end is a matter of streams; here messages have ends of their own.
        client.send(text.trimEnd(), () => {
          if (!congested || client.bufferedAmount > 0) return;
          congested = false;
          session.drained();
        });
        congested ||= client.bufferedAmount >= HIGH_WATER_BYTES;
        return !congested;
      },
      wholeMessages: true,
      heldBytes: () => arrivedBytes,
      isGone: () => hasHungUp(socket),
      close: () => client.terminate(),
      pause: () => client.pause(),
      resume: () => client.resume(),
    },
    pretty,
    peer,
  );
  socket.on('data', (data: Buffer) => {
    arrivedBytes += data.length;
    if (arrivedBytes > data.length) session.held();
  });
  client.on('message', (data: Buffer, isBinary) => {
    arrivedBytes = 0;
    if (isBinary) client.close(1003, 'text messages only');
    // The end of a message ends a number or a word, as a space between values does on a stream.
    else session.receive(Buffer.concat([data, Buffer.from('\n')]));
  });
  client.on('error', () => undefined); // 'close' follows
  client.once('close', () => session.disconnected());
}

function listen(server: Server, host: string, port: string): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once('error', (error) =>
      reject(errnoError(`Failed to listen on ws:${host}:${port}`, errnoOf(error))),
    );
    server.listen({ host: host === '' ? 'localhost' : host, port: Number(port) }, () => {
      const address = server.address();
      resolve(typeof address === 'object' && address !== null ? address.port : Number(port));
    });
  });
}

/** Times in milliseconds for what comes before the upgrade: it is one short request. */
const IMPATIENCE = {
  headersTimeout: 5000,
  requestTimeout: 5000,
  keepAliveTimeout: 1000,
  connectionsCheckingInterval: 1000,
} as const;
/** Connections that have not upgraded yet; of more the oldest goes. */
const MAX_UPGRADING = 64;

function limitUpgrades(server: Server): void {
  const upgrading = new Set<Duplex>();
  server.on('connection', (socket) => {
    upgrading.add(socket);
    socket.once('close', () => upgrading.delete(socket));
    const [oldest] = upgrading;
    if (upgrading.size > MAX_UPGRADING) oldest?.destroy();
    // A client that never says anything is not looked at by the checks of requests.
    const timer = setTimeout(() => {
      if (upgrading.has(socket)) socket.destroy();
    }, 2 * IMPATIENCE.headersTimeout).unref();
    socket.once('close', () => clearTimeout(timer));
  });
  server.on('upgrade', (_request, socket) => {
    // A refused one stays among them until it has gone.
    setImmediate(() => socket.writableEnded || upgrading.delete(socket));
  });
}

/** Makes the token file; returns what removes it. */
function writeTokenFile(name: string, token: string): () => void {
  const file = absoluteName(name);
  try {
    rmSync(hostPath(file), { force: true });
    writeFileSync(hostPath(file), `${token}\n`, { mode: 0o600, flag: 'wx' });
  } catch (error) {
    throw errnoError(`Could not create '${name}'`, errnoOf(error));
  }
  return () => rmSync(hostPath(file), { force: true });
}

/** Starts a WebSocket listener. */
export async function startWebSocketListener(
  address: { readonly host: string; readonly port: string },
  options: QmpListenOptions,
  host: SessionHost,
  maxClients: number,
): Promise<QmpListener> {
  if (!/^\d{1,5}$/.test(address.port) || Number(address.port) > 65535) {
    throw new BlockError(`Invalid port '${address.port}'`);
  }
  if (!options.remote && address.host !== '' && !LOOPBACK.test(address.host)) {
    throw new BlockError(
      `WebSocket clients of other hosts need 'remote=on' besides the address '${address.host}'`,
    );
  }
  const token = options.token ?? randomBytes(18).toString('base64url');
  const removeTokenFile =
    options.tokenFile === null ? () => undefined : writeTokenFile(options.tokenFile, token);
  const server = createServer(IMPATIENCE, (_request, response) => {
    const headers = { Upgrade: 'websocket', Connection: 'Upgrade', 'Content-Type': 'text/plain' };
    response.writeHead(426, headers).end(`${REASONS[426]}\n`);
  });
  limitUpgrades(server);
  const sockets = new WebSocketServer({
    noServer: true,
    maxPayload: JSON_LIMITS.bytes,
    perMessageDeflate: false,
  });
  server.on('upgrade', (request, socket, head) => {
    socket.on('error', () => undefined);
    const refusal = sockets.clients.size >= maxClients ? 503 : refusalOf(request, token);
    if (refusal !== null) {
      host.refused(peerName(socket as Socket), `${refusal} ${STATUS_CODES[refusal]}`);
      // Its own end is not waited for: a client that stays would keep the descriptor.
      socket.end(refusalText(refusal), () => socket.destroy());
      return;
    }
    host.whenServing(() =>
      sockets.handleUpgrade(request, socket, head, (client) =>
        serveClient(client, socket, host, options.pretty, peerName(socket as Socket)),
      ),
    );
  });
  const port = await listen(server, address.host, address.port);
  const name = address.host.includes(':') ? `[${address.host}]` : address.host || 'localhost';
  return {
    url: `ws://${name}:${port}/?token=${encodeURIComponent(token)}`,
    close: () => {
      removeTokenFile();
      for (const client of sockets.clients) client.close(1001);
      server.close();
      server.closeAllConnections();
    },
  };
}
