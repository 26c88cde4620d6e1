/**
 * A file on an FTP server as something that can be read anywhere: a few connections, each with a transfer under way.
 * A read joins the transfer that comes by its place soon; where there is none, a connection without work starts one.
 */

import type { IoVector } from '../../../aio/memory.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { createCancelScope } from '../../net/cancel.ts';
import { PassingError } from '../../net/failures.ts';
import { type RetryPolicy, repeated } from '../../net/retry.ts';
import { createSlots } from '../../net/slots.ts';
import { connectFtp, type FtpConnection, type FtpFile, type FtpTarget } from './connection.ts';

export interface FtpSettings {
  readonly target: FtpTarget;
  readonly connections: number;
  readonly policy: RetryPolicy;
  readonly warn: (text: string) => void;
}

export interface FtpSource {
  readonly file: FtpFile;
  read(offset: number, vec: IoVector): Promise<void>;
  cancel(): void;
  close(): Promise<void>;
}

/** A transfer that is so far before the place wanted is read on and what comes thrown away, in bytes. */
const SKIP_BYTES = 512 * 1024;
const CANCELED = E.ECANCELED;
/** Failures of a first attempt that say "wrong address" rather than "try again". */
const FINAL_ERRNO: readonly number[] = [E.ECONNREFUSED, E.EHOSTUNREACH, E.ENETUNREACH, E.ETIMEDOUT];

export async function openFtp(settings: FtpSettings, signal: AbortSignal): Promise<FtpSource> {
  const scope = createCancelScope();
  const first = await repeated(settings.policy, scope, async () => {
    try {
      return await connectFtp(settings.target, signal);
    } catch (error) {
      const isFinal = error instanceof PassingError && FINAL_ERRNO.includes(error.errno);
      throw isFinal ? new BlockError(error.message, { errno: error.errno }) : error;
    }
  });
  return createSource(settings, first);
}

function createSource(
  { target, connections: limit, policy, warn }: FtpSettings,
  first: FtpConnection,
): FtpSource {
  const scope = createCancelScope();
  const { file } = first;
  let connections: FtpConnection[] = [first];
  /** One look for a place at a time: connections that are being made are seen by the next. */
  const placing = createSlots(1);
  let warned = false;

  function checkSame(next: FtpFile): void {
    if (next.sizeBytes === file.sizeBytes && next.modifiedMs === file.modifiedMs) return;
    if (!warned) warn('The image has changed on the server since it was opened');
    warned = true;
    throw new BlockError('The image has changed on the server', { errno: E.ESTALE });
  }

  async function connect(): Promise<FtpConnection> {
    const stop = new AbortController();
    const leave = scope.add(() => stop.abort());
    try {
      const connection = await connectFtp(target, stop.signal);
      try {
        checkSame(connection.file);
      } catch (error) {
        connection.close(error);
        throw error;
      }
      connections.push(connection);
      return connection;
    } finally {
      leave();
    }
  }

  async function place(offset: number): Promise<FtpConnection> {
    connections = connections.filter(({ closed }) => !closed);
    const passing = connections
      .filter(({ tail }) => tail !== null && tail <= offset && offset <= tail + SKIP_BYTES)
      .sort((a, b) => b.tail! - a.tail!);
    if (passing[0] !== undefined) return passing[0];
    const free = connections.find(({ tail }) => tail === null);
    if (free !== undefined) return free;
    if (connections.length >= limit) {
      // Its transfer cannot be ended in any other way.
      const idle = connections.filter(({ pending }) => pending === 0);
      const oldest = idle.length > 0 ? idle.reduce((a, b) => (b.usedAt < a.usedAt ? b : a)) : null;
      if (oldest === null) {
        const [shortest] = [...connections].sort((a, b) => a.pending - b.pending);
        // All are at work: wait until one is not.
        await shortest!.settled;
        return place(offset);
      }
      oldest.close(ioError(CANCELED));
      connections = connections.filter((each) => each !== oldest);
    }
    return connect();
  }

  return {
    file,
    read(offset, vec) {
      const { generation } = scope;
      return repeated(policy, scope, async () => {
        const reading = await placing.run(async () => {
          if (scope.generation !== generation) throw ioError(CANCELED);
          const connection = await place(offset);
          // In the same turn: the place is taken.
          return { done: connection.read(offset, vec) };
        });
        await reading.done;
      });
    },
    cancel() {
      scope.cancelAll();
      for (const connection of connections) if (connection.pending > 0) connection.close(ioError(CANCELED));
    },
    async close() {
      scope.close();
      for (const connection of connections) connection.close(ioError(CANCELED));
    },
  };
}
