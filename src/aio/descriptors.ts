/**
 * System calls on descriptors that are no files of images: devices, event counters, sockets that carry descriptors,
 * private epoll instances, mounts.
 *
 * Here: thin bindings; results are 0 or more, or -errno, and nothing throws. Not here: what is done with them (fuse,
 * vhost-user), the ring and files (ffi.ts), mapped memory (shared-memory.ts).
 */

import type { Socket } from 'node:net';
import koffi from 'koffi';
import { E } from '../errors/errno.ts';
import { BlockError } from '../errors/error.ts';
import { addressOf, dupFd } from './ffi.ts';

const libc = koffi.load('libc.so.6');

const cRead = libc.func('read', 'int64', ['int', 'uintptr_t', 'size_t']);
const cWrite = libc.func('write', 'int64', ['int', 'uintptr_t', 'size_t']);
const cEventfd = libc.func('eventfd', 'int', ['uint', 'int']);
const cSocketpair = libc.func('socketpair', 'int', ['int', 'int', 'int', 'uintptr_t']);
const cSendmsg = libc.func('sendmsg', 'int64', ['int', 'uintptr_t', 'int']);
const cRecvmsg = libc.func('recvmsg', 'int64', ['int', 'uintptr_t', 'int']);
const cEpollCreate = libc.func('epoll_create1', 'int', ['int']);
const cEpollCtl = libc.func('epoll_ctl', 'int', ['int', 'int', 'int', 'uintptr_t']);
const cEpollWait = libc.func('epoll_wait', 'int', ['int', 'uintptr_t', 'int', 'int']);
const cMount = libc.func('mount', 'int', ['str', 'str', 'str', 'ulong', 'str']);
const cUmount2 = libc.func('umount2', 'int', ['str', 'int']);
const cFcntl = libc.func('fcntl', 'int', ['int', 'int', '...']);

function negErrno(result: number): number {
  return result < 0 ? -koffi.errno() : result;
}

/** read(2) into memory at `addr`. */
export function readInto(fd: number, addr: number, length: number): number {
  return negErrno(cRead(fd, addr, length));
}

/** write(2) from memory at `addr`. */
export function writeFrom(fd: number, addr: number, length: number): number {
  return negErrno(cWrite(fd, addr, length));
}

/** Sets O_NONBLOCK on the open file description. */
export function setNonBlocking(fd: number): number {
  const F_GETFL = 3;
  const F_SETFL = 4;
  const O_NONBLOCK = 0x800;
  const flags = negErrno(cFcntl(fd, F_GETFL));
  return flags < 0 ? flags : negErrno(cFcntl(fd, F_SETFL, 'int', flags | O_NONBLOCK));
}

// ---- event counters ------------------------------------------------------------------------------------------

const counter = Buffer.allocUnsafeSlow(8);
const counterAddr = addressOf(counter);

