/**
 * TLS over an accepted or connected socket, for socket devices. Loaded when the first such device is made.
 */

import type { Socket } from 'node:net';
import { connect, TLSSocket } from 'node:tls';
import type { Authorizer } from '../objects/authz.ts';
import type { TlsCredentials } from '../objects/tls-creds.ts';
import { tlsClientOptions, tlsServerOptions } from '../objects/tls-options.ts';
import { distinguishedName } from '../objects/x509-extensions.ts';

const HANDSHAKE_TIMEOUT_MS = 10_000;

/** Finds the authorisation object at the time of a connection; null: it is gone, nobody may connect. */
export type FindAuthorizer = (() => Authorizer | null) | null;

/** Waits for the end of the handshake. False when it failed; the socket is then destroyed. */
function handshakeDone(socket: TLSSocket, event: 'secure' | 'secureConnect'): Promise<boolean> {
  return new Promise((resolve) => {
    const finish = (done: boolean): void => {
      clearTimeout(timer);
      if (!done) socket.destroy();
      resolve(done);
    };
    const timer = setTimeout(finish, HANDSHAKE_TIMEOUT_MS, false);
    socket.on('error', () => finish(false));
    socket.once('close', () => finish(false));
    socket.once(event, () => finish(true));
  });
}

function isPeerAllowed(
  socket: TLSSocket,
  credentials: TlsCredentials,
  findAuthorizer: FindAuthorizer,
): boolean {
  if (credentials.kind === 'x509' && credentials.verifyPeer && !socket.authorized) return false;
  if (findAuthorizer === null) return true;
  const certificate = socket.getPeerX509Certificate();
  if (certificate === undefined) return false;
  return findAuthorizer()?.isAllowed(distinguishedName(certificate.raw)) === true;
}

/** The server side of a session; null when the handshake failed or the peer is not allowed. */
export async function startTlsServer(
  socket: Socket,
  credentials: TlsCredentials,
  findAuthorizer: FindAuthorizer,
): Promise<Socket | null> {
  const secure = new TLSSocket(socket, { isServer: true, ...tlsServerOptions(credentials) });
  if (!(await handshakeDone(secure, 'secure'))) return null;
  if (isPeerAllowed(secure, credentials, findAuthorizer)) return secure;
  secure.destroy();
  return null;
}

/** The client side of a session; null when the handshake failed. */
export async function startTlsClient(
  socket: Socket,
  credentials: TlsCredentials,
  host: string,
): Promise<Socket | null> {
  const secure = connect({ socket, ...tlsClientOptions(credentials, host) });
  return (await handshakeDone(secure, 'secureConnect')) ? secure : null;
}
