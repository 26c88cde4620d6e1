/**
 * Which proxy a request goes through: what the environment says, as libcurl reads it (curl(1), "Environment"):
 * http_proxy (lower case only), https_proxy, ALL_PROXY and no_proxy in either case.
 */

import { BlockError } from '../../../errors/error.ts';
import { percentDecoded } from '../../net/percent.ts';

export interface HttpProxy {
  readonly uri: string;
  /** Value of Proxy-Authorization; null: none. */
  readonly authorization: string | null;
}

export interface ProxyCredentials {
  readonly username: string | undefined;
  readonly password: string | undefined;
}

type Environment = Readonly<Record<string, string | undefined>>;

function fromEnvironment(env: Environment, name: string): string {
  return env[name.toLowerCase()] || env[name.toUpperCase()] || '';
}

/** Whether no_proxy names the host: `*`, a host, or a domain that the host is in. */
export function isExcluded(hostname: string, noProxy: string): boolean {
  const host = hostname.replace(/^\[(.*)\]$/, '$1').toLowerCase();
  return noProxy
    .split(/[\s,]+/)
    .map((entry) => entry.replace(/^\*?\./, '').toLowerCase())
    .some((entry) => entry === '*' || (entry !== '' && (host === entry || host.endsWith(`.${entry}`))));
}

/** `username:password` as the value of an Authorization header. */
export function basicCredentials(username: string, password: string): string {
  return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`;
}

/** The proxy for `url`; null: the server is reached directly. */
export function proxyFor(url: URL, env: Environment, credentials: ProxyCredentials): HttpProxy | null {
  // A CGI program's HTTP_PROXY is a header of its client's.
  const own = url.protocol === 'http:' ? (env.http_proxy ?? '') : fromEnvironment(env, 'https_proxy');
  const named = own || fromEnvironment(env, 'all_proxy');
  if (named === '' || isExcluded(url.hostname, fromEnvironment(env, 'no_proxy'))) return null;
  const text = named.includes('://') ? named : `http://${named}`;
  if (!URL.canParse(text)) throw new BlockError('Could not resolve proxy');
  const proxy = new URL(text);
  if (proxy.protocol !== 'http:' && proxy.protocol !== 'https:')
    throw new BlockError(`Proxies of the kind '${proxy.protocol.slice(0, -1)}' are not supported`);
  const username = credentials.username ?? percentDecoded(proxy.username);
  const password = credentials.password ?? percentDecoded(proxy.password);
  const authorization = username === '' && password === '' ? null : basicCredentials(username, password);
  return { uri: `${proxy.protocol}//${proxy.host}`, authorization };
}