/** A new eventfd, non-blocking and close-on-exec. */
export function createEventFd(): number {
  const EFD_CLOEXEC = 0o2000000;
  const EFD_NONBLOCK = 0x800;
  return negErrno(cEventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
}

/** Adds one to an eventfd. */
export function signalEventFd(fd: number): number {
  counter.writeBigUInt64LE(1n);
  return negErrno(cWrite(fd, counterAddr, 8));
}

/** Sets an eventfd back to zero. 8, or -EAGAIN where it was. */
export function clearEventFd(fd: number): number {
  return negErrno(cRead(fd, counterAddr, 8));
}

// ---- sockets that carry descriptors --------------------------------------------------------------------------

const AF_UNIX = 1;
const SOCK_STREAM_CLOEXEC = 1 | 0o2000000;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x40000000;
const MSG_CTRUNC = 8;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const CMSG_HEAD_BYTES = 16;

/** Descriptors taken by one receiveWithFds; the kernel lets a message carry 253. */
const MAX_FDS = 253;

// One call at a time: all of this is used within a call only. struct msghdr (56 bytes), struct iovec (16), control.
const message = Buffer.allocUnsafeSlow(56 + 16 + CMSG_HEAD_BYTES + MAX_FDS * 4 + 8).fill(0);
const messageAddr = addressOf(message);
const IOVEC_AT = 56;
const CONTROL_AT = 72;
const CONTROL_BYTES = message.length - CONTROL_AT;

function setMessage(addr: number, length: number, controlBytes: number): void {
  message.fill(0, 0, CONTROL_AT);
  message.writeBigUInt64LE(BigInt(messageAddr + IOVEC_AT), 16);
  message.writeUInt32LE(1, 24);
  if (controlBytes > 0) message.writeBigUInt64LE(BigInt(messageAddr + CONTROL_AT), 32);
  message.writeBigUInt64LE(BigInt(controlBytes), 40);
  message.writeBigUInt64LE(BigInt(addr), IOVEC_AT);
  message.writeBigUInt64LE(BigInt(length), IOVEC_AT + 8);
}

/** A connected pair of UNIX stream sockets, blocking; null when the kernel refuses. */
export function createSocketPair(): readonly [number, number] | null {
  const pair = Buffer.allocUnsafeSlow(8);
  if (negErrno(cSocketpair(AF_UNIX, SOCK_STREAM_CLOEXEC, 0, addressOf(pair))) < 0) return null;
  return [pair.readInt32LE(0), pair.readInt32LE(4)];
}

/** Sends bytes with descriptors; does not wait. Bytes sent, or -errno. The caller keeps its descriptors. */
export function sendWithFds(fd: number, addr: number, length: number, fds: readonly number[]): number {
  const controlBytes = fds.length === 0 ? 0 : CMSG_HEAD_BYTES + Math.ceil((fds.length * 4) / 8) * 8;
  setMessage(addr, length, controlBytes);
  if (fds.length > 0) {
    message.writeBigUInt64LE(BigInt(CMSG_HEAD_BYTES + fds.length * 4), CONTROL_AT);
    message.writeInt32LE(SOL_SOCKET, CONTROL_AT + 8);
    message.writeInt32LE(SCM_RIGHTS, CONTROL_AT + 12);
    for (const [i, one] of fds.entries()) message.writeInt32LE(one, CONTROL_AT + CMSG_HEAD_BYTES + i * 4);
  }
  return negErrno(cSendmsg(fd, messageAddr, MSG_DONTWAIT | MSG_NOSIGNAL));
}

/**
 * Receives bytes and the descriptors that come with them, which are added to `fds` and belong to the caller; does not
 * wait. Bytes received, 0 at the end, or -errno; -EMSGSIZE when descriptors got lost.
 */
export function receiveWithFds(fd: number, addr: number, length: number, fds: number[]): number {
  setMessage(addr, length, CONTROL_BYTES);
  const received = negErrno(cRecvmsg(fd, messageAddr, MSG_DONTWAIT | MSG_CMSG_CLOEXEC));
  if (received < 0) return received;
  const controlBytes = Number(message.readBigUInt64LE(40));
  for (let at = CONTROL_AT; at + CMSG_HEAD_BYTES <= CONTROL_AT + controlBytes; ) {
    const bytes = Number(message.readBigUInt64LE(at));
    if (message.readInt32LE(at + 8) === SOL_SOCKET && message.readInt32LE(at + 12) === SCM_RIGHTS)
      for (let i = at + CMSG_HEAD_BYTES; i + 4 <= at + bytes; i += 4) fds.push(message.readInt32LE(i));
    at += Math.max(CMSG_HEAD_BYTES, Math.ceil(bytes / 8) * 8);
  }
  return (message.readUInt32LE(48) & MSG_CTRUNC) === 0 ? received : -E.EMSGSIZE;
}

// ---- epoll ---------------------------------------------------------------------------------------------------

/** struct epoll_event on x86-64 and ABIs that pack it: events u32, data u64. Elsewhere data is aligned. */
const EVENT_BYTES = process.arch === 'x64' ? 12 : 16;
const EVENT_DATA_AT = EVENT_BYTES - 8;
const MAX_EVENTS = 64;
const events = Buffer.allocUnsafeSlow(MAX_EVENTS * EVENT_BYTES);
const eventsAddr = addressOf(events);

/** A new epoll instance, close-on-exec. */
export function createEpoll(): number {
  return negErrno(cEpollCreate(0o2000000));
}

/** Watches `fd` for input (and its end) with `id` as its mark, or stops watching it. */
export function changeEpoll(epoll: number, fd: number, add: boolean, id: number): number {
  const EPOLL_CTL_ADD = 1;
  const EPOLL_CTL_DEL = 2;
  const EPOLLIN = 1;
  events.fill(0, 0, EVENT_BYTES);
  events.writeUInt32LE(EPOLLIN, 0);
  events.writeUInt32LE(id, EVENT_DATA_AT);
  return negErrno(cEpollCtl(epoll, add ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, fd, eventsAddr));
}

/** Watches `fd` for `wanted` (poll(2)'s bits), level-triggered, whether or not the kernel still knows of it. 0 or -errno. */
export function renewEpoll(epoll: number, fd: number, wanted: number): number {
  const EPOLL_CTL_ADD = 1;
  const EPOLL_CTL_MOD = 3;
  events.fill(0, 0, EVENT_BYTES);
  events.writeUInt32LE(wanted, 0);
  const result = negErrno(cEpollCtl(epoll, EPOLL_CTL_MOD, fd, eventsAddr));
  return result === -E.ENOENT ? negErrno(cEpollCtl(epoll, EPOLL_CTL_ADD, fd, eventsAddr)) : result;
}

/** Marks of the descriptors that have something to read, now. */
export function pollEpoll(epoll: number): number[] {
  const count = negErrno(cEpollWait(epoll, eventsAddr, MAX_EVENTS, 0));
  const ids: number[] = [];
  for (let i = 0; i < count; i++) ids.push(events.readUInt32LE(i * EVENT_BYTES + EVENT_DATA_AT));
  return ids;
}

// ---- mounts --------------------------------------------------------------------------------------------------

const MS_NOSUID = 2;
const MS_NODEV = 4;
const MNT_DETACH = 2;

/** mount(2), nosuid and nodev. 0 or -errno. */
export function mountFileSystem(source: string, target: string, type: string, data: string): number {
  return negErrno(cMount(source, target, type, MS_NOSUID | MS_NODEV, data));
}

/** umount2(2) with MNT_DETACH: out of sight at once, gone when nobody uses it any more. 0 or -errno. */
export function detachMount(target: string): number {
  return negErrno(cUmount2(target, MNT_DETACH));
}

// ---- sockets of node's ---------------------------------------------------------------------------------------

/** A non-blocking duplicate of the descriptor of a socket nothing was read from; the node socket is destroyed. */
export function takeSocketDescriptor(socket: Socket): number {
  const handle = (socket as unknown as { readonly _handle: { readonly fd: number } | null })._handle;
  const fd = handle === null ? -E.EBADF : dupFd(handle.fd);
  socket.destroy();
  if (fd < 0) throw new BlockError('Cannot take over the connection', { errno: -fd });
  return fd;
}
