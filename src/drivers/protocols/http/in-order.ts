/**
 * A resource of a server without ranges: it can only be had from its start to its end. That is enough for a reader that
 * goes the same way (a conversion), also with several requests under way.
 *
 * One answer is read, as far ahead as readers ask and a little further, and what has come is kept for a while. A read
 * behind what is kept, and a lost connection, make it start again at the first byte, a bounded number of times; the
 * validators must be the same then.
 */

import {
  allocateIoMemory,
  copyToVector,
  type IoMemory,
  type IoVector,
  sliceVector,
} from '../../../aio/memory.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { createCancelScope } from '../../net/cancel.ts';
import { networkError, PassingError } from '../../net/failures.ts';
import { pause, pauseMs } from '../../net/retry.ts';
import { ChangedError, type ResponseHead, statusError } from './exchange.ts';
import type { Found } from './find.ts';
import { createDispatchers, responseHead } from './library.ts';
import type { SourceSettings } from './source.ts';

export interface InOrderReader {
  read(offset: number, vec: IoVector): Promise<void>;
  cancel(): void;
  close(): Promise<void>;
}

/** What has come is kept for so long, in bytes; longer while somebody waits for it. */
const KEEP_BYTES = 32 * 1024 * 1024;
/** Bytes received ahead of what readers have asked for. */
const AHEAD_BYTES = 4 * 1024 * 1024;
/** Reads backwards that are put up with. */
const MAX_RESTARTS = 16;

interface Reader {
  readonly offset: number;
  readonly vec: IoVector;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

/** One answer being received. */
interface Stream {
  at: number;
  readonly abort: (error: Error) => void;
  readonly pause: () => void;
  readonly resume: () => void;
  paused: boolean;
}

export function openInOrder(settings: SourceSettings, found: Found): InOrderReader {
  const { validators, url } = found;
  const dispatchers = createDispatchers(settings);
  const scope = createCancelScope();
  const readers = new Set<Reader>();
  let kept: { readonly offset: number; readonly memory: IoMemory }[] = [];
  let stream: Stream | null = null;
  let starting = false;
  let restarts = 0;
  let failures = 0;
  let wantedEnd = 0;

  const keptStart = (): number => kept[0]?.offset ?? stream?.at ?? 0;

  function failAll(error: unknown): void {
    for (const reader of [...readers]) {
      readers.delete(reader);
      reader.reject(error);
    }
  }

  /** Answers the reader when all of it has come; whether it did. */
  function serve(reader: Reader): boolean {
    const end = reader.offset + reader.vec.bytes;
    if (stream === null || end > stream.at || reader.offset < keptStart()) return false;
    for (const { offset, memory } of kept) {
      const from = Math.max(offset, reader.offset);
      const to = Math.min(offset + memory.buf.length, end);
      if (from >= to) continue;
      copyToVector(
        sliceVector(reader.vec, from - reader.offset, to - from),
        memory.buf.subarray(from - offset, to - offset),
      );
    }
    readers.delete(reader);
    reader.resolve();
    return true;
  }

  function arrived(current: Stream, chunk: Buffer): void {
    const memory = allocateIoMemory(chunk.length);
    memory.buf.set(chunk);
    kept.push({ offset: current.at, memory });
    current.at += chunk.length;
    for (const reader of [...readers]) serve(reader);
    let keepFrom = current.at - KEEP_BYTES;
    for (const { offset } of readers) keepFrom = Math.min(keepFrom, offset);
    while (kept.length > 0 && kept[0]!.offset + kept[0]!.memory.buf.length <= keepFrom) kept.shift();
    setPause(current);
  }

  function setPause(current: Stream): void {
    const isEnough = current.at >= wantedEnd + AHEAD_BYTES;
    if (isEnough === current.paused) return;
    current.paused = isEnough;
    if (isEnough) current.pause();
    else current.resume();
  }

  function checkHead(head: ResponseHead): void {
    if (head.status !== 200) throw statusError(head);
    const etag = head.header('etag');
    const isSame = Number(head.header('content-length')) === validators.sizeBytes && etag === validators.etag;
    if (!isSame) throw new ChangedError('The image has changed on the server', { errno: E.ESTALE });
  }

  /** The answer is over, in whatever way. */
  function ended(current: Stream | null, error: unknown): void {
    if (stream === current) stream = null;
    if (current !== null && current.at === validators.sizeBytes) {
      // All has come; the next read starts anew when it is not among what is kept.
      stream = current;
      return;
    }
    kept = [];
    if (!(error instanceof PassingError) || failures >= settings.policy.retries) {
      failAll(error);
      return;
    }
    failures++;
    if (readers.size === 0) return;
    starting = true;
    pause(pauseMs(settings.policy, failures, error.waitMs, Math.random()), scope).then(
      () => {
        starting = false;
        void start();
      },
      () => {
        starting = false;
        failAll(ioError(E.ECANCELED));
      },
    );
  }

  async function start(): Promise<void> {
    starting = true;
    kept = [];
    try {
      const headers = await settings.headers(url, 'bytes=0-');
      const { range: _none, ...whole } = headers;
      const dispatcher = await dispatchers.for(url);
      if (scope.closed) throw ioError(E.ECANCELED);
      let current: Stream | null = null;
      dispatcher.dispatch(
        { origin: url.origin, path: url.pathname + url.search, method: 'GET', headers: whole },
        {
          onRequestStart: () => undefined,
          onResponseStart(controller, status, raw) {
            if (status < 200) return;
            starting = false;
            current = {
              at: 0,
              paused: false,
              abort: (error) => controller.abort(error),
              pause: () => controller.pause(),
              resume: () => controller.resume(),
            };
            stream = current;
            try {
              checkHead(responseHead(status, raw));
            } catch (error) {
              controller.abort(error as Error);
            }
          },
          onResponseData(_controller, chunk) {
            if (current !== null && stream === current) arrived(current, chunk);
          },
          onResponseEnd() {
            ended(current, new PassingError('The answer is incomplete', E.EIO));
          },
          onResponseError(_controller, error) {
            starting = false;
            if (current === null || stream === current) ended(current, networkError(error, url.hostname));
          },
        },
      );
    } catch (error) {
      starting = false;
      failAll(networkError(error, url.hostname));
    }
  }

  function stopStream(): void {
    const current = stream;
    stream = null;
    if (current !== null && current.at < validators.sizeBytes) current.abort(ioError(E.ECANCELED));
  }

  return {
    read(offset, vec) {
      if (vec.bytes === 0) return Promise.resolve();
      return new Promise((resolve, reject) => {
        const reader = { offset, vec, resolve, reject };
        readers.add(reader);
        wantedEnd = Math.max(wantedEnd, offset + vec.bytes);
        if (serve(reader) || starting) return;
        if (stream !== null && offset >= keptStart()) {
          setPause(stream);
          return;
        }
        if (stream !== null && restarts++ >= MAX_RESTARTS) {
          readers.delete(reader);
          reject(new BlockError('The server sends the image from start to end only', { errno: E.ESPIPE }));
          return;
        }
        stopStream();
        wantedEnd = offset + vec.bytes;
        void start();
      });
    },
    cancel() {
      scope.cancelAll();
      stopStream();
      failAll(ioError(E.ECANCELED));
    },
    async close() {
      scope.close();
      stopStream();
      failAll(ioError(E.ECANCELED));
      await dispatchers.close();
    },
  };
}
