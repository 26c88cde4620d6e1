/**
 * TLS over an accepted or connected socket, for socket devices. Loaded when the first such device is made.
 */

import type { Socket } from 'node:net';
import { connect, createServer, type TLSSocket } from 'node:tls';
import type { Authorizer } from '../objects/authz.ts';
import type { TlsCredentials } from '../objects/tls-creds.ts';
import { tlsClientOptions, tlsServerOptions } from '../objects/tls-options.ts';
import { distinguishedName } from '../objects/x509-extensions.ts';

const HANDSHAKE_TIMEOUT_MS = 10_000;

/** Finds the authorisation object at the time of a connection; null: it is gone, nobody may connect. */
export type FindAuthorizer = (() => Authorizer | null) | null;

/** The secure socket, or null when the handshake fails or takes too long; `socket` is then destroyed. */
function handshake(
  socket: Socket,
  start: (done: (secure: TLSSocket) => void, failed: () => void) => void,
): Promise<TLSSocket | null> {
  return new Promise((resolve) => {
    const failed = (): void => {
      clearTimeout(timer);
      socket.destroy();
      resolve(null);
    };
    const timer = setTimeout(failed, HANDSHAKE_TIMEOUT_MS);
    socket.once('close', failed);
    start((secure) => {
      clearTimeout(timer);
      socket.off('close', failed);
      resolve(secure);
    }, failed);
  });
}

/** As in the original, authorisation asks for certificates only: a pre-shared key is an authorisation by itself. */
function isPeerAllowed(
  socket: TLSSocket,
  credentials: TlsCredentials,
  findAuthorizer: FindAuthorizer,
): boolean {
  if (credentials.kind !== 'x509' || !credentials.verifyPeer) return true;
  if (!socket.authorized) return false;
  if (findAuthorizer === null) return true;
  const { raw } = socket.getPeerCertificate();
  return raw !== undefined && findAuthorizer()?.isAllowed(distinguishedName(raw)) === true;
}

/** The server side of a session; null when the handshake failed or the peer is not allowed. */
export async function startTlsServer(
  socket: Socket,
  credentials: TlsCredentials,
  findAuthorizer: FindAuthorizer,
): Promise<Socket | null> {
  // A server that does not listen: it is given the connection, and judges the client's certificate.
  const server = createServer({ ...tlsServerOptions(credentials), allowHalfOpen: true });
  const secure = await handshake(socket, (done, failed) => {
    server.once('secureConnection', done);
    server.once('tlsClientError', failed);
    server.emit('connection', socket);
  });
  if (secure === null) return null;
  secure.on('error', () => undefined); // 'close' follows
  if (isPeerAllowed(secure, credentials, findAuthorizer)) return secure;
  secure.destroy();
  return null;
}

/** The client side of a session; null when the handshake failed. */
export function startTlsClient(
  socket: Socket,
  credentials: TlsCredentials,
  host: string,
): Promise<Socket | null> {
  return handshake(socket, (done, failed) => {
    const secure = connect({ socket, ...tlsClientOptions(credentials, host) });
    secure.on('error', failed);
    secure.once('secureConnect', () => done(secure));
  });
}
