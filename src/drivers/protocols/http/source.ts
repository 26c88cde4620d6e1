/**
 * A resource on a web server as something that can be read anywhere: found at opening (redirects, size, validators),
 * then read in ranges, many at a time, each repeated where what went wrong may pass. A repetition goes on where the
 * last attempt stopped. What servers may not do: change the content, or answer with anything but the range asked for.
 */

import type { AioEngine } from '../../../aio/engine.ts';
import { type IoVector, sliceVector } from '../../../aio/memory.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { type CancelScope, createCancelScope } from '../../net/cancel.ts';
import { type RetryPolicy, repeated } from '../../net/retry.ts';
import { createSlots } from '../../net/slots.ts';
import {
  ChangedError,
  checkPartial,
  MovedError,
  type RequestHeaders,
  type Transport,
  UnusualBodyError,
  type Validators,
} from './exchange.ts';
import { type Found, findResource } from './find.ts';
import { createLibraryTransport } from './library.ts';
import { createPlainTransport } from './plain.ts';
import type { HttpProxy } from './proxy.ts';

export interface SourceSettings {
  readonly url: URL;
  /** Headers of a GET of `url`; `range` is the value of the Range header, which is to be among them. */
  readonly headers: (url: URL, range: string) => RequestHeaders | Promise<RequestHeaders>;
  readonly connections: number;
  readonly timeoutMs: number;
  readonly verifiesTls: boolean;
  readonly proxyFor: (url: URL) => HttpProxy | null;
  readonly policy: RetryPolicy;
  readonly engine: AioEngine;
  readonly warn: (text: string) => void;
}

export interface HttpSource {
  readonly found: Found;
  /** Reads [offset, offset + vec.bytes), which must be inside the resource. */
  read(offset: number, vec: IoVector): Promise<void>;
  /** Everything under way fails with ECANCELED. */
  cancel(): void;
  close(): Promise<void>;
}

/** A read this long or longer is split when connections are idle, in bytes. */
const SPLIT_BYTES = 1024 * 1024;
/** How often a read looks for the resource anew when the place that a redirect led to does not have it. */
const MAX_RELOCATIONS = 2;

/** Statuses by which the target of a redirect says that its address has run out. */
const EXPIRED_ERRNO: readonly number[] = [E.EACCES, E.ENOENT];

export async function openSource(settings: SourceSettings, signal: AbortSignal): Promise<HttpSource> {
  const scope = createCancelScope();
  const transports = createTransports(settings);
  const giveUp = (): void => {
    scope.close();
    transports.cancel();
  };
  signal.addEventListener('abort', giveUp);
  try {
    if (signal.aborted) giveUp();
    const found = await findResource(settings, transports, scope);
    return createSource(settings, scope, transports, found);
  } catch (error) {
    await transports.close();
    throw error;
  } finally {
    signal.removeEventListener('abort', giveUp);
  }
}

function createSource(
  settings: SourceSettings,
  scope: CancelScope,
  transports: Transports,
  first: Found,
): HttpSource {
  let found = first;
  let relocating: Promise<void> | null = null;
  let warned = false;
  const slots = createSlots(settings.connections);
  const { validators } = first;

  /** Follows the redirects again; whoever needs it meanwhile waits for the same look. */
  function relocate(): Promise<void> {
    relocating ??= (async () => {
      try {
        const next = await findResource(settings, transports, scope);
        checkSameResource(next.validators, validators);
        found = next;
      } finally {
        relocating = null;
      }
    })();
    return relocating;
  }

  async function readPart(offset: number, vec: IoVector): Promise<void> {
    let done = 0;
    let relocations = 0;
    const { generation } = scope;
    const attemptOnce = async (): Promise<void> => {
      for (;;) {
        // Its turn may have come because all before it were given up, as it was.
        if (scope.generation !== generation) throw ioError(E.ECANCELED);
        const from = offset + done;
        const left = vec.bytes - done;
        if (left === 0) return;
        const { url } = found;
        const headers = await settings.headers(url, `bytes=${from}-${from + left - 1}`);
        const rest = sliceVector(vec, done, left);
        try {
          await transports.for(url).get({
            url,
            headers,
            accept(head) {
              checkPartial(head, from, left, validators);
              return rest;
            },
            received(bytes) {
              done += bytes;
            },
          });
          return;
        } catch (error) {
          if (error instanceof UnusualBodyError) {
            transports.useLibrary(url);
            continue;
          }
          const isGone =
            error instanceof MovedError ||
            (error instanceof BlockError && EXPIRED_ERRNO.includes(error.errno));
          if (!isGone || !found.redirected || relocations++ >= MAX_RELOCATIONS) throw error;
          await relocate();
        }
      }
    };
    await repeated(settings.policy, scope, () => slots.run(attemptOnce));
  }

  async function attempt(offset: number, vec: IoVector): Promise<void> {
    try {
      await readPart(offset, vec);
    } catch (error) {
      if (error instanceof ChangedError && !warned) {
        warned = true;
        settings.warn(`${error.message} since it was opened`);
      }
      throw error;
    }
  }

  /** A long read goes over as many connections as are idle. */
  async function split(offset: number, vec: IoVector, parts: number): Promise<void> {
    const step = Math.ceil(vec.bytes / parts);
    const running: Promise<void>[] = [];
    for (let at = 0; at < vec.bytes; at += step)
      running.push(attempt(offset + at, sliceVector(vec, at, Math.min(step, vec.bytes - at))));
    // The memory is the caller's again when all are over, not before.
    for (const result of await Promise.allSettled(running))
      if (result.status === 'rejected') throw result.reason;
  }

  return {
    get found() {
      return found;
    },
    read(offset, vec) {
      const parts = Math.min(slots.free, Math.floor(vec.bytes / SPLIT_BYTES));
      return parts < 2 ? attempt(offset, vec) : split(offset, vec, parts);
    },
    cancel() {
      scope.cancelAll();
      transports.cancel();
    },
    async close() {
      scope.close();
      await transports.close();
    },
  };
}

/** Who carries requests to where: the fast way where it is open (no TLS, no proxy), the library elsewhere. */
export interface Transports {
  for(url: URL): Transport;
  /** From now on the library serves this origin: the fast way does not understand it. */
  useLibrary(url: URL): void;
  cancel(): void;
  close(): Promise<void>;
}

function createTransports(settings: SourceSettings): Transports {
  /** By origin: connections of the fast way go to one server. */
  const made = new Map<string, Transport>();
  const unusual = new Set<string>();
  return {
    useLibrary: (url) => void unusual.add(url.origin),
    for(url) {
      const isPlain = url.protocol === 'http:' && !unusual.has(url.origin) && settings.proxyFor(url) === null;
      const key = isPlain ? url.origin : '';
      const known = made.get(key) ?? (isPlain ? createPlainTransport : createLibraryTransport)(settings);
      made.set(key, known);
      return known;
    },
    cancel() {
      for (const transport of made.values()) transport.cancel();
    },
    async close() {
      for (const transport of made.values()) await transport.close();
    },
  };
}

function checkSameResource(next: Validators, known: Validators): void {
  const isSame =
    next.sizeBytes === known.sizeBytes &&
    (next.etag !== undefined && known.etag !== undefined
      ? next.etag === known.etag
      : next.lastModified === known.lastModified);
  if (!isSame) throw new ChangedError('The image has changed on the server', { errno: E.ESTALE });
}
