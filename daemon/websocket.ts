/**
 * QMP over WebSocket: one JSON object in each text message, in both directions. Who may connect: web/access.ts. To a
 * browser that asks for it, the port gives the console (web/console.ts).
 */

import { createServer, type IncomingMessage, type ServerResponse, STATUS_CODES } from 'node:http';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { type WebSocket, WebSocketServer } from 'ws';
import { hasHungUp } from '../src/aio/host/hang-up.ts';
import { JSON_LIMITS } from '../src/qmp/json-parse.ts';
import type { QmpListenOptions } from './arguments/qmp-address.ts';
import type { QmpListener } from './qmp-listener.ts';
import { peerName, type SessionHost } from './sessions.ts';
import {
  checkAddress,
  IMPATIENCE,
  type ListenPlace,
  limitSilentClients,
  listenHttp,
  provideToken,
  refusalOf,
} from './web/access.ts';
import { type ConsolePage, isConsolePath, loadConsolePage, sendConsolePage } from './web/console.ts';

/** Output that may pile up before the session stops reading commands. */
const HIGH_WATER_BYTES = 256 * 1024;

/** What a client that is turned away may do about it. */
const REASONS = {
  401: "The token is missing or wrong: connect to ws://HOST:PORT/?token=TOKEN (the console is at http://HOST:PORT/?token=TOKEN), or send 'Authorization: Bearer TOKEN'. The daemon shows the token when it starts, or keeps it in its token-file.",
  403: "Pages of other sites may not connect: the request's Origin is not the host that it connects to.",
  404: 'There is the console here (/), and QMP over WebSocket.',
  405: 'The page is to be read only: GET /.',
  421: "The request's Host is not this host: connect to localhost or a loopback address, or start the listener with 'remote=on'.",
  426: 'This port speaks QMP over WebSocket only: connect with a WebSocket client to ws://HOST:PORT/?token=TOKEN.',
  503: 'Too many clients are connected: try again when one has gone.',
} as const;

/** The reply to an upgrade that is refused. */
function refusalText(status: 401 | 403 | 421 | 503): string {
  const body = `${REASONS[status]}\n`;
  const head = [
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}`,
    'Connection: close',
    'Content-Type: text/plain',
  ];
  if (status === 401) head.push('WWW-Authenticate: Bearer');
  return `${[...head, `Content-Length: ${Buffer.byteLength(body)}`].join('\r\n')}\r\n\r\n${body}`;
}

function statusOf(request: IncomingMessage, page: ConsolePage | null): 404 | 405 | 426 | null {
  if (page === null) return 426;
  if (!isConsolePath(request)) return 404;
  return request.method === 'GET' || request.method === 'HEAD' ? null : 405;
}

/** Answers a request that does not ask for a WebSocket. */
function serveRequest(
  request: IncomingMessage,
  response: ServerResponse,
  refusal: 401 | 403 | 421 | null,
  page: ConsolePage | null,
): void {
  response.setHeader('X-Content-Type-Options', 'nosniff');
  response.setHeader('Referrer-Policy', 'no-referrer');
  response.setHeader('Cache-Control', 'no-store');
  const status = refusal ?? statusOf(request, page);
  if (status === null && page !== null) {
    sendConsolePage(request, response, page);
    return;
  }
  response.writeHead(status ?? 404, {
    'Content-Type': 'text/plain',
    ...(status === 401 && { 'WWW-Authenticate': 'Bearer' }),
    ...(status === 405 && { Allow: 'GET, HEAD' }),
    ...(status === 426 && { Upgrade: 'websocket', Connection: 'Upgrade' }),
  });
  response.end(`${REASONS[status ?? 404]}\n`);
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

/** Starts a WebSocket listener. */
export async function startWebSocketListener(
  address: ListenPlace,
  options: QmpListenOptions,
  host: SessionHost,
  maxClients: number,
): Promise<QmpListener> {
  checkAddress(address, options, 'WebSocket clients');
  const { token, removeFile } = provideToken(options);
  const page = loadConsolePage();
  const server = createServer(IMPATIENCE, (request, response) => {
    const refusal = refusalOf(request, token, options.remote);
    if (refusal !== null) host.refused(peerName(request.socket), `${refusal} ${STATUS_CODES[refusal]}`);
    serveRequest(request, response, refusal, page);
  });
  limitSilentClients(server);
  const sockets = new WebSocketServer({
    noServer: true,
    maxPayload: JSON_LIMITS.bytes,
    perMessageDeflate: false,
  });
  server.on('upgrade', (request, socket, head) => {
    socket.on('error', () => undefined);
    const refusal = sockets.clients.size >= maxClients ? 503 : refusalOf(request, token, options.remote);
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
  const where = await listenHttp(server, address, options, 'ws:');
  return {
    url: `ws://${where}/?token=${encodeURIComponent(token)}`,
    close: () => {
      removeFile();
      for (const client of sockets.clients) client.close(1001);
      server.close();
      server.closeAllConnections();
    },
  };
}
