/**
 * `--save FILE`: the running configuration is kept in a file, so that the next start has it (`--restore FILE`). Written
 * before a command that may have changed something is answered, soon after what jobs change, and at the end; and kept locked, so that no second daemon
 * restores what this one has open.
 */

import { closeSync, constants, openSync, readFileSync, writeSync } from 'node:fs';
import path from 'node:path';
import { F_WRLCK, setOfdLock } from '../../src/aio/ffi.ts';
import { currentConfig, writeConfig } from '../../src/commands/config.ts';
import type { CommandContext } from '../../src/commands/context.ts';
import { BlockError, errnoError, errnoOf } from '../../src/errors/error.ts';

/** Changes that come in a row are written once. */
const DELAY_MS = 200;

export interface StateFile {
  readonly file: string;
  /** Something may have changed, and nobody waits for it to be kept. */
  changed(): void;
  /** Writes what there is now; resolves when it is on the disk, or has failed and that has been told. */
  keep(): Promise<void>;
  /** Writes what there is now, for the last time: what follows is the end, which takes everything apart. */
  finish(): Promise<void>;
}

/** Locks the state file's companion FILE.lock, which is never replaced, until the process ends. Throws when another has it. */
export function lockState(name: string): void {
  const lockFile = `${path.resolve(name)}.lock`;
  let fd: number;
  try {
    fd = openSync(lockFile, constants.O_CREAT | constants.O_RDWR, 0o600);
  } catch (error) {
    throw errnoError(`Could not create '${lockFile}'`, errnoOf(error));
  }
  if (setOfdLock(fd, F_WRLCK, 0, 0) < 0) {
    closeSync(fd);
    const holder = readFileSync(lockFile, 'utf8').trim();
    throw new BlockError(
      `The state '${name}' is in use by another daemon${holder === '' ? '' : ` (process ${holder})`}`,
    );
  }
  writeSync(fd, `${process.pid}\n`.padEnd(16), 0);
}

/** Keeps the configuration of `context` in the file; `report` is told what could not be saved. */
export function createStateFile(
  name: string,
  context: CommandContext,
  report: (text: string) => void,
): StateFile {
  const file = path.resolve(name);
  let timer: NodeJS.Timeout | null = null;
  let last = '';
  let finished = false;
  const save = async (): Promise<void> => {
    if (timer !== null) clearTimeout(timer);
    timer = null;
    const { config } = currentConfig(context);
    const text = JSON.stringify(config);
    if (text === last) return;
    await writeConfig(file, config);
    last = text;
  };
  /** One after another; a write that finds nothing new is none. */
  let writing: Promise<void> = Promise.resolve();
  const keep = (): Promise<void> => {
    if (finished) return Promise.resolve();
    writing = writing.then(save).catch((error: unknown) => report((error as Error).message));
    return writing;
  };
  return {
    file,
    keep,
    finish: async () => {
      if (finished) return;
      finished = true;
      await writing;
      await save();
    },
    changed: () => {
      if (finished) return;
      timer ??= setTimeout(() => {
        timer = null;
        void keep();
      }, DELAY_MS);
      timer.unref();
    },
  };
}
