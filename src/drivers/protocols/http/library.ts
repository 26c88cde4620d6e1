/**
 * HTTP with TLS, through proxies, and for everything that is not the hot path: carried by undici, which is loaded when
 * it is first needed.
 */

import type { Dispatcher } from 'undici';
import { copyToVector, type IoVector, sliceVector } from '../../../aio/memory.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { networkError, PassingError } from '../../net/failures.ts';
import { trustedAuthorities } from '../../net/trust.ts';
import type { Exchange, ResponseHead, Transport } from './exchange.ts';
import type { HttpProxy } from './proxy.ts';

export interface LibrarySettings {
  readonly connections: number;
  readonly timeoutMs: number;
  /** Certificates of servers are checked. */
  readonly verifiesTls: boolean;
  /** Where the server's address is to be looked at for a proxy; null: it is reached directly. */
  readonly proxyFor: (url: URL) => HttpProxy | null;
}

type Headers = Readonly<Record<string, string | string[] | undefined>>;

/** What undici tells of an answer. */
export function responseHead(status: number, headers: Headers): ResponseHead {
  return {
    status,
    header(name) {
      const value = headers[name];
      return Array.isArray(value) ? value[0] : value;
    },
  };
}

/** Dispatchers by the way they go, made at first use. */
export interface Dispatchers {
  for(url: URL): Promise<Dispatcher>;
  close(): Promise<void>;
}

export function createDispatchers(settings: LibrarySettings): Dispatchers {
  const made = new Map<string, Promise<Dispatcher>>();
  async function make(proxy: HttpProxy | null, needsTls: boolean): Promise<Dispatcher> {
    const { Agent, ProxyAgent } = await import('undici');
    const { connections, timeoutMs } = settings;
    const trust = settings.verifiesTls && needsTls ? { secureContext: trustedAuthorities(process.env) } : {};
    const tls = { rejectUnauthorized: settings.verifiesTls, ...trust };
    const options = {
      connections,
      pipelining: 1,
      headersTimeout: timeoutMs,
      bodyTimeout: timeoutMs,
      connect: { timeout: timeoutMs, ...tls },
    };
    if (proxy === null) return new Agent(options);
    return new ProxyAgent({
      ...options,
      uri: proxy.uri,
      ...(proxy.authorization !== null && { token: proxy.authorization }),
      requestTls: { timeout: timeoutMs, ...tls },
      proxyTls: { timeout: timeoutMs, ...tls },
      // Plain HTTP goes through the proxy as a request to it, as every proxy allows.
      proxyTunnel: false,
    });
  }
  return {
    for(url) {
      const proxy = settings.proxyFor(url);
      const needsTls = url.protocol === 'https:' || proxy?.uri.startsWith('https:') === true;
      const key = `${needsTls} ${proxy?.uri} ${proxy?.authorization}`;
      const known = made.get(key) ?? make(proxy, needsTls);
      made.set(key, known);
      return known;
    },
    async close() {
      for (const dispatcher of made.values()) await (await dispatcher).destroy();
      made.clear();
    },
  };
}

export function createLibraryTransport(settings: LibrarySettings): Transport {
  const dispatchers = createDispatchers(settings);
  const running = new Set<(reason: Error) => void>();

  function carry(dispatcher: Dispatcher, exchange: Exchange): Promise<void> {
    return new Promise((resolve, reject) => {
      let controller: Dispatcher.DispatchController | null = null;
      let vec: IoVector | null = null;
      let done = 0;
      let ended = false;
      const end = (settle: () => void): void => {
        ended = true;
        running.delete(stop);
        settle();
      };
      /** Ends it with an error of ours; what undici says of that is not heard. */
      const stop = (reason: Error): void => {
        if (ended) return;
        end(() => reject(reason));
        controller?.abort(reason);
      };
      running.add(stop);
      const { url } = exchange;
      dispatcher.dispatch(
        {
          origin: url.origin,
          path: url.pathname + url.search,
          method: 'GET',
          headers: exchange.headers as Record<string, string>,
        },
        {
          onRequestStart(started) {
            controller = started;
            if (ended) started.abort(ioError(E.ECANCELED));
          },
          onResponseStart(_controller, status, headers) {
            if (ended || status < 200) return;
            try {
              vec = exchange.accept(responseHead(status, headers));
            } catch (error) {
              stop(error as Error);
              return;
            }
            if (vec !== null) return;
            end(resolve);
            controller?.abort(ioError(E.ECANCELED));
          },
          onResponseData(_controller, chunk) {
            if (ended || vec === null) return;
            if (done + chunk.length > vec.bytes) {
              stop(new BlockError('The server has sent more than asked for', { errno: E.EIO }));
              return;
            }
            copyToVector(sliceVector(vec, done, chunk.length), chunk);
            done += chunk.length;
            exchange.received(chunk.length);
          },
          onResponseEnd() {
            if (ended) return;
            const isWhole = vec !== null && done === vec.bytes;
            end(isWhole ? resolve : () => reject(new PassingError('The answer is incomplete', E.EIO)));
          },
          onResponseError(_controller, error) {
            if (!ended) end(() => reject(networkError(error, url.hostname)));
          },
        },
      );
    });
  }

  return {
    async get(exchange) {
      let dispatcher: Dispatcher;
      try {
        dispatcher = await dispatchers.for(exchange.url);
      } catch (error) {
        throw networkError(error, exchange.url.hostname);
      }
      await carry(dispatcher, exchange);
    },
    cancel() {
      for (const stop of [...running]) stop(ioError(E.ECANCELED));
    },
    async close() {
      for (const stop of [...running]) stop(ioError(E.ECANCELED));
      await dispatchers.close();
    },
  };
}
