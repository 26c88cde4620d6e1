/** The client's session against scripted servers: hostile ones, ones that go and come back, and silent ones. */

import { rmSync } from 'node:fs';
import path from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { createEngine } from '../../src/aio/create-engine.ts';
import type { AioEngine } from '../../src/aio/engine.ts';
import { allocateIoMemory, vectorOf } from '../../src/aio/memory.ts';
import { type ClientSession, type ClientSessionSettings, openSession } from '../../src/nbd/client/session.ts';
import { Chunk, Command, ExportFlag, Layouts, NbdError } from '../../src/nbd/protocol/messages.ts';
import { makeScratchDir } from '../peers/daemons.ts';
import {
  ALL_FLAGS,
  type Script,
  ScriptedServer,
  type ServedConnection,
  type ServerRequest,
} from './scripted-server.ts';

const KiB = 1024;
const MiB = 1024 * KiB;

let engine: AioEngine;
let dir: string;
let serverCount = 0;
const endings: (() => Promise<void>)[] = [];

beforeAll(() => {
  ({ engine } = createEngine('auto'));
  dir = makeScratchDir();
});
afterEach(async () => {
  for (const end of endings.splice(0).reverse()) await end();
});
afterAll(() => {
  // Throws when an operation is still in flight: nothing may be left behind.
  engine.close();
  rmSync(dir, { recursive: true, force: true });
});

function newSocket(): string {
  return path.join(dir, `s${serverCount++}`);
}

async function serve(
  script: Script | ((connection: number) => Script) = {},
  socketPath = newSocket(),
  data?: Buffer,
): Promise<{ server: ScriptedServer; socketPath: string }> {
  const server = await ScriptedServer.listen(socketPath, script, data);
  endings.push(() => server.stop());
  return { server, socketPath };
}

async function open(
  socketPath: string,
  overrides: Partial<ClientSessionSettings> = {},
): Promise<ClientSession> {
  const session = await openSession({
    target: {
      engine,
      address: { type: 'unix', path: socketPath },
      allowInheritedFd: false,
      exportName: '',
      context: 'base:allocation',
      tls: null,
    },
    reconnectDelayMs: 0,
    openTimeoutMs: 0,
    maxConnections: 1,
    warn: () => undefined,
    ...overrides,
  });
  endings.push(() => session.close());
  return session;
}

async function read(session: ClientSession, offset: number, length: number): Promise<Buffer> {
  const memory = allocateIoMemory(length);
  await session.request(Command.READ, 0, offset, length, vectorOf(memory, 0, length));
  return memory.buf;
}

async function write(session: ClientSession, offset: number, bytes: Buffer): Promise<void> {
  const memory = allocateIoMemory(bytes.length);
  bytes.copy(memory.buf);
  await session.request(Command.WRITE, 0, offset, bytes.length, vectorOf(memory, 0, bytes.length));
}

/** "ok", or the error's text. */
function outcome(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => 'ok',
    (error: Error) => error.message,
  );
}

const EIO = 'Input/output error';

function pattern(bytes: number, seed: number): Buffer {
  const buf = Buffer.alloc(bytes);
  for (let i = 0; i < bytes; i++) buf[i] = (i * 31 + seed * 17 + (i >> 8)) & 255;
  return buf;
}

// ---- what a server may say wrong -----------------------------------------------------------------------------

type Wrong = (request: ServerRequest, served: ServedConnection) => Buffer | 'close' | 'silence';

function dataChunk(
  request: ServerRequest,
  served: ServedConnection,
  offset: number,
  bytes: number,
  flags = 1,
): Buffer {
  const payload = Layouts.chunkOffsetData.encode({ offset: BigInt(offset) }, Buffer.alloc(bytes, 1));
  return served.chunk(request, Chunk.OFFSET_DATA, payload, flags);
}

