/** QMP over WebSocket: who may connect, and how messages are framed. */

import { spawn } from 'node:child_process';
import { rmSync } from 'node:fs';
import type { IncomingMessage } from 'node:http';
import { get } from 'node:http';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import WebSocket from 'ws';
import { refusalOf } from '../../daemon/web/access.ts';
import { daemonProgram, makeScratchDir, reportOf } from '../peers/daemons.ts';

const token = 'open sesame/+';

describe('who may connect', () => {
  const request = (url: string, headers: Record<string, string> = {}): IncomingMessage =>
    ({ url, headers: { host: '127.0.0.1:80', ...headers } }) as unknown as IncomingMessage;
  const good = `/?token=${encodeURIComponent(token)}`;

  test('any name of this host, where other hosts may connect', () => {
    expect(refusalOf(request(good, { host: 'storage.example:80' }), token, true)).toBe(null);
    expect(refusalOf(request('/', { host: 'storage.example:80' }), token, true)).toBe(401);
  });

  test.each<[string, IncomingMessage, number | null]>([
    ['a token in the address', request(good), null],
    ['a token in a header', request('/', { authorization: `Bearer ${token}` }), null],
    ['no token', request('/'), 401],
    ['a wrong token', request('/?token=open'), 401],
    ['an empty token', request('/?token='), 401],
    ['no address', request('http://['), 401],
    ['a page of the same host', request(good, { origin: 'http://127.0.0.1:80' }), null],
    ['a page of another port', request(good, { origin: 'http://127.0.0.1:81' }), 403],
    ['a page of another host', request(good, { origin: 'http://evil.example' }), 403],
    ['a page without a place', request(good, { origin: 'null' }), 403],
    ['a page of another host with a bad token', request('/', { origin: 'http://evil.example' }), 403],
    ['a name of another site that leads here', request(good, { host: 'evil.example:80' }), 421],
    ['a page of such a site', request(good, { host: 'evil.example', origin: 'http://evil.example' }), 421],
    ['a name that only begins like this host', request(good, { host: 'localhost.evil.example' }), 421],
    ['a host that is none', request(good, { host: 'a b' }), 421],
    ['the loopback address of IPv6', request(good, { host: '[::1]:80' }), null],
  ])('%s', (_name, incoming, expected) => {
    expect(refusalOf(incoming, token, false)).toBe(expected);
  });
});

describe('a listener', () => {
  let dir = '';
  let url = '';
  let end: () => Promise<unknown> = () => Promise.resolve();

  beforeAll(async () => {
    dir = makeScratchDir();
    const child = spawn(daemonProgram('qblockd'), ['--embedded', path.join(dir, 'd')], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const exited = reportOf(child);
    url = await new Promise((resolve) => {
      let output = '';
      child.stdout.on('data', (text) => {
        output += String(text);
        const match = /ws:\S+/.exec(output);
        if (match !== null) resolve(match[0]);
      });
    });
    end = () => {
      child.kill('SIGTERM');
      return exited;
    };
  });
  afterAll(async () => {
    expect(await end()).toMatchObject({ status: 0 });
    rmSync(dir, { recursive: true });
  });

  /** A connected client and its messages in order. */
  async function open(): Promise<{ socket: WebSocket; next: () => Promise<string> }> {
    const socket = new WebSocket(url);
    const messages: string[] = [];
    const readers: ((text: string) => void)[] = [];
    socket.on('message', (data) => {
      const reader = readers.shift();
      if (reader === undefined) messages.push(String(data));
      else reader(String(data));
    });
    await new Promise((resolve, reject) => socket.once('open', resolve).once('error', reject));
    const next = (): Promise<string> => {
      const message = messages.shift();
      return message === undefined
        ? new Promise((resolve) => readers.push(resolve))
        : Promise.resolve(message);
    };
    return { socket, next };
  }

  test('one object a message, in both directions', async () => {
    const { socket, next } = await open();
    expect(JSON.parse(await next())).toHaveProperty('QMP');
    socket.send('{"execute": "qmp_capabilities", "id": 1}');
    expect(await next()).toBe('{"return": {}, "id": 1}');
    socket.send('{"execute": "query-qmp-schema"}');
    expect(JSON.parse(await next()).return.length).toBeGreaterThan(100);
    socket.send('nonsense');
    expect(JSON.parse(await next())).toHaveProperty('error');
    socket.send('{"execute": "query-chardev"}{"execute": "query-version", "id": 2}');
    expect([await next(), JSON.parse(await next()).id]).toEqual(['{"return": []}', 2]);
    socket.close();
  });

  test('several clients at once', async () => {
    const clients = await Promise.all(Array.from({ length: 5 }, open));
    for (const { next } of clients) expect(JSON.parse(await next())).toHaveProperty('QMP');
    for (const { socket } of clients) socket.send('{"execute": "qmp_capabilities"}');
    for (const { next } of clients) expect(await next()).toBe('{"return": {}}');
    for (const { socket } of clients) socket.terminate();
  });

  test('binary messages and strangers are turned away', async () => {
    const { socket } = await open();
    const code = new Promise((resolve) => socket.once('close', resolve));
    socket.send(Buffer.from('{}'));
    expect(await code).toBe(1003);
    const refused = (target: string, options = {}): Promise<string> =>
      new Promise((resolve) =>
        new WebSocket(target, options).once('error', (error) => resolve(error.message)),
      );
    expect(await refused(url.replace(/token=.*/, ''))).toContain('401');
    expect(await refused(url, { origin: 'http://evil.example' })).toContain('403');
  });

  test('who is turned away is told why', async () => {
    const { port, pathname } = new URL(url);
    const reply = (headers: object): Promise<string> =>
      new Promise((resolve, reject) => {
        const request = get({
          ...{ host: '127.0.0.1', port, path: pathname },
          headers: { Connection: 'Upgrade', Upgrade: 'websocket', ...headers },
        });
        request.on('error', reject).on('response', (response) => {
          let text = `${response.statusCode} ${response.statusMessage}: `;
          response.setEncoding('utf8').on('data', (data: string) => {
            text += data;
          });
          response.on('end', () => resolve(text));
        });
      });
    expect(await reply({})).toMatch(/^401 Unauthorized: The token is missing or wrong/);
    expect(await reply({ Origin: 'http://evil.example' })).toMatch(/^403 Forbidden: .*Origin/);
  });

  test('addresses of other hosts are not listened on unasked', async () => {
    const child = spawn(daemonProgram('qblockd'), ['--qmp', 'ws:0.0.0.0:0'], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const { status, stderr } = await reportOf(child);
    expect([status, stderr]).toEqual([
      1,
      "qblockd: --qmp ws:0.0.0.0:0: WebSocket clients of other hosts need 'remote=on' besides the address '0.0.0.0'\n",
    ]);
  });
});
