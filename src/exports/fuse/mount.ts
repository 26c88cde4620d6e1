/**
 * Mounting over a regular file, and what is left of mounts whose daemon was killed.
 *
 * Who may mount(2) does so; everybody else asks fusermount3, which hands over the descriptor of /dev/fuse through a
 * socket. All questions about the mount point go through the thread pool: the kernel might ask this very process.
 * Source of the facts: mount.fuse(8), Linux Documentation/filesystems/fuse.rst, fusermount3(1).
 */

import { spawn } from 'node:child_process';
import { closeSync, constants, openSync } from 'node:fs';
import { readFile, readlink, realpath, stat } from 'node:fs/promises';
import path from 'node:path';
import {
  createSocketPair,
  detachMount,
  mountFileSystem,
  receiveWithFds,
  setNonBlocking,
} from '../../aio/descriptors.ts';
import { addressOf, closeFd } from '../../aio/ffi.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, errnoError, errnoOf } from '../../errors/error.ts';

export type AllowOther = 'off' | 'on' | 'auto';

export interface FuseMount {
  /** /dev/fuse, non-blocking. */
  readonly fd: number;
  /** Whether other users may reach the file. */
  readonly allowOther: boolean;
  /** Takes the file away from its place; the caller closes `fd`. */
  unmount(): Promise<void>;
}

/** Longest read the original announces; requests are shorter anyway. */
const MAX_READ_BYTES = 64 * 1024 * 1024;
const MAX_LINKS = 40;

/**
 * The place a mount point's name stands for, with symbolic links followed, without a question to what is mounted
 * there. `isOurs` knows the places that are exported; the name is returned as soon as it is one.
 */
export async function placeOf(name: string, isOurs: (place: string) => boolean): Promise<string> {
  if (name === '') throw errnoError(`Failed to stat '${name}'`, E.ENOENT);
  let at = path.resolve(name);
  for (let links = 0; links < MAX_LINKS; links++) {
    const parent = await realpath(path.dirname(at)).catch(() => path.dirname(at));
    at = path.join(parent, path.basename(at));
    if (isOurs(at)) return at;
    const target = await readlink(at).catch(() => null);
    if (target === null) return at;
    at = path.resolve(parent, target);
  }
  throw errnoError(`Failed to stat '${name}'`, E.ELOOP);
}

/**
 * Throws unless a regular file is at `place` that is not another process's FUSE file; takes away a mount there whose server
 * has died. (The original mounts over another's file. Whichever ends first then takes the upper one away, and who writes
 * to the file reaches another disk.)
 */
export async function checkMountPoint(name: string, place: string): Promise<void> {
  for (let removed = 0; ; removed++) {
    try {
      if ((await stat(place)).isFile()) {
        if (await isFuseAt(place)) throw new BlockError(`There already is a FUSE export on '${name}'`);
        return;
      }
    } catch (error) {
      if (error instanceof BlockError) throw error;
      const errno = errnoOf(error);
      // One dead mount may lie on another; each pass takes one away, or ends here.
      if (errno === E.ENOTCONN && removed < MAX_LINKS && (await removeDeadMount(place))) continue;
      throw errnoError(`Failed to stat '${name}'`, errno);
    }
    throw new BlockError(`'${name}' is not a regular file`);
  }
}

/** Whether there was one. Its server has died: the kernel says so to whoever asks for the file. */
async function removeDeadMount(place: string): Promise<boolean> {
  if (!(await isFuseAt(place))) return false;
  return detachMount(place) === 0 || (await runFusermount(['-u', '-z', '--', place])) === null;
}

async function isFuseAt(place: string): Promise<boolean> {
  const mounts = await readFile('/proc/self/mountinfo', 'utf8');
  return mounts.split('\n').some((line) => {
    const [left = '', right = ''] = line.split(' - ');
    return unescaped(left.split(' ')[4] ?? '') === place && /^fuse(\.| )/.test(right);
  });
}