function holeChunk(
  request: ServerRequest,
  served: ServedConnection,
  offset: number,
  length: number,
  flags = 1,
): Buffer {
  return served.chunk(
    request,
    Chunk.OFFSET_HOLE,
    Layouts.chunkOffsetHole.encode({ offset: BigInt(offset), length }),
    flags,
  );
}

/** Each is the answer to a read of 8 KiB at 64 KiB that begins a connection's end. */
const WRONG_READS: Readonly<Record<string, Wrong>> = {
  closes: () => 'close',
  garbage: () => Buffer.from('this is not what NBD looks like, not at all'),
  zeroes: () => Buffer.alloc(100),
  'unknown cookie': (request, served) =>
    served.readReply({ ...request, cookie: 0x1234567890n }, Buffer.alloc(8 * KiB)),
  'cookie of no slot': (request, served) =>
    served.readReply({ ...request, cookie: 0xffffffffffffffffn }, Buffer.alloc(8 * KiB)),
  'another generation': (request, served) =>
    served.readReply({ ...request, cookie: request.cookie + (1n << 32n) }, Buffer.alloc(8 * KiB)),
  'too much data': (request, served) => dataChunk(request, served, request.offset, request.length + 1),
  'gigabytes of data': ({ cookie }, served) =>
    served.chunk({ cookie } as ServerRequest, Chunk.OFFSET_DATA, Buffer.alloc(8)).fill(255, 16, 20),
  'too little data': (request, served) => dataChunk(request, served, request.offset, request.length - 1),
  'no data': (request, served) => dataChunk(request, served, request.offset, 0),
  'data before the range': (request, served) => dataChunk(request, served, request.offset - 1, 512),
  'data behind the range': (request, served) =>
    dataChunk(request, served, request.offset + request.length, 1),
  'data at 2^64-1': (request, served) => dataChunk(request, served, 2 ** 64 - 2048, 512),
  'data twice': (request, served) =>
    Buffer.concat([
      dataChunk(request, served, request.offset, request.length, 0),
      dataChunk(request, served, request.offset, request.length),
    ]),
  'short chunk': (request, served) => served.chunk(request, Chunk.OFFSET_DATA, Buffer.alloc(4)),
  'hole too long': (request, served) => holeChunk(request, served, request.offset, request.length + 1),
  'hole of 4 GiB': (request, served) => holeChunk(request, served, request.offset, 0xffffffff),
  'hole of nothing': (request, served) => holeChunk(request, served, request.offset, 0),
  'hole before the range': (request, served) => holeChunk(request, served, 0, 512),
  'hole with too short a payload': (request, served) =>
    served.chunk(request, Chunk.OFFSET_HOLE, Buffer.alloc(11)),
  none: (request, served) => served.chunk(request, Chunk.NONE, Buffer.alloc(0)),
  'none without done': (request, served) => served.chunk(request, Chunk.NONE, Buffer.alloc(0), 0),
  'none with payload': (request, served) => served.chunk(request, Chunk.NONE, Buffer.alloc(1)),
  'simple reply': (request, served) => Buffer.concat([served.simple(request, 0), Buffer.alloc(8 * KiB)]),
  'status for a read': (request, served) => served.statusReply(request, 4096, 0),
  'unknown chunk': (request, served) => served.chunk(request, 77, Buffer.alloc(8)),
  'error without number': (request, served) => served.chunk(request, Chunk.ERROR, Buffer.alloc(6)),
  'error too short': (request, served) => served.chunk(request, Chunk.ERROR, Buffer.alloc(3)),
  'error text of 4 GiB': (request, served) =>
    served.chunk(request, Chunk.ERROR, Buffer.alloc(6, 1)).fill(255, 16, 20),
  'errors without end': (request, served) => {
    const error = served.chunk(
      request,
      Chunk.ERROR,
      Layouts.chunkError.encode({ error: 5, textLength: 0 }),
      0,
    );
    return Buffer.concat(new Array(2000).fill(error));
  },
  'extended reply': (request, served) =>
    Buffer.concat([Buffer.from('6e8a278c', 'hex'), served.simple(request, 0), Buffer.alloc(64)]),
};

