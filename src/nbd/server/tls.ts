/**
 * TLS on the server side of a connection, with node:tls over the engine's byte stream.
 */

import { createServer, type TLSSocket } from 'node:tls';
import type { ByteStream } from '../../aio/engine.ts';
import type { Authorizer } from '../../objects/authz.ts';
import type { TlsCredentials } from '../../objects/tls-creds.ts';
import { tlsServerOptions } from '../../objects/tls-options.ts';
import { distinguishedName } from '../../objects/x509-extensions.ts';
import { duplexOf, streamOf } from '../protocol/duplex-stream.ts';
import { NegotiationError } from './negotiation.ts';

export interface TlsSettings {
  readonly credentials: TlsCredentials;
  /** Id of the authorisation object; null: every client with valid credentials is welcome. */
  readonly authzId: string | null;
  /** Looked up for each client: the object may come and go. */
  findAuthorizer(id: string): Authorizer | null;
}

/** Throws unless the client behind the session may use the server. As in the original only certificates are asked. */
function authorize(session: TLSSocket, settings: TlsSettings): void {
  const { credentials, authzId } = settings;
  if (authzId === null || credentials.kind !== 'x509' || !credentials.verifyPeer) return;
  const authorizer = settings.findAuthorizer(authzId);
  if (authorizer === null) throw new NegotiationError(`Cannot find QAuthZ object ID ${authzId}`);
  const name = distinguishedName(session.getPeerCertificate().raw);
  if (!authorizer.isAllowed(name)) throw new NegotiationError(`TLS x509 authz check for ${name} is denied`);
}

/**
 * Shakes hands over `stream`, of which `received` has been read already, and returns the stream inside. Throws
 * NegotiationError when the client fails to prove who it is; the stream is closed then.
 */
export function startTls(stream: ByteStream, received: Buffer, settings: TlsSettings): Promise<ByteStream> {
  return new Promise((resolve, reject) => {
    const duplex = duplexOf(stream, received);
    let shaking = true;
    const fail = (error: Error): void => {
      if (!shaking) return;
      shaking = false;
      duplex.destroy();
      reject(error);
    };
    const failHandshake = (reason: string): void =>
      fail(new NegotiationError(`TLS handshake failed: ${reason}`));
    const cutOff = (): void => failHandshake('The TLS connection was non-properly terminated.');
    duplex.on('error', (error) => failHandshake(error.message));
    duplex.on('end', cutOff);
    duplex.on('close', cutOff);
    // The documented way to speak TLS over any stream: a server that does not listen is handed the connection.
    const server = createServer({ ...tlsServerOptions(settings.credentials), handshakeTimeout: 2 ** 31 - 1 });
    server.on('tlsClientError', (error) => failHandshake(error.message));
    server.on('secureConnection', (session) => {
      session.on('error', () => session.destroy());
      try {
        authorize(session, settings);
        shaking = false;
        resolve(streamOf(session));
      } catch (error) {
        session.destroy();
        fail(error instanceof Error ? error : new NegotiationError(String(error)));
      }
    });
    server.emit('connection', duplex);
  });
}
