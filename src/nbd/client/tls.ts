/**
 * TLS on the client side of a connection, with node:tls over the engine's byte stream. Loaded when it is first used.
 */

import { connect } from 'node:tls';
import type { ByteStream } from '../../aio/engine.ts';
import { BlockError } from '../../errors/error.ts';
import type { TlsCredentials } from '../../objects/tls-creds.ts';
import { tlsClientOptions } from '../../objects/tls-options.ts';
import { duplexOf, streamOf } from '../protocol/duplex-stream.ts';

/** What is wrong with a server's certificate, in the original's words. */
const VERIFICATION_TEXTS: Readonly<Record<string, string>> = {
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: "The certificate hasn't got a known issuer",
  UNABLE_TO_GET_ISSUER_CERT: "The certificate hasn't got a known issuer",
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "The certificate hasn't got a known issuer",
  SELF_SIGNED_CERT_IN_CHAIN: "The certificate hasn't got a known issuer",
  DEPTH_ZERO_SELF_SIGNED_CERT: "The certificate hasn't got a known issuer",
  CERT_SIGNATURE_FAILURE: "The certificate hasn't got a known issuer",
  CERT_HAS_EXPIRED: 'The certificate has expired',
  CERT_NOT_YET_VALID: 'The certificate is not yet activated',
  CERT_REVOKED: 'The certificate has been revoked',
};

/** Shakes hands over `stream` and returns the stream inside. Throws BlockError; the stream is closed then. */
export function startTlsClient(
  stream: ByteStream,
  received: Buffer,
  credentials: TlsCredentials,
  hostname: string,
): Promise<ByteStream> {
  return new Promise((resolve, reject) => {
    const duplex = duplexOf(stream, received);
    const fail = (text: string): void => {
      duplex.destroy();
      reject(new BlockError(text));
    };
    const failed = (error: Error): void => {
      const code = String((error as { code?: unknown }).code);
      const text = VERIFICATION_TEXTS[code];
      if (text !== undefined) fail(text);
      else if (code === 'ERR_TLS_CERT_ALTNAME_INVALID')
        fail(`Certificate does not match the hostname ${hostname}`);
      else fail(`TLS handshake failed: ${error.message}`);
    };
    const cutOff = (): void => fail('TLS handshake failed: The TLS connection was non-properly terminated.');
    duplex.on('error', failed);
    // The session closes what is below it before it tells why.
    duplex.on('close', () => setImmediate(cutOff));
    const session = connect({ socket: duplex, ...tlsClientOptions(credentials, hostname) });
    session.on('error', (error) => {
      failed(error);
      session.destroy();
    });
    session.once('secureConnect', () => resolve(streamOf(session)));
  });
}