describe('a server that breaks the protocol in the answer to a read', () => {
  for (const [name, wrong] of Object.entries(WRONG_READS)) {
    test(name, async () => {
      const { socketPath } = await serve({
        request: (request, served) => (request.type === Command.READ ? wrong(request, served) : undefined),
      });
      const session = await open(socketPath);
      const results = await Promise.all([
        outcome(read(session, 64 * KiB, 8 * KiB)),
        outcome(read(session, 64 * KiB, 8 * KiB)),
      ]);
      expect(results).toEqual([EIO, EIO]);
    });

    test(`${name}, while requests may wait for a new connection`, async () => {
      const { socketPath, server } = await serve({
        request: (request, served) => (request.type === Command.READ ? wrong(request, served) : undefined),
      });
      // A request that spoils every connection fails long before the delay is over.
      const session = await open(socketPath, { reconnectDelayMs: name === 'closes' ? 500 : 60_000 });
      expect(await outcome(read(session, 64 * KiB, 8 * KiB))).toBe(EIO);
      expect(server.connections).toBeLessThan(12);
    });
  }
});

test('errors of the server reach the caller', async () => {
  const answers = [
    NbdError.EPERM,
    NbdError.ENOMEM,
    NbdError.ENOSPC,
    NbdError.ENOTSUP,
    NbdError.ESHUTDOWN,
    12345,
  ];
  for (const structured of [true, false]) {
    const { socketPath } = await serve({
      structured,
      request: (request, served) =>
        request.type === Command.DISC ? undefined : served.done(request, answers[request.offset / 512]),
    });
    const session = await open(socketPath);
    const results = await Promise.all(answers.map((_, i) => outcome(read(session, i * 512, 512))));
    expect(results).toEqual([
      'Operation not permitted',
      'Cannot allocate memory',
      'No space left on device',
      'Operation not supported',
      'Cannot send after transport endpoint shutdown',
      'Invalid argument',
    ]);
  }
});

test('pieces of an answer in any order, with holes, cut anywhere', async () => {
  const data = pattern(64 * KiB, 1);
  data.fill(0, 16 * KiB, 32 * KiB);
  const cut: Wrong = (request, served) => {
    const part = (from: number, to: number, flags: number): Buffer => {
      const head = Layouts.chunkOffsetData.encode(
        { offset: BigInt(request.offset + from) },
        data.subarray(from, to),
      );
      return served.chunk(request, Chunk.OFFSET_DATA, head, flags);
    };
    const reply = Buffer.concat([
      part(32 * KiB, 33 * KiB, 0),
      holeChunk(request, served, request.offset + 16 * KiB, 16 * KiB, 0),
      part(0, 16 * KiB, 0),
      part(33 * KiB, 64 * KiB, 1),
    ]);
    for (let at = 0; at < reply.length; at += 1021) served.socket.write(reply.subarray(at, at + 1021));
    return Buffer.alloc(0);
  };
  const { socketPath } = await serve({
    request: (r, s) => (r.type === Command.READ ? cut(r, s) : undefined),
  });
  const session = await open(socketPath);
  const results = await Promise.all([0, 1, 2].map((i) => read(session, i * 64 * KiB, 64 * KiB)));
  for (const result of results) expect(result.equals(data)).toBe(true);
});

// ---- block status --------------------------------------------------------------------------------------------

