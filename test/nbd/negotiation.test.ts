/** The handshake against a server over fake backends, on both engines. */

import fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { Option, Reply } from '../../src/nbd/protocol/messages.ts';
import { FakeBackend } from './fake-backend.ts';
import { infoPayload, metaPayload, RawClient } from './raw-client.ts';
import { makeExport, serve, type TestServer } from './serve.ts';

const MIB = 1024 * 1024;
const servers: TestServer[] = [];

async function start(...args: Parameters<typeof serve>): Promise<TestServer> {
  const server = await serve(...args);
  servers.push(server);
  return server;
}

afterEach(async () => {
  for (const server of servers.splice(0)) await server.stop();
});

function disk(overrides: Parameters<typeof makeExport>[2] = {}, alignment = 1) {
  return makeExport(new FakeBackend(MIB, alignment), MIB, overrides);
}

describe.each(['io_uring', 'threads'] as const)('on %s', (kind) => {
  test('lists and describes exports', async () => {
    const server = await start(
      [disk({ description: 'text' }), disk({ name: 'zwei', writable: false })],
      {},
      kind,
    );
    const client = await server.connect();
    await client.greet();
    expect(await client.ask(Option.LIST)).toEqual([
      'LIST SERVER "disk" "text"',
      'LIST SERVER "zwei" ""',
      'LIST ACK',
    ]);
    expect(await client.ask(Option.INFO, infoPayload('zwei', [1]))).toEqual([
      'INFO INFO NAME "zwei"',
      'INFO INFO BLOCK_SIZE 1/4096/33554432',
      'INFO INFO EXPORT size=1048576 flags=10100001111',
      'INFO ACK',
    ]);
    expect(await client.ask(Option.ABORT)).toEqual(['ABORT ACK']);
    expect(await client.end()).toBe('EOF');
  });

  test('a thousand options in one write', async () => {
    const server = await start([disk()], {}, kind);
    const client = await server.connect();
    await client.greet();
    for (let i = 0; i < 1000; i++) client.option(100 + i, Buffer.alloc(i));
    for (let i = 0; i < 1000; i++) {
      expect(await client.optionReply()).toBe(
        `${100 + i} ERR_UNSUP "Unsupported option ${100 + i} (<unknown>)"`,
      );
    }
    client.close();
  });
});

test('block sizes follow the alignment of the node', async () => {
  const server = await start([disk({}, 8192)]);
  const client = await server.connect();
  await client.greet();
  const asked = await client.ask(Option.INFO, infoPayload('disk', [3]));
  expect(asked).toContain('INFO INFO BLOCK_SIZE 8192/8192/33554432');
  expect(asked.at(-1)).toBe('INFO ACK');
  const notAsked = await client.ask(Option.INFO, infoPayload('disk'));
  expect(notAsked).toContain('INFO INFO BLOCK_SIZE 8192/8192/33554432');
  expect(notAsked.at(-1)).toBe('INFO ERR_BLOCK_SIZE_REQD "request NBD_INFO_BLOCK_SIZE to use this export"');
  expect(await client.ask(Option.GO, infoPayload('disk'))).toContain('GO INFO BLOCK_SIZE 1/8192/33554432');
  client.close();
});

describe('extended headers', () => {
  test('can be negotiated once, and exclude structured replies after it', async () => {
    const server = await start([disk()]);
    const client = await server.connect();
    await client.greet();
    expect(await client.ask(Option.EXTENDED_HEADERS, Buffer.from('x'))).toEqual([
      `EXTENDED_HEADERS ERR_INVALID "option 'extended headers' has unexpected length"`,
    ]);
    expect(await client.ask(Option.STRUCTURED_REPLY)).toEqual(['STRUCTURED_REPLY ACK']);
    expect(await client.ask(Option.EXTENDED_HEADERS)).toEqual(['EXTENDED_HEADERS ACK']);
    expect(await client.ask(Option.EXTENDED_HEADERS)).toEqual([
      'EXTENDED_HEADERS ERR_INVALID "extended headers already negotiated"',
    ]);
    expect(await client.ask(Option.STRUCTURED_REPLY)).toEqual([
      'STRUCTURED_REPLY ERR_EXT_HEADER_REQD "extended headers already negotiated"',
    ]);
    expect(await client.ask(Option.SET_META_CONTEXT, metaPayload('disk', ['base:allocation']))).toEqual([
      'SET_META_CONTEXT META_CONTEXT 0 "base:allocation"',
      'SET_META_CONTEXT ACK',
    ]);
    expect(await client.ask(Option.INFO, infoPayload('disk'))).toContain(
      'INFO INFO EXPORT size=1048576 flags=1110111101101',
    );
    client.close();
  });

  test('EXPORT_NAME after them ends the connection', async () => {
    const server = await start([disk()]);
    const client = await server.connect();
    await client.greet();
    await client.ask(Option.EXTENDED_HEADERS);
    expect(await client.option(Option.EXPORT_NAME, Buffer.from('disk')).end()).toBe('EOF');
  });
});

