/**
 * known_hosts files: which keys a host is known by. Plain and hashed host names, patterns with wildcards, negated ones,
 * ports, revoked keys. Entries of certificate authorities are passed over.
 *
 * Source of the facts: sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT".
 */

import { createHmac, timingSafeEqual } from 'node:crypto';

export interface KnownKey {
  /** The key's type, such as ssh-ed25519. */
  readonly type: string;
  readonly key: Buffer;
  readonly revoked: boolean;
}

/** More is no list of hosts. */
export const KNOWN_HOSTS_MAX_BYTES = 16 * 1024 * 1024;
const DEFAULT_PORT = 22;

/** The name a host goes by in such a file. */
export function hostEntryName(host: string, port: number): string {
  const name = host.toLowerCase();
  return port === DEFAULT_PORT ? name : `[${name}]:${port}`;
}

function matchesHash(pattern: string, name: string): boolean {
  const [, kind, salt = '', hash = ''] = pattern.split('|');
  if (kind !== '1') return false;
  const wanted = Buffer.from(hash, 'base64');
  const own = createHmac('sha1', Buffer.from(salt, 'base64')).update(name).digest();
  return wanted.length === own.length && timingSafeEqual(wanted, own);
}

/** Wildcards `*` and `?`, without going back more than once a star: patterns are other people's. */
export function matchesPattern(pattern: string, name: string): boolean {
  let at = 0;
  let star = -1;
  let starAt = 0;
  let p = 0;
  while (at < name.length) {
    if (p < pattern.length && (pattern[p] === '?' || (pattern[p] === name[at] && pattern[p] !== '*'))) {
      p++;
      at++;
    } else if (pattern[p] === '*') {
      star = p++;
      starAt = at;
    } else if (star >= 0) {
      p = star + 1;
      at = ++starAt;
    } else return false;
  }
  while (pattern[p] === '*') p++;
  return p === pattern.length;
}

function matchesHosts(hosts: string, name: string): boolean {
  if (hosts.startsWith('|')) return matchesHash(hosts, name);
  let matches = false;
  for (const pattern of hosts.toLowerCase().split(',')) {
    const isNegated = pattern.startsWith('!');
    if (!matchesPattern(isNegated ? pattern.slice(1) : pattern, name)) continue;
    if (isNegated) return false;
    matches = true;
  }
  return matches;
}

/** Keys of the host in the file's text. */
export function knownKeys(text: string, host: string, port: number): KnownKey[] {
  const name = hostEntryName(host, port);
  const keys: KnownKey[] = [];
  for (const line of text.split('\n')) {
    const fields = line.trim().split(/[ \t]+/);
    const marker = fields[0]?.startsWith('@') ? fields.shift() : undefined;
    const [hosts = '', type = '', key = ''] = fields;
    if (hosts === '' || hosts.startsWith('#') || key === '') continue;
    if (marker !== undefined && marker !== '@revoked') continue;
    if (!matchesHosts(hosts, name)) continue;
    keys.push({ type, key: Buffer.from(key, 'base64'), revoked: marker === '@revoked' });
  }
  return keys;
}
