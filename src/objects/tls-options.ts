/**
 * Credentials as options of node:tls, for whoever speaks TLS (NBD server, character devices).
 *
 * What GnuTLS priority strings and node:tls have in common is the range of protocol versions, so of the priority
 * that is what counts; cipher suites stay those of node.
 */

import type { ConnectionOptions, SecureContextOptions, SecureVersion, TlsOptions } from 'node:tls';
import { BlockError } from '../errors/error.ts';
import type { TlsCredentials, TlsPskCredentials, TlsX509Credentials } from './tls-creds.ts';

const VERSIONS: readonly SecureVersion[] = ['TLSv1.2', 'TLSv1.3'];

/** Protocol versions that a priority string leaves, of those that are safe to offer. */
export function tlsVersions(priority: string): { minVersion: SecureVersion; maxVersion: SecureVersion } {
  let enabled = new Set(VERSIONS);
  for (const token of priority.split(':')) {
    const match = /^([+!-])VERS-(ALL|TLS-ALL|TLS1\.2|TLS1\.3)$/.exec(token);
    if (match === null) continue;
    const named = match[2]?.endsWith('ALL')
      ? VERSIONS
      : VERSIONS.filter((version) => version.endsWith(match[2]?.slice(3) ?? ''));
    enabled =
      match[1] === '+'
        ? new Set([...enabled, ...named])
        : new Set([...enabled].filter((version) => !named.includes(version)));
  }
  const kept = VERSIONS.filter((version) => enabled.has(version));
  const [minVersion] = kept;
  const maxVersion = kept.at(-1);
  if (minVersion === undefined || maxVersion === undefined) {
    throw new BlockError(`Unable to set TLS session priority ${priority}: no TLS version is left`);
  }
  return { minVersion, maxVersion };
}

function x509Files({ ca, crl, cert, key, passphrase }: TlsX509Credentials): SecureContextOptions {
  return {
    ca,
    ...(crl !== null && { crl }),
    ...(cert !== null && { cert }),
    ...(key !== null && { key }),
    ...(passphrase !== null && { passphrase }),
  };
}

function x509ServerOptions(credentials: TlsX509Credentials): TlsOptions {
  const { dhParams, verifyPeer } = credentials;
  return {
    ...x509Files(credentials),
    ...(dhParams !== null && { dhparam: dhParams }),
    requestCert: verifyPeer,
    rejectUnauthorized: verifyPeer,
  };
}

// Before TLS 1.3 pre-shared keys have suites of their own; with 1.3 every suite takes them.
const PSK_CIPHERS = 'TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:PSK:!NULL:!CAMELLIA';

function pskServerOptions(credentials: TlsPskCredentials): TlsOptions {
  return {
    ciphers: PSK_CIPHERS,
    dhparam: credentials.dhParams ?? 'auto',
    pskCallback: (_socket, identity) => credentials.findKey(identity),
  };
}

// Without certificates or keys there is TLS up to 1.2 only, with suites that are off unless they are named.
const ANON: ConnectionOptions & TlsOptions = { ciphers: 'aNULL:!NULL:@SECLEVEL=0', maxVersion: 'TLSv1.2' };

function serverOptions(credentials: TlsCredentials): TlsOptions {
  switch (credentials.kind) {
    case 'x509':
      return x509ServerOptions(credentials);
    case 'psk':
      return pskServerOptions(credentials);
    case 'anon':
      return { ...ANON, dhparam: credentials.dhParams ?? 'auto' };
  }
}

/** Options for the server side of a session with these credentials. */
export function tlsServerOptions(credentials: TlsCredentials): TlsOptions {
  return { ...tlsVersions(credentials.priority), ...serverOptions(credentials) };
}

/** Options for the client side of a session with a server called `hostname`. */
export function tlsClientOptions(credentials: TlsCredentials, hostname: string): ConnectionOptions {
  const versions = tlsVersions(credentials.priority);
  if (credentials.kind === 'x509') {
    return {
      ...x509Files(credentials),
      rejectUnauthorized: credentials.verifyPeer,
      ...versions,
      servername: hostname,
    };
  }
  if (credentials.kind === 'anon') {
    return { ...versions, ...ANON, rejectUnauthorized: false, checkServerIdentity: () => undefined };
  }
  const psk = credentials.findKey(credentials.username);
  return {
    ciphers: PSK_CIPHERS,
    pskCallback: () => (psk === null ? null : { psk, identity: credentials.username }),
    // The key proves who the server is; there is no certificate to check.
    checkServerIdentity: () => undefined,
    ...versions,
  };
}
