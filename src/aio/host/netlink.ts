/**
 * A netlink socket for generic netlink: one request and the answers to it. What the messages mean is the caller's.
 * Source of the facts: netlink(7), linux/netlink.h.
 */

import koffi from 'koffi';
import { E } from '../../errors/errno.ts';
import { addressOf, closeFd, recvNow } from '../ffi.ts';
import { callAsync } from './pooled-calls.ts';

const AF_NETLINK = 16;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0o2000000;
const NETLINK_GENERIC = 16;

const RECEIVE_BYTES = 64 * 1024;
/** Kernels answer within the call that sends. */
const ANSWER_MS = 5000;
const RETRY_MS = 5;

const libc = koffi.load('libc.so.6');
const cSocket = libc.func('int socket(int domain, int type, int protocol)');
const cSend = libc.func('int64 send(int fd, void *bytes, size_t length, int flags)');

/**
 * Sends `request` to the kernel and gives each datagram that comes back to `isLast`, until that says so. 0 or -errno:
 * of the system calls, not what the kernel answered. The request is sent from a thread: a kernel may be slow with it.
 */
export async function exchangeNetlink(request: Buffer, isLast: (answer: Buffer) => boolean): Promise<number> {
  const fd = cSocket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC) as number;
  if (fd < 0) return -koffi.errno();
  try {
    const sent = await callAsync(cSend, fd, request, request.length, 0);
    if (sent < 0) return sent;
    const bytes = Buffer.allocUnsafeSlow(RECEIVE_BYTES);
    const endMs = performance.now() + ANSWER_MS;
    for (;;) {
      const got = recvNow(fd, addressOf(bytes), bytes.length);
      if (got > 0) {
        if (isLast(Buffer.from(bytes.subarray(0, got)))) return 0;
      } else if (got !== -E.EAGAIN) return got;
      else if (performance.now() > endMs) return -E.ETIMEDOUT;
      else await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  } finally {
    closeFd(fd);
  }
}