test('an export removed during the handshake is not entered', async () => {
  const exp = disk();
  const server = await start([exp]);
  const client = await server.connect();
  await client.greet();
  server.server.removeExport(exp);
  expect(await client.ask(Option.GO, infoPayload('disk'))).toEqual([
    `GO ERR_UNKNOWN "export 'disk' not present"`,
  ]);
  client.close();
});

test('who does not get through the handshake in time is disconnected', async () => {
  const server = await start([disk()], { handshakeMaxSeconds: 0.2 });
  const slow = await server.connect();
  await slow.greet();
  const quick = await server.connect();
  await quick.enter('disk');
  expect(await slow.end()).toBe('EOF');
  await new Promise((resolve) => setTimeout(resolve, 200));
  expect(await quick.transact({ type: 3 })).toBe('simple #1 ok');
  quick.close();
});

test('above max-connections clients wait for their greeting', async () => {
  const server = await start([disk()], { maxConnections: 2 });
  const clients = await Promise.all(Array.from({ length: 5 }, () => server.connect()));
  const [first, second, third, fourth, fifth] = clients as [
    RawClient,
    RawClient,
    RawClient,
    RawClient,
    RawClient,
  ];
  await first.greet();
  await second.greet();
  expect(await third.end(200)).toBe('silence');
  fourth.close();
  first.close();
  await third.greet();
  expect(await fifth.end(100)).toBe('silence');
  second.close();
  await fifth.greet();
  expect(server.server.connectionCount).toBe(2);
  third.close();
  fifth.close();
});

test('two hundred clients at once', async () => {
  const server = await start([disk()], { maxConnections: 0 });
  const clients = await Promise.all(Array.from({ length: 200 }, () => server.connect()));
  await Promise.all(clients.map((client) => client.enter('disk')));
  expect(server.server.connectionCount).toBe(200);
  const replies = await Promise.all(clients.map((client) => client.transact({ type: 0, length: 4096n })));
  expect(new Set(replies)).toEqual(new Set(['simple #1 ok [0*4096]']));
  for (const client of clients) client.close();
  await expect.poll(() => server.server.connectionCount).toBe(0);
});

test('stopping the server disconnects everybody and removes the socket', async () => {
  const server = await serve([disk()]);
  const shaking = await server.connect();
  await shaking.greet();
  const served = await server.connect();
  await served.enter('disk');
  await server.stop();
  expect(await shaking.end()).toBe('EOF');
  expect(await served.end()).toBe('EOF');
  await expect(RawClient.connect(server.socketPath)).rejects.toThrow('ENOENT');
});

// Whatever is sent, the server answers or hangs up, and serves the next client.
const optionBytes = fc
  .record({
    option: fc.oneof(fc.constantFrom(...Object.values(Option)), fc.integer({ min: 0, max: 0xffffffff })),
    payload: fc.oneof(
      fc.uint8Array({ maxLength: 64 }).map((bytes) => Buffer.from(bytes)),
      fc.constantFrom(infoPayload('disk', [1, 2, 3]), metaPayload('disk', ['base:allocation', 'qemu:'])),
    ),
    lengthError: fc.oneof({ weight: 5, arbitrary: fc.constant(0) }, fc.integer({ min: -16, max: 16 })),
  })
  .map(({ option, payload, lengthError }) => {
    const head = Buffer.alloc(16);
    head.write('IHAVEOPT');
    head.writeUInt32BE(option, 8);
    head.writeUInt32BE(Math.max(0, payload.length + lengthError), 12);
    return Buffer.concat([head, payload]);
  });

test('garbage in the handshake harms nobody', async () => {
  const server = await start([disk()], { handshakeMaxSeconds: 0.2 });
  const garbage = fc.array(
    fc.oneof(
      { weight: 5, arbitrary: optionBytes },
      { weight: 1, arbitrary: fc.uint8Array({ maxLength: 64 }).map((bytes) => Buffer.from(bytes)) },
    ),
    { maxLength: 12 },
  );
  await fc.assert(
    fc.asyncProperty(fc.constantFrom(0, 1, 3, 0xffff), garbage, async (flags, parts) => {
      const client = await server.connect();
      await client.greet(flags);
      client.send(...parts);
      client.socket.end();
      const witness = await server.connect();
      await witness.greet();
      expect((await witness.ask(Option.LIST)).at(-1)).toBe('LIST ACK');
      witness.close();
      client.close();
    }),
    { numRuns: 60 },
  );
  await expect.poll(() => server.server.connectionCount).toBe(0);
});

test('reply numbers are errors from bit 31 on', () => {
  for (const [name, value] of Object.entries(Reply))
    expect(value >= 0x80000000).toBe(name.startsWith('ERR_'));
});
