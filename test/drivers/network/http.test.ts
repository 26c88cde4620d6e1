/** http against a server that misbehaves: what is repeated, what is refused, what is never believed. */

import type { IncomingMessage, ServerResponse } from 'node:http';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { E } from '../../../src/errors/errno.ts';
import { openRemote, type RemoteNode, testPattern } from './remote-node.ts';
import { startWebServer, type WebServer } from './web-server.ts';

const DATA = testPattern(3 * 1024 * 1024 + 1000);
const KiB = 1024;
let server: WebServer;
let remote: RemoteNode | null = null;

beforeEach(async () => {
  server = await startWebServer(DATA);
});

afterEach(async () => {
  await remote?.close();
  remote = null;
  await server.stop();
});

async function open(more: Record<string, unknown> = {}, settings = {}): Promise<RemoteNode> {
  remote = await openRemote({ driver: 'http', url: server.url, 'retry-delay': 1, ...more }, settings);
  return remote;
}

/** Bends the first `count` answers to ranges after opening. */
function bendFirst(count: number, bend: (request: IncomingMessage, response: ServerResponse) => void): void {
  let left = count;
  server.bend = (request, response) => {
    if (left <= 0) return false;
    left--;
    bend(request, response);
    return true;
  };
}

function range(request: IncomingMessage): { start: number; end: number } {
  const [, start, last] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range!)!;
  return { start: Number(start), end: Number(last) + 1 };
}

function head(request: IncomingMessage, more: Record<string, string | number> = {}) {
  const { start, end } = range(request);
  return {
    'content-range': `bytes ${start}-${end - 1}/${DATA.length}`,
    'content-length': end - start,
    etag: server.etag,
    ...more,
  };
}

describe.each(['io_uring', 'threads'] as const)('engine %s', (engine) => {
  test('random reads, several at a time, are what the server has; behind its end are zeroes', async () => {
    const { read, node } = await open({}, { engine });
    expect(node.totalBytes).toBe(3 * 1024 * KiB + 1024);
    const padded = Buffer.concat([DATA, Buffer.alloc(24)]);
    for (let round = 0; round < 30; round++) {
      await Promise.all(
        Array.from({ length: 6 }, async () => {
          const offset = Math.floor(Math.random() * (padded.length - 1));
          const bytes = Math.min(padded.length - offset, 1 + Math.floor(Math.random() * 300_000));
          expect((await read(offset, bytes)).equals(padded.subarray(offset, offset + bytes))).toBe(true);
        }),
      );
    }
  });

  test('a reader from front to back gets the right bytes with few requests', async () => {
    const { read } = await open({}, { engine });
    const before = server.requests.length;
    for (let at = 0; at < 3 * 1024 * KiB; at += 4 * KiB)
      expect((await read(at, 4 * KiB)).equals(DATA.subarray(at, at + 4 * KiB))).toBe(true);
    expect(server.requests.length - before).toBeLessThan(60);
  });

  test('an answer that breaks off goes on where it stopped', async () => {
    const { read } = await open({ readahead: 0 }, { engine });
    bendFirst(3, (request, response) => {
      const { start, end } = range(request);
      response.writeHead(206, head(request));
      response.write(DATA.subarray(start, start + Math.floor((end - start) / 2)), () => response.destroy());
    });
    expect((await read(0, 512 * KiB)).equals(DATA.subarray(0, 512 * KiB))).toBe(true);
    const starts = server.requests.slice(1).map((request) => range(request).start);
    expect(starts).toEqual([0, 256 * KiB, 384 * KiB, 448 * KiB]);
  });

  test('a server that says nothing is given up after the timeout, and the read fails or goes on', async () => {
    const { read } = await open({ readahead: 0, timeout: 1, retries: 1 }, { engine });
    bendFirst(1, () => undefined);
    expect((await read(0, 4 * KiB)).equals(DATA.subarray(0, 4 * KiB))).toBe(true);
    bendFirst(2, () => undefined);
    await expect(read(0, 4 * KiB)).rejects.toMatchObject({ errno: E.ETIMEDOUT });
    expect((await read(0, 4 * KiB)).equals(DATA.subarray(0, 4 * KiB))).toBe(true);
  });

  test('what is under way ends when it is given up', async () => {
    const { read, layer } = await open({ readahead: 0, timeout: 100 }, { engine });
    bendFirst(50, () => undefined);
    const reads = Array.from({ length: 20 }, (_, i) => read(i * 4 * KiB, 4 * KiB));
    const results = Promise.allSettled(reads);
    await new Promise((resolve) => setTimeout(resolve, 100));
    layer.cancelRequests();
    for (const result of await results)
      expect(result).toMatchObject({ status: 'rejected', reason: { errno: E.ECANCELED } });
    server.bend = () => false;
    expect((await read(0, 4 * KiB)).equals(DATA.subarray(0, 4 * KiB))).toBe(true);
  });

  test('a server that is away for a while', async () => {
    const { read } = await open({ readahead: 0, 'retry-delay': 100 }, { engine });
    await read(0, 4 * KiB);
    await server.stop();
    const later = setTimeout(() => void server.start(), 400);
    expect((await read(0, 512 * KiB)).equals(DATA.subarray(0, 512 * KiB))).toBe(true);
    clearTimeout(later);
  });
});

