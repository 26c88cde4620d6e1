/**
 * A connection to an SSH server with the image open on it: several SFTP channels, each with a handle of its own, since
 * a channel's window is 2 MiB and the server works on one request a channel at a time.
 *
 * A link ends once, for whatever reason; requests under way then fail with a passing error, and nothing writes into
 * their memory any more. Who makes a new one is file.ts.
 */

import type { Client, SFTPWrapper, Stats } from 'ssh2';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { PassingError } from '../../net/failures.ts';
import { connectSsh, type SshTarget } from './connect.ts';

/** SSH_FXF_* bits (draft-ietf-secsh-filexfer-02, 6.3). */
export const OpenFlag = { read: 1, write: 2, create: 8, truncate: 16 } as const;
/** SSH_FX_* statuses (7). */
export const SftpStatus = { eof: 1, noSuchFile: 2, permissionDenied: 3, failure: 4, unsupported: 8 } as const;

const STATUS_TEXT: Readonly<Record<number, string>> = {
  2: 'No such file',
  3: 'Permission denied',
  4: 'Failure',
  5: 'Bad message',
  8: 'Operation not supported',
};
const STATUS_ERRNO: Readonly<Record<number, number>> = { 2: E.ENOENT, 3: E.EACCES, 8: E.ENOTSUP };

const CHANNELS = 4;
const WATCH_MS = 500;
/** Tells one start of a Linux server from the next. */
const BOOT_ID_FILE = '/proc/sys/kernel/random/boot_id';
const BOOT_ID_BYTES = 64;

export interface Channel {
  readonly sftp: SFTPWrapper;
  readonly handle: Buffer;
  inFlight: number;
}

export interface Link {
  readonly channels: readonly Channel[];
  readonly sizeBytes: number;
  /** '' where the server does not tell. */
  readonly bootId: string;
  readonly ended: boolean;
  /** Runs a request on the least busy channel; `call` hands its callback to ssh2. */
  request<T>(call: (channel: Channel, done: (error: unknown, value?: T) => void) => void): Promise<T>;
  end(reason: BlockError): void;
}

type SftpError = Error & { readonly code?: number };

/** The error for an answer of the server, in the original's words. */
export function sftpError(what: string, error: unknown): BlockError {
  if (error instanceof BlockError) return error;
  const { code } = error as SftpError;
  if (typeof code !== 'number') return new PassingError('The server has ended the connection', E.ECONNRESET);
  return new BlockError(
    `${what}: SFTP server: ${STATUS_TEXT[code] ?? (error as Error).message} (libssh error code: 1, sftp error code: ${code})`,
    { errno: STATUS_ERRNO[code] ?? E.EIO },
  );
}

function promised<T>(call: (done: (error: unknown, value?: T) => void) => void): Promise<T> {
  return new Promise((resolve, reject) => {
    call((error, value) => (error === undefined || error === null ? resolve(value as T) : reject(error)));
  });
}

export async function openLink(
  target: SshTarget,
  path: string,
  flags: number,
  signal: AbortSignal,
): Promise<Link> {
  const client = await connectSsh(target, signal);
  const giveUp = (): void => {
    client.destroy();
  };
  signal.addEventListener('abort', giveUp);
  const closed = new Promise<never>((_resolve, reject) => {
    client.once('close', () => reject(new PassingError('The server has ended the connection', E.ECONNRESET)));
  });
  closed.catch(() => undefined);
  const timer = setTimeout(giveUp, target.timeoutMs);
  try {
    return await Promise.race([openChannels(client, target, path, flags), closed]);
  } catch (error) {
    client.destroy();
    if (signal.aborted) throw new BlockError('Operation canceled', { errno: E.ECANCELED });
    throw error;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', giveUp);
  }
}

async function openChannels(client: Client, target: SshTarget, path: string, flags: number): Promise<Link> {
  const first = await openChannel(client, path, flags);
  // What the file is made or emptied by happens once.
  const again = flags & ~(OpenFlag.create | OpenFlag.truncate);
  const [others, stats, bootId] = await Promise.all([
    Promise.allSettled(Array.from({ length: CHANNELS - 1 }, () => openChannel(client, path, again))),
    promised<Stats>((done) => first.sftp.fstat(first.handle, done)),
    readBootId(first.sftp),
  ]);
  // A server that allows fewer sessions gets fewer.
  const channels = [
    first,
    ...others.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : [])),
  ];
  return createLink(client, target, channels, Number(stats.size), bootId);
}

async function openChannel(client: Client, path: string, flags: number): Promise<Channel> {
  const sftp = await promised<SFTPWrapper>((done) => client.sftp(done));
  sftp.on('error', () => undefined);
  try {
    // The types know names of modes only; numbers are what goes over the wire.
    const mode = flags as unknown as 'r';
    const handle = await promised<Buffer>((done) => sftp.open(path, mode, { mode: 0o644 }, done));
    return { sftp, handle, inFlight: 0 };
  } catch (error) {
    throw sftpError(`failed to open remote file '${path}'`, error);
  }
}

async function readBootId(sftp: SFTPWrapper): Promise<string> {
  try {
    const handle = await promised<Buffer>((done) => sftp.open(BOOT_ID_FILE, 'r', done));
    const text = Buffer.alloc(BOOT_ID_BYTES);
    const count = await promised<number>((done) => sftp.read(handle, text, 0, BOOT_ID_BYTES, 0, done));
    sftp.close(handle, () => undefined);
    return text.toString('latin1', 0, count).trim();
  } catch {
    return '';
  }
}

function createLink(
  client: Client,
  target: SshTarget,
  channels: readonly Channel[],
  sizeBytes: number,
  bootId: string,
): Link {
  const pending = new Set<(error: unknown) => void>();
  let ended = false;
  let answeredMs = performance.now();
  const watch = setInterval(() => {
    if (pending.size > 0 && performance.now() - answeredMs > target.timeoutMs)
      end(new PassingError('The server does not answer', E.ETIMEDOUT));
  }, WATCH_MS).unref();

  function end(reason: BlockError): void {
    if (ended) return;
    ended = true;
    clearInterval(watch);
    client.destroy();
    for (const fail of [...pending]) fail(reason);
  }
  const lost = (): void => end(new PassingError('The server has ended the connection', E.ECONNRESET));
  client.once('close', lost);
  for (const { sftp } of channels) sftp.once('close', lost);

  return {
    channels,
    sizeBytes,
    bootId,
    get ended() {
      return ended;
    },
    request(call) {
      return new Promise((resolve, reject) => {
        if (ended) {
          reject(new PassingError('The server has ended the connection', E.ECONNRESET));
          return;
        }
        const channel = channels.reduce((a, b) => (b.inFlight < a.inFlight ? b : a));
        channel.inFlight++;
        if (pending.size === 0) answeredMs = performance.now();
        const leave = (): void => {
          pending.delete(fail);
          channel.inFlight--;
          answeredMs = performance.now();
        };
        const fail = (error: unknown): void => {
          leave();
          reject(error);
        };
        pending.add(fail);
        call(channel, (error, value) => {
          if (!pending.has(fail)) return;
          if (error !== undefined && error !== null) return fail(error);
          leave();
          resolve(value as never);
        });
      });
    },
    end,
  };
}
