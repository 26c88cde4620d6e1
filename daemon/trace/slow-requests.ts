/**
 * The log of slow requests (`--slow-requests MS`): a line for each request of an export or a job that took longer, with
 * its path: which node had it for how long, from the user down to the device.
 *
 * The calls of one request find each other by an AsyncLocalStorage, which is paid for only where the log is on. Requests
 * that are done within the turn are not slow, and are not looked at.
 */

import { AsyncLocalStorage } from 'node:async_hooks';
import { observeBackends } from '../../src/block/backend.ts';
import { observeForms } from '../../src/block/io/callbacks.ts';
import { BlockError } from '../../src/errors/error.ts';
import type { Logger } from '../logger.ts';

/** One call on the way of a request. */
interface Span {
  readonly what: string;
  readonly depth: number;
  readonly startMs: number;
  /** Null: it has not ended. */
  endMs: number | null;
}

interface Path {
  readonly spans: Span[];
  readonly depth: number;
}

/** A request that is split into more calls than these is told by the first of them. */
const MAX_SPANS = 32;

/** The threshold in milliseconds. Throws when the text is no number above 0. */
export function parseThreshold(text: string): number {
  const ms = Number(text);
  if (!(ms > 0 && ms < 1e9)) throw new BlockError(`Invalid threshold '${text}', expected: milliseconds`);
  return ms;
}

/** Begins to log. */
export function logSlowRequests(thresholdMs: number, logger: Logger): void {
  const storage = new AsyncLocalStorage<Path>();
  const follow = <T>(path: Path, what: string, run: () => Promise<T>): Promise<T> => {
    const span: Span = { what, depth: path.depth, startMs: performance.now(), endMs: null };
    if (path.spans.length < MAX_SPANS) path.spans.push(span);
    const below: Path = { spans: path.spans, depth: path.depth + 1 };
    return storage.run(below, run).finally(() => {
      span.endMs = performance.now();
    });
  };
  /** A request from its user's call on, logged when it was slow. */
  const watched = <T>(request: Request, run: () => Promise<T>): Promise<T> => {
    const path: Path = { spans: [], depth: 0 };
    return follow(path, `${request.kind} ${request.node}`, run).finally(() => {
      const [first] = path.spans;
      const tookMs = first === undefined ? 0 : (first.endMs ?? first.startMs) - first.startMs;
      if (tookMs >= thresholdMs) logger.warn(detailsOf(request, path.spans, tookMs), 'slow request');
    });
  };
  observeBackends((kind, backend, args, run) =>
    // A driver may be a user of others, too.
    storage.getStore() === undefined ? watched({ kind, node: backend.nodeName, args }, run) : run(),
  );
  observeForms((kind, node, args, run) => {
    const path = storage.getStore();
    // Jobs call nodes themselves.
    if (path === undefined) return watched({ kind, node: node.name, args }, run);
    return follow(path, `${kind} ${node.name} (${node.driver.name})`, run);
  });
}

interface Request {
  readonly kind: string;
  readonly node: string;
  readonly args: readonly unknown[];
}

function detailsOf({ kind, node, args }: Request, spans: readonly Span[], tookMs: number): object {
  const [offset, bytes] = args;
  return {
    kind,
    node,
    ...(typeof offset === 'number' && { offset }),
    ...(typeof bytes === 'number' && { bytes }),
    ms: Math.round(tookMs * 10) / 10,
    path: spans.slice(1).map(({ what, depth, startMs, endMs }) => {
      const ms = endMs === null ? '...' : (endMs - startMs).toFixed(1);
      const after = (startMs - spans[0]!.startMs).toFixed(1);
      return `${'>'.repeat(depth)} ${what} ${ms} ms, begun after ${after} ms`;
    }),
  };
}
