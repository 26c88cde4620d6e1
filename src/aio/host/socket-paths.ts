/**
 * The paths of UNIX sockets that this process listens on: making way for a socket, and taking its file away afterwards.
 *
 * Listening itself is sockets.ts.
 */

import { lstatSync, renameSync, unlinkSync } from 'node:fs';
import { connect, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { E } from '../../errors/errno.ts';
import { BlockError, errnoError, errnoOf } from '../../errors/error.ts';
import { isOnOwnMount } from './own-mounts.ts';

/** Files of the UNIX sockets that this process listens on: device and inode. */
const ownSockets = new Set<string>();

function identityOf(file: string): string | null {
  try {
    const { dev, ino } = lstatSync(file);
    return `${dev}:${ino}`;
  } catch {
    return null;
  }
}

/** This process listens on the socket at that path from now on, until the result is called. */
export function claimSocket(file: string): () => void {
  const identity = identityOf(file);
  if (identity === null) return () => undefined;
  ownSockets.add(identity);
  return () => void ownSockets.delete(identity);
}

/** Tries of a path on which sockets come and go. */
const MAX_STALE = 8;

/**
 * Makes way for a socket. Unlike the original, it removes no file that has content (bind(2) then fails), and no socket on
 * which another process answers. One of this process makes way, as when a character device is changed.
 */
export async function makeWay(file: string): Promise<void> {
  // It is no socket, which bind(2) says without asking this process for it.
  if (isOnOwnMount(file)) return;
  for (let attempt = 0; attempt < MAX_STALE; attempt++) {
    const identity = identityOf(file);
    if (identity === null) return;
    if (lstatSync(file).isSocket() && !ownSockets.has(identity)) {
      const errno = await connectErrno(file);
      // ECONNREFUSED: whoever listened there has gone.
      if (errno !== E.ECONNREFUSED && errno !== E.ENOENT)
        throw errnoError(`Failed to bind socket to ${file}`, errno === 0 ? E.EADDRINUSE : errno);
      // Somebody else may have made way and listen meanwhile.
      if (identityOf(file) !== identity) continue;
    }
    removeStaleSocket(file);
    return;
  }
  throw errnoError(`Failed to bind socket to ${file}`, E.EADDRINUSE);
}

/** What connecting to the socket says: 0 when somebody answers, or is too busy to. */
function connectErrno(file: string): Promise<number> {
  return new Promise((resolve) => {
    const socket = connect({ path: file });
    const end = (errno: number): void => {
      socket.destroy();
      resolve(errno === E.EAGAIN || errno === E.EPROTOTYPE ? 0 : errno);
    };
    socket.once('connect', () => end(0));
    socket.once('error', (error) => end(errnoOf(error)));
  });
}

function removeStaleSocket(file: string): void {
  try {
    const stat = lstatSync(file);
    if (stat.isDirectory()) throw errnoError(`Failed to unlink socket ${file}`, E.EISDIR);
    // An empty file is what `sock=$(mktemp)` leaves; a file with content is somebody's data.
    if (stat.isSocket() || (stat.isFile() && stat.size === 0)) unlinkSync(file);
  } catch (error) {
    if (error instanceof BlockError) throw error;
    const errno = errnoOf(error);
    // Where the folder is missing, bind(2) reports it.
    if (errno !== E.ENOENT && errno !== E.ENOTDIR) throw errnoError(`Failed to unlink socket ${file}`, errno);
  }
}

/** A name for whoever does not care: the listener's address tells it. */
export function temporaryPath(): string {
  return path.join(tmpdir(), `qemu-socket-${Math.random().toString(36).slice(2, 8).padEnd(6, '0')}`);
}

export function inodeOf(file: string): number | null {
  try {
    return lstatSync(file).ino;
  } catch {
    return null;
  }
}

function unlinkIfPresent(file: string): void {
  try {
    unlinkSync(file);
  } catch {
    // Gone already.
  }
}

/**
 * Closes a server. libuv removes the path of the socket; when another socket has taken the path in the meantime, that
 * one is moved out of the way for the moment.
 */
export function closeUnixServer(server: Server, file: string, inode: number | null): void {
  const present = inodeOf(file);
  if (present === null || present === inode) {
    server.close();
    // libuv knows the path as it was given, which leads elsewhere when the daemon has changed its folder.
    if (present !== null) unlinkIfPresent(file);
    return;
  }
  const parked = `${file}.parked-${process.pid}`;
  renameSync(file, parked);
  server.close();
  renameSync(parked, file);
}
