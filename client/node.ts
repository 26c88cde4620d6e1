/** The client in Node: over UNIX sockets, TCP and WebSockets. */

import { connect as connectSocket, type NetConnectOpts } from 'node:net';
import { type Client, type ClientOptions, createClient } from './client.ts';
import { ConnectionLostError } from './errors.ts';
import { type Connect, createLineSplitter } from './transport.ts';
import { connectWebSocket, type WebSocketLike } from './web.ts';

export type { CallOptions, Client, ClientOptions, Greeting } from './client.ts';
export { ConnectionLostError, JobError, QmpError } from './errors.ts';
export type { QmpEvent, Reconnected } from './events.ts';
export type { Job, WaitOptions } from './job.ts';

/**
 * Connects to a daemon. `address`: "unix:PATH" or a path, "tcp:HOST:PORT", or "ws://HOST:PORT/?token=TOKEN" as the
 * daemon prints it. Rejects when nobody answers there.
 */
export async function connect(address: string, options: ClientOptions = {}): Promise<Client> {
  return createClient(await transportFor(address), options);
}

async function transportFor(address: string): Promise<Connect> {
  if (/^wss?:/.test(address)) {
    const { WebSocket } = await import('ws');
    return connectWebSocket(address, (url) => new WebSocket(url) as unknown as WebSocketLike);
  }
  const tcp = /^tcp:(?:\/\/)?(?:\[(.+)\]|([^:]*)):(\d+)$/.exec(address);
  if (tcp !== null) {
    if (Number(tcp[3]) > 65535)
      throw new ConnectionLostError(`Cannot connect to ${address}: there is no such port`);
    return connectStream({ host: tcp[1] ?? (tcp[2] || 'localhost'), port: Number(tcp[3]) }, address);
  }
  return connectStream({ path: address.replace(/^unix:/, '') }, address);
}

function connectStream(where: NetConnectOpts, address: string): Connect {
  return (user, signal) =>
    new Promise((resolve, reject) => {
      signal.throwIfAborted();
      const socket = connectSocket(where);
      let connected = false;
      let failure: Error | null = null;
      const abort = (): void => {
        socket.destroy();
        reject(signal.reason);
      };
      signal.addEventListener('abort', abort, { once: true });
      socket.setEncoding('utf8');
      socket.on('data', createLineSplitter((line) => user.message(line)) as (chunk: unknown) => void);
      socket.on('error', (error) => {
        failure = error;
      });
      socket.on('connect', () => {
        connected = true;
        signal.removeEventListener('abort', abort);
        resolve({ send: (text) => socket.write(text), close: () => socket.destroy() });
      });
      socket.on('end', () => socket.destroy());
      socket.on('close', () => {
        signal.removeEventListener('abort', abort);
        if (connected) user.closed(failure);
        else reject(new ConnectionLostError(`Cannot connect to ${address}: ${failure?.message ?? 'closed'}`));
      });
    });
}
