/**
 * Sockets between a host and its virtual machines (vsock(7)), which node does not know.
 *
 * node's streams and servers work on any descriptor that takes the calls for stream sockets, but node looks at the
 * address family when it is given one. So it is given a UNIX socket, and the descriptor's file is exchanged (dup3) before
 * anything has been done with it.
 */

import { closeSync } from 'node:fs';
import { createServer, type Server, Socket } from 'node:net';
import koffi from 'koffi';
import { setNonBlocking } from '../descriptors.ts';
import { addressOf, dupOnto } from '../ffi.ts';
import { callAsync } from './pooled-calls.ts';

const libc = koffi.load('libc.so.6');
const cSocket = libc.func('socket', 'int', ['int', 'int', 'int']);
const cBind = libc.func('bind', 'int', ['int', 'uintptr_t', 'uint']);
const cListen = libc.func('listen', 'int', ['int', 'int']);
const cConnect = libc.func('connect', 'int', ['int', 'uintptr_t', 'uint']);

const AF_UNIX = 1;
const AF_VSOCK = 40;
const SOCK_STREAM_CLOEXEC = 1 | 0o2000000;
/** sizeof(struct sockaddr_vm): family, reserved, port, cid. */
const SOCKADDR_VM_BYTES = 16;
/** Only the family: the kernel chooses a name in the abstract namespace. */
const AUTOBIND_BYTES = 2;

export interface VsockPlace {
  readonly cid: number;
  readonly port: number;
}

function sockaddr({ cid, port }: VsockPlace): Buffer {
  const bytes = Buffer.allocUnsafeSlow(SOCKADDR_VM_BYTES).fill(0);
  bytes.writeUInt16LE(AF_VSOCK, 0);
  bytes.writeUInt32LE(port, 4);
  bytes.writeUInt32LE(cid, 8);
  return bytes;
}

function checked(result: number): number {
  return result < 0 ? -koffi.errno() : result;
}

/** A socket that is bound to the place, or -errno. */
export function bindVsock(place: VsockPlace): number {
  const fd = checked(cSocket(AF_VSOCK, SOCK_STREAM_CLOEXEC, 0) as number);
  if (fd < 0) return fd;
  const address = sockaddr(place);
  const bound = checked(cBind(fd, addressOf(address), address.length) as number);
  if (bound >= 0) return fd;
  closeSync(fd);
  return bound;
}

/** A socket that is connected to the place, or -errno. Waits on another thread, two seconds at most. */
export async function connectVsock(place: VsockPlace): Promise<number> {
  const fd = checked(cSocket(AF_VSOCK, SOCK_STREAM_CLOEXEC, 0) as number);
  if (fd < 0) return fd;
  const address = sockaddr(place);
  const result = await callAsync(cConnect, fd, addressOf(address), SOCKADDR_VM_BYTES);
  // Read by the kernel until now: it must not have gone.
  if (result >= 0 && address.length > 0) return fd;
  closeSync(fd);
  return result;
}

/** A stream over a connected socket of any family; takes the descriptor over. `paused`: nothing is read yet. */
export function foreignSocket(fd: number, paused: boolean): Socket {
  const stand = cSocket(AF_UNIX, SOCK_STREAM_CLOEXEC, 0) as number;
  // Not in the type declarations: the option by which net.Server makes sockets that read nothing yet.
  const options = { fd: stand, readable: true, writable: true, pauseOnCreate: paused };
  const socket = new Socket(options);
  takePlace(fd, stand);
  return socket;
}

/** Lets a server accept on a bound socket of any family; takes the descriptor over. The server, or -errno. */
export function foreignServer(
  fd: number,
  backlog: number,
  settings: { readonly pauseOnConnect: boolean; readonly allowHalfOpen: boolean },
  onConnection: (socket: Socket) => void,
): Server | number {
  const listening = checked(cListen(fd, backlog) as number);
  if (listening < 0) {
    closeSync(fd);
    return listening;
  }
  const stand = cSocket(AF_UNIX, SOCK_STREAM_CLOEXEC, 0) as number;
  const family = Buffer.allocUnsafeSlow(AUTOBIND_BYTES);
  family.writeUInt16LE(AF_UNIX);
  cBind(stand, addressOf(family), AUTOBIND_BYTES);
  const server = createServer(settings, onConnection);
  // Failed accepts (too many open files): the client is lost, the server goes on.
  server.on('error', () => undefined);
  server.listen({ fd: stand });
  takePlace(fd, stand);
  return server;
}

/** From now on `stand` is what `fd` was. */
function takePlace(fd: number, stand: number): void {
  setNonBlocking(fd);
  dupOnto(fd, stand);
  closeSync(fd);
}
