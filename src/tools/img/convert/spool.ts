/**
 * `convert --spool FOLDER`: images of formats that are not read or written from front to back, out of a pipe or into one.
 * They lie in a file of the user's folder meanwhile, which is gone when the command ends, unless by SIGKILL.
 */

import { randomBytes } from 'node:crypto';
import { closeSync, createReadStream, fstatSync, openSync, unlinkSync, writeSync } from 'node:fs';
import path from 'node:path';
import { E } from '../../../errors/errno.ts';
import { BlockError, errnoError, errnoOf } from '../../../errors/error.ts';
import type { Progress } from '../../common/progress.ts';
import { received, sendAll, unpacked } from './pipe.ts';

const PIECE_BYTES = 1024 * 1024;

/** An empty file in the folder, for this user only. Its name is whole: no folder's name is taken for a protocol's. */
function spoolFile(folder: string): string {
  const file = path.resolve(folder, `qblock-spool-${randomBytes(8).toString('hex')}`);
  try {
    closeSync(openSync(file, 'wx', 0o600));
  } catch (error) {
    throw errnoError(`No file can be made in the folder '${folder}' of --spool`, errnoOf(error));
  }
  return file;
}

/** Gives `use` a file; it is gone afterwards, also when the process is told to end meanwhile. */
async function withFile(folder: string, use: (file: string) => Promise<void>): Promise<void> {
  const file = spoolFile(folder);
  const remove = (): void => {
    try {
      unlinkSync(file);
    } catch {
      // Gone already.
    }
  };
  // By the signal itself: a thread may be waiting for the other end of a pipe, and process.exit() would wait for the thread. One file
  // may lie within another's use, and each has a listener: the last to go lets the signal have its way.
  const end = (signal: NodeJS.Signals): void => {
    remove();
    process.off(signal, end);
    if (process.listenerCount(signal) === 0) process.kill(process.pid, signal);
  };
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  for (const signal of signals) process.on(signal, end);
  process.on('exit', remove);
  try {
    await use(file);
  } finally {
    for (const signal of signals) process.off(signal, end);
    process.off('exit', remove);
    remove();
  }
}

/** Keeps what comes through the pipe, all of it, raw data unpacked, and gives `use` the file. */
export function receivedInto(
  folder: string,
  pipe: string,
  isRaw: boolean,
  progress: Progress,
  use: (file: string) => Promise<void>,
): Promise<void> {
  return withFile(folder, async (file) => {
    const fd = openSync(file, 'w');
    try {
      progress.begin('receive', 0);
      for await (const chunk of isRaw ? unpacked(pipe) : (received(pipe) as AsyncIterable<Buffer>))
        writeWhole(fd, chunk, file);
    } finally {
      closeSync(fd);
    }
    await use(file);
  });
}

function writeWhole(fd: number, bytes: Buffer, file: string): void {
  try {
    for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done);
  } catch (error) {
    throw errnoError(`error while writing to '${file}'`, errnoOf(error));
  }
}

/** Lets `make` make an image in a file, and sends that through the pipe. */
export function sentFrom(
  folder: string,
  pipe: string,
  progress: Progress,
  make: (file: string) => Promise<void>,
): Promise<void> {
  return withFile(folder, async (file) => {
    await make(file);
    const fd = openSync(file, 'r');
    const total = fstatSync(fd).size;
    progress.begin('send', total);
    let sent = 0;
    await sendAll(pipe, async function* () {
      for await (const chunk of createReadStream(file, { fd, highWaterMark: PIECE_BYTES, autoClose: true })) {
        yield chunk as Buffer;
        sent += (chunk as Buffer).length;
        if (total > 0) progress.set((sent / total) * 100);
      }
    });
  });
}

/** Names in the image would be looked up from the folder of the spool. */
export function checkSpoolable(backingFile: string | null): void {
  if (backingFile !== null && !path.isAbsolute(backingFile))
    throw new BlockError('A backing file of an image that goes into a pipe needs an absolute name', {
      errno: E.EINVAL,
    });
}