/** mountinfo writes spaces, tabs, line ends and backslashes as octal numbers. */
function unescaped(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_match, digits: string) => String.fromCharCode(parseInt(digits, 8)));
}

/** Mounts at `place`. Throws BlockError. */
export async function mountAt(name: string, place: string, allowOther: AllowOther): Promise<FuseMount> {
  if (allowOther !== 'off') {
    try {
      return await mountOnce(place, true);
    } catch (error) {
      if (allowOther === 'on') throw mountError(name, error);
    }
  }
  try {
    return await mountOnce(place, false);
  } catch (error) {
    throw mountError(name, error);
  }
}

function mountError(name: string, error: unknown): BlockError {
  const message = error instanceof Error ? error.message : String(error);
  return new BlockError(`Failed to mount FUSE session to export: '${name}': ${message}`, {
    errno: errnoOf(error),
  });
}

async function mountOnce(place: string, allowOther: boolean): Promise<FuseMount> {
  const fd = openDevice();
  if (fd !== null) {
    const options = [
      `fd=${fd},rootmode=100000,user_id=${process.getuid?.() ?? 0},group_id=${process.getgid?.() ?? 0}`,
      'default_permissions',
      `max_read=${MAX_READ_BYTES}`,
      ...(allowOther ? ['allow_other'] : []),
    ].join(',');
    const result = mountFileSystem('/dev/fuse', place, 'fuse', options);
    if (result === 0) return { fd, allowOther, unmount: async () => void detachMount(place) };
    closeSync(fd);
    if (result !== -E.EPERM) throw errnoError('mount failed', -result);
  }
  return await mountByHelper(place, allowOther);
}

function openDevice(): number | null {
  try {
    return openSync('/dev/fuse', constants.O_RDWR | constants.O_NONBLOCK);
  } catch {
    // Not for this user, or no such device: the helper knows more.
    return null;
  }
}

/** Lets fusermount3, which may mount for users, do it. */
async function mountByHelper(place: string, allowOther: boolean): Promise<FuseMount> {
  const pair = createSocketPair();
  if (pair === null) throw errnoError('socketpair failed', E.EMFILE);
  const [ours, theirs] = pair;
  try {
    const options = `default_permissions,max_read=${MAX_READ_BYTES}${allowOther ? ',allow_other' : ''}`;
    const failure = await runFusermount(['-o', options, '--', place], theirs);
    if (failure !== null) throw new BlockError(failure, { errno: E.EPERM });
    const byte = Buffer.allocUnsafeSlow(1);
    const fds: number[] = [];
    receiveWithFds(ours, addressOf(byte), 1, fds);
    const [fd, ...rest] = fds;
    for (const odd of rest) closeFd(odd);
    if (fd === undefined) throw new BlockError('fusermount3 sent no descriptor');
    setNonBlocking(fd);
    return {
      fd,
      allowOther,
      unmount: async () => void (await runFusermount(['-u', '-z', '--', place])),
    };
  } finally {
    closeFd(ours);
    closeFd(theirs);
  }
}

/** Null when it succeeded, else why not. `commFd`: where it sends the descriptor of a mount. */
function runFusermount(args: readonly string[], commFd?: number): Promise<string | null> {
  return new Promise((resolve) => {
    const child = spawn('fusermount3', args, {
      stdio: ['ignore', 'ignore', 'pipe', commFd ?? 'ignore'],
      env: { ...process.env, _FUSE_COMMFD: '3' },
    });
    let text = '';
    child.stderr?.setEncoding('utf8').on('data', (chunk: string) => {
      text = (text + chunk).slice(0, 1000);
    });
    child.on('error', (error) => resolve(`fusermount3 cannot be run: ${error.message}`));
    child.on('close', (status) =>
      resolve(status === 0 ? null : text.trim() || `fusermount3 failed with status ${status}`),
    );
  });
}
