/**
 * `--daemonize`: the process that the user started stays in the foreground until startup is complete or has failed,
 * then exits with the result; the daemon runs on in a session of its own.
 *
 * Node cannot fork, so the parent starts the same program again in a new session. The child's output goes through
 * pipes to the parent, which copies it as long as it lives: so whoever waits for the end of the parent's output
 * (`out=$(qblockd --daemonize ...)`) is not kept waiting by the daemon. When all options have been executed the child
 * says so on descriptor 3.
 */

import { spawn } from 'node:child_process';
import { closeSync, writeSync } from 'node:fs';
import type { Readable } from 'node:stream';
import { dupOnto } from '../src/aio/ffi.ts';
import { restoreWords } from '../src/aio/host/names.ts';
import { BlockError, reasonOf } from '../src/errors/error.ts';

/** Environment variable by which the child knows what it is. */
const READY_FD = 'QBLOCKD_READY_FD';
const CHILD_READY_FD = 3;

/** Whether this process is the daemon that a parent waits for. */
export function isDaemonChild(): boolean {
  return process.env[READY_FD] === String(CHILD_READY_FD);
}

/** Starts the daemon and waits until it is ready or has ended. The status to exit with. */
export function runInBackground(): Promise<number> {
  const [script = '', ...args] = process.argv.slice(1);
  const lost = restoreWords(args).find((word) => !word.isWellFormed());
  if (lost !== undefined) throw new BlockError(`With --daemonize, '${lost}' must be UTF-8`);
  const child = spawn(process.execPath, [...process.execArgv, script, ...args], {
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
    env: { ...process.env, [READY_FD]: String(CHILD_READY_FD) },
  });
  child.stdout?.pipe(process.stdout);
  child.stderr?.pipe(process.stderr);
  return new Promise((resolve) => {
    child.once('error', (error) => {
      process.stderr.write(`cannot start the daemon: ${reasonOf(error)}\n`);
      resolve(1);
    });
    // 'close' comes after all output.
    child.once('close', (status) => resolve(status ?? 1));
    // Output written before that is in the other pipes by now, but maybe not read yet: the next turn of the loop does.
    (child.stdio[CHILD_READY_FD] as Readable).once('data', () =>
      setImmediate(() => setImmediate(resolve, 0)),
    );
  });
}

/**
 * In the child: startup is complete. Leaves the user's folder, and tells the parent. Whatever is written to standard
 * error from now on goes to `logFd`, unless that is standard error itself.
 */
export function becomeDaemon(logFd: number): void {
  delete process.env[READY_FD];
  process.umask(0o027);
  process.chdir('/');
  writeSync(CHILD_READY_FD, 'ready');
  closeSync(CHILD_READY_FD);
  if (logFd !== 2) dupOnto(logFd, 2);
  // Otherwise nobody reads any more what is written to the standard streams.
  process.stdout.on('error', () => undefined);
  process.stderr.on('error', () => undefined);
}
