/**
 * The foreign-function boundary: with aio/host and aio/libraries the only place that touches koffi.
 *
 * Thin typed bindings to libc and to the libuv inside node. Synchronous calls return 0 or more, or -errno; nothing
 * throws here. Policy (retries, messages, which call to use) belongs to the callers. Addresses are JS numbers.
 */

import { closeSync } from 'node:fs';
import koffi from 'koffi';
import { E } from '../errors/errno.ts';
import { callAsync, negErrno } from './host/pooled-calls.ts';

const libc = koffi.load('libc.so.6');

/** Address of a Buffer's first byte. Stable while the Buffer is referenced. */
export function addressOf(buf: Uint8Array): number {
  return Number(koffi.address(buf));
}

// ---- files ---------------------------------------------------------------------------------------------------

const cPread = libc.func('pread64', 'int64', ['int', 'uintptr_t', 'size_t', 'int64']);
const cPwrite = libc.func('pwrite64', 'int64', ['int', 'uintptr_t', 'size_t', 'int64']);
const cPwritev = libc.func('pwritev', 'int64', ['int', 'uintptr_t', 'int', 'int64']);
const cFallocate = libc.func('fallocate64', 'int', ['int', 'int', 'int64', 'int64']);
const cLseek = libc.func('lseek64', 'int64', ['int', 'int64', 'int']);
const cFcntl = libc.func('fcntl', 'int', ['int', 'int', '...']);
const cDup3 = libc.func('dup3', 'int', ['int', 'int', 'int']);
const cIoctl = libc.func('ioctl', 'int', ['int', 'ulong', '...']);
const cPosixFadvise = libc.func('posix_fadvise64', 'int', ['int', 'int64', 'int64', 'int']);

/** pread(2) into memory at `addr`. */
export function pread(fd: number, addr: number, length: number, offset: number): number {
  return negErrno(cPread(fd, addr, length, offset));
}

const cPreadv2 = libc.func('preadv2', 'int64', ['int', 'uintptr_t', 'int', 'int64', 'int']);
const RWF_NOWAIT = 8;
/** struct iovec of the one call that is under way: it is over when the function returns. */
const nowaitIovec = Buffer.allocUnsafeSlow(16);
const nowaitView = new DataView(nowaitIovec.buffer, nowaitIovec.byteOffset, 16);
const nowaitIovecAddr = addressOf(nowaitIovec);

/** preadv2(2) with RWF_NOWAIT: bytes read if all it takes is in the page cache (maybe fewer), else -EAGAIN. */
export function preadNowait(fd: number, addr: number, length: number, offset: number): number {
  nowaitView.setUint32(0, addr >>> 0, true);
  nowaitView.setUint32(4, Math.floor(addr / 2 ** 32), true);
  nowaitView.setUint32(8, length, true);
  nowaitView.setUint32(12, 0, true);
  return negErrno(cPreadv2(fd, nowaitIovecAddr, 1, offset, RWF_NOWAIT));
}

/** pwrite(2) from memory at `addr`. */
export function pwrite(fd: number, addr: number, length: number, offset: number): number {
  return negErrno(cPwrite(fd, addr, length, offset));
}

/** pwritev(2); `iovAddr` points to `count` struct iovec. */
export function pwritev(fd: number, iovAddr: number, count: number, offset: number): number {
  return negErrno(cPwritev(fd, iovAddr, count, offset));
}

export const FALLOC_FL_KEEP_SIZE = 1;
export const FALLOC_FL_PUNCH_HOLE = 2;
export const FALLOC_FL_ZERO_RANGE = 16;

/** fallocate(2), blocking. */
export function fallocate(fd: number, mode: number, offset: number, length: number): number {
  return negErrno(cFallocate(fd, mode, offset, length));
}

/** fallocate(2) on libuv's thread pool. */
export function fallocateAsync(fd: number, mode: number, offset: number, length: number): Promise<number> {
  return callAsync(cFallocate, fd, mode, offset, length);
}

export const SYNC_FILE_RANGE_WRITE = 2;
const cSyncFileRange = libc.func('sync_file_range', 'int', ['int', 'int64', 'int64', 'uint']);

