/**
 * The pid file: holds the process id while the daemon runs, and is locked, so that a second daemon with the same file
 * does not start.
 */

import { closeSync, constants, fstatSync, ftruncateSync, statSync, unlinkSync, writeSync } from 'node:fs';
import { F_WRLCK, setOfdLock } from '../src/aio/ffi.ts';
import { openHostOutput } from '../src/aio/host/files.ts';
import { absoluteName, hostPath } from '../src/aio/host/names.ts';
import { strerror } from '../src/errors/errno.ts';
import { BlockError, errnoOf } from '../src/errors/error.ts';

export interface PidFile {
  /** Removes the file, if it is still ours. */
  remove(): void;
}

function openPidFile(file: string): number {
  try {
    return openHostOutput(file, constants.O_CREAT, 0o600);
  } catch (error) {
    throw new BlockError(`cannot create PID file: Could not create '${file}': ${strerror(errnoOf(error))}`);
  }
}

function writePid(fd: number): void {
  try {
    // A FIFO or a device has no length to be cut.
    if (fstatSync(fd).isFile()) ftruncateSync(fd, 0);
    writeSync(fd, `${process.pid}\n`);
  } catch (error) {
    closeSync(fd);
    throw new BlockError(`cannot create PID file: Failed to write pid file: ${strerror(errnoOf(error))}`);
  }
}

/** Writes the file and keeps it locked until the process ends. */
export function createPidFile(name: string): PidFile {
  const file = absoluteName(name); // the daemon may change its folder
  const fd = openPidFile(file);
  const result = setOfdLock(fd, F_WRLCK, 0, 0);
  if (result < 0) {
    closeSync(fd);
    throw new BlockError(`cannot create PID file: Cannot lock pid file: ${strerror(-result)}`);
  }
  writePid(fd);
  return {
    remove: () => {
      try {
        if (statSync(hostPath(file)).ino === fstatSync(fd).ino) unlinkSync(hostPath(file));
      } catch {
        // Gone already.
      }
    },
  };
}
