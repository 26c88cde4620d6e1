/**
 * One request of a client: what is asked, what has come back of it, and who waits for it.
 */

import type { IoVector } from '../../aio/memory.ts';
import { E } from '../../errors/errno.ts';
import { NbdError } from '../protocol/messages.ts';

/** Called once: 0, or a positive errno. */
export type RequestDone = (errno: number) => void;

export class ClientRequest {
  /** Command, and its CommandFlag bits. */
  readonly type: number;
  readonly flags: number;
  /** Range in bytes. */
  readonly offset: number;
  readonly length: number;
  /** Data to be written, or room for what is read; exactly `length` bytes. */
  readonly vec: IoVector | null;
  readonly done: RequestDone;

  /** Age among the requests of a session: what was lost is sent again in the same order. */
  serial = 0;
  /** Connections that broke the protocol while it was under way. */
  spoilt = 0;

  // What the connection it is on knows of it.
  slot = -1;
  /** Tells it from earlier users of its slot. */
  generation = 0;
  /** Its header may have reached the server. */
  started = false;
  /** Nothing of it is waiting to be sent. */
  sent = false;
  replied = false;
  /** Errno of the reply; of several the first. */
  errno = 0;
  /** Bytes of the answer to a read that have come, holes included. */
  received = 0;
  /** Error chunks. */
  errors = 0;
  /** The first extent of the answer to a status request. */
  extentBytes = 0;
  extentFlags = 0;

  constructor(
    type: number,
    flags: number,
    offset: number,
    length: number,
    vec: IoVector | null,
    done: RequestDone,
  ) {
    this.type = type;
    this.flags = flags;
    this.offset = offset;
    this.length = length;
    this.vec = vec;
    this.done = done;
  }

  /** Forgets what an earlier connection knew of it. */
  reset(): void {
    this.slot = -1;
    this.started = false;
    this.sent = false;
    this.replied = false;
    this.errno = 0;
    this.received = 0;
    this.errors = 0;
    this.extentBytes = 0;
    this.extentFlags = 0;
  }
}

/** The Linux errno for an error number of the protocol; EINVAL for what it does not define. */
export function errnoOfNbd(error: number): number {
  switch (error) {
    case NbdError.EPERM:
      return E.EPERM;
    case NbdError.EIO:
      return E.EIO;
    case NbdError.ENOMEM:
      return E.ENOMEM;
    case NbdError.ENOSPC:
      return E.ENOSPC;
    case NbdError.EOVERFLOW:
      return E.EOVERFLOW;
    case NbdError.ENOTSUP:
      return E.ENOTSUP;
    case NbdError.ESHUTDOWN:
      return E.ESHUTDOWN;
    default:
      return E.EINVAL;
  }
}
