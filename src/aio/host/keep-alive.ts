/** Keep-alives of TCP connections: what of tcp(7) node has no options for. */

import type { Socket } from 'node:net';
import koffi from 'koffi';

const libc = koffi.load('libc.so.6');
const cSetsockopt = libc.func('setsockopt', 'int', ['int', 'int', 'int', 'void*', 'uint']);

const IPPROTO_TCP = 6;
const TCP_KEEPIDLE = 4;
const TCP_KEEPINTVL = 5;
const TCP_KEEPCNT = 6;

/** As the schema's addresses have it; 0 and absent: the system's number. */
export interface KeepAlive {
  readonly 'keep-alive'?: boolean;
  readonly 'keep-alive-count'?: number;
  readonly 'keep-alive-idle'?: number;
  readonly 'keep-alive-interval'?: number;
}

/** Sets what the address asks for on a connection. Numbers that the system does not take are left out. */
export function setKeepAlive(socket: Socket, wanted: KeepAlive): void {
  if (wanted['keep-alive'] !== true) return;
  socket.setKeepAlive(true);
  const handle = (socket as unknown as { readonly _handle: { readonly fd: number } | null })._handle;
  if (handle === null) return;
  const options = [
    [TCP_KEEPCNT, wanted['keep-alive-count']],
    [TCP_KEEPIDLE, wanted['keep-alive-idle']],
    [TCP_KEEPINTVL, wanted['keep-alive-interval']],
  ] as const;
  for (const [option, value = 0] of options) {
    if (value === 0) continue;
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(value);
    cSetsockopt(handle.fd, IPPROTO_TCP, option, bytes, bytes.length);
  }
}
