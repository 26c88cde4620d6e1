/**
 * Names of images on SSH servers, and options by older names.
 *
 *   ssh://[USER@]HOST[:PORT]/PATH[?host_key_check=no|yes|md5:HASH|sha1:HASH|sha256:HASH]
 *
 * Source of the facts: QEMU documentation, "Disk image file access over SSH"; error texts from qemu-img 7.2.
 */

import { userInfo } from 'node:os';
import type { DriverOptions } from '../../../block/contract/image.ts';
import type { NameCallbacks } from '../../../block/contract/names.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { percentDecoded } from '../../net/percent.ts';

const DEFAULT_PORT = '22';

function einval(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

/** Options for a name that starts with "ssh:". */
export function parseName(name: string): DriverOptions {
  const match =
    /^ssh:\/\/(?:([^@/?#]*)@)?(\[[^\]/]*\]|[^:/?#@]*)(?::(\d*))?(\/[^?#]*)?(?:\?([^#]*))?(?:#.*)?$/.exec(
      name,
    );
  if (match === null || match[2] === '') throw einval('missing hostname in URI');
  const [, user, host = '', port, path, query = ''] = match;
  if (path === undefined) throw einval('missing remote path in URI');
  const options: Record<string, unknown> = {
    server: { host: percentDecoded(host.replace(/^\[(.*)\]$/, '$1')), port: port || DEFAULT_PORT },
    path: percentDecoded(path),
  };
  if (user !== undefined && user !== '') options.user = percentDecoded(user);
  for (const pair of query.split('&')) {
    const [key, ...value] = pair.split('=');
    if (key === 'host_key_check') options['host-key-check'] = parseCheck(percentDecoded(value.join('=')));
  }
  return options;
}

function parseCheck(text: string): DriverOptions {
  if (text === 'no') return { mode: 'none' };
  if (text === 'yes') return { mode: 'known_hosts' };
  const match = /^(md5|sha1|sha256):(.*)$/.exec(text);
  if (match === null) throw einval(`unknown host_key_check setting (${text})`);
  return { mode: 'hash', type: match[1], hash: match[2] };
}

/** Options of the time before `server`: host and port, and host_key_check. */
export function modernOptions(options: DriverOptions): DriverOptions {
  const { host, port, host_key_check: check, ...rest } = options;
  return {
    ...rest,
    ...(host !== undefined && { server: { host: String(host), port: String(port ?? DEFAULT_PORT) } }),
    ...(check !== undefined && { 'host-key-check': parseCheck(String(check)) }),
  };
}

/** The name of whoever runs this program. */
export function localUser(): string {
  try {
    return userInfo().username;
  } catch {
    return process.env.USER ?? '';
  }
}

/** The URI that stands for these options; null when none does. */
export function exactName(options: DriverOptions): string | null {
  const { host, port, ...more } = options.server as { readonly host: string; readonly port: string };
  if (Object.keys(more).some((key) => key !== 'type')) return null;
  const user = (options.user as string | undefined) ?? localUser();
  return `ssh://${user}@${host.includes(':') ? `[${host}]` : host}:${port}${String(options.path)}`;
}

export const sshNames = {
  parseName: (rest, prefix) => parseName(prefix === '' ? rest : `${prefix}:${rest}`),
  modernOptions,
} as const satisfies NameCallbacks;