test.each([500, 502, 503, 504, 429, 408])('status %d passes', async (status) => {
  const { read } = await open({ readahead: 0 });
  bendFirst(3, (_request, response) => response.writeHead(status).end('busy'));
  expect((await read(0, 4 * KiB)).equals(DATA.subarray(0, 4 * KiB))).toBe(true);
  bendFirst(100, (_request, response) => response.writeHead(status).end());
  const before = server.requests.length;
  await expect(read(0, 4 * KiB)).rejects.toMatchObject({ errno: E.EIO });
  expect(server.requests.length - before).toBe(6);
});

test.each([
  ['another range', (q: IncomingMessage) => ({ ...head(q), 'content-range': `bytes 0-4095/${DATA.length}` })],
  ['another length', (q: IncomingMessage) => ({ ...head(q), 'content-length': 100 })],
  ['no range', (q: IncomingMessage) => ({ 'content-length': head(q)['content-length'] })],
  ['a range that is none', (q: IncomingMessage) => ({ ...head(q), 'content-range': 'bytes 9-2/1' })],
  ['a coding', (q: IncomingMessage) => ({ ...head(q), 'content-encoding': 'gzip' })],
])('%s is an error and nothing is read from it', async (_name, headers) => {
  const { read } = await open({ readahead: 0 });
  bendFirst(1, (request, response) => {
    response.writeHead(206, headers(request));
    response.end(Buffer.alloc(range(request).end - range(request).start, 7));
  });
  await expect(read(8192, 4096)).rejects.toMatchObject({ errno: E.EIO });
  expect((await read(8192, 4096)).equals(DATA.subarray(8192, 8192 + 4096))).toBe(true);
});

test('ranges that come in chunks, without a length, are read all the same, and checked', async () => {
  server.bend = (request, response, number) => {
    if (number === 1) return false;
    const { 'content-length': _none, ...headers } = head(request);
    const { start, end } = range(request);
    response.writeHead(206, headers);
    const cut = number % 5 === 0 ? 10 : 0;
    for (let at = start; at < end - cut; at += 1000)
      response.write(DATA.subarray(at, Math.min(at + 1000, end - cut)));
    response.end();
    return true;
  };
  const { read } = await open({ readahead: 0 });
  for (let i = 0; i < 8; i++) {
    const offset = i * 100 * KiB;
    expect((await read(offset, 64 * KiB)).equals(DATA.subarray(offset, offset + 64 * KiB))).toBe(true);
  }
});

test('a slow answer, a few bytes now and then, is waited for', async () => {
  const { read } = await open({ readahead: 0, timeout: 1, retries: 0 });
  bendFirst(1, (request, response) => {
    const { start, end } = range(request);
    response.writeHead(206, head(request));
    let at = start;
    const timer = setInterval(() => {
      response.write(DATA.subarray(at, Math.min(at + 512, end)));
      at += 512;
      if (at < end) return;
      clearInterval(timer);
      response.end();
    }, 150);
  });
  // Longer in all than the timeout, which is for silence.
  expect((await read(0, 4 * KiB)).equals(DATA.subarray(0, 4 * KiB))).toBe(true);
});

test('a server that forgets ranges is no source of data', async () => {
  const { read } = await open({ readahead: 0 });
  bendFirst(1, (_request, response) => {
    response.writeHead(200, { 'content-length': DATA.length }).end(DATA);
  });
  await expect(read(0, 4096)).rejects.toThrow("Server does not support 'range'");
});

test.each([
  ['its entity tag', () => (server.etag = '"two"')],
  ['its length', () => (server.data = DATA.subarray(0, DATA.length - 1000))],
  ['its length, a lot', () => (server.data = DATA.subarray(0, 100))],
])('an image that has changed (%s) is noticed, and said once', async (_name, change) => {
  const { read, reports } = await open({ readahead: 0 });
  await read(0, 4096);
  change();
  for (let i = 0; i < 2; i++) await expect(read(8192, 4096)).rejects.toMatchObject({ errno: E.ESTALE });
  expect(reports).toHaveLength(1);
});

