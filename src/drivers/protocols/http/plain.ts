/**
 * HTTP/1.1 without TLS and without a proxy, over the engine's own sockets: bodies are received where the reader wants
 * them, by the kernel, without a copy in between. The heads are small and read by hand (RFC 9112).
 *
 * One request at a time on a connection, no pipelining. What is unusual (another status than 206, a body without
 * length) ends the connection: the body is not worth reading, or another transport's business.
 */

import type { AioEngine, ByteStream } from '../../../aio/engine.ts';
import {
  allocateIoMemory,
  copyToVector,
  type IoMemory,
  type IoVector,
  sliceVector,
} from '../../../aio/memory.ts';
import { connectTo } from '../../../aio/sockets.ts';
import { E, strerror } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { networkError, PassingError } from '../../net/failures.ts';
import { createSlots } from '../../net/slots.ts';
import { type Exchange, type ResponseHead, type Transport, UnusualBodyError } from './exchange.ts';

export interface PlainSettings {
  readonly engine: AioEngine;
  /** Connections open at a time. */
  readonly connections: number;
  /** A connection on which nothing happens for so long during a request is given up. */
  readonly timeoutMs: number;
}

const HEAD_MAX_BYTES = 16 * 1024;
/** Bytes received at once while a head is read: what is body already has to be copied. */
const HEAD_STEP_BYTES = 1024;
/** How often connections are looked at for being silent. */
const WATCH_MS = 250;
/** A connection that was idle for so long is not used again: servers close theirs after a while. */
const IDLE_MAX_MS = 15_000;

interface Connection {
  readonly stream: ByteStream;
  readonly head: IoMemory;
  /** Requests it has carried to their end. */
  served: number;
  activeMs: number;
  /** Why it was closed from here. */
  closedBy: 'timeout' | 'cancel' | null;
}

/** The server has closed a connection between two requests: nothing of the request was answered. */
const STALE = Symbol('stale connection');

export function createPlainTransport(settings: PlainSettings): Transport {
  const idle: Connection[] = [];
  const busy = new Set<Connection>();
  const connecting = new Set<AbortController>();
  const slots = createSlots(settings.connections);
  let watch: NodeJS.Timeout | null = null;
  /** Counts how often everything was given up. */
  let cancelled = 0;

  function startWatch(): void {
    watch ??= setInterval(() => {
      const now = performance.now();
      for (const connection of busy)
        if (now - connection.activeMs > settings.timeoutMs) closeBy(connection, 'timeout');
      while (idle.length > 0 && now - idle[0]!.activeMs > IDLE_MAX_MS) idle.shift()!.stream.close();
      if (busy.size > 0 || idle.length > 0 || watch === null) return;
      clearInterval(watch);
      watch = null;
    }, WATCH_MS).unref();
  }

  async function connect(url: URL): Promise<Connection> {
    const stop = new AbortController();
    const timer = setTimeout(() => stop.abort('timeout'), settings.timeoutMs);
    connecting.add(stop);
    const host = hostOf(url);
    try {
      const address = { type: 'inet' as const, host, port: url.port === '' ? '80' : url.port };
      const socket = await connectTo(address, { pauseOnConnect: true, signal: stop.signal });
      socket.on('error', () => socket.destroy());
      socket.setNoDelay(true);
      const stream = settings.engine.adoptSocket(socket);
      if (stop.signal.aborted) {
        stream.close();
        throw ioError(E.ECANCELED);
      }
      const head = allocateIoMemory(HEAD_MAX_BYTES);
      return { stream, head, served: 0, activeMs: performance.now(), closedBy: null };
    } catch (error) {
      if (stop.signal.reason === 'timeout')
        throw new PassingError(`Connection to ${host}: ${strerror(E.ETIMEDOUT)}`, E.ETIMEDOUT);
      if (stop.signal.aborted) throw ioError(E.ECANCELED);
      throw connectionError(error, host);
    } finally {
      clearTimeout(timer);
      connecting.delete(stop);
    }
  }

  async function run(exchange: Exchange): Promise<void> {
    for (;;) {
      const connection = idle.pop() ?? (await connect(exchange.url));
      busy.add(connection);
      startWatch();
      connection.activeMs = performance.now();
      let reusable = false;
      try {
        reusable = await carry(connection, exchange);
        return;
      } catch (error) {
        if (connection.closedBy === 'timeout')
          throw new PassingError(
            `Connection to ${hostOf(exchange.url)}: ${strerror(E.ETIMEDOUT)}`,
            E.ETIMEDOUT,
          );
        if (connection.closedBy === 'cancel') throw ioError(E.ECANCELED);
        if (error !== STALE) throw error;
      } finally {
        busy.delete(connection);
        connection.served++;
        if (reusable && connection.closedBy === null) idle.push(connection);
        else connection.stream.close();
      }
    }
  }

  function closeBy(connection: Connection, reason: 'timeout' | 'cancel'): void {
    connection.closedBy ??= reason;
    connection.stream.close();
  }

  function cancel(): void {
    cancelled++;
    for (const stop of connecting) stop.abort('cancel');
    for (const connection of busy) closeBy(connection, 'cancel');
  }

  return {
    get(exchange) {
      const before = cancelled;
      return slots.run(() => (before === cancelled ? run(exchange) : Promise.reject(ioError(E.ECANCELED))));
    },
    cancel,
    async close() {
      cancel();
      for (const { stream } of idle.splice(0)) stream.close();
      if (watch !== null) clearInterval(watch);
      watch = null;
    },
  };
}

