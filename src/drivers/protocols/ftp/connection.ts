/**
 * One FTP connection with at most one transfer on it: a file read from some offset on, as far as somebody reads it.
 *
 * The protocol (RFC 959, REST of RFC 3659) has no ranges and basic-ftp no way to end a transfer early but to give up the
 * connection, so a transfer goes on where the last read stopped, and what the reader does not take the server does not
 * send.
 */

import { Writable } from 'node:stream';
import type { Client } from 'basic-ftp';
import { copyToVector, type IoVector, sliceVector } from '../../../aio/memory.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { networkError, PassingError } from '../../net/failures.ts';
import { trustedAuthorities } from '../../net/trust.ts';

export interface FtpTarget {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly password: string;
  readonly path: string;
  /** TLS from the first byte on. */
  readonly tls: boolean;
  readonly verifiesTls: boolean;
  readonly timeoutMs: number;
}

export interface FtpFile {
  readonly sizeBytes: number;
  /** Milliseconds; null: the server does not tell. */
  readonly modifiedMs: number | null;
}

interface Read {
  readonly offset: number;
  readonly vec: IoVector;
  done: number;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

export interface FtpConnection {
  readonly file: FtpFile;
  /** Where the reads asked for so far end; null: there is no transfer. */
  readonly tail: number | null;
  /** Reads that are not done. */
  readonly pending: number;
  readonly closed: boolean;
  /** Resolves when the next read is done, or none is left. */
  readonly settled: Promise<void>;
  usedAt: number;
  /** Reads on with the transfer there is (`offset` not before `tail`), or starts one when there is none. */
  read(offset: number, vec: IoVector): Promise<void>;
  close(error: unknown): void;
}

const PERMANENT_REPLY = 500;

/** The error for what basic-ftp says, in the words of libcurl where it has any. */
export function ftpError(error: unknown, host: string): BlockError {
  if (error instanceof BlockError) return error;
  const { code, message } = error as { readonly code?: unknown; readonly message?: string };
  if (typeof code !== 'number') {
    if (/timeout/i.test(message ?? ''))
      return new PassingError(`Connection to ${host}: Connection timed out`, E.ETIMEDOUT);
    if (/closed|FIN packet/i.test(message ?? ''))
      return new PassingError(`Connection to ${host}: Connection reset by peer`, E.ECONNRESET);
    return networkError(error, host);
  }
  if (code === 530 || code === 430) return new BlockError(`Access denied: ${code}`, { errno: E.EACCES });
  if (code === 550) return new BlockError('The file does not exist', { errno: E.ENOENT });
  // 4yz: not now; 5yz: not ever (RFC 959, 4.2).
  return code < PERMANENT_REPLY
    ? new PassingError(`The server replied ${code}`, E.EIO)
    : new BlockError(`The server replied ${code}`, { errno: E.EIO });
}

/** Connects, logs in, and looks at the file. */
export async function connectFtp(target: FtpTarget, signal: AbortSignal): Promise<FtpConnection> {
  const { Client } = await import('basic-ftp');
  const client = new Client(target.timeoutMs);
  const giveUp = (): void => client.close();
  signal.addEventListener('abort', giveUp);
  try {
    if (signal.aborted) throw ioError(E.ECANCELED);
    await client.access({
      host: target.host,
      port: target.port,
      user: target.user,
      password: target.password,
      secure: target.tls ? 'implicit' : false,
      secureOptions: {
        host: target.host,
        rejectUnauthorized: target.verifiesTls,
        ...(target.tls && target.verifiesTls && { secureContext: trustedAuthorities(process.env) }),
      },
    });
    return createConnection(client, target, await lookAt(client, target.path));
  } catch (error) {
    client.close();
    if (signal.aborted) throw ioError(E.ECANCELED);
    throw ftpError(error, target.host);
  } finally {
    signal.removeEventListener('abort', giveUp);
  }
}

async function lookAt(client: Client, path: string): Promise<FtpFile> {
  let sizeBytes: number;
  try {
    sizeBytes = await client.size(path);
  } catch (error) {
    const { code } = error as { readonly code?: number };
    if (code === 550) throw error;
    if (code !== undefined) throw new BlockError("Server didn't report file size.", { errno: E.EIO });
    throw error;
  }
  let modifiedMs: number | null = null;
  try {
    modifiedMs = (await client.lastMod(path)).getTime();
  } catch (error) {
    // Not every server knows MDTM.
    if ((error as { readonly code?: number }).code === undefined) throw error;
  }
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0)
    throw new BlockError("Server didn't report file size.", { errno: E.EIO });
  return { sizeBytes, modifiedMs };
}

/** A server that dies says so in the clear, also under TLS: what breaks after the login may be whole next time. */
function lostTransfer(error: BlockError): BlockError {
  const { code } = (error.cause ?? {}) as { readonly code?: unknown };
  return typeof code === 'string' && code.startsWith('ERR_SSL')
    ? new PassingError(error.message, E.ECONNRESET)
    : error;
}

function createConnection(client: Client, target: FtpTarget, file: FtpFile): FtpConnection {
  const queue: Read[] = [];
  let position = 0;
  let tail: number | null = null;
  let closed = false;
  /** What has come and nobody wants yet; the server is held back until `release`. */
  let rest: Buffer | null = null;
  let release: (() => void) | null = null;
  const settling: (() => void)[] = [];

  function settle(): void {
    for (const wake of settling.splice(0)) wake();
  }

  function fail(error: unknown): void {
    if (closed) return;
    closed = true;
    client.close();
    for (const read of queue.splice(0)) read.reject(error);
    release?.();
    release = null;
    settle();
  }

  /** Hands out what has come. */
  function serve(): void {
    while (rest !== null && queue.length > 0) {
      const read = queue[0]!;
      const skip = Math.min(rest.length, read.offset + read.done - position);
      const take = Math.min(rest.length - skip, read.vec.bytes - read.done);
      if (take > 0) copyToVector(sliceVector(read.vec, read.done, take), rest.subarray(skip, skip + take));
      read.done += take;
      position += skip + take;
      rest = skip + take === rest.length ? null : rest.subarray(skip + take);
      if (read.done < read.vec.bytes) continue;
      queue.shift();
      read.resolve();
      settle();
    }
    if (rest !== null) return;
    const next = release;
    release = null;
    next?.();
  }

  function start(offset: number): void {
    position = offset;
    const sink = new Writable({
      highWaterMark: 1,
      write(chunk: Buffer, _encoding, done) {
        if (closed) return done();
        rest = chunk;
        release = done;
        serve();
      },
    });
    client.downloadTo(sink, target.path, offset).then(
      () => {
        tail = null;
        if (queue.length > 0) fail(new PassingError('The transfer is incomplete', E.EIO));
      },
      (error: unknown) => fail(lostTransfer(ftpError(error, target.host))),
    );
  }

  return {
    file,
    get tail() {
      return tail;
    },
    get pending() {
      return queue.length;
    },
    get closed() {
      return closed;
    },
    get settled() {
      return queue.length === 0 ? Promise.resolve() : new Promise<void>((resolve) => settling.push(resolve));
    },
    usedAt: performance.now(),
    read(offset, vec) {
      return new Promise((resolve, reject) => {
        if (closed) return reject(new PassingError('The connection is closed', E.ECONNRESET));
        const isNew = tail === null;
        queue.push({ offset, vec, done: 0, resolve, reject });
        tail = offset + vec.bytes;
        this.usedAt = performance.now();
        if (isNew) start(offset);
        else serve();
      });
    },
    close: fail,
  };
}