test('block status: what is told, and what breaks the protocol', async () => {
  const wrong: Readonly<Record<string, Wrong>> = {
    'another context': (request, served) => served.statusReply(request, 4096, 0, 8),
    'no length': (request, served) => served.statusReply(request, 0, 0),
    twice: (request, served) => {
      const one = served.statusReply(request, 4096, 0);
      one.writeUInt16BE(0, 4);
      return Buffer.concat([one, served.statusReply(request, 4096, 0)]);
    },
    nothing: (request, served) => served.chunk(request, Chunk.NONE, Buffer.alloc(0)),
    'odd payload': (request, served) => served.chunk(request, Chunk.BLOCK_STATUS, Buffer.alloc(13)),
  };
  for (const [name, answer] of Object.entries(wrong)) {
    const { socketPath } = await serve({
      request: (r, s) => (r.type === Command.BLOCK_STATUS ? answer(r, s) : undefined),
    });
    const session = await open(socketPath);
    expect(await outcome(session.blockStatus(0, 0, 64 * KiB)), name).toBe(EIO);
  }
  for (const extended of [false, true]) {
    const { socketPath } = await serve({
      extended,
      request: (r, s) => (r.type === Command.BLOCK_STATUS ? s.statusReply(r, 12345, 3) : undefined),
    });
    const session = await open(socketPath);
    expect(session.exp.extended).toBe(extended);
    expect(await session.blockStatus(0, 0, 64 * KiB)).toEqual({ bytes: 12345, flags: 3 });
  }
});

// ---- servers that go and come back ---------------------------------------------------------------------------

test('requests wait for the server to come back, and are sent again', async () => {
  const data = Buffer.alloc(MiB);
  const { server, socketPath } = await serve({ request: () => 'silence' }, undefined, data);
  const session = await open(socketPath, { reconnectDelayMs: 60_000 });
  const pending = [
    write(session, 0, pattern(4096, 1)),
    write(session, 8192, pattern(64 * KiB, 2)),
    read(session, 512 * KiB, 4096),
  ];
  await new Promise((resolve) => setTimeout(resolve, 50));
  await server.stop();
  const late = write(session, 4096, pattern(4096, 3));
  await new Promise((resolve) => setTimeout(resolve, 150));
  await serve({}, socketPath, data);
  await Promise.all([...pending, late]);
  expect((await read(session, 0, 4096)).equals(pattern(4096, 1))).toBe(true);
  expect((await read(session, 4096, 4096)).equals(pattern(4096, 3))).toBe(true);
  expect((await read(session, 8192, 64 * KiB)).equals(pattern(64 * KiB, 2))).toBe(true);
});

