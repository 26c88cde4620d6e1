/** The argument of --qmp. */

import { expect, test } from 'vitest';
import { parseQmpOption } from '../../daemon/arguments/qmp-address.ts';

test.each([
  ['stdio', { kind: 'stdio' }],
  ['unix:/a/b', { kind: 'unix', path: '/a/b' }],
  ['unix:a,,b:c', { kind: 'unix', path: 'a,b:c' }],
  ['tcp:localhost:80', { kind: 'tcp', host: 'localhost', port: '80' }],
  ['tcp::80', { kind: 'tcp', host: '', port: '80' }],
  ['tcp:[::1]:80', { kind: 'tcp', host: '::1', port: '80' }],
  ['fd:qmp', { kind: 'fd', name: 'qmp' }],
  ['ws-fd:ws', { kind: 'ws-fd', name: 'ws' }],
  ['ws:127.0.0.1:0', { kind: 'ws', host: '127.0.0.1', port: '0' }],
])('%s', (text, address) => {
  expect(parseQmpOption(text).address).toEqual(address);
});

test('options', () => {
  expect(parseQmpOption('unix:a,pretty=on').pretty).toBe(true);
  expect(parseQmpOption('ws:localhost:1,token=a=b,remote=on,token-file=t')).toMatchObject({
    token: 'a=b',
    tokenFile: 't',
    remote: true,
  });
});

test.each([
  ['', "Invalid address '', expected: unix:PATH, tcp:HOST:PORT, ws:HOST:PORT, fd:NAME, ws-fd:NAME or stdio"],
  ['unix:', "Invalid address 'unix:', expected: unix:PATH"],
  ['tcp:1', "Invalid address 'tcp:1', expected: tcp:HOST:PORT"],
  ['ws:::1:80', "Invalid address 'ws:::1:80', expected: ws:HOST:PORT"],
  ['fd:', "Invalid address 'fd:', expected: fd:NAME"],
  ['fd:qmp,token=x', "Invalid parameter 'token'"],
  ['stdio,foo=1', "Invalid parameter 'foo'"],
  ['stdio,pretty=1', "Parameter 'pretty' expects 'on' or 'off'"],
  ['unix:a,token=x', "Invalid parameter 'token'"],
  ['ws:a:1,token=', "Invalid parameter 'token'"],
])('%j is refused', (text, message) => {
  expect(() => parseQmpOption(text)).toThrow(message);
});
