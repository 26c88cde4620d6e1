/**
 * What can go wrong with a server, sorted into what may pass (worth another attempt) and what will not.
 *
 * Here: the error type that says so, and the errors of Node's sockets, resolver and TLS. Not here: the statuses of a
 * protocol (its driver knows them), and the attempts themselves (retry.ts).
 */

import { E, strerror } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';

/** A failure that may be gone at the next attempt. */
export class PassingError extends BlockError {
  /** The server asked to be left alone for so long, in milliseconds; 0: it did not say. */
  readonly waitMs: number;

  constructor(message: string, errno: number, waitMs = 0) {
    super(message, { errno });
    this.waitMs = waitMs;
  }
}

/** Codes of certificate errors (node:tls takes them over from OpenSSL). */
const CERTIFICATE_CODE =
  /^(?:CERT_|CRL_|UNABLE_TO_|DEPTH_ZERO_|SELF_SIGNED_|ERR_TLS_CERT|INVALID_|HOSTNAME_)/;

/** Codes of failures that come of what is in between, with the errno that stands for each. */
const PASSING: Readonly<Record<string, number>> = {
  ECONNREFUSED: E.ECONNREFUSED,
  ECONNRESET: E.ECONNRESET,
  ECONNABORTED: E.ECONNABORTED,
  EPIPE: E.EPIPE,
  ETIMEDOUT: E.ETIMEDOUT,
  EHOSTUNREACH: E.EHOSTUNREACH,
  ENETUNREACH: E.ENETUNREACH,
  ENETDOWN: E.ENETDOWN,
  EHOSTDOWN: E.EHOSTDOWN,
  EAI_AGAIN: E.EIO,
  UND_ERR_SOCKET: E.ECONNRESET,
  UND_ERR_CLOSED: E.ECONNRESET,
  UND_ERR_CONNECT_TIMEOUT: E.ETIMEDOUT,
  UND_ERR_HEADERS_TIMEOUT: E.ETIMEDOUT,
  UND_ERR_BODY_TIMEOUT: E.ETIMEDOUT,
  UND_ERR_RES_CONTENT_LENGTH_MISMATCH: E.EIO,
};

function codeOf(error: unknown): string {
  const { code, cause } = (error ?? {}) as { readonly code?: unknown; readonly cause?: unknown };
  if (typeof code === 'string' && code !== 'UND_ERR_ABORTED') return code;
  return cause === undefined ? '' : codeOf(cause);
}

/**
 * The error as users see it; `host` is what was connected to, perhaps with a port. An error that is sorted already stays
 * what it is.
 */
export function networkError(error: unknown, host: string): BlockError {
  if (error instanceof BlockError) return error;
  const code = codeOf(error);
  if (code === 'ENOTFOUND') return new BlockError(`Could not resolve host: ${host}`, { errno: E.EIO });
  if (CERTIFICATE_CODE.test(code))
    return new BlockError(`server certificate verification failed: ${textOf(error)}`, { errno: E.EACCES });
  const errno = PASSING[code];
  if (errno === E.ECONNREFUSED)
    return new PassingError(`Failed to connect to ${host}: Connection refused`, errno);
  if (errno !== undefined) return new PassingError(`Connection to ${host}: ${strerror(errno)}`, errno);
  const known = (E as Readonly<Record<string, number>>)[code];
  return new BlockError(`Connection to ${host}: ${textOf(error)}`, { errno: known ?? E.EIO, cause: error });
}

function textOf(error: unknown): string {
  const { cause } = error as { readonly cause?: unknown };
  if (cause instanceof Error) return textOf(cause);
  const text = error instanceof Error ? error.message : String(error);
  // OpenSSL's errors are a line of fields, of which one is for people.
  return /:SSL routines:[^:]*:([^:]+):/.exec(text)?.[1] ?? text;
}