/** sync_file_range(2) with SYNC_FILE_RANGE_WRITE on libuv's thread pool: dirty pages begin to be written. */
export function startWritebackAsync(fd: number, offset: number, length: number): Promise<number> {
  return callAsync(cSyncFileRange, fd, offset, length, SYNC_FILE_RANGE_WRITE);
}

const cCopyFileRange = libc.func('copy_file_range', 'int64', [
  'int',
  'uintptr_t',
  'int',
  'uintptr_t',
  'size_t',
  'uint',
]);

/**
 * copy_file_range(2) on libuv's thread pool: the kernel copies between files, or shares the blocks where the file
 * system can. Bytes copied, fewer than asked for at the end of the source, or -errno.
 */
export function copyFileRangeAsync(
  from: number,
  fromOffset: number,
  to: number,
  toOffset: number,
  length: number,
): Promise<number> {
  const offsets = Buffer.allocUnsafeSlow(16);
  offsets.writeBigInt64LE(BigInt(fromOffset), 0);
  offsets.writeBigInt64LE(BigInt(toOffset), 8);
  const at = addressOf(offsets);
  return callAsync(cCopyFileRange, from, at, to, at + 8, length, 0).finally(() => offsets.length);
}

export const SEEK_DATA = 3;
export const SEEK_HOLE = 4;
export const SEEK_END = 2;

/** lseek(2). ENXIO past the last data. */
export function lseek(fd: number, offset: number, whence: number): number {
  return negErrno(cLseek(fd, offset, whence));
}

