/** The client in web pages: over WebSockets. */

import { type Client, type ClientOptions, createClient } from './client.ts';
import { connectWebSocket, type WebSocketLike } from './web.ts';

export type { CallOptions, Client, ClientOptions, Greeting } from './client.ts';
export { ConnectionLostError, JobError, QmpError } from './errors.ts';
export type { QmpEvent, Reconnected } from './events.ts';
export type { Job, WaitOptions } from './job.ts';

declare const WebSocket: new (url: string) => WebSocketLike;

/** Connects to a daemon by the WebSocket address that it prints: "ws://HOST:PORT/?token=TOKEN". */
export function connect(address: string, options: ClientOptions = {}): Promise<Client> {
  return createClient(
    connectWebSocket(address, (url) => new WebSocket(url)),
    options,
  );
}
