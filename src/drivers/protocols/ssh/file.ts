/**
 * A file on an SSH server: read, written, flushed and resized over links that may come and go.
 *
 * A lost connection is made anew, and requests that were not answered are sent again. Writes that were answered but not
 * flushed are in the server's memory: they are there as long as the server runs, which its boot id tells. If it has
 * been started anew meanwhile (or does not tell), the next flush fails, so that whoever relies on it hears of it.
 */

import type { IoVector } from '../../../aio/memory.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { createCancelScope } from '../../net/cancel.ts';
import { PassingError } from '../../net/failures.ts';
import { type RetryPolicy, repeated } from '../../net/retry.ts';
import { createSlots } from '../../net/slots.ts';
import type { SshTarget } from './connect.ts';
import { type Channel, type Link, OpenFlag, openLink, SftpStatus, sftpError } from './link.ts';

export interface SshFileSettings {
  readonly target: SshTarget;
  readonly path: string;
  /** OpenFlag bits. */
  readonly flags: number;
  readonly policy: RetryPolicy;
  readonly warn: (text: string) => void;
}

export interface SshFile {
  readonly sizeBytes: number;
  readonly writable: boolean;
  read(offset: number, vec: IoVector): Promise<void>;
  write(offset: number, vec: IoVector): Promise<void>;
  flush(): Promise<void>;
  truncate(sizeBytes: number): Promise<void>;
  cancel(): void;
  close(): Promise<void>;
}

/** One SFTP request; servers take at least 32 KiB (draft 02, 3), OpenSSH 255 KiB. */
const PIECE_BYTES = 128 * 1024;
/** Requests under way: what fits the windows of all channels. */
const MAX_IN_FLIGHT = 64;

export async function openSshFile(settings: SshFileSettings, signal: AbortSignal): Promise<SshFile> {
  const first = await openLink(settings.target, settings.path, settings.flags, signal);
  return createFile(settings, first);
}