test('when the delay is over requests fail, and work again when the server is back', async () => {
  const { server, socketPath } = await serve();
  const session = await open(socketPath, { reconnectDelayMs: 300 });
  await server.stop();
  expect(await outcome(read(session, 0, 512))).toBe(EIO);
  expect(await outcome(read(session, 0, 512))).toBe(EIO);
  await serve({}, socketPath);
  for (let i = 0; ; i++) {
    if ((await outcome(read(session, 0, 512))) === 'ok') break;
    expect(i).toBeLessThan(100);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
});

test('a server that takes connections and answers nothing does not make requests wait for ever', async () => {
  const { socketPath } = await serve({ request: () => 'close' });
  const session = await open(socketPath, { reconnectDelayMs: 400 });
  expect(await outcome(read(session, 0, 512))).toBe(EIO);
});

test('a server that comes back with less is not taken', async () => {
  const less: Readonly<Record<string, Script>> = {
    'a smaller export': { sizeBytes: 4096 },
    'read-only': { flags: ALL_FLAGS | ExportFlag.readOnly },
    'without flush': { flags: ALL_FLAGS & ~ExportFlag.sendFlush },
    'larger blocks': { blockSizes: [4096, 4096, 65536] },
    'without block status': { structured: false },
  };
  for (const [name, script] of Object.entries(less)) {
    const { server, socketPath } = await serve((connection) => (connection === 0 ? {} : script));
    const warnings: string[] = [];
    const session = await open(socketPath, { reconnectDelayMs: 250, warn: (text) => warnings.push(text) });
    server.disconnectAll();
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(await outcome(read(session, 0, 512)), name).toBe(EIO);
    expect(warnings[0], name).toMatch(/^the server is back, but /);
  }
});

test('closing does not wait for a silent server', async () => {
  const { socketPath } = await serve({ request: () => 'silence' });
  const session = await open(socketPath, { reconnectDelayMs: 60_000 });
  const requests = [outcome(read(session, 0, 512)), outcome(write(session, 0, pattern(4096, 0)))];
  await new Promise((resolve) => setTimeout(resolve, 20));
  await session.close();
  expect(await Promise.all(requests)).toEqual([EIO, EIO]);
  expect(await outcome(read(session, 0, 512))).toBe(EIO);
});

test('requests can be cancelled', async () => {
  const { socketPath } = await serve((connection) => (connection === 0 ? { request: () => 'silence' } : {}));
  const session = await open(socketPath, { reconnectDelayMs: 60_000 });
  const request = outcome(read(session, 0, 512));
  await new Promise((resolve) => setTimeout(resolve, 20));
  session.cancelRequests();
  expect(await request).toBe(EIO);
  expect(await outcome(read(session, 0, 512))).toBe('ok');
});

test('the client takes leave of the server', async () => {
  const { server, socketPath } = await serve();
  const session = await open(socketPath);
  await read(session, 0, 512);
  await session.close();
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(server.requests.map(({ type }) => type)).toEqual([Command.READ, Command.DISC]);
});

test('opening tries for as long as it may', async () => {
  const socketPath = newSocket();
  const opening = open(socketPath, { openTimeoutMs: 60_000 });
  await new Promise((resolve) => setTimeout(resolve, 250));
  await serve({}, socketPath);
  expect((await opening).exp.sizeBytes).toBe(MiB);
  await expect(open(newSocket(), { openTimeoutMs: 300 })).rejects.toThrow('No such file or directory');
  const { socketPath: silent } = await serve({ greeting: () => 'silence' });
  await expect(open(silent, { openTimeoutMs: 300 })).rejects.toThrow('Connection timed out');
});

test('opening can be given up', async () => {
  const stop = new AbortController();
  const { socketPath: silent } = await serve({ greeting: () => 'silence' });
  const openings = [
    outcome(open(silent, { signal: stop.signal })),
    outcome(open(newSocket(), { signal: stop.signal, openTimeoutMs: 60_000 })),
  ];
  await new Promise((resolve) => setTimeout(resolve, 50));
  stop.abort();
  expect((await openings[0])?.replace(/'.*'/, '')).toBe('Failed to connect to : Operation canceled');
  expect(await openings[1]).toMatch(/^Failed to connect to /);
});

// ---- several connections -------------------------------------------------------------------------------------

test('more connections are opened under load where the server allows it, and one of them may be lost', async () => {
  const data = pattern(MiB, 5);
  const slow: Script['request'] = (request, served) => {
    if (request.type !== Command.READ) return undefined;
    setTimeout(() => served.socket.write(served.execute(request)), 5);
    return Buffer.alloc(0);
  };
  for (const flags of [ALL_FLAGS, ALL_FLAGS | ExportFlag.canMultiConn]) {
    let cut = false;
    const { server, socketPath } = await serve(
      (connection) => ({
        flags,
        request: (request, served) => {
          if (connection === 1 && !cut) {
            cut = true;
            return 'close';
          }
          return slow(request, served);
        },
      }),
      undefined,
      data,
    );
    const session = await open(socketPath, { maxConnections: 4 });
    const results: Promise<Buffer>[] = [];
    for (let i = 0; i < 512; i++) {
      results.push(read(session, (i % 256) * 4096, 4096));
      if (i % 64 === 63) await new Promise((resolve) => setTimeout(resolve, 5));
    }
    for (const [i, result] of results.entries()) {
      const from = (i % 256) * 4096;
      expect((await result).equals(data.subarray(from, from + 4096))).toBe(true);
    }
    if (flags === ALL_FLAGS) expect(server.connections).toBe(1);
    else expect(server.connections).toBeGreaterThan(1);
  }
});
