/**
 * Listening on and connecting to the socket addresses of the QMP schema, with node:net.
 *
 * Here: name look-up, ports and port ranges, UNIX sockets (also abstract ones) and inherited file descriptors, and
 * the error texts for what goes wrong. Not here: what is said over the connections.
 */

import { lookup } from 'node:dns/promises';
import { accessSync, fstatSync, readFileSync } from 'node:fs';
import { connect, createServer, isIP, type ListenOptions, type Server, Socket } from 'node:net';
import path from 'node:path';
import type { SocketAddress } from '../../schema/generated/types.ts';
import { E, strerror } from '../errors/errno.ts';
import { BlockError, errnoError, errnoOf } from '../errors/error.ts';
import { setKeepAlive } from './host/keep-alive.ts';
import { claimSocket, closeUnixServer, inodeOf, makeWay, temporaryPath } from './host/socket-paths.ts';
import type { VsockPlace } from './host/vsock.ts';

type InetAddress = Extract<SocketAddress, { type: 'inet' }>;
type UnixAddress = Extract<SocketAddress, { type: 'unix' }>;
type VsockAddress = Extract<SocketAddress, { type: 'vsock' }>;

/** sizeof(sockaddr_un.sun_path). A path may use all of it, without a byte that ends it. */
const SUN_PATH_BYTES = 108;
const MAX_PORT = 65535;

export interface Listener {
  /** What is listened on, with the ports that were found; several for a host name with several addresses. */
  readonly addresses: readonly SocketAddress[];
  /** Stops listening, and removes the UNIX socket unless somebody else has put theirs in its place. Idempotent. */
  close(): void;
}

export interface ListenSettings {
  /** Connections arrive (or are made) paused, nothing read, ready to be handed to an engine. */
  readonly pauseOnConnect?: boolean;
  /** A client that sends no more may still receive; its socket must be ended by whoever serves it. */
  readonly allowHalfOpen?: boolean;
  /** Length of the kernel's queue of connections not accepted yet. */
  readonly backlog?: number;
  /** Addresses of type `fd` name descriptors which the daemon inherited: for the command line only. */
  readonly allowInheritedFd?: boolean;
  /** Gives up connecting. */
  readonly signal?: AbortSignal;
}

type OnConnection = (socket: Socket) => void;

// ---- names and ports -----------------------------------------------------------------------------------------

/** Texts of getaddrinfo(3)'s errors. */
const RESOLVER_TEXTS: Readonly<Record<string, string>> = {
  ENOTFOUND: 'Name or service not known',
  EAI_AGAIN: 'Temporary failure in name resolution',
  EAI_FAIL: 'Non-recoverable failure in name resolution',
};

function resolutionError({ host, port }: InetAddress, reason: string): BlockError {
  return new BlockError(`address resolution failed for ${host}:${port}: ${reason}`);
}

