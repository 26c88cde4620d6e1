/**
 * TLS credentials with pre-shared keys: a file `keys.psk` in the folder `dir`, a line "USERNAME:HEXKEY" for each user,
 * as psktool(1) writes it.
 */

import type { ObjectOptions } from '../../schema/generated/types.ts';
import { BlockError } from '../errors/error.ts';
import { type QomObject, stringProperty } from './qom.ts';
import {
  checkTlsOptions,
  findCredential,
  GNUTLS,
  loadDhParams,
  readCredential,
  type TlsPskCredentials,
  tlsCommonAccessors,
} from './tls-creds.ts';

export type TlsPskOptions = Extract<ObjectOptions, { 'qom-type': 'tls-creds-psk' }>;

const DEFAULT_USER = 'qemu';
const MIN_KEY_BYTES = 4;

/** The text after "USERNAME:" on the user's line; null when there is none. */
function findKeyText(content: string, username: string): string | null {
  if (username === '') return null;
  const prefix = `${username}:`;
  const line = content.split('\n').find((candidate) => candidate.startsWith(prefix));
  return line === undefined ? null : line.slice(prefix.length);
}

/** The key, or GnuTLS's text for what is wrong with it. */
function decodeKey(hex: string): Buffer | string {
  if (!/^([0-9a-fA-F]{2})*$/.test(hex)) return GNUTLS.parsing;
  if (hex.length < 2 * MIN_KEY_BYTES) return GNUTLS.invalidRequest;
  return Buffer.from(hex, 'hex');
}

function readKeyFile(file: string): string {
  return readCredential(file, (reason) => new BlockError(`Cannot set PSK file '${file}': ${reason}`));
}

/** A server's look-up: the file is read anew, so that users can come and go; trouble means no key. */
function findServerKey(file: string, username: string): Buffer | null {
  try {
    const text = findKeyText(readKeyFile(file), username);
    const key = text === null ? null : decodeKey(text.trimEnd());
    return typeof key === 'string' ? null : key;
  } catch {
    return null; // an unreadable file authenticates nobody
  }
}

function loadClientKey(file: string, username: string): Buffer {
  const text = findKeyText(readKeyFile(file), username);
  if (text === null) throw new BlockError(`Username ${username} not found in PSK file ${file}`);
  const key = decodeKey(text);
  if (typeof key === 'string') throw new BlockError(`Cannot set PSK client credentials: ${key}`);
  return key;
}

/** Loads the credentials and checks them. */
export function createTlsPsk(options: TlsPskOptions): { credentials: TlsPskCredentials; qom: QomObject } {
  const dir = checkTlsOptions('tls-creds-psk', options);
  const endpoint = options.endpoint ?? 'client';
  if (endpoint === 'server' && options.username !== undefined) {
    throw new BlockError('username should not be set when endpoint=server');
  }
  const username = options.username ?? DEFAULT_USER;
  const dhParams = endpoint === 'server' ? loadDhParams(dir) : null;
  const file = findCredential(dir, 'keys.psk', true) ?? '';
  const clientKey = endpoint === 'client' ? loadClientKey(file, username) : null;
  const credentials: TlsPskCredentials = {
    kind: 'psk',
    endpoint,
    verifyPeer: options['verify-peer'] ?? true,
    priority: options.priority ?? '',
    username,
    dhParams,
    findKey: (user) =>
      clientKey === null ? findServerKey(file, user) : user === username ? clientKey : null,
  };
  const shown = { username: options.username ?? null };
  const accessors = {
    ...tlsCommonAccessors(options),
    username: stringProperty(shown, 'username', 'username'),
  };
  return { credentials, qom: { typeName: 'tls-creds-psk', accessors } };
}
