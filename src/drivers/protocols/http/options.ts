/**
 * Options of http and https, checked, as settings of a source. Credentials and cookies end up in headers for the server
 * that the user named, and nowhere else.
 *
 * Source of the facts: QMP reference, BlockdevOptionsCurlBase and those over it; error texts from qemu-img 7.2.
 */

import type { OpenContext } from '../../../block/contract/driver.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { percentDecoded } from '../../net/percent.ts';
import { retryPolicy } from '../../net/retry.ts';
import type { WindowSettings } from '../../prefetch/windows.ts';
import type { RequestHeaders } from './exchange.ts';
import { hideSecrets } from './names.ts';
import { basicCredentials, proxyFor } from './proxy.ts';
import type { SourceSettings } from './source.ts';

export interface HttpOptions {
  readonly url?: string;
  readonly readahead?: number;
  readonly timeout?: number;
  readonly username?: string;
  readonly 'password-secret'?: string;
  readonly 'proxy-username'?: string;
  readonly 'proxy-password-secret'?: string;
  readonly cookie?: string;
  readonly 'cookie-secret'?: string;
  readonly sslverify?: boolean;
  readonly connections?: number;
  readonly 'in-order'?: boolean;
}

const SECTOR_BYTES = 512;
const DEFAULT_READAHEAD_BYTES = 256 * 1024;
const MAX_READAHEAD_BYTES = 16 * 1024 * 1024;
const DEFAULT_TIMEOUT_S = 5;
const MAX_TIMEOUT_S = 10_000;
const DEFAULT_CONNECTIONS = 8;
const MAX_CONNECTIONS = 64;
const USER_AGENT = 'qblockd';

/** What all drivers that were libcurl's once have in common: `scheme` is the driver's name. */
export function checkUrl(scheme: string, url: string | undefined): URL {
  if (url === undefined)
    throw new BlockError("curl block driver requires an 'url' option", { errno: E.EINVAL });
  if (!url.startsWith(`${scheme}://`))
    throw new BlockError(
      `${scheme} curl driver cannot handle the URL '${hideSecrets(url)}' (does not start with '${scheme}://')`,
      { errno: E.EINVAL },
    );
  if (!URL.canParse(url)) throw openError('URL using bad/illegal format or missing URL');
  return new URL(url);
}

export function openError(reason: string, errno: number = E.EINVAL): BlockError {
  return new BlockError(`CURL: Error opening file: ${reason}`, { errno });
}

/** The first window and the largest one that `readahead` asks for. */
export function readaheadOf(bytes: number | undefined): WindowSettings {
  const firstBytes = bytes ?? DEFAULT_READAHEAD_BYTES;
  if (firstBytes < 0)
    throw new BlockError("Parameter 'readahead' expects a non-negative number below 2^64", {
      errno: E.EINVAL,
    });
  if (firstBytes % SECTOR_BYTES !== 0)
    throw new BlockError(`HTTP_READAHEAD_SIZE ${firstBytes} is not a multiple of 512`, { errno: E.EINVAL });
  return { firstBytes, maxBytes: Math.max(firstBytes, MAX_READAHEAD_BYTES) };
}

/** Seconds of silence after which a server is given up, as milliseconds. */
export function timeoutOf(seconds: number = DEFAULT_TIMEOUT_S): number {
  if (seconds < 0 || seconds > MAX_TIMEOUT_S)
    throw new BlockError('timeout parameter is too large or negative', { errno: E.EINVAL });
  return (seconds || MAX_TIMEOUT_S) * 1000;
}

export function connectionsOf(count: number = DEFAULT_CONNECTIONS): number {
  if (count < 1 || count > MAX_CONNECTIONS)
    throw new BlockError(`Parameter 'connections' expects a number from 1 to ${MAX_CONNECTIONS}`, {
      errno: E.EINVAL,
    });
  return count;
}

/** The text of a secret; undefined when none is named. */
export function secretText(node: BlockNode, id: string | undefined): string | undefined {
  return id === undefined ? undefined : node.layer.secret(id).toString('utf8');
}

export function sourceSettings(node: BlockNode, scheme: string, context: OpenContext): SourceSettings {
  const options = context.options as HttpOptions;
  const timeoutMs = timeoutOf(options.timeout);
  const url = checkUrl(scheme, options.url);
  const secret = (id: string | undefined): string | undefined => secretText(node, id);
  const username = options.username ?? percentDecoded(url.username);
  const password = secret(options['password-secret']) ?? percentDecoded(url.password);
  const proxyCredentials = {
    username: options['proxy-username'],
    password: secret(options['proxy-password-secret']),
  };
  if (options.cookie !== undefined && options['cookie-secret'] !== undefined)
    throw new BlockError('curl driver cannot handle both cookie and cookie secret', { errno: E.EINVAL });
  const cookie = options.cookie ?? secret(options['cookie-secret']);
  const own: Record<string, string> = {};
  if (username !== '' || password !== '') own.authorization = basicCredentials(username, password);
  if (cookie !== undefined) own.cookie = checkHeader('cookie', cookie);
  url.username = '';
  url.password = '';
  url.hash = '';
  return {
    url,
    headers: (to, range) => requestHeaders(range, to.origin === url.origin ? own : {}),
    connections: connectionsOf(options.connections),
    timeoutMs,
    verifiesTls: options.sslverify ?? true,
    proxyFor: (to) => proxyFor(to, process.env, proxyCredentials),
    policy: retryPolicy(context.options),
    engine: context.engine,
    warn: (text) => node.layer.report(`warning: Node '${node.name}': ${text}\n`),
  };
}

export function requestHeaders(range: string, more: RequestHeaders): RequestHeaders {
  return { 'user-agent': USER_AGENT, accept: '*/*', 'accept-encoding': 'identity', range, ...more };
}

/** Nothing may end the line that the value is in. */
function checkHeader(name: string, value: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: those are what must not be there
  if (/[\x00-\x08\x0a-\x1f\x7f]/.test(value) || /[^\x00-\xff]/.test(value))
    throw new BlockError(`Parameter '${name}' holds characters that a header cannot have`, {
      errno: E.EINVAL,
    });
  return value;
}
