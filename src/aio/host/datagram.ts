/**
 * Datagrams to a UNIX socket, which node cannot send, and the mark that keeps an inherited descriptor from children.
 *
 * Here: thin bindings; results are 0 or more, or -errno. Not here: what is said (daemon/systemd).
 */

import { closeSync } from 'node:fs';
import koffi from 'koffi';
import { E } from '../../errors/errno.ts';
import { addressOf } from '../ffi.ts';

const libc = koffi.load('libc.so.6');
const cSocket = libc.func('socket', 'int', ['int', 'int', 'int']);
const cSendto = libc.func('sendto', 'int64', ['int', 'uintptr_t', 'size_t', 'int', 'uintptr_t', 'uint']);
const cFcntl = libc.func('fcntl', 'int', ['int', 'int', '...']);

const AF_UNIX = 1;
const SOCK_DGRAM_CLOEXEC = 2 | 0o2000000;
/** A receiver that does not read must not hold up the sender. */
const MSG_DONTWAIT_NOSIGNAL = 0x40 | 0x4000;
/** sizeof(sockaddr_un), and of what comes before sun_path. */
const SUN_BYTES = 110;
const SUN_PATH_AT = 2;

/** Memory for the kernel: of its own, since small buffers share a pool. */
function pinned(bytes: Buffer): Buffer {
  const copy = Buffer.allocUnsafeSlow(Math.max(1, bytes.length));
  bytes.copy(copy);
  return copy;
}

/** Sends one datagram to the socket of that name; a name that begins with '@' is abstract. */
export function sendDatagram(name: string, text: string): number {
  const path = Buffer.from(name);
  if (path.length === 0 || path.length > SUN_BYTES - SUN_PATH_AT) return -E.EINVAL;
  if (path[0] === 0x40) path[0] = 0;
  const family = Buffer.alloc(SUN_PATH_AT);
  family.writeUInt16LE(AF_UNIX);
  const address = pinned(Buffer.concat([family, path]));
  const data = pinned(Buffer.from(text));
  const fd = cSocket(AF_UNIX, SOCK_DGRAM_CLOEXEC, 0) as number;
  if (fd < 0) return -koffi.errno();
  try {
    const length = Buffer.byteLength(text);
    const sent = Number(
      cSendto(fd, addressOf(data), length, MSG_DONTWAIT_NOSIGNAL, addressOf(address), address.length),
    );
    return sent < 0 ? -koffi.errno() : sent;
  } finally {
    closeSync(fd);
  }
}

/** Processes that are started from now on do not get the descriptor. */
export function keepFromChildren(fd: number): number {
  const F_SETFD = 2;
  const FD_CLOEXEC = 1;
  const result = cFcntl(fd, F_SETFD, 'int', FD_CLOEXEC) as number;
  return result < 0 ? -koffi.errno() : result;
}
