/**
 * The error type that travels from any floor up to a QMP reply.
 *
 * Here: the error record and its constructors. Not here: errno numbers and their texts (errno.ts), and the
 * rendering of errors on the wire (src/qmp).
 */

import { E, errnoName, strerror } from './errno.ts';

/** QMP error classes (QMP reference, QapiErrorClass). */
export type ErrorClass =
  | 'GenericError'
  | 'CommandNotFound'
  | 'DeviceNotActive'
  | 'DeviceNotFound'
  | 'KVMMissingCap';

export interface BlockErrorDetails {
  readonly errorClass?: ErrorClass;
  /** Linux errno, positive; 0 or absent when no system error stands behind the message. */
  readonly errno?: number;
  /** A second line for the command line user; never sent over QMP. */
  readonly hint?: string;
  /** Finds what is to stand behind the message, where that takes a while: see explained. */
  readonly explain?: () => Promise<string>;
  readonly cause?: unknown;
}

/** An error a user may see. `message` is the exact text of the QMP `desc` member. */
export class BlockError extends Error {
  readonly errorClass: ErrorClass;
  /** Positive Linux errno; EIO when nothing better is known, so that I/O paths can always answer a peer. */
  readonly errno: number;
  readonly hint: string | undefined;
  readonly explain: (() => Promise<string>) | undefined;

  constructor(message: string, details: BlockErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = 'BlockError';
    this.errorClass = details.errorClass ?? 'GenericError';
    this.errno = details.errno || E.EIO;
    this.hint = details.hint;
    this.explain = details.explain;
  }
}

/** "MESSAGE: strerror(errno)", the form the original uses when a system call failed. */
export function errnoError(message: string, errno: number, details: BlockErrorDetails = {}): BlockError {
  return new BlockError(`${message}: ${strerror(errno)}`, { ...details, errno });
}

/** The error with more context in front; errno and hint stay. */
export function prefixed(prefix: string, error: unknown): unknown {
  if (!(error instanceof BlockError)) return error;
  return reworded(error, prefix + error.message);
}

function reworded(error: BlockError, message: string): BlockError {
  const { errorClass, errno, hint, explain } = error;
  return new BlockError(message, {
    errorClass,
    errno,
    cause: error,
    ...(hint !== undefined && { hint }),
    ...(explain !== undefined && { explain }),
  });
}

/** The error with what takes a while to find, for who tells a user of it. */
export async function explained(error: unknown): Promise<unknown> {
  if (!(error instanceof BlockError) || error.explain === undefined) return error;
  return reworded(error, error.message + (await error.explain()));
}

/** An I/O error that carries only an errno: what drivers throw when no user-level text applies. */
export function ioError(errno: number, cause?: unknown): BlockError {
  return new BlockError(strerror(errno), { errno, cause });
}

/** The errno an arbitrary thrown value stands for; EIO for anything unknown. */
export function errnoOf(error: unknown): number {
  if (error instanceof BlockError) return error.errno;
  const errno = (error as { errno?: unknown } | null)?.errno;
  return typeof errno === 'number' && errno !== 0 ? Math.abs(errno) : E.EIO;
}

/** Whether node reports a failed system call; what it says of it is not for users. */
function isSystemError(error: unknown): error is NodeJS.ErrnoException & { readonly errno: number } {
  const { errno, syscall } = (error ?? {}) as NodeJS.ErrnoException;
  return (
    typeof errno === 'number' && typeof syscall === 'string' && errnoName(Math.abs(errno)) !== String(-errno)
  );
}

/** Why something failed, in words for users, to stand behind ": " in another message. */
export function reasonOf(error: unknown): string {
  return error instanceof BlockError ? error.message : strerror(errnoOf(error));
}

/**
 * What a user is told of an error. `doing` names the command that met it, for errors nobody has foreseen: those of
 * system calls have the kernel's reason, all others are bugs, which are to be reported with `evidence`: where their own
 * text is to be found.
 */
export function userText(error: unknown, doing: string, evidence = "the daemon's log"): string {
  if (error instanceof BlockError) return error.message;
  if (!isSystemError(error))
    return `Internal error in ${doing}. This is a bug: please report it, with ${evidence}`;
  const { path, errno } = error;
  return `${doing} failed: ${path === undefined ? '' : `'${path}': `}${strerror(Math.abs(errno))}`;
}

/** A broken invariant of our own: never reachable from QMP, an image or a peer. */
export class InvariantError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'InvariantError';
  }
}

/** Throws InvariantError unless `condition` holds. Cheap checks only; always on. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new InvariantError(message);
}
