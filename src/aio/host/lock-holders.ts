/**
 * Who holds a lock on a file, as /proc tells it: for an error text. The kernel names no process for
 * open-file-description locks (F_OFD_GETLK, /proc/locks: process -1), but shows each lock with the descriptors of the
 * file description that holds it (/proc/PID/fdinfo). Not here: taking locks.
 * Source of the facts: proc(5), proc_pid_fdinfo(5), fcntl_locking(2).
 */

import { fstatSync, readdirSync, readFileSync, statSync } from 'node:fs';

export interface LockHolder {
  readonly pid: number;
  /** Of the program, at most 15 bytes; empty when it cannot be told. */
  readonly name: string;
}

/** A file, and the descriptor through which it was looked at: locks held through that do not count. */
export interface LockedFile {
  readonly dev: number;
  readonly ino: number;
  readonly fd: number;
}

export function lockedFile(fd: number): LockedFile {
  const { dev, ino } = fstatSync(fd);
  return { dev, ino, fd };
}

/**
 * Processes that hold any lock on byte `byte` of the file: a step for each process that is looked at, null where that is
 * none of them. Processes of other users may not be seen.
 */
export function* lockHolders(file: LockedFile, byte: number): Generator<LockHolder | null, void> {
  let entries: readonly string[];
  try {
    entries = readdirSync('/proc');
  } catch {
    // There is none.
    return;
  }
  for (const entry of entries) {
    const pid = Number(entry);
    if (!Number.isSafeInteger(pid)) continue;
    const own = pid === process.pid ? file.fd : -1;
    const isHolder = descriptorsOf(pid).some((other) => other !== own && holds(pid, other, file, byte));
    yield isHolder ? { pid, name: nameOf(pid) } : null;
  }
}

function descriptorsOf(pid: number): number[] {
  try {
    return readdirSync(`/proc/${pid}/fd`).map(Number);
  } catch {
    // Gone, or somebody else's.
    return [];
  }
}

function holds(pid: number, fd: number, { dev, ino }: LockedFile, byte: number): boolean {
  try {
    const stat = statSync(`/proc/${pid}/fd/${fd}`);
    return (
      stat.ino === ino &&
      stat.dev === dev &&
      isLockedAt(readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'latin1'), byte)
    );
  } catch {
    return false;
  }
}

/** Whether one of the locks of an fdinfo file ("lock: 1: OFDLCK ADVISORY READ -1 fe:00:17 100 100") is on the byte. */
export function isLockedAt(fdinfo: string, byte: number): boolean {
  return fdinfo.split('\n').some((line) => {
    const [, start, end] = /^lock:.*\s(\d+)\s+(\d+|EOF)$/.exec(line.trimEnd()) ?? [];
    return start !== undefined && Number(start) <= byte && (end === 'EOF' || byte <= Number(end));
  });
}

function nameOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/comm`, 'utf8').trimEnd();
  } catch {
    return '';
  }
}
