/**
 * Finding a resource: redirects are followed, and one byte is asked for to learn whether ranges work and how long the
 * resource is. A HEAD would do as well, but addresses that are signed for one method (S3) do not take it, and what it
 * says of ranges is a promise only.
 *
 * What is secret (credentials, cookies) goes to the server that the user named, not to where it sends us (RFC 9110, 15.4).
 */

import { allocateIoMemory, vectorOf } from '../../../aio/memory.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import type { CancelScope } from '../../net/cancel.ts';
import { PassingError } from '../../net/failures.ts';
import { repeated } from '../../net/retry.ts';
import {
  parseContentRange,
  type ResponseHead,
  statusError,
  type Transport,
  type Validators,
  validatorsOf,
} from './exchange.ts';
import type { SourceSettings, Transports } from './source.ts';

/** A resource where it is in the end. */
export interface Found {
  readonly url: URL;
  readonly redirected: boolean;
  readonly validators: Validators;
  /** The server answers ranges; otherwise it can only be read from front to back. */
  readonly hasRanges: boolean;
}

const MAX_REDIRECTS = 10;
const REDIRECTS: readonly number[] = [301, 302, 303, 307, 308];
/** Failures of a first attempt that say "wrong address" rather than "try again". */
const FINAL_ERRNO: readonly number[] = [E.ECONNREFUSED, E.EHOSTUNREACH, E.ENETUNREACH, E.ETIMEDOUT];

export async function findResource(
  settings: SourceSettings,
  transports: Transports,
  scope: CancelScope,
): Promise<Found> {
  let { url } = settings;
  for (let redirects = 0; ; redirects++) {
    const head = await repeated(settings.policy, scope, () => look(settings, transports.for(url), url));
    const location = REDIRECTS.includes(head.status) ? head.header('location') : undefined;
    if (location === undefined) return { url, redirected: redirects > 0, ...read(head) };
    if (redirects === MAX_REDIRECTS)
      throw new BlockError(`Maximum (${MAX_REDIRECTS}) redirects followed`, { errno: E.EIO });
    url = redirected(url, location);
  }
}

async function look(settings: SourceSettings, transport: Transport, url: URL): Promise<ResponseHead> {
  let answer: ResponseHead | null = null;
  const headers = await settings.headers(url, 'bytes=0-0');
  try {
    await transport.get({
      url,
      headers,
      accept(head) {
        if (!REDIRECTS.includes(head.status) && head.status >= 300 && head.status !== 416)
          throw statusError(head);
        answer = head;
        const isOneByte = head.status === 206 && head.header('content-length') === '1';
        return isOneByte ? vectorOf(allocateIoMemory(1)) : null;
      },
      received: () => undefined,
    });
  } catch (error) {
    // Who gave a wrong address wants to hear it now.
    if (error instanceof PassingError && FINAL_ERRNO.includes(error.errno))
      throw new BlockError(error.message, { errno: error.errno });
    throw error;
  }
  return answer!;
}

function redirected(from: URL, location: string): URL {
  if (!URL.canParse(location, from.href))
    throw new BlockError('The server redirects to an address that is none');
  const to = new URL(location, from);
  const protocol = to.protocol.slice(0, -1);
  if (protocol !== 'http' && protocol !== 'https')
    throw new BlockError(`Protocol "${protocol}" not supported or disabled in libcurl`, { errno: E.EIO });
  return to;
}

function read(head: ResponseHead): Pick<Found, 'validators' | 'hasRanges'> {
  const coding = head.header('content-encoding') ?? 'identity';
  if (coding !== 'identity')
    throw new BlockError(`The server has encoded the data (${coding})`, { errno: E.EIO });
  const range = parseContentRange(head.header('content-range'));
  if (head.status === 206 || head.status === 416) {
    // Of nothing not even the first byte can be had.
    const isEmpty = head.status === 416 && range?.sizeBytes === 0;
    if (head.status === 416 && !isEmpty) throw statusError(head);
    if (range === null || range.sizeBytes === null)
      throw new BlockError("Server didn't report file size.", { errno: E.EIO });
    return { validators: validatorsOf(head, range.sizeBytes), hasRanges: true };
  }
  const length = head.header('content-length');
  if (length === undefined || !/^\d{1,15}$/.test(length))
    throw new BlockError("Server didn't report file size.", { errno: E.EIO });
  return { validators: validatorsOf(head, Number(length)), hasRanges: length === '0' };
}
