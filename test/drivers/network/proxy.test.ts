/** Which proxy the environment names, and for whom none. */

import { expect, test } from 'vitest';
import { isExcluded, proxyFor } from '../../../src/drivers/protocols/http/proxy.ts';

test('no_proxy: everything, hosts, domains, and nothing that only looks like one', () => {
  for (const [host, noProxy, excluded] of [
    ['example.org', '*', true],
    ['example.org', 'example.org', true],
    ['www.example.org', 'example.org', true],
    ['www.example.org', '.example.org', true],
    ['www.example.org', '*.example.org', true],
    ['example.org', '.example.org', true],
    ['notexample.org', 'example.org', false],
    ['example.org', 'www.example.org', false],
    ['EXAMPLE.org', 'a b,Example.ORG', true],
    ['127.0.0.1', 'localhost, 127.0.0.1', true],
    ['[::1]', '::1', true],
    ['example.org', '', false],
    ['example.org', ',', false],
  ] as const)
    expect(isExcluded(host, noProxy), `${host} in '${noProxy}'`).toBe(excluded);
});

test('http_proxy in lower case only, https_proxy and all_proxy in either, credentials of any text', () => {
  const none = { username: undefined, password: undefined };
  const of = (url: string, env: Record<string, string>) => proxyFor(new URL(url), env, none);
  expect(of('http://a/', { HTTP_PROXY: 'p:1' })).toBe(null);
  expect(of('http://a/', { http_proxy: 'p:1' })).toEqual({ uri: 'http://p:1', authorization: null });
  expect(of('https://a/', { HTTPS_PROXY: 'p:1' })?.uri).toBe('http://p:1');
  expect(of('https://a/', { http_proxy: 'p:1' })).toBe(null);
  expect(of('http://a/', { ALL_PROXY: 'https://p:1' })?.uri).toBe('https://p:1');
  expect(of('http://a/', { http_proxy: 'p:1', NO_PROXY: 'a' })).toBe(null);
  const basic = (text: string): string => `Basic ${Buffer.from(text).toString('base64')}`;
  expect(of('http://a/', { http_proxy: 'http://t%zz:100%@p:1' })?.authorization).toBe(basic('t%zz:100%'));
  expect(of('http://a/', { http_proxy: 'http://a%40b:c%3Ad@p:1' })?.authorization).toBe(basic('a@b:c:d'));
  expect(() => of('http://a/', { http_proxy: 'socks5://p:1' })).toThrow("kind 'socks5'");
  expect(() => of('http://a/', { http_proxy: 'http://[' })).toThrow('Could not resolve proxy');
});
