/** How query-chardev writes the addresses of socket devices. */

import type { Socket } from 'node:net';
import type { SocketAddress } from '../../schema/generated/types.ts';

function unixFlags(address: Extract<SocketAddress, { type: 'unix' }>): string {
  if (address.abstract !== true) return '';
  return `,abstract=on${address.tight === true || address.tight === undefined ? ',tight=on' : ''}`;
}

/** `protocol`: what is spoken over TCP. "unix:/path,server=on", "tcp:127.0.0.1:80,server=on", "fd:3". */
export function addressText(address: SocketAddress, server: boolean, protocol: string): string {
  const suffix = server ? ',server=on' : '';
  switch (address.type) {
    case 'unix':
      return `unix:${address.path}${unixFlags(address)}${suffix}`;
    case 'inet':
      return `${protocol}:${address.host}:${address.port}${suffix}`;
    case 'vsock':
      return `vsock:${address.cid}:${address.port}`;
    case 'fd':
      return `fd:${address.str}${suffix}`;
  }
}

/** IPv6 addresses of connections are in brackets, those of listening sockets are not. */
function hostText(host: string | undefined): string {
  return host?.includes(':') === true ? `[${host}]` : (host ?? '');
}

/** The same for a connection: with both ends for TCP. */
export function peerText(peer: Socket, address: SocketAddress, server: boolean, protocol: string): string {
  // The name of a client's end of a UNIX socket is empty.
  if (address.type === 'unix') return server ? addressText(address, server, protocol) : 'unix:';
  if (peer.remotePort === undefined) return addressText(address, server, protocol);
  const local = `${hostText(peer.localAddress)}:${peer.localPort}`;
  const remote = `${hostText(peer.remoteAddress)}:${peer.remotePort}`;
  return `${protocol}:${local}${server ? ',server=on' : ''} <-> ${remote}`;
}