function hostOf(url: URL): string {
  return url.hostname.replace(/^\[(.*)\]$/, '$1');
}

function connectionError(error: unknown, host: string): BlockError {
  if (!(error instanceof BlockError)) return networkError(error, host);
  // Only the resolver's failures carry no errno of their own.
  if (error.message.startsWith('address resolution failed'))
    return networkError({ code: error.message.includes('Temporary') ? 'EAI_AGAIN' : 'ENOTFOUND' }, host);
  const name = Object.entries(E).find(([, errno]) => errno === error.errno)?.[0];
  return networkError({ code: name ?? '', message: error.message }, host);
}

/** Sends the request and takes in the answer; whether the connection can carry another one. */
async function carry(connection: Connection, exchange: Exchange): Promise<boolean> {
  const request = requestText(exchange);
  const out = request.length <= HEAD_MAX_BYTES ? connection.head : allocateIoMemory(request.length);
  out.buf.set(request);
  const sent = await connection.stream.write([{ mem: out, start: 0, length: request.length }]);
  if (sent < 0) throw lost(connection, -sent, true);
  const { head, rest } = await readHead(connection);
  const vec = exchange.accept(head);
  if (vec === null) return false;
  if (head.header('transfer-encoding') !== undefined)
    throw new UnusualBodyError('The server sends the data in chunks', { errno: E.EIO });
  if (head.header('content-length') !== String(vec.bytes))
    throw new BlockError('The server has sent another length than asked for', { errno: E.EIO });
  if (rest.length > vec.bytes)
    throw new BlockError('The server has sent more than asked for', { errno: E.EIO });
  copyToVector(vec, rest);
  exchange.received(rest.length);
  await readBody(connection, exchange, sliceVector(vec, rest.length, vec.bytes - rest.length));
  return !/\bclose\b/i.test(head.header('connection') ?? '') && !head.isOld;
}

function requestText({ url, headers }: Exchange): Buffer {
  const lines = [`GET ${url.pathname}${url.search} HTTP/1.1`, `host: ${url.host}`];
  for (const [name, value] of Object.entries(headers)) lines.push(`${name}: ${value}`);
  return Buffer.from(`${lines.join('\r\n')}\r\n\r\n`, 'latin1');
}

/** `unanswered`: nothing of the answer has come. */
function lost(connection: Connection, errno: number, unanswered: boolean): unknown {
  if (unanswered && connection.served > 0 && connection.closedBy === null) return STALE;
  return new PassingError(`Connection to the server: ${strerror(errno)}`, errno);
}

interface PlainHead extends ResponseHead {
  /** HTTP/1.0: the connection ends with the answer. */
  readonly isOld: boolean;
}

async function readHead(
  connection: Connection,
): Promise<{ readonly head: PlainHead; readonly rest: Buffer }> {
  const { head: mem, stream } = connection;
  for (let filled = 0; ; ) {
    const length = Math.min(HEAD_STEP_BYTES, HEAD_MAX_BYTES - filled);
    if (length === 0) throw new BlockError("The server's answer has too long a head", { errno: E.EIO });
    const count = await stream.read({ mem, start: filled, length });
    if (count <= 0) throw lost(connection, count === 0 ? E.ECONNRESET : -count, filled === 0);
    connection.activeMs = performance.now();
    const from = Math.max(0, filled - 3);
    filled += count;
    for (let end = mem.buf.indexOf('\r\n\r\n', from); end >= 0 && end + 4 <= filled; ) {
      const head = parseHead(mem.buf.toString('latin1', 0, end));
      // Interim answers (1xx) come before the real one.
      if (head.status >= 200) return { head, rest: mem.buf.subarray(end + 4, filled) };
      mem.buf.copyWithin(0, end + 4, filled);
      filled -= end + 4;
      end = mem.buf.indexOf('\r\n\r\n');
    }
  }
}

function parseHead(text: string): PlainHead {
  const [first = '', ...lines] = text.split('\r\n');
  const match = /^HTTP\/1\.([01]) (\d{3})(?: |$)/.exec(first);
  if (match === null) throw new BlockError('The server does not speak HTTP/1.1', { errno: E.EIO });
  const headers = new Map<string, string>();
  for (const line of lines) {
    const colon = line.indexOf(':');
    if (colon <= 0) throw new BlockError("The server's answer has a broken head", { errno: E.EIO });
    const name = line.slice(0, colon).toLowerCase();
    const value = line.slice(colon + 1).trim();
    // Two lengths would leave open where the answer ends.
    if (name === 'content-length' && (headers.get(name) ?? value) !== value)
      throw new BlockError("The server's answer has two lengths", { errno: E.EIO });
    if (!headers.has(name)) headers.set(name, value);
  }
  return { status: Number(match[2]), isOld: match[1] === '0', header: (name) => headers.get(name) };
}

async function readBody(connection: Connection, exchange: Exchange, vec: IoVector): Promise<void> {
  for (const { mem, start, length } of vec.segments) {
    for (let at = 0; at < length; ) {
      const count = await connection.stream.read({ mem, start: start + at, length: length - at });
      if (count <= 0) throw lost(connection, count === 0 ? E.ECONNRESET : -count, false);
      connection.activeMs = performance.now();
      at += count;
      exchange.received(count);
    }
  }
}
