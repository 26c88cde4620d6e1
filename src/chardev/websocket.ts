/**
 * The server side of a WebSocket on a connected socket: the handshake, then bytes in binary messages.
 *
 * As the original: the path is "/", the subprotocol `binary` is accepted when it is offered, and every write is a message.
 */

import { createServer } from 'node:http';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { createWebSocketStream, WebSocketServer } from 'ws';

/** A client that does not finish the handshake must not keep others waiting for ever. */
const HANDSHAKE_MS = 10_000;
/** The longest message: as much as a JSON text may have. */
const MAX_MESSAGE_BYTES = 64 * 1024 * 1024;

/** Bytes over the connection; null when the handshake failed or takes too long, `socket` is then destroyed. */
export function startWebSocket(socket: Socket): Promise<Duplex | null> {
  return new Promise((resolve) => {
    const http = createServer((_request, response) => {
      response.writeHead(400, { Connection: 'close', 'Sec-WebSocket-Version': '13' }).end();
    });
    const server = new WebSocketServer({
      noServer: true,
      maxPayload: MAX_MESSAGE_BYTES,
      perMessageDeflate: false,
      handleProtocols: (offered) => (offered.has('binary') ? 'binary' : false),
    });
    const failed = (): void => {
      clearTimeout(timer);
      socket.destroy();
      resolve(null);
    };
    const timer = setTimeout(failed, HANDSHAKE_MS);
    socket.once('close', failed);
    http.on('upgrade', (request, upgraded, head) => {
      if (request.url !== '/') {
        upgraded.end('HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n');
        return;
      }
      server.handleUpgrade(request, upgraded, head, (client) => {
        clearTimeout(timer);
        socket.off('close', failed);
        const stream = createWebSocketStream(client);
        stream.on('error', () => socket.destroy()); // 'close' follows
        stream.pause();
        resolve(stream);
      });
    });
    http.emit('connection', socket);
    socket.resume();
  });
}
