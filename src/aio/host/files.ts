/**
 * Opening and reading files of the host without ever waiting for somebody: every name that a user, an image or a peer
 * gives is opened here.
 *
 * open(2) waits where the other end of a FIFO is not open, a serial line has no carrier or somebody holds a lease on the
 * file; a process that waits there ends by no signal that it handles itself. O_NONBLOCK lets it return. What is open
 * then is a matter of fstat(2): who wants plain blocking reads and writes says so (setBlocking in aio/ffi.ts).
 * Not here: data of disks (engines), and which errors the user is told.
 */

import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { E } from '../../errors/errno.ts';
import { errnoOf, ioError } from '../../errors/error.ts';
import { hostPath } from './names.ts';
import { refuseOwnMount } from './own-mounts.ts';

const O_CLOEXEC = 0o2000000;
const NEVER_WAIT = constants.O_NONBLOCK | constants.O_NOCTTY | O_CLOEXEC;

/**
 * open(2) that does not wait: the descriptor, which has O_NONBLOCK. Throws as node:fs does, see errnoOf; EDEADLK where
 * this very process serves the file.
 */
export function openHostFile(name: string, flags: number, mode = 0o666): number {
  refuseOwnMount(name);
  return openSync(hostPath(name), flags | NEVER_WAIT, mode);
}

/**
 * As openHostFile, for output: to a FIFO that nobody reads yet too. What is written there is kept by the kernel, as much
 * as a pipe holds.
 */
export function openHostOutput(name: string, flags: number, mode = 0o666): number {
  try {
    return openHostFile(name, constants.O_WRONLY | flags, mode);
  } catch (error) {
    if (errnoOf(error) !== E.ENXIO) throw error;
    return openHostFile(name, constants.O_RDWR | flags, mode);
  }
}

/** Adds bytes that are there now, `room` at most, to `chunks`. */
function readMore(fd: number, chunks: Buffer[], room: number): 'end' | 'more' | 'nothing yet' {
  const chunk = Buffer.allocUnsafe(Math.min(room, Math.max(fstatSync(fd).size, 4096) + 1));
  try {
    const count = readSync(fd, chunk, 0, chunk.length, null);
    if (count === 0) return 'end';
    chunks.push(chunk.subarray(0, count));
    return 'more';
  } catch (error) {
    if (errnoOf(error) === E.EAGAIN) return 'nothing yet';
    throw error;
  }
}

const sizeOf = (chunks: readonly Buffer[]): number => chunks.reduce((sum, { length }) => sum + length, 0);

/** The whole file as it is now. Throws EFBIG when it has more than `maxBytes`, EAGAIN when it is a pipe that is empty. */
export function readHostFileNow(name: string, maxBytes: number): Buffer {
  const fd = openHostFile(name, constants.O_RDONLY);
  try {
    const chunks: Buffer[] = [];
    for (;;) {
      const state = readMore(fd, chunks, maxBytes + 1);
      if (sizeOf(chunks) > maxBytes) throw ioError(E.EFBIG);
      if (state === 'end') return Buffer.concat(chunks);
      if (state === 'nothing yet') throw ioError(E.EAGAIN);
    }
  } finally {
    closeSync(fd);
  }
}

/** How long a pipe may take to bring what it has, and a FIFO to be opened by a writer. */
const PATIENCE_MS = 3000;
const NO_WRITER_PATIENCE_MS = 1000;
const LOOK_AGAIN_MS = 10;

/** As readHostFileNow, but from a pipe all that its writer sends, for a few seconds. Nobody else waits meanwhile. */
export async function readHostFile(name: string, maxBytes: number): Promise<Buffer> {
  const fd = openHostFile(name, constants.O_RDONLY);
  try {
    // A FIFO that nobody has opened to write is at its end as well; one that the process inherited has had its writer.
    const mayLackWriter = fstatSync(fd).isFIFO() && !/^\/(?:dev\/fd|proc)\//.test(name);
    const chunks: Buffer[] = [];
    for (let waitedMs = 0; ; ) {
      const state = readMore(fd, chunks, maxBytes + 1);
      if (sizeOf(chunks) > maxBytes) throw ioError(E.EFBIG);
      if (state === 'more') continue;
      const lacksWriter = state === 'end' && mayLackWriter && chunks.length === 0;
      if (state === 'end' && !lacksWriter) return Buffer.concat(chunks);
      if (waitedMs >= (lacksWriter ? NO_WRITER_PATIENCE_MS : PATIENCE_MS)) throw ioError(E.EAGAIN);
      await sleep(LOOK_AGAIN_MS);
      waitedMs += LOOK_AGAIN_MS;
    }
  } finally {
    closeSync(fd);
  }
}
