/** The console over plain HTTP: what the page comes with, and who does not get it. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { type IncomingHttpHeaders, request } from 'node:http';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  daemonProgram,
  makeScratchDir,
  type RunningDaemon,
  reportOf,
  startDaemon,
} from '../peers/daemons.ts';
import { freePort } from '../peers/free-port.ts';

const token = 'a token/+&';
const good = `/?token=${encodeURIComponent(token)}`;
let port = 0;
let daemon: RunningDaemon;

beforeAll(async () => {
  port = await freePort();
  const option = `ws:127.0.0.1:${port},token=${token}`;
  daemon = await startDaemon('qblockd', { args: ['--qmp', option] });
});
afterAll(() => daemon.stop());

interface Reply {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

function ask(path: string, headers: Record<string, string> = {}, method = 'GET'): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const asked = request({ host: '127.0.0.1', port, path, method, headers }, (response) => {
      let body = '';
      response.setEncoding('utf8').on('data', (text: string) => {
        body += text;
      });
      response.on('end', () =>
        resolve({ status: response.statusCode ?? 0, headers: response.headers, body }),
      );
    });
    asked.on('error', reject).end();
  });
}

test('the page comes whole, and may load nothing from anywhere', async () => {
  const { status, headers, body } = await ask(good);
  expect(status).toBe(200);
  expect(headers['content-type']).toBe('text/html; charset=utf-8');
  expect(body).toContain('<title>qblockd</title>');
  // Nothing of another address, nothing that would be asked for without the token.
  expect(body).not.toMatch(/<(script|link|img|iframe)[^>]*\s(src|href)="(?!data:)/);
  expect(body).not.toMatch(/\bon\w+="/);
  expect(body).not.toContain(token);
  const policy = new Map(
    String(headers['content-security-policy'])
      .split('; ')
      .map((part) => [part.slice(0, part.indexOf(' ')), part.slice(part.indexOf(' ') + 1)]),
  );
  expect(policy.get('default-src')).toBe("'none'");
  expect(policy.get('connect-src')).toBe("'self'");
  expect(policy.get('script-src')).toMatch(/^'sha256-[\w+/]{43}='$/);
  expect(policy.get('style-src')).toMatch(/^'sha256-[\w+/]{43}='$/);
  expect(policy.get('frame-ancestors')).toBe("'none'");
  expect(policy.get('form-action')).toBe("'none'");
  expect(policy.get('base-uri')).toBe("'none'");
  expect(String(headers['content-security-policy'])).not.toContain('unsafe');
  expect(headers).toMatchObject({
    'x-content-type-options': 'nosniff',
    'x-frame-options': 'DENY',
    'referrer-policy': 'no-referrer',
    'cache-control': 'no-store',
    'cross-origin-resource-policy': 'same-origin',
  });
});

test.each([
  ['a listener whose token is made up', ['--qmp', 'ws:127.0.0.1:0']],
  ['npm start', ['--embedded', '$DIR']],
])('the address is told: %s', async (_name, words) => {
  const dir = makeScratchDir();
  const args = words.map((word) => word.replace('$DIR', dir));
  const child = spawn(daemonProgram('qblockd'), args, { stdio: 'pipe' });
  const report = reportOf(child);
  const [first] = (await once(child.stdout, 'data')) as [Buffer];
  const address = /^Console:? +(http:\S+)$/m.exec(String(first))?.[1] ?? '';
  expect((await fetch(address)).status).toBe(200);
  expect((await fetch(address.slice(0, -1))).status).toBe(401);
  child.kill('SIGTERM');
  expect(await report).toMatchObject({ status: 0 });
  rmSync(dir, { recursive: true });
});

test('HEAD tells what GET brings', async () => {
  const head = await ask(good, {}, 'HEAD');
  expect([head.status, head.body]).toEqual([200, '']);
  expect(Number(head.headers['content-length'])).toBe(Buffer.byteLength((await ask(good)).body));
});

describe('turned away', () => {
  const own = (): string => `http://127.0.0.1:${port}`;
  test.each<[string, number, string, () => Record<string, string>]>([
    ['no token', 401, '/', () => ({})],
    ['an empty token', 401, '/?token=', () => ({})],
    ['a wrong token', 401, '/?token=a', () => ({})],
    ['a token that only begins right', 401, `${good}x`, () => ({})],
    ['no token in the header', 401, '/', () => ({ Authorization: 'Bearer ' })],
    ['no token for anything else either', 401, '/etc/passwd', () => ({})],
    ['a page of another site', 403, good, () => ({ Origin: 'http://evil.example' })],
    ['a page of another port', 403, good, () => ({ Origin: 'http://127.0.0.1:1' })],
    ['a page without a place', 403, good, () => ({ Origin: 'null' })],
    ['a name of another site that leads here', 421, good, () => ({ Host: 'evil.example' })],
    [
      'such a name with its own page',
      421,
      good,
      () => ({ Host: 'evil.example', Origin: 'http://evil.example' }),
    ],
    ['a name that begins like this host', 421, good, () => ({ Host: `localhost.evil.example:${port}` })],
    ['an address that is not here', 421, good, () => ({ Host: `192.0.2.1:${port}` })],
    ['another path', 404, `/console.js?token=${encodeURIComponent(token)}`, () => ({})],
    ['a path upwards', 404, `/../../package.json?token=${encodeURIComponent(token)}`, () => ({})],
    ['allowed: a page of the same port', 200, good, () => ({ Origin: own() })],
    ['allowed: the token in the header', 200, '/', () => ({ Authorization: `Bearer ${token}` })],
    ['allowed: localhost', 200, good, () => ({ Host: `localhost:${port}` })],
  ])('%s', async (_name, status, path, headers) => {
    const reply = await ask(path, headers());
    expect(reply.status).toBe(status);
    if (status === 200) return;
    expect(reply.headers['content-type']).toBe('text/plain');
    expect(reply.body).not.toContain('<title>');
    expect(reply.body).not.toContain(token);
  });

  test('another method', async () => {
    const reply = await ask(good, {}, 'POST');
    expect([reply.status, reply.headers.allow]).toEqual([405, 'GET, HEAD']);
  });

  test('by the same rules from the WebSocket behind the page', async () => {
    const upgrade = {
      ...{ Connection: 'Upgrade', Upgrade: 'websocket', 'Sec-WebSocket-Version': '13' },
      'Sec-WebSocket-Key': 'MDEyMzQ1Njc4OWFiY2RlZg==',
    };
    expect((await ask('/', upgrade)).status).toBe(401);
    expect((await ask(good, { ...upgrade, Origin: 'http://evil.example' })).status).toBe(403);
    expect((await ask(good, { ...upgrade, Host: 'evil.example' })).status).toBe(421);
  });
});
