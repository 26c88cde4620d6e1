/**
 * Whether a server is who it should be: by known_hosts files, by the hash of its key, or not at all. The texts are the
 * original's.
 */

import { createHash, timingSafeEqual } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { homedir, userInfo } from 'node:os';
import path from 'node:path';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { KNOWN_HOSTS_MAX_BYTES, type KnownKey, knownKeys } from './known-hosts.ts';

export type HostKeyCheck =
  | { readonly mode: 'none' }
  | { readonly mode: 'known_hosts' }
  | { readonly mode: 'hash'; readonly type: 'md5' | 'sha1' | 'sha256'; readonly hash: string };

const SYSTEM_FILE = '/etc/ssh/ssh_known_hosts';

/** The user's home as the system has it: $HOME does not count, as with ssh(1). */
export function homeFolder(): string {
  try {
    return userInfo().homedir;
  } catch {
    return homedir();
  }
}

/** Keys that the host is known by; `file`: in place of the user's and the system's files. */
export function keysOfHost(host: string, port: number, file: string | undefined): KnownKey[] {
  const files = file === undefined ? [path.join(homeFolder(), '.ssh/known_hosts'), SYSTEM_FILE] : [file];
  return files.flatMap((name) => {
    const text = readIfThere(name);
    return text === null ? [] : knownKeys(text, host, port);
  });
}

function readIfThere(file: string): string | null {
  try {
    const stat = statSync(file);
    return stat.isFile() && stat.size <= KNOWN_HOSTS_MAX_BYTES ? readFileSync(file, 'utf8') : null;
  } catch {
    return null;
  }
}

/** The type that a public key in SSH's form says it is of (RFC 4253, 6.6). */
export function keyType(key: Buffer): string {
  const length = key.length >= 4 ? key.readUInt32BE(0) : 0;
  return length <= key.length - 4 && length <= 64 ? key.toString('latin1', 4, 4 + length) : '';
}

function refuse(text: string): never {
  throw new BlockError(text, { errno: E.EPERM });
}

/** Throws unless the key is the one expected. `known`: what keysOfHost says. */
export function checkHostKey(key: Buffer, check: HostKeyCheck, known: readonly KnownKey[]): void {
  if (check.mode === 'none') return;
  if (check.mode === 'hash') checkHash(key, check.type, check.hash);
  else checkKnown(key, known);
}

function checkHash(key: Buffer, type: 'md5' | 'sha1' | 'sha256', wanted: string): void {
  const own = createHash(type).update(key).digest();
  const digits = wanted.replaceAll(':', '');
  const other = /^(?:[0-9a-f]{2})*$/i.test(digits) ? Buffer.from(digits, 'hex') : Buffer.alloc(0);
  if (own.length === other.length && timingSafeEqual(own, other)) return;
  refuse(
    `remote host ${keyType(key)} key fingerprint '${type}:${own.toString('hex')}' does not match host_key_check '${type}:${wanted}'`,
  );
}

function checkKnown(key: Buffer, known: readonly KnownKey[]): void {
  if (known.some((entry) => entry.revoked && entry.key.equals(key)))
    refuse('host key is revoked in known_hosts');
  const good = known.filter(({ revoked }) => !revoked);
  if (good.some((entry) => entry.key.equals(key))) return;
  const type = keyType(key);
  if (good.some((entry) => entry.type === type)) {
    const print = createHash('sha256').update(key).digest('base64').replace(/=+$/, '');
    refuse(
      `host key (${type} key with fingerprint SHA256:${print}) does not match the one in known_hosts; this may be a possible attack`,
    );
  }
  if (good.length > 0) refuse('host key for this server not found, another type exists');
  refuse('no host key was found in known_hosts');
}
