/** A web server whose answers a test bends: right ranges of one resource unless `bend` does something else. */

import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';

export interface WebServer {
  readonly url: string;
  readonly port: number;
  readonly requests: IncomingMessage[];
  data: Buffer;
  etag: string;
  /** Answers the request in another way; false: it did not. Numbered from 1. */
  bend: (request: IncomingMessage, response: ServerResponse, number: number) => boolean;
  /** Ends the server and its connections; it can be started again on the same port. */
  stop(): Promise<void>;
  start(): Promise<void>;
}

/** Answers a GET of `data` as RFC 9110 says. */
function answer(server: WebServer, request: IncomingMessage, response: ServerResponse): void {
  const { data, etag } = server;
  const match = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '');
  if (match === null) {
    response.writeHead(200, { 'content-length': data.length, etag });
    response.end(data);
    return;
  }
  const start = Number(match[1]);
  const end = Math.min(data.length, match[2] === '' ? data.length : Number(match[2]) + 1);
  if (start >= data.length) {
    response.writeHead(416, { 'content-range': `bytes */${data.length}`, 'content-length': 0 });
    response.end();
    return;
  }
  response.writeHead(206, {
    'content-range': `bytes ${start}-${end - 1}/${data.length}`,
    'content-length': end - start,
    etag,
  });
  response.end(data.subarray(start, end));
}

export async function startWebServer(data: Buffer): Promise<WebServer> {
  let listening: Server | null = null;
  let port = 0;
  const sockets = new Set<Socket>();
  const server: WebServer = {
    get url() {
      return `http://127.0.0.1:${port}/disk.img`;
    },
    get port() {
      return port;
    },
    requests: [],
    data,
    etag: '"one"',
    bend: () => false,
    async stop() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => listening?.close(resolve));
    },
    async start() {
      listening = createServer((request, response) => {
        server.requests.push(request);
        if (!server.bend(request, response, server.requests.length)) answer(server, request, response);
      });
      listening.on('connection', (socket) => {
        sockets.add(socket);
        socket.on('close', () => sockets.delete(socket));
        socket.on('error', () => undefined);
      });
      await new Promise<void>((resolve) => listening!.listen(port, '127.0.0.1', resolve));
      ({ port } = listening.address() as AddressInfo);
    },
  };
  await server.start();
  return server;
}
