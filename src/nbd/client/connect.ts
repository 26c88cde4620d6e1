/**
 * One attempt to reach an export: connecting, shaking hands, and giving up in time.
 */

import type { SocketAddress } from '../../../schema/generated/types.ts';
import type { AioEngine, ByteStream } from '../../aio/engine.ts';
import { connectTo } from '../../aio/sockets.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, errnoError, reasonOf } from '../../errors/error.ts';
import type { TlsCredentials } from '../../objects/tls-creds.ts';
import { CLIENT_HANDSHAKE_MAX_MS } from '../protocol/limits.ts';
import { ReceiveBuffer } from '../protocol/receive-buffer.ts';
import { ClientConnection, type ClientConnectionOwner } from './connection.ts';
import { openExport } from './handshake.ts';

export interface ClientTarget {
  readonly engine: AioEngine;
  readonly address: SocketAddress;
  readonly allowInheritedFd: boolean;
  readonly exportName: string;
  /** The context block status is read from. */
  readonly context: string;
  readonly tls: { readonly credentials: TlsCredentials; readonly hostname: string } | null;
}

/** The server's address as error texts show it. */
export function describeAddress(address: SocketAddress): string {
  switch (address.type) {
    case 'inet':
      return `${address.host}:${address.port}`;
    case 'unix':
      return address.path;
    case 'vsock':
      return `${address.cid}:${address.port}`;
    case 'fd':
      return address.str;
  }
}

/**
 * Connects and shakes hands. Throws BlockError in the original's words, also when `signal` says to give up or the
 * server takes longer than `timeoutMs` or the limit for a handshake.
 */
export async function connectToExport(
  target: ClientTarget,
  owner: ClientConnectionOwner,
  signal: AbortSignal,
  timeoutMs: number,
): Promise<ClientConnection> {
  const stop = new AbortController();
  let timedOut = false;
  const giveUp = (): void => stop.abort();
  const timer = setTimeout(
    () => {
      timedOut = true;
      stop.abort();
    },
    Math.min(timeoutMs, CLIENT_HANDSHAKE_MAX_MS),
  );
  signal.addEventListener('abort', giveUp);
  if (signal.aborted) stop.abort();
  try {
    return await attempt(target, owner, stop.signal);
  } catch (error) {
    if (!timedOut && !signal.aborted) throw error;
    const errno = timedOut ? E.ETIMEDOUT : E.ECANCELED;
    throw errnoError(`Failed to connect to '${describeAddress(target.address)}'`, errno);
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', giveUp);
  }
}

async function attempt(
  target: ClientTarget,
  owner: ClientConnectionOwner,
  signal: AbortSignal,
): Promise<ClientConnection> {
  const { address, allowInheritedFd, engine } = target;
  const socket = await connectTo(address, { allowInheritedFd, pauseOnConnect: true, signal });
  socket.on('error', () => socket.destroy());
  socket.setNoDelay(true);
  const stream = engine.adoptSocket(socket);
  const close = (): void => stream.close();
  signal.addEventListener('abort', close);
  try {
    if (signal.aborted) throw errnoError('Failed to connect', E.ECANCELED);
    const rx = new ReceiveBuffer();
    const opened = await openExport(stream, rx, {
      exportName: target.exportName,
      context: target.context,
      startTls: target.tls === null ? null : (below, received) => startTls(below, received, target),
    });
    return new ClientConnection(opened, rx, owner);
  } catch (error) {
    stream.close();
    throw error instanceof BlockError ? error : new BlockError(reasonOf(error));
  } finally {
    signal.removeEventListener('abort', close);
  }
}

async function startTls(stream: ByteStream, received: Buffer, { tls }: ClientTarget): Promise<ByteStream> {
  const { startTlsClient } = await import('./tls.ts');
  return startTlsClient(stream, received, tls!.credentials, tls!.hostname);
}