function createFile(settings: SshFileSettings, first: Link): SshFile {
  const { target, path, policy } = settings;
  const scope = createCancelScope();
  const slots = createSlots(MAX_IN_FLIGHT);
  let link = first;
  let linking: Promise<Link> | null = null;
  let { sizeBytes } = first;
  let bootId = first.bootId;
  let canFsync = true;
  /** Counts writes the server has answered; a flush makes safe what was answered when it began. */
  let written = 0;
  let flushed = 0;
  let lostWrites = false;

  async function relink(): Promise<Link> {
    const stop = new AbortController();
    const leave = scope.add(() => stop.abort());
    try {
      const flags = settings.flags & ~(OpenFlag.create | OpenFlag.truncate);
      const next = await openLink(target, path, flags, stop.signal);
      if (written !== flushed && (next.bootId === '' || next.bootId !== bootId)) lostWrites = true;
      ({ bootId } = next);
      link = next;
      return next;
    } catch (error) {
      throw passing(error);
    } finally {
      leave();
      linking = null;
    }
  }

  function current(): Link | Promise<Link> {
    if (!link.ended) return link;
    linking ??= relink();
    return linking;
  }

  /** One request, as often as it takes. */
  function run<T>(
    what: string,
    call: (channel: Channel, done: (error: unknown, value?: T) => void) => void,
  ): Promise<T> {
    const { generation } = scope;
    return repeated(policy, scope, () =>
      slots.run(async () => {
        if (scope.generation !== generation) throw ioError(E.ECANCELED);
        const now = await current();
        try {
          return await now.request(call);
        } catch (error) {
          const known = sftpError(what, error);
          throw known instanceof PassingError ? known : ioError(known.errno, known);
        }
      }),
    );
  }

  async function readPiece(buf: Buffer, start: number, length: number, offset: number): Promise<void> {
    for (let done = 0; done < length; ) {
      const from = start + done;
      const left = length - done;
      const count = await run<number>('read failed', (channel, answer) =>
        channel.sftp.read(channel.handle, buf, from, left, offset + done, (error, bytes) =>
          answer(error, bytes),
        ),
      );
      // The file has become shorter than it was.
      if (count === 0) throw ioError(E.EIO);
      done += count;
    }
  }

  async function writePiece(buf: Buffer, start: number, length: number, offset: number): Promise<void> {
    try {
      await run<void>('write failed', (channel, answer) =>
        channel.sftp.write(channel.handle, buf, start, length, offset, (error) => answer(error)),
      );
    } catch (error) {
      throw (await isFull(length)) ? ioError(E.ENOSPC, error) : error;
    }
    written++;
    sizeBytes = Math.max(sizeBytes, offset + length);
  }

  /** Why a write has failed the protocol does not tell; the server's file system does. */
  async function isFull(bytes: number): Promise<boolean> {
    if (link.ended) return false;
    try {
      const space = await link.request<{ readonly f_bavail: number; readonly f_frsize: number }>(
        (channel, answer) =>
          channel.sftp.ext_openssh_fstatvfs(channel.handle, (error, info) => answer(error, info)),
      );
      return Number(space.f_bavail) * Number(space.f_frsize) < bytes;
    } catch {
      return false;
    }
  }

  async function inPieces(
    offset: number,
    vec: IoVector,
    move: (buf: Buffer, start: number, length: number, offset: number) => Promise<void>,
  ): Promise<void> {
    const running: Promise<void>[] = [];
    let at = offset;
    for (const { mem, start, length } of vec.segments) {
      for (let done = 0; done < length; done += PIECE_BYTES) {
        const bytes = Math.min(PIECE_BYTES, length - done);
        running.push(move(mem.buf, start + done, bytes, at));
        at += bytes;
      }
    }
    if (running.length === 1) return running[0];
    // The memory is the caller's again when all are over, not before.
    for (const result of await Promise.allSettled(running))
      if (result.status === 'rejected') throw result.reason;
  }

  return {
    get sizeBytes() {
      return sizeBytes;
    },
    writable: (settings.flags & OpenFlag.write) !== 0,
    read: (offset, vec) => inPieces(offset, vec, readPiece),
    write: (offset, vec) => inPieces(offset, vec, writePiece),
    async flush() {
      // A connection that was lost since the last write is made first: it tells whether the server still has it.
      if (written !== flushed && link.ended) await repeated(policy, scope, async () => current());
      if (lostWrites) {
        lostWrites = false;
        flushed = written;
        throw new BlockError('The server was started anew before writes to it were flushed', {
          errno: E.EIO,
        });
      }
      if (written === flushed || !canFsync) return;
      const until = written;
      try {
        await run<void>('fsync failed', (channel, answer) => {
          try {
            channel.sftp.ext_openssh_fsync(channel.handle, (error) => answer(error));
          } catch {
            answer(Object.assign(new Error('no fsync'), { code: SftpStatus.unsupported }));
          }
        });
      } catch (error) {
        if (!(error instanceof BlockError && error.errno === E.ENOTSUP)) throw error;
        canFsync = false;
        settings.warn(`ssh server ${target.server.host} does not support fsync`);
      }
      if (lostWrites) {
        lostWrites = false;
        throw ioError(E.EIO);
      }
      flushed = until;
    },
    async truncate(bytes) {
      await run<void>('failed to resize remote file', (channel, answer) =>
        channel.sftp.fsetstat(channel.handle, { size: bytes } as never, (error) => answer(error)),
      );
      written++;
      sizeBytes = bytes;
    },
    cancel() {
      scope.cancelAll();
      // What is under way may still be answered into memory that is not its own any more.
      if (link.channels.some(({ inFlight }) => inFlight > 0))
        link.end(new BlockError('Operation canceled', { errno: E.ECANCELED }));
    },
    async close() {
      scope.close();
      await linking?.catch(() => undefined);
      link.end(new BlockError('Operation canceled', { errno: E.ECANCELED }));
    },
  };
}

/** Whatever keeps us from a server that was there before may pass, but not that it is another one. */
function passing(error: unknown): unknown {
  if (!(error instanceof BlockError) || error instanceof PassingError) return error;
  const isFinal = [E.EPERM, E.ECANCELED, E.ENOENT, E.EACCES].includes(error.errno as 1);
  return isFinal ? error : new PassingError(error.message, error.errno);
}