/** Advises the kernel to drop cached pages of the file. Returns 0 or -errno. */
export function dropPageCache(fd: number): number {
  const POSIX_FADV_DONTNEED = 4;
  return -cPosixFadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

/** A close-on-exec duplicate of `fd`. */
export function dupFd(fd: number): number {
  const F_DUPFD_CLOEXEC = 1030;
  return negErrno(cFcntl(fd, F_DUPFD_CLOEXEC, 'int', 0));
}

/** Lets the descriptor `to` mean what `from` means, in one step; what it meant is closed. Returns `to` or -errno. */
export function dupOnto(from: number, to: number): number {
  const O_CLOEXEC = 0o2000000;
  return negErrno(cDup3(from, to, O_CLOEXEC));
}

/** Clears O_NONBLOCK on the open file description. 0 or -errno. */
export function setBlocking(fd: number): number {
  const F_GETFL = 3;
  const F_SETFL = 4;
  const O_NONBLOCK = 0x800;
  const flags = negErrno(cFcntl(fd, F_GETFL));
  return flags < 0 ? flags : negErrno(cFcntl(fd, F_SETFL, 'int', flags & ~O_NONBLOCK));
}

const cPoll = libc.func('poll', 'int', ['uintptr_t', 'ulong', 'int']);
const pollFd = Buffer.allocUnsafeSlow(8);
const pollFdAddr = addressOf(pollFd);

/** poll(2) of one descriptor without waiting: what has happened (revents). */
export function pollNow(fd: number, events: number): number {
  pollFd.writeInt32LE(fd, 0);
  pollFd.writeInt16LE(events, 4);
  pollFd.writeInt16LE(0, 6);
  return cPoll(pollFdAddr, 1, 0) > 0 ? pollFd.readUInt16LE(6) : 0;
}

// ---- the process ---------------------------------------------------------------------------------------------

const cClockGettime = libc.func('clock_gettime', 'int', ['int', 'uintptr_t']);
const cMallocTrim = libc.func('malloc_trim', 'int', ['size_t']);
const timespec = Buffer.allocUnsafeSlow(16);
const timespecAddr = addressOf(timespec);

/** Processor time that this thread has had, in milliseconds. */
export function threadCpuMs(): number {
  const CLOCK_THREAD_CPUTIME_ID = 3;
  cClockGettime(CLOCK_THREAD_CPUTIME_ID, timespecAddr);
  return Number(timespec.readBigInt64LE(0)) * 1000 + Number(timespec.readBigInt64LE(8)) / 1e6;
}

/** Gives memory that malloc(3) keeps for later back to the system. */
export function trimMemory(): void {
  cMallocTrim(0);
}

// ---- OFD locks -----------------------------------------------------------------------------------------------

export const F_RDLCK = 0;
export const F_WRLCK = 1;
export const F_UNLCK = 2;
const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;

// struct flock on 64-bit Linux: l_type s16, l_whence s16, pad, l_start s64, l_len s64, l_pid s32, pad = 32 bytes.
const flockMemory = Buffer.allocUnsafeSlow(32);
const flockAddr = addressOf(flockMemory);

function ofdLock(fd: number, command: number, type: number, start: number, length: number): number {
  flockMemory.fill(0);
  flockMemory.writeInt16LE(type, 0);
  flockMemory.writeBigInt64LE(BigInt(start), 8);
  flockMemory.writeBigInt64LE(BigInt(length), 16);
  return negErrno(cFcntl(fd, command, 'uintptr_t', flockAddr));
}

/** Takes or drops (F_UNLCK) an open-file-description lock on bytes [start, start+length). 0 or -errno. */
export function setOfdLock(fd: number, type: number, start: number, length: number): number {
  return ofdLock(fd, F_OFD_SETLK, type, start, length);
}

/** 0 when a lock of `type` could be taken on the bytes, -EAGAIN when another holder is in the way. */
export function testOfdLock(fd: number, type: number, start: number, length: number): number {
  const result = ofdLock(fd, F_OFD_GETLK, type, start, length);
  if (result < 0) return result;
  return flockMemory.readInt16LE(0) === F_UNLCK ? 0 : -E.EAGAIN;
}

// ---- ioctls --------------------------------------------------------------------------------------------------

export const BLKGETSIZE64 = 0x80081272;
export const BLKSSZGET = 0x1268;
export const BLKPBSZGET = 0x127b;
export const BLKROGET = 0x125e;
export const BLKDISCARD = 0x1277;
export const BLKZEROOUT = 0x127f;

const ioctlMemory = Buffer.allocUnsafeSlow(16);
const ioctlAddr = addressOf(ioctlMemory);

/** An ioctl that fills in one unsigned 64-bit number. The number, or -errno. */
export function ioctlGetU64(fd: number, request: number): number {
  ioctlMemory.fill(0);
  const result = negErrno(cIoctl(fd, request, 'uintptr_t', ioctlAddr));
  return result < 0 ? result : Number(ioctlMemory.readBigUInt64LE(0));
}

/** An ioctl that fills in one signed 32-bit number. The number, or -errno. */
export function ioctlGetI32(fd: number, request: number): number {
  ioctlMemory.fill(0);
  const result = negErrno(cIoctl(fd, request, 'uintptr_t', ioctlAddr));
  return result < 0 ? result : ioctlMemory.readInt32LE(0);
}

const FS_IOC_FSGETXATTR = 0x801c581f;
const FS_IOC_FSSETXATTR = 0x401c5820;
const FS_XFLAG_EXTSIZE = 0x800;

/** What the file system was asked for by setExtentSizeHint; 0: nothing, or it knows no such thing. */
export function extentSizeHint(fd: number): number {
  const attributes = Buffer.allocUnsafeSlow(28).fill(0);
  const got = negErrno(cIoctl(fd, FS_IOC_FSGETXATTR, 'uintptr_t', addressOf(attributes)));
  return got < 0 || (attributes.readUInt32LE(0) & FS_XFLAG_EXTSIZE) === 0 ? 0 : attributes.readUInt32LE(4);
}

/** Asks the file system to allocate extents of at least `bytes` for the file. 0 or -errno. */
export function setExtentSizeHint(fd: number, bytes: number): number {
  // struct fsxattr: xflags u32, extsize u32, nextents u32, projid u32, cowextsize u32, pad: 28 bytes.
  const attributes = Buffer.allocUnsafeSlow(28).fill(0);
  const got = negErrno(cIoctl(fd, FS_IOC_FSGETXATTR, 'uintptr_t', addressOf(attributes)));
  if (got < 0) return got;
  attributes.writeUInt32LE((attributes.readUInt32LE(0) | FS_XFLAG_EXTSIZE) >>> 0, 0);
  attributes.writeUInt32LE(bytes, 4);
  return negErrno(cIoctl(fd, FS_IOC_FSSETXATTR, 'uintptr_t', addressOf(attributes)));
}

const FS_IOC_GETFLAGS = 0x80086601;
const FS_IOC_SETFLAGS = 0x40086602;
const FS_NOCOW_FL = 0x00800000;

/** Turns copy-on-write of the (empty) file off. 0 or -errno. */
export function setNoCow(fd: number): number {
  const flags = Buffer.allocUnsafeSlow(8).fill(0);
  const got = negErrno(cIoctl(fd, FS_IOC_GETFLAGS, 'uintptr_t', addressOf(flags)));
  if (got < 0) return got;
  flags.writeUInt32LE((flags.readUInt32LE(0) | FS_NOCOW_FL) >>> 0, 0);
  return negErrno(cIoctl(fd, FS_IOC_SETFLAGS, 'uintptr_t', addressOf(flags)));
}

/** Drives with a medium that comes out (linux/cdrom.h): what is in it, open, close, keep shut. */
export const CDROM_DRIVE_STATUS = 0x5326;
export const CDROMEJECT = 0x5309;
export const CDROMCLOSETRAY = 0x5319;
export const CDROM_LOCKDOOR = 0x5329;

/** An ioctl with a number, or an address, as its argument. Its result, or -errno. */
export function ioctlNumber(fd: number, request: number, value: number): number {
  return negErrno(cIoctl(fd, request, 'uintptr_t', value));
}

const cIoctlRange = libc.func('ioctl', 'int', ['int', 'ulong', 'uintptr_t']);

/** BLKDISCARD or BLKZEROOUT over a byte range, on libuv's thread pool. */
export function ioctlRangeAsync(
  fd: number,
  request: number,
  offset: number,
  length: number,
): Promise<number> {
  const range = Buffer.allocUnsafeSlow(16);
  range.writeBigUInt64LE(BigInt(offset), 0);
  range.writeBigUInt64LE(BigInt(length), 8);
  return callAsync(cIoctlRange, fd, request, addressOf(range)).finally(() => range.length);
}

// ---- sockets -------------------------------------------------------------------------------------------------

const cShutdown = libc.func('shutdown', 'int', ['int', 'int']);

/** shutdown(2) of both directions. 0 or -errno. */
export function shutdownSocket(fd: number): number {
  const SHUT_RDWR = 2;
  return negErrno(cShutdown(fd, SHUT_RDWR));
}

const cRecv = libc.func('recv', 'int64', ['int', 'uintptr_t', 'size_t', 'int']);
const cSendmsg = libc.func('sendmsg', 'int64', ['int', 'uintptr_t', 'int']);
const cSetsockopt = libc.func('setsockopt', 'int', ['int', 'int', 'int', 'void*', 'uint']);
const cGetsockopt = libc.func('getsockopt', 'int', ['int', 'int', 'int', 'void*', 'void*']);
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;

/** recv(2) of what is there. Bytes, 0 at the end of the stream, -EAGAIN when there is nothing, or -errno. */
export function recvNow(fd: number, addr: number, length: number): number {
  return negErrno(cRecv(fd, addr, length, MSG_DONTWAIT));
}

/** sendmsg(2) of what the socket takes; `msgAddr` points to struct msghdr. Bytes, or -errno. No SIGPIPE. */
export function sendmsgNow(fd: number, msgAddr: number): number {
  return negErrno(cSendmsg(fd, msgAddr, MSG_DONTWAIT | MSG_NOSIGNAL));
}

const cSendfile = libc.func('sendfile', 'int64', ['int', 'int', 'uintptr_t', 'size_t']);
/** off_t of the one call that is under way. */
const sendfileOffset = Buffer.allocUnsafeSlow(8);
const sendfileOffsetAddr = addressOf(sendfileOffset);

/** sendfile(2): bytes that a non-blocking socket has taken (0: the file ends at `offset`), or -errno. */
export function sendfileNow(socket: number, fd: number, offset: number, length: number): number {
  sendfileOffset.writeUInt32LE(offset >>> 0, 0);
  sendfileOffset.writeUInt32LE(Math.floor(offset / 2 ** 32), 4);
  return negErrno(cSendfile(socket, fd, sendfileOffsetAddr, length));
}

/** Asks for a send buffer of `bytes`, of which the kernel grants what its settings allow. What there is then, in bytes. */
export function raiseSendBuffer(fd: number, bytes: number): number {
  const SOL_SOCKET = 1;
  const SO_SNDBUF = 7;
  const value = Buffer.alloc(4);
  const length = Buffer.alloc(4);
  value.writeInt32LE(bytes);
  cSetsockopt(fd, SOL_SOCKET, SO_SNDBUF, value, 4);
  length.writeInt32LE(4);
  return negErrno(cGetsockopt(fd, SOL_SOCKET, SO_SNDBUF, value, length)) < 0 ? 0 : value.readInt32LE();
}

/** Bytes sent that the peer has not taken yet, as the kernel counts them against the send buffer; or -errno. */
export function unsentBytes(fd: number): number {
  const SIOCOUTQ = 0x5411;
  return ioctlGetI32(fd, SIOCOUTQ);
}

/** close(2); errors are of no use to anybody at this point. */
export function closeFd(fd: number): void {
  try {
    closeSync(fd);
  } catch {
    // Already closed, or a late write-back error that fdatasync has reported before.
  }
}

// ---- io_uring ------------------------------------------------------------------------------------------------

const cSyscall = libc.func('syscall', 'long', [
  'long',
  'long',
  'uintptr_t',
  'uintptr_t',
  'uintptr_t',
  'uintptr_t',
  'uintptr_t',
]);
const cEnter = libc.func('syscall', 'long', ['long', 'uint', 'uint', 'uint', 'uint', 'uintptr_t', 'size_t']);
const cMmap = libc.func('mmap', 'void*', ['uintptr_t', 'size_t', 'int', 'int', 'int', 'long']);
const cMunmap = libc.func('munmap', 'int', ['void*', 'size_t']);

const SYS_IO_URING_SETUP = 425;
const SYS_IO_URING_ENTER = 426;

/** io_uring_setup(2); `params` is struct io_uring_params (120 bytes). The ring's fd, or -errno. */
export function ioUringSetup(entries: number, params: Buffer): number {
  return negErrno(cSyscall(SYS_IO_URING_SETUP, entries, addressOf(params), 0, 0, 0, 0));
}

/** io_uring_enter(2). Number of SQEs taken, or -errno. */
export function ioUringEnter(fd: number, submit: number, wait: number, flags: number): number {
  return negErrno(cEnter(SYS_IO_URING_ENTER, fd, submit, wait, flags, 0, 0));
}

// ---- keys of the kernel --------------------------------------------------------------------------------------

const SYS_KEYCTL = process.arch === 'x64' ? 250 : 219;
const KEYCTL_READ = 11;

/** keyctl(2), KEYCTL_READ: copies as much of the key as fits, and gives the length of all of it, or -errno. */
export function readKernelKey(serial: number, into: Buffer): number {
  const room = into.length === 0 ? 0 : addressOf(into);
  return negErrno(cSyscall(SYS_KEYCTL, KEYCTL_READ, serial >>> 0, room, into.length, 0, 0));
}

export interface MappedMemory {
  readonly memory: ArrayBuffer;
  unmap(): void;
}

/** Maps `bytes` of `fd` at `offset` shared and writable; null when the kernel refuses. */
export function mapShared(fd: number, bytes: number, offset: number): MappedMemory | null {
  const MAP_SHARED_POPULATE = 1 | 0x8000;
  const PROT_READ_WRITE = 3;
  const pointer: unknown = cMmap(0, bytes, PROT_READ_WRITE, MAP_SHARED_POPULATE, fd, offset);
  if (Number(koffi.address(pointer)) >= 2 ** 63) return null;
  return { memory: koffi.view(pointer, bytes) as ArrayBuffer, unmap: () => cMunmap(pointer, bytes) };
}
