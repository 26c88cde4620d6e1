/**
 * Names of NBD exports: the URIs and the older colon form as options, and options as a URI.
 *
 *   nbd://HOST[:PORT][/EXPORT]   nbd+tcp://...   nbd+unix:///EXPORT?socket=PATH
 *   nbd:HOST:PORT[:exportname=EXPORT]            nbd:unix:PATH[:exportname=EXPORT]
 *
 * Source of the facts: QEMU documentation, "NBD access"; error texts from qemu-img 7.2.
 */

import type { SocketAddress } from '../../../../schema/generated/types.ts';
import type { DriverOptions } from '../../../block/contract/image.ts';
import type { NameCallbacks } from '../../../block/contract/names.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';

const DEFAULT_PORT = '10809';

function einval(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

/** Options for an image name that starts with "nbd:", "nbd+tcp:" or "nbd+unix:". */
function parseName(name: string): DriverOptions {
  if (name.includes('://')) {
    const options = parseUri(name);
    if (options === null) throw einval('No valid URL specified');
    return options;
  }
  return parseColonForm(name);
}

/** Null: not a valid URI of an export. */
function parseUri(name: string): DriverOptions | null {
  const match = /^(nbd|nbd\+tcp|nbd\+unix):\/\/([^/?#]*)(\/[^?#]*)?(?:\?([^#]*))?(?:#.*)?$/.exec(name);
  if (match === null) return null;
  const [, scheme, authority = '', rawPath = '', rawQuery] = match;
  const path = decoded(rawPath.slice(1));
  const query = rawQuery === undefined ? [] : rawQuery.split('&').filter((pair) => pair !== '');
  if (path === null) return null;
  const named = path === '' ? {} : { export: path };
  if (scheme === 'nbd+unix') {
    const [key, value] = splitOnce(query[0] ?? '', '=');
    const socket = value === null ? null : decoded(value);
    if (authority !== '' || query.length !== 1 || key !== 'socket' || socket === null) return null;
    return { server: { type: 'unix', path: socket }, ...named };
  }
  const host = /^(?:[^@]*@)?(\[[^\]]*\]|[^:]*)(?::(\d*))?$/.exec(authority);
  if (query.length > 0 || host === null) return null;
  const hostName = decoded((host[1] as string).replace(/^\[(.*)\]$/, '$1'));
  const port = host[2] === undefined || host[2] === '' ? DEFAULT_PORT : String(Number(host[2]));
  if (hostName === null || hostName === '' || Number(port) > 65535) return null;
  return { server: { type: 'inet', host: hostName, port: port === '0' ? DEFAULT_PORT : port }, ...named };
}

function decoded(text: string): string | null {
  try {
    return decodeURIComponent(text);
  } catch {
    return null;
  }
}

function splitOnce(text: string, separator: string): [string, string | null] {
  const at = text.indexOf(separator);
  return at < 0 ? [text, null] : [text.slice(0, at), text.slice(at + separator.length)];
}

function parseColonForm(name: string): DriverOptions {
  if (!name.startsWith('nbd:')) throw einval("File name string for NBD must start with 'nbd:'");
  const [address, exportName] = splitOnce(name.slice('nbd:'.length), ':exportname=');
  if (exportName === '' || address === '') throw einval('NBD server address missing');
  const named = exportName === null ? {} : { export: exportName };
  if (address.startsWith('unix:'))
    return { server: { type: 'unix', path: address.slice('unix:'.length) }, ...named };
  const match = /^(\[[^\]]*\]|[^:]*):([^,]+)(?:,.*)?$/.exec(address);
  if (match === null) throw einval(`error parsing address '${address}'`);
  const host = (match[1] as string).replace(/^\[(.*)\]$/, '$1');
  return { server: { type: 'inet', host, port: match[2] }, ...named };
}

/** Options of the time before `server`: host and port, or path. */
function modernOptions(options: DriverOptions): DriverOptions {
  const { host, port, path, server, ...rest } = options;
  const isServer = typeof server === 'object' && server !== null;
  if (host === undefined && port === undefined && path === undefined) {
    if (!isServer) throw einval('NBD server address missing');
    return options;
  }
  if (isServer) throw einval("Cannot use 'server' and path/host/port at the same time");
  if (path !== undefined && (host !== undefined || port !== undefined))
    throw einval('path and host may not be used at the same time');
  if (path !== undefined) return { ...rest, server: { type: 'unix', path: String(path) } };
  if (host === undefined) throw einval('NBD server address missing');
  return { ...rest, server: { type: 'inet', host: String(host), port: String(port ?? DEFAULT_PORT) } };
}

/** The URI that stands for these options; null when none does. */
export function exactName(options: DriverOptions): string | null {
  const server = options.server as SocketAddress;
  const name = options.export as string | undefined;
  if (options['tls-creds'] !== undefined) return null;
  const isPlain = Object.keys(server).every((key) => ['type', 'host', 'port', 'path'].includes(key));
  if (!isPlain) return null;
  const path = name === undefined ? '' : `/${name}`;
  if (server.type === 'unix') return `nbd+unix://${path}?socket=${server.path}`;
  if (server.type === 'inet') return `nbd://${server.host}:${server.port}${path}`;
  return null;
}

/** The names' part of the driver. */
export const nbdNames = {
  namePrefixes: ['nbd+tcp', 'nbd+unix'],
  parseName: (rest, prefix) => parseName(prefix === '' ? rest : `${prefix}:${rest}`),
  modernOptions,
} as const satisfies NameCallbacks;