test('redirects are followed, anew when the address has run out, and never with what is secret', async () => {
  const other = await startWebServer(DATA);
  let key = 1;
  server.bend = (_request, response) => {
    response.writeHead(302, { location: `${other.url}?key=${key}` }).end();
    return true;
  };
  other.bend = (request, response) => {
    if (request.url?.endsWith(`key=${key}`)) return false;
    response.writeHead(403).end();
    return true;
  };
  try {
    const options = { username: 'me', 'password-secret': 'p', cookie: 'a=b', readahead: 0 };
    const { read, close } = await open(options, { secrets: { p: 'hush' } });
    await read(0, 4096);
    key = 2;
    expect((await read(4096, 4096)).equals(DATA.subarray(4096, 8192))).toBe(true);
    expect(server.requests[0]!.headers).toMatchObject({
      authorization: `Basic ${Buffer.from('me:hush').toString('base64')}`,
      cookie: 'a=b',
    });
    for (const { headers } of other.requests) {
      expect(headers.authorization).toBeUndefined();
      expect(headers.cookie).toBeUndefined();
    }
    await close();
    remote = null;
  } finally {
    await other.stop();
  }
});

test.each([
  [
    'redirects without end',
    (_q: IncomingMessage, r: ServerResponse) => r.writeHead(302, { location: '/' }).end(),
    'redirects',
  ],
  [
    'a redirect to a file',
    (_q: IncomingMessage, r: ServerResponse) => r.writeHead(302, { location: 'file:///etc/passwd' }).end(),
    'Protocol "file" not supported',
  ],
  [
    'no such thing',
    (_q: IncomingMessage, r: ServerResponse) => r.writeHead(404).end('x'.repeat(100_000)),
    'error: 404',
  ],
  [
    'no length',
    (_q: IncomingMessage, r: ServerResponse) => r.writeHead(206, { 'content-range': 'bytes 0-0/*' }).end('x'),
    'file size',
  ],
  [
    'data that are encoded',
    (_q: IncomingMessage, r: ServerResponse) =>
      r.writeHead(200, { 'content-encoding': 'gzip', 'content-length': 100 }).end(Buffer.alloc(100)),
    'encoded the data (gzip)',
  ],
  [
    'all of it in chunks, without a length',
    (_q: IncomingMessage, r: ServerResponse) => {
      r.writeHead(200).write(DATA);
      r.end();
    },
    "Server didn't report file size.",
  ],
  [
    'nothing but garbage',
    (_q: IncomingMessage, r: ServerResponse) => r.socket!.end('garbage\r\n\r\n'),
    'CURL: Error',
  ],
])('opening: %s', async (_name, bend, text) => {
  server.bend = (request, response) => {
    bend(request, response);
    return true;
  };
  await expect(open()).rejects.toThrow(text);
});

test('an empty image', async () => {
  server.data = Buffer.alloc(0);
  expect((await open()).node.totalBytes).toBe(0);
});

test('a server without ranges is refused, or read from front to back', async () => {
  let breakAt = Number.POSITIVE_INFINITY;
  server.bend = (_request, response) => {
    response.writeHead(200, { 'content-length': DATA.length, etag: server.etag });
    if (breakAt < DATA.length) {
      response.write(DATA.subarray(0, breakAt), () => response.destroy());
      breakAt = Number.POSITIVE_INFINITY;
    } else response.end(DATA);
    return true;
  };
  await expect(open()).rejects.toThrow("Server does not support 'range' (byte ranges).");
  const { read } = await open({ 'in-order': true });
  breakAt = 1024 * KiB;
  const step = 256 * KiB;
  const pieces = await Promise.all(Array.from({ length: 12 }, (_, i) => read(i * step, step)));
  expect(Buffer.concat(pieces).equals(DATA.subarray(0, 12 * step))).toBe(true);
  expect((await read(DATA.length - 1000, 1000)).equals(DATA.subarray(-1000))).toBe(true);
  expect((await read(0, 1000)).equals(DATA.subarray(0, 1000))).toBe(true);
  server.etag = '"two"';
});

test('names and errors show no secret', async () => {
  const url = server.url.replace('http://', 'http://me:hush@');
  const plain = await open({ url: `${url}?X-Amz-Signature=hush&a=b` });
  expect(plain.filename).toBe(`${server.url.replace('http://', 'http://me@')}?X-Amz-Signature=...&a=b`);
  await plain.close();
  const cookie = await open({ url, cookie: 'a=hush' });
  expect(cookie.filename).not.toContain('hush');
  await expect(open({ url: url.replace('http:', 'https:') })).rejects.not.toThrow('hush');
});
