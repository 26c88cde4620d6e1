/**
 * What all kinds of TLS credentials have in common: the record their users see, the properties they share and the
 * search for their files.
 */

import { accessSync } from 'node:fs';
import path from 'node:path';
import type { QCryptoTLSCredsEndpoint } from '../../schema/generated/types.ts';
import { readHostFileNow } from '../aio/host/files.ts';
import { hostPath } from '../aio/host/names.ts';
import { E, strerror } from '../errors/errno.ts';
import { BlockError, errnoOf } from '../errors/error.ts';
import { booleanProperty, enumProperty, type QomAccessors, stringProperty } from './qom.ts';

/** Certificates and keys are PEM text, as node:tls takes them. */
export interface TlsX509Credentials {
  readonly kind: 'x509';
  readonly endpoint: QCryptoTLSCredsEndpoint;
  /** Server: clients must show a certificate that the CA signed. Client: the server's certificate is checked. */
  readonly verifyPeer: boolean;
  /** GnuTLS priority string; empty: the default. */
  readonly priority: string;
  readonly ca: string;
  readonly crl: string | null;
  readonly cert: string | null;
  readonly key: string | null;
  readonly passphrase: string | null;
  readonly dhParams: string | null;
}

export interface TlsPskCredentials {
  readonly kind: 'psk';
  readonly endpoint: QCryptoTLSCredsEndpoint;
  readonly verifyPeer: boolean;
  readonly priority: string;
  /** Client: the identity to log in with. */
  readonly username: string;
  readonly dhParams: string | null;
  /** The key of a user, from the key file as it is now; null when the file has no usable key for that user. */
  findKey(username: string): Buffer | null;
}

export interface TlsAnonCredentials {
  readonly kind: 'anon';
  readonly endpoint: QCryptoTLSCredsEndpoint;
  readonly verifyPeer: boolean;
  readonly priority: string;
  readonly dhParams: string | null;
}

export type TlsCredentials = TlsX509Credentials | TlsPskCredentials | TlsAnonCredentials;

/** Options that all kinds have. */
export interface TlsCommonOptions {
  readonly dir?: string | undefined;
  readonly endpoint?: QCryptoTLSCredsEndpoint | undefined;
  readonly priority?: string | undefined;
  readonly 'verify-peer'?: boolean | undefined;
  readonly loaded?: boolean | undefined;
}

/** The shared properties as qom-get shows them; setting them later changes nothing but what is shown. */
export function tlsCommonAccessors(options: TlsCommonOptions): QomAccessors {
  const shown = {
    endpoint: options.endpoint ?? 'client',
    dir: options.dir ?? null,
    verifyPeer: options['verify-peer'] ?? true,
    priority: options.priority ?? null,
  };
  return {
    endpoint: enumProperty(shown, 'endpoint', 'endpoint', ['client', 'server'] as const),
    dir: stringProperty(shown, 'dir', 'dir'),
    'verify-peer': booleanProperty(shown, 'verifyPeer', 'verify-peer'),
    priority: stringProperty(shown, 'priority', 'priority'),
    loaded: { get: () => true },
  };
}

/** Throws unless the options name a folder and leave the read-only property alone. */
export function checkTlsOptions(typeName: string, options: TlsCommonOptions): string {
  if (options.loaded !== undefined) throw new BlockError(`Property '${typeName}.loaded' is not writable`);
  if (options.dir === undefined) throw new BlockError("Missing 'dir' property value");
  return options.dir;
}

/** The path of a credential file; null when it is optional and not there. */
export function findCredential(dir: string, name: string, required: boolean): string | null {
  const file = path.join(dir, name);
  try {
    accessSync(hostPath(file));
    return file;
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === E.ENOENT && !required) return null;
    throw new BlockError(`Unable to access credentials ${file}: ${strerror(errno)}`);
  }
}

const MAX_CREDENTIAL_BYTES = 16 * 1024 * 1024;

/** The content of a credential file; `fail` makes the error from the reason. */
export function readCredential(file: string, fail: (reason: string) => BlockError): string {
  try {
    return readHostFileNow(file, MAX_CREDENTIAL_BYTES).toString('latin1');
  } catch (error) {
    throw fail(strerror(errnoOf(error)));
  }
}

/** Texts of GnuTLS's errors, which the original appends to its own. */
export const GNUTLS = {
  unexpectedHeader: 'Base64 unexpected header error.',
  decodingError: 'Base64 decoding error.',
  notAvailable: 'The requested data were not available.',
  keyMismatch: 'The certificate and the given key do not match.',
  decryptionFailed: 'Decryption has failed.',
  parsing: 'Error in parsing.',
  invalidRequest: 'The request is invalid.',
} as const;

/** Blocks of PEM text with one of these labels, delimiters included. */
export function pemBlocks(text: string, label: RegExp): string[] {
  const pattern = /-----BEGIN ([A-Z0-9 ]+)-----\r?\n[A-Za-z0-9+/=\s:,.-]*?-----END \1-----/g;
  return [...text.matchAll(pattern)].filter((match) => label.test(match[1] ?? '')).map((match) => match[0]);
}

const DH_LABEL = /^DH PARAMETERS$/;

/** Diffie-Hellman parameters in `dh-params.pem`, which a server may have. */
export function loadDhParams(dir: string): string | null {
  const file = findCredential(dir, 'dh-params.pem', false);
  if (file === null) return null;
  const fail = (reason: string): BlockError =>
    new BlockError(`Unable to load DH parameters from ${file}: ${reason}`);
  const [params] = pemBlocks(readCredential(file, fail), DH_LABEL);
  if (params === undefined) throw fail(GNUTLS.unexpectedHeader);
  return params;
}