/** The port by number (none: 0) or by its name in /etc/services; null when it is neither. */
function parsePort(port: string): number | null {
  if (port === '') return 0;
  if (/^\d{1,5}$/.test(port)) return Number(port) <= MAX_PORT ? Number(port) : null;
  if (!/^[A-Za-z][A-Za-z0-9_.+-]*$/.test(port)) return null;
  try {
    for (const line of readFileSync('/etc/services', 'utf8').split('\n')) {
      const [names = '', service = '', ...aliases] = line.replace(/#.*/, '').split(/\s+/);
      const number = /^(\d+)\/tcp$/.exec(service)?.[1];
      if (number !== undefined && [names, ...aliases].includes(port)) return Number(number);
    }
  } catch {
    // No such file: then there are no names.
  }
  return null;
}

interface ResolvedAddress {
  readonly host: string;
  readonly family: 4 | 6;
}

/** 0: any family. Giving one of `ipv4` and `ipv6` as true excludes the other, unless that is true too. */
function familyOf({ ipv4, ipv6 }: InetAddress): 0 | 4 | 6 {
  if (ipv4 === false && ipv6 === false) throw new BlockError('Cannot disable IPv4 and IPv6 at same time');
  if (ipv4 === ipv6) return 0;
  return ipv4 === true || ipv6 === false ? 4 : 6;
}

async function resolveHost(address: InetAddress, passive: boolean): Promise<ResolvedAddress[]> {
  const family = familyOf(address);
  const literal = isIP(address.host);
  if (literal !== 0 && family !== 0 && literal !== family) {
    throw resolutionError(address, 'Address family for hostname not supported');
  }
  if (literal === 0 && address.numeric === true && address.host !== '') {
    throw resolutionError(address, 'Name or service not known');
  }
  if (address.host === '') {
    const wildcards: ResolvedAddress[] = passive
      ? [
          { host: '0.0.0.0', family: 4 },
          { host: '::', family: 6 },
        ]
      : [
          { host: '::1', family: 6 },
          { host: '127.0.0.1', family: 4 },
        ];
    return wildcards.filter((wildcard) => family === 0 || wildcard.family === family);
  }
  try {
    const found = await lookup(address.host, { all: true, family, verbatim: true });
    return found.map((entry) => ({ host: entry.address, family: entry.family === 6 ? 6 : 4 }));
  } catch (error) {
    const code = String((error as { code?: unknown }).code);
    throw resolutionError(address, RESOLVER_TEXTS[code] ?? code);
  }
}

function resolvePort(address: InetAddress): number {
  const port = parsePort(address.port);
  if (port === null) throw resolutionError(address, 'Servname not supported for ai_socktype');
  return port;
}

// ---- UNIX sockets --------------------------------------------------------------------------------------------

/** The name node:net takes: abstract ones start with a zero byte, and are filled up with more unless `tight`. */
function unixName({ path: name, abstract = false, tight = true }: UnixAddress): string {
  const bytes = Buffer.byteLength(name);
  if (bytes + (abstract ? 1 : 0) > SUN_PATH_BYTES) {
    throw new BlockError(`UNIX socket path '${name}' is too long`, {
      hint: `Path must be less than ${SUN_PATH_BYTES} bytes`,
    });
  }
  if (!abstract) return name;
  return `\0${name}${tight ? '' : '\0'.repeat(SUN_PATH_BYTES - 1 - bytes)}`;
}

// ---- listening -----------------------------------------------------------------------------------------------

/** One listening server, or the errno why not. */
function startServer(
  options: ListenOptions,
  settings: ListenSettings,
  onConnection: OnConnection,
): Promise<Server | number> {
  const { pauseOnConnect = false, allowHalfOpen = false } = settings;
  return new Promise((resolve) => {
    const server = createServer({ pauseOnConnect, allowHalfOpen }, onConnection);
    server.once('error', (error) => resolve(errnoOf(error)));
    server.listen({ backlog: settings.backlog ?? 128, ...options }, () => {
      // From here on errors are failed accepts (too many open files): the client is lost, the server goes on.
      server.removeAllListeners('error').on('error', () => undefined);
      resolve(server);
    });
  });
}

/** libuv reports a missing folder as EACCES: finds out what bind(2) said. */
function bindErrno(errno: number, file: string): number {
  if (errno !== E.EACCES) return errno;
  try {
    accessSync(path.dirname(file));
    return errno;
  } catch (error) {
    return errnoOf(error);
  }
}

async function listenUnix(
  requested: UnixAddress,
  settings: ListenSettings,
  onConnection: OnConnection,
): Promise<Listener> {
  const address = requested.path === '' ? { ...requested, path: temporaryPath() } : requested;
  const name = unixName(address);
  const abstract = address.abstract === true;
  if (!abstract) await makeWay(name);
  // Others must not connect; bind(2) applies the mask, so there is no moment at which they could.
  const mask = process.umask(0o177);
  const starting = startServer({ path: name }, settings, onConnection);
  process.umask(mask);
  const server = await starting;
  if (typeof server === 'number') {
    throw errnoError(`Failed to bind socket to ${address.path}`, bindErrno(server, name));
  }
  const file = path.resolve(name);
  const inode = abstract ? null : inodeOf(file);
  const giveUp = abstract ? () => undefined : claimSocket(file);
  return {
    addresses: [address],
    close: () => {
      if (!server.listening) return;
      giveUp();
      if (abstract) server.close();
      else closeUnixServer(server, file, inode);
    },
  };
}

interface InetServer {
  readonly server: Server;
  readonly address: InetAddress;
}

/** Listens on the first free port from `port` to `address.to`. */
async function listenOnPorts(
  address: InetAddress,
  { host, family }: ResolvedAddress,
  port: number,
  settings: ListenSettings,
  onConnection: OnConnection,
): Promise<InetServer | number> {
  const last = Math.min(Math.max(address.to ?? port, port), MAX_PORT);
  let errno: number = E.EADDRINUSE;
  for (let candidate = port; candidate <= last; candidate++) {
    const server = await startServer(
      { host, port: candidate, ipv6Only: family === 6 },
      settings,
      onConnection,
    );
    if (typeof server === 'number') {
      errno = server;
      continue;
    }
    const bound = server.address();
    const boundPort = typeof bound === 'object' && bound !== null ? bound.port : candidate;
    const inet: InetAddress = {
      type: 'inet',
      host,
      port: String(boundPort),
      ...(family === 6 ? { ipv6: true } : { ipv4: true }),
    };
    return { server, address: inet };
  }
  return errno;
}

async function listenInet(
  address: InetAddress,
  settings: ListenSettings,
  onConnection: OnConnection,
): Promise<Listener> {
  const accept = (socket: Socket): void => {
    setKeepAlive(socket, address);
    onConnection(socket);
  };
  const hosts = await resolveHost(address, true);
  let port = resolvePort(address);
  const servers: InetServer[] = [];
  let errno: number = E.EADDRNOTAVAIL;
  for (const host of hosts) {
    const result = await listenOnPorts(address, host, port, settings, accept);
    if (typeof result === 'number') errno = result;
    else {
      servers.push(result);
      port = Number(result.address.port); // further addresses of the host get the port the first one found
    }
  }
  if (servers.length === 0) {
    throw errnoError(
      errno === E.EADDRINUSE ? 'Failed to find an available port' : 'Failed to bind socket',
      errno,
    );
  }
  return {
    addresses: servers.map((entry) => entry.address),
    close: () => {
      for (const { server } of servers) if (server.listening) server.close();
    },
  };
}

/** The numbers of a vsock address. */
function vsockPlace({ cid, port }: VsockAddress): VsockPlace {
  const number = (name: string, text: string): number => {
    if (/^\d{1,10}$/.test(text) && Number(text) <= 0xffff_ffff) return Number(text);
    throw new BlockError(`Failed to parse ${name} '${text}'`);
  };
  return { cid: number('cid', cid), port: number('port', port) };
}

async function listenVsock(
  address: VsockAddress,
  settings: ListenSettings,
  onConnection: OnConnection,
): Promise<Listener> {
  const place = vsockPlace(address);
  const { bindVsock, foreignServer } = await import('./host/vsock.ts');
  const { pauseOnConnect = false, allowHalfOpen = false, backlog = 128 } = settings;
  const fd = bindVsock(place);
  const server = fd < 0 ? fd : foreignServer(fd, backlog, { pauseOnConnect, allowHalfOpen }, onConnection);
  if (typeof server === 'number') throw errnoError('Failed to bind socket', -server);
  return { addresses: [address], close: () => void (server.listening && server.close()) };
}

/** The number of an inherited descriptor that is a socket. */
function inheritedSocket(text: string, settings: ListenSettings): number {
  if (settings.allowInheritedFd !== true) throw new BlockError('only QEMU supports file descriptor passing');
  if (!/^\d{1,9}$/.test(text)) throw new BlockError(`Unable to parse FD number ${text}`);
  try {
    if (fstatSync(Number(text)).isSocket()) return Number(text);
  } catch {
    // Not open: the same message.
  }
  throw new BlockError(`File descriptor '${text}' is not a socket`);
}

async function listenFd(
  address: Extract<SocketAddress, { type: 'fd' }>,
  settings: ListenSettings,
  onConnection: OnConnection,
): Promise<Listener> {
  const server = await startServer(
    { fd: inheritedSocket(address.str, settings) } as ListenOptions,
    settings,
    onConnection,
  );
  if (typeof server === 'number')
    throw errnoError(`Failed to listen on file descriptor '${address.str}'`, server);
  return { addresses: [address], close: () => void (server.listening && server.close()) };
}

/** Listens on an address and calls `onConnection` for each client. */
export function listenOn(
  address: SocketAddress,
  onConnection: OnConnection,
  settings: ListenSettings = {},
): Promise<Listener> {
  switch (address.type) {
    case 'unix':
      return listenUnix(address, settings, onConnection);
    case 'inet':
      return listenInet(address, settings, onConnection);
    case 'vsock':
      return listenVsock(address, settings, onConnection);
    case 'fd':
      return listenFd(address, settings, onConnection);
  }
}

// ---- connecting ----------------------------------------------------------------------------------------------

function startConnection(
  options: { path: string } | { host: string; port: number },
  { pauseOnConnect = false, signal }: ListenSettings,
): Promise<Socket | number> {
  return new Promise((resolve) => {
    const socket = connect({ ...options, ...(signal !== undefined && { signal }) });
    if (pauseOnConnect) socket.pause();
    const onError = (error: Error): void => resolve(errnoOf(error));
    socket.once('error', onError);
    socket.once('connect', () => {
      socket.off('error', onError);
      resolve(socket);
    });
  });
}

async function connectInet(address: InetAddress, settings: ListenSettings): Promise<Socket> {
  const port = resolvePort(address);
  let errno: number = E.EADDRNOTAVAIL;
  for (const { host } of await resolveHost(address, false)) {
    const socket = await startConnection({ host, port }, settings);
    if (typeof socket !== 'number') {
      setKeepAlive(socket, address);
      return socket;
    }
    errno = socket;
  }
  throw new BlockError(`Failed to connect to '${address.host}:${address.port}': ${strerror(errno)}`, {
    errno,
  });
}

async function connectUnix(address: UnixAddress, settings: ListenSettings): Promise<Socket> {
  const socket = await startConnection({ path: unixName(address) }, settings);
  if (typeof socket === 'number') throw errnoError(`Failed to connect to '${address.path}'`, socket);
  return socket;
}

async function connectToVsock(
  address: VsockAddress,
  { pauseOnConnect = false }: ListenSettings,
): Promise<Socket> {
  const place = vsockPlace(address);
  const { connectVsock, foreignSocket } = await import('./host/vsock.ts');
  const fd = await connectVsock(place);
  if (fd < 0) throw errnoError(`Failed to connect to '${address.cid}:${address.port}'`, -fd);
  return foreignSocket(fd, pauseOnConnect);
}

function inheritedConnection(fd: number, { pauseOnConnect = false }: ListenSettings): Socket {
  // Not in the type declarations: the option by which net.Server makes sockets that read nothing yet.
  const options = { fd, readable: true, writable: true, pauseOnCreate: pauseOnConnect };
  return new Socket(options);
}

/** Connects to an address. The socket has no listeners; an 'error' listener should be added at once. */
export async function connectTo(address: SocketAddress, settings: ListenSettings = {}): Promise<Socket> {
  switch (address.type) {
    case 'unix':
      return connectUnix(address, settings);
    case 'inet':
      return connectInet(address, settings);
    case 'vsock':
      return connectToVsock(address, settings);
    case 'fd':
      return inheritedConnection(inheritedSocket(address.str, settings), settings);
  }
}

/** The plain form of an address whose members may be nested in `data`, as chardev-add and nbd-server-start take it. */
export function flattenAddress(address: {
  readonly type: SocketAddress['type'];
  readonly data: object;
}): SocketAddress {
  return { type: address.type, ...address.data } as SocketAddress;
}
