/**
 * One request and its answer as the driver sees them, whoever carries them: library.ts for everything, plain.ts for
 * what needs neither TLS nor a proxy. Here are also the checks of an answer's head.
 *
 * Source of the facts: RFC 9110 (sections 8.8 validators, 14 range requests, 15 statuses).
 */

import type { IoVector } from '../../../aio/memory.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { PassingError } from '../../net/failures.ts';

export type RequestHeaders = Readonly<Record<string, string>>;

export interface ResponseHead {
  readonly status: number;
  /** The header's value, by its name in lower case; of several the first. */
  header(name: string): string | undefined;
}

export interface Exchange {
  readonly url: URL;
  readonly headers: RequestHeaders;
  /** Looks at the head; throws to refuse. The body must fill what it returns exactly; null: the body is not wanted. */
  accept(head: ResponseHead): IoVector | null;
  /** So many bytes more of the body are in their place. */
  received(bytes: number): void;
}

/** Carries requests over connections of its own, a bounded number of them at a time. */
export interface Transport {
  /** A GET. Resolves when the body is where it belongs; throws BlockError, PassingError for what may pass. */
  get(exchange: Exchange): Promise<void>;
  /** Ends all requests under way. They fail with ECANCELED. */
  cancel(): void;
  close(): Promise<void>;
}

/** What tells one version of a resource from another. */
export interface Validators {
  readonly sizeBytes: number;
  readonly etag: string | undefined;
  readonly lastModified: string | undefined;
}

/** The resource is not what it was when it was opened. */
export class ChangedError extends BlockError {}

/** The answer is right, but comes in a way that the fast transport does not take (in chunks): another one may. */
export class UnusualBodyError extends BlockError {}

/** The place that a redirect led to does not serve it any more. */
export class MovedError extends BlockError {}

const PASSING_STATUS: readonly number[] = [408, 425, 429, 500, 502, 503, 504];
const STATUS_ERRNO: Readonly<Record<number, number>> = {
  401: E.EACCES,
  403: E.EACCES,
  404: E.ENOENT,
  410: E.ENOENT,
};

/** The error for a status that is no success, in the words of libcurl. */
export function statusError(head: ResponseHead): BlockError {
  const { status } = head;
  const text = `The requested URL returned error: ${status}`;
  if (PASSING_STATUS.includes(status)) {
    const seconds = Number(head.header('retry-after'));
    return new PassingError(text, E.EIO, Number.isFinite(seconds) && seconds > 0 ? seconds * 1000 : 0);
  }
  if (status >= 300 && status < 400) return new MovedError(text, { errno: E.EIO });
  return new BlockError(text, { errno: STATUS_ERRNO[status] ?? E.EIO });
}

export interface ContentRange {
  readonly start: number;
  /** The offset behind the last byte. */
  readonly end: number;
  /** Null: the server does not tell. */
  readonly sizeBytes: number | null;
}

/** A Content-Range header in bytes; null when it is none. An unsatisfied range has start and end 0. */
export function parseContentRange(value: string | undefined): ContentRange | null {
  const match = /^bytes (?:(\d{1,16})-(\d{1,16})|\*)\/(\d{1,16}|\*)$/i.exec(value?.trim() ?? '');
  if (match === null) return null;
  const [, first, last, size] = match;
  const range = {
    start: first === undefined ? 0 : Number(first),
    end: last === undefined ? 0 : Number(last) + 1,
    sizeBytes: size === '*' ? null : Number(size),
  };
  const isSound =
    range.end <= Number.MAX_SAFE_INTEGER &&
    range.start <= range.end &&
    (range.sizeBytes === null || range.end <= range.sizeBytes);
  return isSound ? range : null;
}

export function validatorsOf(head: ResponseHead, sizeBytes: number): Validators {
  return { sizeBytes, etag: head.header('etag'), lastModified: head.header('last-modified') };
}

/**
 * Throws unless the answer is the range [offset, offset + length) of the same resource as ever. An entity tag decides
 * alone where there is one (RFC 9110, 13.1).
 */
export function checkPartial(head: ResponseHead, offset: number, length: number, known: Validators): void {
  const { status } = head;
  if (status === 200)
    throw new BlockError("Server does not support 'range' (byte ranges).", { errno: E.EIO });
  if (status === 416) throw new ChangedError('The image has become shorter', { errno: E.ESTALE });
  if (status !== 206) throw statusError(head);
  const range = parseContentRange(head.header('content-range'));
  if (range === null || range.start !== offset || range.end !== offset + length) {
    if (range !== null && range.sizeBytes !== null && range.sizeBytes !== known.sizeBytes)
      throw new ChangedError('The image has another length', { errno: E.ESTALE });
    throw new BlockError('The server has sent another range than asked for', { errno: E.EIO });
  }
  checkSame(head, range.sizeBytes, known);
  const stated = head.header('content-length');
  if (stated !== undefined && Number(stated) !== length)
    throw new BlockError('The server has sent another length than asked for', { errno: E.EIO });
  const coding = head.header('content-encoding') ?? 'identity';
  if (coding !== 'identity')
    throw new BlockError(`The server has encoded the data (${coding})`, { errno: E.EIO });
}

function checkSame(head: ResponseHead, sizeBytes: number | null, known: Validators): void {
  const etag = head.header('etag');
  const lastModified = head.header('last-modified');
  const isChanged =
    (sizeBytes !== null && sizeBytes !== known.sizeBytes) ||
    (etag !== undefined && known.etag !== undefined
      ? etag !== known.etag
      : lastModified !== undefined &&
        known.lastModified !== undefined &&
        lastModified !== known.lastModified);
  if (isChanged) throw new ChangedError('The image has changed on the server', { errno: E.ESTALE });
}
