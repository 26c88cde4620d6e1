/**
 * Calls of the S3 API besides reading ranges: what making an object takes. Answers are small XML documents, of which a
 * few elements matter. Source of the facts: Amazon S3 API reference.
 */

import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import type { CancelScope } from '../../net/cancel.ts';
import { networkError, PassingError } from '../../net/failures.ts';
import { type RetryPolicy, repeated } from '../../net/retry.ts';
import { type ResponseHead, statusError } from '../http/exchange.ts';
import { type Dispatchers, responseHead } from '../http/library.ts';
import type { Method, S3Target } from './target.ts';

export interface S3Calls {
  readonly target: S3Target;
  readonly dispatchers: Dispatchers;
  readonly policy: RetryPolicy;
  readonly scope: CancelScope;
}

export interface Answer {
  readonly head: ResponseHead;
  readonly text: string;
}

/** No answer that matters is longer. */
const MAX_ANSWER_BYTES = 1024 * 1024;

/** Codes by which S3 says that another attempt may do. */
const PASSING_CODES: readonly string[] = [
  'InternalError',
  'SlowDown',
  'RequestTimeout',
  'ServiceUnavailable',
];

export interface Call {
  readonly method: Method;
  /** Without its question mark. */
  readonly query?: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: Buffer;
  /** Statuses that are answers too. */
  readonly alsoGood?: readonly number[];
}

/** A call, repeated where it may help. Throws BlockError with what S3 says. */
export function callS3(calls: S3Calls, call: Call): Promise<Answer> {
  return repeated(calls.policy, calls.scope, () => attempt(calls, call));
}

async function attempt({ target, dispatchers, scope }: S3Calls, call: Call): Promise<Answer> {
  const url = new URL(target.url.href);
  if (call.query !== undefined) url.search = call.query;
  const headers = await target.sign(call.method, url, call.headers ?? {}, call.body);
  const stop = new AbortController();
  const leave = scope.add(() => stop.abort());
  try {
    const dispatcher = await dispatchers.for(url);
    const {
      statusCode,
      headers: raw,
      body,
    } = await dispatcher.request({
      origin: url.origin,
      path: url.pathname + url.search,
      method: call.method,
      headers,
      signal: stop.signal,
      ...(call.body !== undefined && { body: call.body }),
    });
    const chunks: Buffer[] = [];
    let bytes = 0;
    for await (const chunk of body) {
      bytes += (chunk as Buffer).length;
      if (bytes > MAX_ANSWER_BYTES) throw new BlockError("The server's answer is too long", { errno: E.EIO });
      chunks.push(chunk as Buffer);
    }
    const answer = { head: responseHead(statusCode, raw), text: Buffer.concat(chunks).toString('utf8') };
    const isGood = statusCode < 300 || call.alsoGood?.includes(statusCode) === true;
    // A call that takes long may fail after its 200 has been sent.
    if (!isGood || /<Error>/.test(answer.text)) throw answerError(answer);
    return answer;
  } catch (error) {
    if (scope.closed || stop.signal.aborted)
      throw new BlockError('Operation canceled', { errno: E.ECANCELED, cause: error });
    throw networkError(error, url.hostname);
  } finally {
    leave();
  }
}

function answerError({ head, text }: Answer): BlockError {
  const code = element(text, 'Code');
  if (code !== null && PASSING_CODES.includes(code)) return new PassingError(`S3: ${code}`, E.EIO);
  const error = statusError(head);
  if (code === null || error instanceof PassingError) return error;
  return new BlockError(`S3: ${code}: ${element(text, 'Message') ?? ''}`, { errno: error.errno });
}

/** The text of the first element of that name; null when there is none. */
export function element(xml: string, name: string): string | null {
  const text = new RegExp(`<${name}>([^<]*)</${name}>`).exec(xml)?.[1];
  return text === undefined
    ? null
    : text
        .replace(/&lt;/g, '<')
        .replace(/&gt;/g, '>')
        .replace(/&quot;/g, '"')
        .replace(/&#34;/g, '"')
        .replace(/&apos;/g, "'")
        .replace(/&amp;/g, '&');
}

export function escapeXml(text: string): string {
  return text.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;').replace(/"/g, '&quot;');
}
