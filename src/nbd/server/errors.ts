/**
 * Errors as NBD sends them: the few numbers the protocol has, and texts in the original's words.
 */

import { E, strerror } from '../../errors/errno.ts';
import { errnoOf } from '../../errors/error.ts';
import { NbdError } from '../protocol/messages.ts';

/** The protocol's number for a Linux errno; EINVAL for whatever it has no number for. */
export function nbdErrorOf(errno: number): number {
  switch (errno) {
    case E.EPERM:
    case E.EROFS:
      return NbdError.EPERM;
    case E.EIO:
      return NbdError.EIO;
    case E.ENOMEM:
      return NbdError.ENOMEM;
    case E.ENOSPC:
    case E.EFBIG:
    case E.EDQUOT:
      return NbdError.ENOSPC;
    case E.EOVERFLOW:
      return NbdError.EOVERFLOW;
    case E.ENOTSUP:
      return NbdError.ENOTSUP;
    case E.ESHUTDOWN:
      return NbdError.ESHUTDOWN;
    default:
      return NbdError.EINVAL;
  }
}

/** A request that failed: what the client is told. */
export class RequestError extends Error {
  /** Protocol error number. */
  readonly error: number;

  constructor(error: number, message: string) {
    super(message);
    this.name = 'RequestError';
    this.error = error;
  }
}

/** The failure of an operation as the client sees it: the text says which operation, the number why. */
export function requestError(message: string, cause: unknown): RequestError {
  return cause instanceof RequestError ? cause : new RequestError(nbdErrorOf(errnoOf(cause)), message);
}

/** The same with the reason in the text. */
export function requestErrorWithReason(message: string, cause: unknown): RequestError {
  return requestError(`${message}: ${strerror(errnoOf(cause))}`, cause);
}
