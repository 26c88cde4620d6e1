/**
 * Backends with a path: regular files, FIFOs, pseudo terminals, serial lines and parallel ports.
 */

import {
  closeSync,
  constants,
  createReadStream,
  createWriteStream,
  fstatSync,
  symlinkSync,
  unlinkSync,
} from 'node:fs';
import { Socket } from 'node:net';
import { isatty, ReadStream, WriteStream } from 'node:tty';
import type { ChardevFile, ChardevHostdev, ChardevPty } from '../../schema/generated/types.ts';
import { dupFd, ioctlGetI32, ioctlNumber, setBlocking } from '../aio/ffi.ts';
import { openHostFile, openHostOutput } from '../aio/host/files.ts';
import { sendBreak, setSerialLine } from '../aio/host/terminal.ts';
import { errnoError, errnoOf } from '../errors/error.ts';
import { type ChardevBackend, ignore } from './backend.ts';
import { streamBackend } from './stream.ts';

function openPath(path: string, flags: number): number {
  try {
    return openHostFile(path, flags);
  } catch (error) {
    throw errnoError(`Could not open '${path}'`, errnoOf(error));
  }
}

function openOutput(path: string, flags: number): number {
  try {
    return openHostOutput(path, flags);
  } catch (error) {
    throw errnoError(`Could not open '${path}'`, errnoOf(error));
  }
}

/** A FIFO is opened for both directions: its end is not reached while nobody has opened it to write. */
function openInput(path: string): number {
  const fd = openPath(path, constants.O_RDONLY);
  if (!fstatSync(fd).isFIFO()) return fd;
  closeSync(fd);
  return openPath(path, constants.O_RDWR);
}

/** Pipes and terminals are watched by the event loop; the rest is always ready, and read and written on other threads. */
function isWatched(fd: number): boolean {
  const stat = fstatSync(fd);
  return stat.isFIFO() || stat.isSocket() || isatty(fd);
}

function readableOf(fd: number): Socket | ReadStream | ReturnType<typeof createReadStream> {
  if (isWatched(fd))
    return isatty(fd) ? new ReadStream(fd) : new Socket({ fd, readable: true, writable: false });
  setBlocking(fd);
  return createReadStream('', { fd });
}

function writableOf(fd: number): Socket | ReturnType<typeof createWriteStream> {
  if (isWatched(fd))
    return isatty(fd) ? new WriteStream(fd) : new Socket({ fd, readable: false, writable: true });
  setBlocking(fd);
  return createWriteStream('', { fd });
}

/** Output to a file, input from another if one is named. */
export function openFile({ in: inputPath, out, append = false }: ChardevFile): ChardevBackend {
  const { O_CREAT, O_TRUNC, O_APPEND } = constants;
  const outFd = openOutput(out, O_CREAT | (append ? O_APPEND : O_TRUNC));
  let inFd: number | null = null;
  try {
    if (inputPath !== undefined) inFd = openInput(inputPath);
  } catch (error) {
    closeSync(outFd);
    throw error;
  }
  return streamBackend({
    kind: 'file',
    filename: 'file',
    input: inFd === null ? null : readableOf(inFd),
    output: writableOf(outFd),
  });
}

/** A FIFO for both directions, or PATH.in and PATH.out for one each where both exist. */
export function openPipe({ device }: ChardevHostdev): ChardevBackend {
  // Opened for both directions, so that neither open nor read depends on somebody at the other end.
  const flags = constants.O_RDWR | constants.O_NONBLOCK;
  const pair: number[] = [];
  try {
    pair.push(openHostFile(`${device}.in`, flags));
    pair.push(openHostFile(`${device}.out`, flags));
  } catch {
    for (const fd of pair.splice(0)) closeSync(fd);
  }
  const [inFd, outFd] = pair;
  if (inFd === undefined || outFd === undefined) {
    const both = new Socket({ fd: openPath(device, flags), readable: true, writable: true });
    return streamBackend({
      kind: 'pipe',
      filename: 'pipe',
      input: both,
      output: both,
      close: () => both.destroy(),
    });
  }
  return streamBackend({
    kind: 'pipe',
    filename: 'pipe',
    input: new Socket({ fd: inFd, readable: true, writable: false }),
    output: new Socket({ fd: outFd, readable: false, writable: true }),
  });
}

