/** The connection to the daemon the page came from: made, lost, made again, and shown in the header. */

import { type Client, createClient } from '../../client/client.ts';
import { connectWebSocket, type WebSocketLike } from '../../client/web.ts';
import { byId, setText } from './dom.ts';

type State = 'connecting' | 'connected' | 'lost';

const TEXTS: Readonly<Record<State, string>> = {
  connecting: 'Connecting …',
  connected: 'Connected',
  lost: 'Connection lost, trying again …',
};

function show(state: State): void {
  const element = byId('connection');
  element.dataset.state = state;
  setText(element, TEXTS[state]);
  const banner = byId('lost');
  banner.hidden = state !== 'lost';
}

/** "ws://HOST:PORT/?token=..." of the page's own address. */
function addressOf({ protocol, host, search }: Location): string {
  const token = new URLSearchParams(search).get('token') ?? '';
  return `${protocol === 'https:' ? 'wss' : 'ws'}://${host}/?token=${encodeURIComponent(token)}`;
}

/** Connects; the client connects again by itself whenever the connection is lost. */
export async function connectToDaemon(): Promise<Client> {
  show('connecting');
  const open = (url: string): WebSocketLike => {
    const socket = new WebSocket(url);
    socket.addEventListener('open', () => show('connected'));
    socket.addEventListener('close', () => show('lost'));
    return socket as unknown as WebSocketLike;
  };
  const client = await createClient(connectWebSocket(addressOf(location), open), { reconnect: true });
  setText(byId('version'), client.greeting.version.package);
  return client;
}
