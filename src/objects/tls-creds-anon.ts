/**
 * TLS credentials that prove nothing: sessions are encrypted, and whoever sits between the peers can read them. And the
 * tls-cipher-suites object, a record of a priority string that no session is made with.
 */

import type { ObjectOptions } from '../../schema/generated/types.ts';
import { BlockError } from '../errors/error.ts';
import type { QomObject } from './qom.ts';
import { loadDhParams, type TlsAnonCredentials, tlsCommonAccessors } from './tls-creds.ts';
import { tlsVersions } from './tls-options.ts';

export type TlsAnonOptions = Extract<ObjectOptions, { 'qom-type': 'tls-creds-anon' }>;
export type TlsCipherSuitesOptions = Extract<ObjectOptions, { 'qom-type': 'tls-cipher-suites' }>;

/** Makes the credentials. A server may have parameters of its own for the exchange of keys, in the folder `dir`. */
export function createTlsAnon(options: TlsAnonOptions): { credentials: TlsAnonCredentials; qom: QomObject } {
  if (options.loaded !== undefined) throw new BlockError("Property 'tls-creds-anon.loaded' is not writable");
  const { dir, endpoint = 'client', priority = '' } = options;
  // OpenSSL has no such suites for later versions.
  if (tlsVersions(priority).minVersion !== 'TLSv1.2')
    throw new BlockError(`TLS without credentials needs version 1.2, which priority ${priority} leaves out`);
  const dhParams = endpoint === 'server' && dir !== undefined ? loadDhParams(dir) : null;
  const credentials: TlsAnonCredentials = {
    kind: 'anon',
    endpoint,
    verifyPeer: options['verify-peer'] ?? true,
    priority,
    dhParams,
  };
  return { credentials, qom: { typeName: 'tls-creds-anon', accessors: tlsCommonAccessors(options) } };
}

/** Makes the record of a priority string. */
export function createTlsCipherSuites(options: TlsCipherSuitesOptions): QomObject {
  if (options.priority === undefined) throw new BlockError("'priority' property is not set");
  const { loaded: _, ...accessors } = tlsCommonAccessors(options);
  return { typeName: 'tls-cipher-suites', accessors };
}
