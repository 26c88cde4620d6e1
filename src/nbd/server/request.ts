/**
 * One request of a client: its record, how it is read off the wire, and whether it may be carried out.
 */

import { MAX_EXTENTS, MAX_PAYLOAD, REQUEST_OVERHEAD } from '../protocol/limits.ts';
import { Command, CommandFlag, NbdError, nameIn } from '../protocol/messages.ts';
import type { RequestBuffer } from './buffers.ts';
import { RequestError } from './errors.ts';
import type { NbdExport } from './export.ts';
import type { ReplyTo } from './reply-queue.ts';

/** Records are reused: all fields are set when a request arrives. */
export interface NbdRequest extends ReplyTo {
  type: number;
  flags: number;
  cookieHigh: number;
  cookieLow: number;
  offsetHigh: number;
  offsetLow: number;
  /** Offset in bytes; not exact above 2^53, where it is out of range anyway. */
  offset: number;
  /** Effect or payload length in bytes; not exact above 2^53. */
  length: number;
  /** Data to be written, or room for data to be read. */
  buffer: RequestBuffer | null;
  /** What it counts in the connection's bytes in flight. */
  charge: number;
}

/** The command's name as the original writes it: "write zeroes", "<unknown>". */
export function commandName(type: number): string {
  if (type === Command.DISC) return 'disconnect';
  const name = nameIn(Command, type);
  return name === String(type) ? '<unknown>' : name.toLowerCase().replaceAll('_', ' ');
}

/** Flags each command may carry, besides FUA, which all may. */
function allowedFlags(type: number, structured: boolean, extended: boolean): number {
  switch (type) {
    case Command.READ:
      return structured ? CommandFlag.fua | CommandFlag.df : CommandFlag.fua;
    case Command.WRITE:
      return extended ? CommandFlag.fua | CommandFlag.payloadLength : CommandFlag.fua;
    case Command.WRITE_ZEROES:
      return CommandFlag.fua | CommandFlag.noHole | CommandFlag.fastZero;
    case Command.BLOCK_STATUS:
      return CommandFlag.fua | CommandFlag.reqOne | (extended ? CommandFlag.payloadLength : 0);
    default:
      return CommandFlag.fua;
  }
}

/** Whether the command's data, or the server's work, is as large as its length. */
export function isLengthLimited(type: number): boolean {
  return type === Command.READ || type === Command.WRITE || type === Command.CACHE;
}

export function tooLong(length: number): RequestError {
  return new RequestError(NbdError.EINVAL, `len (${length} ) is larger than max len (${MAX_PAYLOAD})`);
}

/**
 * Why the request cannot be carried out; null when it can. The order of the checks is the original's: it decides
 * which error a request with several faults gets.
 */
export function findFault(
  request: NbdRequest,
  exp: NbdExport,
  structured: boolean,
  extended: boolean,
): RequestError | null {
  const { type, flags, offset, length } = request;
  if (!exp.writable && (type === Command.WRITE || type === Command.TRIM || type === Command.WRITE_ZEROES)) {
    return new RequestError(NbdError.EINVAL, 'Export is read-only');
  }
  if (offset > exp.sizeBytes || length > exp.sizeBytes - offset) {
    const from = (BigInt(request.offsetHigh) << 32n) | BigInt(request.offsetLow);
    const text = `operation past EOF; From: ${from}, Len: ${length}, Size: ${exp.sizeBytes}`;
    return new RequestError(NbdError.EINVAL, text);
  }
  if ((flags & ~allowedFlags(type, structured, extended)) !== 0) {
    const text = `unsupported flags for command ${commandName(type)} (got 0x${flags.toString(16)})`;
    return new RequestError(NbdError.EINVAL, text);
  }
  return null;
}

/** What a request counts in its connection's bytes in flight; `contexts`: how many the client has selected. */
export function chargeOf(type: number, length: number, contexts: number): number {
  switch (type) {
    case Command.READ:
    case Command.WRITE:
      return length <= MAX_PAYLOAD ? length + REQUEST_OVERHEAD : REQUEST_OVERHEAD;
    case Command.CACHE:
      return Math.min(length, 1024 * 1024) + REQUEST_OVERHEAD;
    case Command.BLOCK_STATUS:
      // An extent takes up to 48 bytes while the answer is made; none is shorter than a sector in practice.
      return Math.min(Math.ceil(length / 512), MAX_EXTENTS) * 48 * contexts + REQUEST_OVERHEAD;
    default:
      return REQUEST_OVERHEAD;
  }
}
