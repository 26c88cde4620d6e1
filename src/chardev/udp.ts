/**
 * Datagram sockets: each write is one datagram to the remote address, each datagram received is input.
 */

import { createSocket, type Socket } from 'node:dgram';
import type { ChardevUdp, SocketAddress } from '../../schema/generated/types.ts';
import { flattenAddress } from '../aio/sockets.ts';
import { BlockError, errnoError, errnoOf } from '../errors/error.ts';
import { type BackendEvents, type ChardevBackend, ignore } from './backend.ts';

type InetAddress = Extract<SocketAddress, { type: 'inet' }>;

/** The largest UDP payload over IPv4; longer output is cut into several datagrams. */
const MAX_DATAGRAM_BYTES = 65507;

function inetOnly(address: ChardevUdp['remote']): InetAddress {
  const flat = flattenAddress(address);
  if (flat.type !== 'inet') throw new BlockError('socket type unsupported for datagram');
  if (!/^\d{1,5}$/.test(flat.port) || Number(flat.port) > 65535) {
    throw new BlockError(
      `address resolution failed for ${flat.host}:${flat.port}: Servname not supported for ai_socktype`,
    );
  }
  return flat;
}

function bind(socket: Socket, local: InetAddress | null): Promise<void> {
  return new Promise((resolve, reject) => {
    socket.once('error', (error) => reject(errnoError('Failed to bind socket', errnoOf(error))));
    socket.bind(Number(local?.port ?? 0), local?.host || undefined, resolve);
  });
}

function connect(socket: Socket, remote: InetAddress): Promise<void> {
  return new Promise((resolve, reject) => {
    socket.connect(Number(remote.port), remote.host || 'localhost', (error?: Error) => {
      if (error === undefined) resolve();
      else reject(errnoError(`Failed to connect to '${remote.host}:${remote.port}'`, errnoOf(error)));
    });
  });
}

/** Opens the socket, bound to the local address and connected to the remote one. */
export async function openUdp(options: ChardevUdp): Promise<ChardevBackend> {
  const remote = inetOnly(options.remote);
  const local = options.local === undefined ? null : inetOnly(options.local);
  const family = remote.ipv6 === true || remote.host.includes(':') ? 'udp6' : 'udp4';
  const socket = createSocket(family);
  try {
    await bind(socket, local);
    await connect(socket, remote);
  } catch (error) {
    socket.close();
    throw error;
  }
  socket.removeAllListeners('error').on('error', ignore); // "connection refused": nobody listens there yet
  let events: BackendEvents | null = null;
  let reading = true;
  socket.on('message', (data) => {
    // Datagrams cannot be held back: what comes while the user does not read is lost.
    if (reading) events?.received(data);
  });
  return {
    kind: 'udp',
    typeName: 'chardev-udp',
    accessors: {},
    filename: () => 'udp',
    start: (newEvents) => {
      events = newEvents;
      events.opened();
    },
    stop: () => {
      events = null;
    },
    write: (data) => {
      for (let at = 0; at < data.length; at += MAX_DATAGRAM_BYTES) {
        socket.send(data.subarray(at, at + MAX_DATAGRAM_BYTES), ignore);
      }
    },
    backlogBytes: () => socket.getSendQueueSize(),
    setReading: (wanted) => {
      reading = wanted;
    },
    close: () => {
      events = null;
      socket.close();
    },
  };
}
