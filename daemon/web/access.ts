/**
 * Who may talk to a port of this host that speaks HTTP: the WebSocket listener and the metrics.
 *
 * Any web page may try to connect to a port of the machine that its reader sits at, so four things are asked: the address
 * listened on is one of this host (unless `remote=on`), so is the one the client believes to have reached (Host: a name
 * of another site may be made to lead here), the Origin is absent (no browser) or names that same host, and the client
 * shows the token, as `?token=...` or in an Authorization header.
 */

import { randomBytes, timingSafeEqual } from 'node:crypto';
import { rmSync, writeFileSync } from 'node:fs';
import type { IncomingMessage, Server } from 'node:http';
import type { Duplex } from 'node:stream';
import { absoluteName, hostPath } from '../../src/aio/host/names.ts';
import { BlockError, errnoError, errnoOf } from '../../src/errors/error.ts';

const LOOPBACK = /^(localhost|127(\.\d+){3}|\[?::1\]?)$/;

/** What a listener asks of its clients. */
export interface AccessOptions {
  /** The token clients must show; null: one is made up. */
  readonly token: string | null;
  /** The file a made-up token is written to, readable by its owner alone. */
  readonly tokenFile: string | null;
  /** Addresses other than those of this host may be listened on, and clients may know this host by any name. */
  readonly remote: boolean;
}

/** Compares in constant time. */
function sameText(a: string, b: string): boolean {
  const [left, right] = [Buffer.from(a), Buffer.from(b)];
  return left.length === right.length && timingSafeEqual(left, right);
}

function tokenOf(request: IncomingMessage): string {
  const header = /^Bearer (.+)$/.exec(request.headers.authorization ?? '')?.[1];
  return header ?? new URL(request.url ?? '/', 'ws://localhost').searchParams.get('token') ?? '';
}

function isSameHost(origin: string, host: string | undefined): boolean {
  try {
    const page = new URL(origin);
    // Parsed alike, so that a port which is the default of the protocol is left out of both.
    return page.host !== '' && page.host === new URL(`${page.protocol}//${host}`).host;
  } catch {
    return false; // "null": a page without a place
  }
}

function isThisHost(host: string | undefined): boolean {
  try {
    return LOOPBACK.test(new URL(`http://${host}`).hostname);
  } catch {
    return false;
  }
}

/** The status a client is turned away with; null: it may come in. */
export function refusalOf(request: IncomingMessage, token: string, remote: boolean): 401 | 403 | 421 | null {
  const { origin, host } = request.headers;
  if (!remote && !isThisHost(host)) return 421;
  if (origin !== undefined && !isSameHost(origin, host)) return 403;
  try {
    return sameText(tokenOf(request), token) ? null : 401;
  } catch {
    return 401; // an address that is no URL
  }
}

/** Where to listen: an address, or a socket that was passed to the process. */
export type ListenPlace = { readonly host: string; readonly port: string } | { readonly fd: number };

/** Throws unless the port is one and the host may be listened on. `what` are the clients, for the message. */
export function checkAddress(place: ListenPlace, { remote }: AccessOptions, what: string): void {
  if ('fd' in place) return;
  const { host, port } = place;
  if (!/^\d{1,5}$/.test(port) || Number(port) > 65535) throw new BlockError(`Invalid port '${port}'`);
  if (!remote && host !== '' && !LOOPBACK.test(host))
    throw new BlockError(`${what} of other hosts need 'remote=on' besides the address '${host}'`);
}

/** Makes the token file; returns what removes it. */
function writeTokenFile(name: string, token: string): () => void {
  const file = absoluteName(name);
  try {
    rmSync(hostPath(file), { force: true });
    writeFileSync(hostPath(file), `${token}\n`, { mode: 0o600, flag: 'wx' });
  } catch (error) {
    throw errnoError(`Could not create '${name}'`, errnoOf(error));
  }
  return () => rmSync(hostPath(file), { force: true });
}

/** The token clients must show, and what removes the file that keeps it. */
export function provideToken({ token, tokenFile }: AccessOptions): {
  readonly token: string;
  readonly removeFile: () => void;
} {
  const text = token ?? randomBytes(18).toString('base64url');
  return { token: text, removeFile: tokenFile === null ? () => undefined : writeTokenFile(tokenFile, text) };
}

/** Times in milliseconds for a request: it is a short one. */
export const IMPATIENCE = {
  headersTimeout: 5000,
  requestTimeout: 5000,
  keepAliveTimeout: 1000,
  connectionsCheckingInterval: 1000,
} as const;

/** Connections that have not asked for anything yet; of more the oldest goes. */
const MAX_SILENT = 64;

/** Keeps connections that ask for nothing few and short. Upgraded ones do not count. */
export function limitSilentClients(server: Server): void {
  const silent = new Set<Duplex>();
  server.on('connection', (socket) => {
    silent.add(socket);
    socket.once('close', () => silent.delete(socket));
    const [oldest] = silent;
    if (silent.size > MAX_SILENT) oldest?.destroy();
    // A client that never says anything is not looked at by the checks of requests.
    const timer = setTimeout(() => {
      if (silent.has(socket)) socket.destroy();
    }, 2 * IMPATIENCE.headersTimeout).unref();
    socket.once('close', () => clearTimeout(timer));
  });
  server.on('upgrade', (_request, socket) => {
    // A refused one stays among them until it has gone.
    setImmediate(() => socket.writableEnded || silent.delete(socket));
  });
}

/** HOST:PORT of a server that listens. Throws when others could come to a socket that was passed, and are not to. */
function placeOf(server: Server, host: string | null, { remote }: AccessOptions): string {
  const bound = server.address();
  if (typeof bound !== 'object' || bound === null) return 'localhost';
  if (host === null && !remote && !LOOPBACK.test(bound.address)) {
    server.close();
    throw new BlockError(`Clients of other hosts need 'remote=on': the socket listens on ${bound.address}`);
  }
  const name = host ?? bound.address;
  return `${name.includes(':') ? `[${name}]` : name || 'localhost'}:${bound.port}`;
}

/** Listens; resolves to HOST:PORT. `scheme` stands in front of the address in messages. */
export function listenHttp(
  server: Server,
  place: ListenPlace,
  options: AccessOptions,
  scheme: string,
): Promise<string> {
  const [host, where, shown] =
    'fd' in place
      ? [null, place, `${scheme}fd ${place.fd}`]
      : [
          place.host,
          { host: place.host === '' ? 'localhost' : place.host, port: Number(place.port) },
          `${scheme}${place.host}:${place.port}`,
        ];
  return new Promise((resolve, reject) => {
    server.once('error', (error) => reject(errnoError(`Failed to listen on ${shown}`, errnoOf(error))));
    server.listen(where, () => {
      // From here on errors are failed accepts: the client is lost, the server goes on.
      server.removeAllListeners('error').on('error', () => undefined);
      try {
        resolve(placeOf(server, host, options));
      } catch (error) {
        reject(error as Error);
      }
    });
  });
}
