/** WebSocket transport, for browsers and for Node's `ws`. One JSON value a message, both ways. */

import { ConnectionLostError } from './errors.ts';
import type { Connect } from './transport.ts';

/** The part of a WebSocket that is used here: the browser's, or the one of the package `ws`. */
export interface WebSocketLike {
  onopen: ((event: never) => void) | null;
  onmessage: ((event: { data: unknown }) => void) | null;
  onclose: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  send(text: string): void;
  close(): void;
}

/** Connects by the given WebSocket class. `url`: "ws://127.0.0.1:PORT/?token=TOKEN", as the daemon prints it. */
export function connectWebSocket(url: string, open: (url: string) => WebSocketLike): Connect {
  return (user, signal) =>
    new Promise((resolve, reject) => {
      signal.throwIfAborted();
      const socket = open(url);
      let opened = false;
      const abort = (): void => {
        socket.close();
        reject(signal.reason);
      };
      signal.addEventListener('abort', abort, { once: true });
      socket.onopen = () => {
        opened = true;
        signal.removeEventListener('abort', abort);
        resolve({ send: (text) => socket.send(text), close: () => socket.close() });
      };
      socket.onmessage = ({ data }) => user.message(String(data));
      socket.onerror = () => undefined; // onclose follows
      socket.onclose = () => {
        signal.removeEventListener('abort', abort);
        if (opened) user.closed(null);
        else reject(new ConnectionLostError(`Cannot connect to ${new URL(url).origin}`));
      };
    });
}