// ioctl numbers of Linux (ioctl_tty(2)); both take a pointer to an int.
const TIOCGPTN = 0x80045430;
const TIOCSPTLCK = 0x40045431;

/** A new pseudo terminal; the peer opens the path that is in `pty`, or the link to it that the user wants. */
export function openPty({ path: link }: ChardevPty): ChardevBackend {
  const fd = openPath('/dev/ptmx', constants.O_RDWR | constants.O_NOCTTY);
  // The int that TIOCSPTLCK is given is 0: unlock.
  const unlocked = ioctlGetI32(fd, TIOCSPTLCK);
  const number = ioctlGetI32(fd, TIOCGPTN);
  if (unlocked < 0 || number < 0) {
    closeSync(fd);
    throw errnoError('Failed to create PTY', -Math.min(unlocked, number));
  }
  const path = `/dev/pts/${number}`;
  try {
    if (link !== undefined) symlinkSync(path, link);
  } catch (error) {
    closeSync(fd);
    throw errnoError(`Failed to create PTY symlink '${link}'`, errnoOf(error));
  }
  // Held open, so that the terminal stays in raw mode and reads do not fail while no peer has it open.
  const peerFd = openPath(path, constants.O_RDWR | constants.O_NOCTTY);
  const terminal = new ReadStream(fd);
  terminal.setRawMode(true);
  return streamBackend({
    kind: 'pty',
    filename: `pty:${path}`,
    input: terminal,
    output: terminal as unknown as Socket,
    pty: path,
    close: () => {
      terminal.destroy();
      closeSync(peerFd);
      if (link !== undefined) removeLink(link);
    },
  });
}

/** Somebody else may have removed it. */
function removeLink(link: string): void {
  try {
    unlinkSync(link);
  } catch {
    // Then it is gone already.
  }
}

/** A serial line, or anything else with a path: 115200 baud, 8 bits, bytes as they are. */
export function openSerial({ device }: ChardevHostdev): ChardevBackend {
  const fd = openPath(device, constants.O_RDWR | constants.O_NOCTTY | constants.O_NONBLOCK);
  const isLine = setSerialLine(fd) >= 0;
  if (!isLine) {
    const input = readableOf(fd);
    const backend = streamBackend({
      kind: 'serial',
      filename: 'serial',
      input,
      output: writableOf(dupFd(fd)),
    });
    return { ...backend, sendBreak: ignore };
  }
  const terminal = new ReadStream(fd);
  const backend = streamBackend({
    kind: 'serial',
    filename: 'serial',
    input: terminal,
    output: terminal as unknown as Socket,
    close: () => terminal.destroy(),
  });
  return { ...backend, sendBreak: () => sendBreak(fd) };
}

// ioctl numbers of Linux (linux/ppdev.h).
const PPCLAIM = 0x708b;
const PPRELEASE = 0x708c;

/** A parallel port, which is held as long as the device is there. Monitors have no use for it: what is written is lost. */
export function openParallel({ device }: ChardevHostdev): ChardevBackend {
  const fd = openPath(device, constants.O_RDWR);
  const claimed = ioctlNumber(fd, PPCLAIM, 0);
  if (claimed < 0) {
    closeSync(fd);
    throw errnoError('not a parallel port', -claimed);
  }
  return streamBackend({
    kind: 'parallel',
    filename: 'parallel',
    input: null,
    output: null,
    close: () => {
      ioctlNumber(fd, PPRELEASE, 0);
      closeSync(fd);
    },
  });
}
