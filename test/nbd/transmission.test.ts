/** The transmission phase against fake backends, on both engines. */

import { afterEach, describe, expect, test } from 'vitest';
import { Req } from '../../src/block/contract/request.ts';
import { E } from '../../src/errors/errno.ts';
import { MAX_IN_FLIGHT_BYTES } from '../../src/nbd/protocol/limits.ts';
import { Command, CommandFlag } from '../../src/nbd/protocol/messages.ts';
import { FakeBackend, type Operation } from './fake-backend.ts';
import type { RawClient } from './raw-client.ts';
import { makeExport, serve, type TestExport, type TestServer } from './serve.ts';

const MIB = 1024 * 1024;
const servers: TestServer[] = [];
const { READ, WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS } = Command;

interface Setup {
  readonly backend: FakeBackend;
  readonly exp: TestExport;
  readonly server: TestServer;
}

async function start(
  overrides: Parameters<typeof makeExport>[2] = {},
  kind: 'io_uring' | 'threads' = 'io_uring',
  sizeBytes = 4 * MIB,
): Promise<Setup> {
  const backend = new FakeBackend(sizeBytes);
  const exp = makeExport(backend, sizeBytes, { allocationDepth: true, ...overrides });
  const server = await serve([exp], {}, kind);
  servers.push(server);
  return { backend, exp, server };
}

async function enter(setup: Setup, options?: Parameters<RawClient['enter']>[1]): Promise<RawClient> {
  const client = await setup.server.connect();
  await client.enter('disk', options);
  return client;
}

/** Waits a little: for what must not happen. */
function aWhile(milliseconds = 100): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

afterEach(async () => {
  for (const server of servers.splice(0)) await server.stop();
});

describe.each(['io_uring', 'threads'] as const)('on %s', (kind) => {
  test('writes of all sizes and ways of arriving are read back', async () => {
    const setup = await start({}, kind, 40 * MIB);
    const client = await enter(setup);
    let offset = 0n;
    for (const length of [1, 100, 4095, 4096, 8164, 8165, 16384, 65536, 262144, 1000003, 32 * MIB]) {
      const data = Buffer.alloc(length, length % 251);
      client.request({ type: WRITE, offset, length: BigInt(length), cookie: 5n });
      // In pieces, so that the data comes in several reads.
      for (let at = 0; at < length; ) {
        const step = Math.max(1, Math.ceil(length / 3));
        client.send(data.subarray(at, at + step));
        at += step;
        await new Promise((resolve) => setImmediate(resolve));
      }
      expect(await client.reply()).toBe('simple #5 ok');
      const start = Number(offset);
      expect(setup.backend.bytes.subarray(start, start + length).equals(data)).toBe(true);
      client.request({ type: READ, offset, length: BigInt(length) });
      expect((await client.receive(16)).readUInt32BE(4)).toBe(0);
      expect((await client.receive(length)).equals(data)).toBe(true);
      offset += BigInt(length);
    }
    client.close();
  });

  test('many small writes in one packet', async () => {
    const setup = await start({}, kind);
    const client = await enter(setup, { structured: true });
    const parts: Buffer[] = [];
    for (let i = 0; i < 500; i++) {
      const head = Buffer.alloc(28);
      head.writeUInt32BE(0x25609513);
      head.writeUInt16BE(WRITE, 6);
      head.writeUInt32BE(i, 12);
      head.writeUInt32BE(i * 512, 20);
      head.writeUInt32BE(512, 24);
      parts.push(head, Buffer.alloc(512, i % 256));
    }
    client.send(...parts);
    const replies = new Set<string>();
    for (let i = 0; i < 500; i++) replies.add(await client.reply());
    expect(replies.size).toBe(500);
    for (let i = 0; i < 500; i++) {
      expect(setup.backend.bytes.subarray(i * 512, i * 512 + 512).equals(Buffer.alloc(512, i % 256))).toBe(
        true,
      );
    }
    client.close();
  });

  test('a client that leaves with requests under way frees everything', async () => {
    const setup = await start({}, kind);
    let open: () => void = () => undefined;
    setup.backend.gate = new Promise((resolve) => {
      open = resolve;
    });
    const client = await enter(setup);
    for (let i = 0; i < 50; i++) client.request({ type: READ, length: 4096n, cookie: BigInt(i) });
    await expect.poll(() => setup.backend.inFlight).toBe(50);
    client.socket.destroy();
    await aWhile();
    expect(setup.exp.clients.size).toBe(1);
    open();
    await expect.poll(() => setup.exp.clients.size).toBe(0);
    await expect.poll(() => setup.server.server.connectionCount).toBe(0);
  });

  test('a client that hangs up after its requests still gets the replies', async () => {
    const setup = await start({}, kind);
    setup.backend.jitterMs = 30;
    const client = await enter(setup);
    for (let i = 0; i < 20; i++) client.request({ type: READ, length: 4096n, cookie: BigInt(i) });
    client.socket.end();
    for (let i = 0; i < 20; i++) expect(await client.reply(4096)).toContain(' ok [0*4096]');
    expect(await client.end()).toBe('EOF');
  });

  test('an export may disconnect its clients', async () => {
    const setup = await start({}, kind);
    const client = await enter(setup);
    for (const connected of setup.exp.clients) connected.disconnect();
    expect(await client.end()).toBe('EOF');
    await expect.poll(() => setup.exp.clients.size).toBe(0);
  });

  test('a client that does not read its replies is not served without end, and others are', async () => {
    const setup = await start({}, kind);
    const lazy = await enter(setup);
    lazy.socket.pause();
    const requests = Buffer.alloc(28 * 64);
    for (let i = 0; i < 64; i++) {
      requests.writeUInt32BE(0x25609513, i * 28);
      requests.writeUInt32BE(MIB, i * 28 + 24);
    }
    for (let i = 0; i < 20; i++) lazy.send(requests);
    await aWhile(300);
    const reads = () => setup.backend.calls.filter((call) => call.startsWith('preadv')).length;
    const started = reads();
    // What the sockets hold comes on top of the limit.
    expect(started).toBeLessThan(MAX_IN_FLIGHT_BYTES / MIB + 16);
    const other = await enter(setup);
    expect(await other.transact({ type: READ, length: 512n })).toBe('simple #1 ok [0*512]');
    await aWhile();
    expect(reads()).toBe(started + 1);
    other.close();
    lazy.socket.destroy();
    await expect.poll(() => setup.exp.clients.size).toBe(0);
  });
});

describe('requests reach the backend as they should', () => {
  const cases: [string, number, number, Partial<TestExport>, string[]][] = [
    ['WRITE', WRITE, 0, {}, ['pwritev 4096+512 0']],
    ['WRITE with FUA', WRITE, CommandFlag.fua, {}, [`pwritev 4096+512 ${Req.fua}`]],
    ['WRITE to a write-through export', WRITE, 0, { writethrough: true }, [`pwritev 4096+512 ${Req.fua}`]],
    ['TRIM', TRIM, 0, {}, ['pdiscard 4096+512']],
    ['TRIM with FUA', TRIM, CommandFlag.fua, {}, ['pdiscard 4096+512', 'flush']],
    ['WRITE_ZEROES', WRITE_ZEROES, 0, {}, [`pwriteZeroes 4096+512 ${Req.mayUnmap}`]],
    ['WRITE_ZEROES with NO_HOLE', WRITE_ZEROES, CommandFlag.noHole, {}, ['pwriteZeroes 4096+512 0']],
    [
      'WRITE_ZEROES with FUA',
      WRITE_ZEROES,
      CommandFlag.fua,
      {},
      [`pwriteZeroes 4096+512 ${Req.fua | Req.mayUnmap}`],
    ],
    [
      'WRITE_ZEROES to a write-through export',
      WRITE_ZEROES,
      0,
      { writethrough: true },
      [`pwriteZeroes 4096+512 ${Req.fua | Req.mayUnmap}`],
    ],
    ['CACHE', CACHE, 0, {}, [`preadv 4096+512 ${Req.copyOnRead | Req.prefetch}`]],
    ['FLUSH', FLUSH, 0, {}, ['flush']],
    ['READ', READ, 0, {}, ['preadv 4096+512 0']],
  ];
  for (const [name, type, flags, overrides, calls] of cases) {
    test(name, async () => {
      const setup = await start(overrides);
      const client = await enter(setup);
      const payload = type === WRITE ? Buffer.alloc(512, 1) : undefined;
      const reply = await client.transact({ type, flags, offset: 4096n, length: 512n }, payload);
      expect(reply).toMatch(/^simple #1 ok/);
      expect(setup.backend.calls).toEqual(calls);
      client.close();
    });
  }

  test('FAST_ZERO fails where zeroes would have to be written', async () => {
    const setup = await start();
    const client = await enter(setup);
    const flags = CommandFlag.fastZero;
    expect(await client.transact({ type: WRITE_ZEROES, flags, length: 4096n })).toBe('simple #1 ok');
    expect(await client.transact({ type: WRITE_ZEROES, flags, length: 512n })).toBe('simple #1 ENOTSUP');
    client.close();
  });
});

describe('errors of the backend', () => {
  const cases: [Operation, number, string][] = [
    ['preadv', READ, 'reading from file failed'],
    ['pwritev', WRITE, 'writing to file failed'],
    ['pwriteZeroes', WRITE_ZEROES, 'writing to file failed'],
    ['flush', FLUSH, 'flush failed'],
    ['pdiscard', TRIM, 'discard failed'],
    ['preadv', CACHE, 'caching data failed'],
    ['blockStatus', BLOCK_STATUS, "can't get block status"],
  ];
  for (const [operation, type, text] of cases) {
    test(`${operation} in command ${type}`, async () => {
      const setup = await start();
      const client = await enter(setup, { structured: true, contexts: ['base:allocation'] });
      const flags = type === READ ? CommandFlag.df : 0;
      const payload = type === WRITE ? Buffer.alloc(512) : undefined;
      for (const [errno, name] of [
        [E.EIO, 'EIO'],
        [E.ENOSPC, 'ENOSPC'],
        [E.EDQUOT, 'ENOSPC'],
        [E.EROFS, 'EPERM'],
        [E.ENOTSUP, 'ENOTSUP'],
        [E.EAGAIN, 'EINVAL'],
      ] as const) {
        setup.backend.failures.set(operation, errno);
        expect(await client.transact({ type, flags, length: 512n }, payload)).toBe(
          `chunk #1 flags=1 ERROR ${name} "${text}"`,
        );
      }
      setup.backend.failures.clear();
      expect(await client.transact({ type, flags, length: 512n }, payload)).not.toContain('ERROR');
      client.close();
    });
  }

  test('a failure to find holes', async () => {
    const setup = await start();
    const client = await enter(setup, { structured: true });
    setup.backend.failures.set('blockStatus', E.EIO);
    expect(await client.transact({ type: READ, length: 512n })).toBe(
      'chunk #1 flags=1 ERROR EIO "unable to check for holes: Input/output error"',
    );
    client.close();
  });
});

describe('holes', () => {
  test('travel as holes, unless the client does not want pieces', async () => {
    const setup = await start();
    const client = await enter(setup, { structured: true });
    await client.transact({ type: WRITE, offset: 8192n, length: 4096n }, Buffer.alloc(4096, 7));
    const length = 16384n;
    expect(await client.transact({ type: READ, length })).toBe(
      'chunk #1 flags=0 OFFSET_HOLE @0 8192 | chunk #1 flags=0 OFFSET_DATA @8192 [7*4096] | chunk #1 flags=1 OFFSET_HOLE @12288 4096',
    );
    expect(await client.transact({ type: READ, length, flags: CommandFlag.df })).toBe(
      'chunk #1 flags=1 OFFSET_DATA @0 [0*8192 7*4096 0*4096]',
    );
    expect(await client.transact({ type: READ, offset: MIBn, length })).toBe(
      `chunk #1 flags=1 OFFSET_HOLE @${MIB} 16384`,
    );
    client.close();
  });

  test('are not asked for again where there was data, until something is discarded', async () => {
    const setup = await start();
    setup.backend.bytes.fill(3);
    const client = await enter(setup, { structured: true });
    await client.transact({ type: WRITE, length: BigInt(4 * MIB) }, Buffer.alloc(4 * MIB, 3));
    const asked = () => setup.backend.calls.filter((call) => call.startsWith('blockStatus')).length;
    await client.transact({ type: READ, length: 4096n });
    const first = asked();
    for (let i = 0; i < 10; i++)
      await client.transact({ type: READ, offset: BigInt(i) * 4096n, length: 4096n });
    expect(asked()).toBe(first);
    await client.transact({ type: TRIM, length: 4096n });
    expect(await client.transact({ type: READ, length: 8192n })).toBe(
      'chunk #1 flags=0 OFFSET_HOLE @0 4096 | chunk #1 flags=1 OFFSET_DATA @4096 [3*4096]',
    );
    client.close();
  });

  test('a read in very many pieces comes as one', async () => {
    const setup = await start();
    const client = await enter(setup, { structured: true });
    for (let i = 0n; i < 300n; i++) {
      client.request({ type: WRITE, offset: i * 8192n, length: 4096n }, Buffer.alloc(4096, 9));
      await client.reply();
    }
    const reply = await client.transact({ type: READ, length: 300n * 8192n });
    expect(reply).toMatch(/^chunk #1 flags=1 OFFSET_DATA @0 /);
    client.close();
  });
});

const MIBn = BigInt(MIB);

describe('drained sections', () => {
  test('start no requests; those that wait are served afterwards', async () => {
    const setup = await start();
    const client = await enter(setup);
    const bystander = await enter(setup);
    setup.exp.paused = true;
    client
      .request({ type: READ, length: 512n, cookie: 1n })
      .request({ type: READ, length: 512n, cookie: 2n });
    bystander.request({ type: WRITE, length: BigInt(MIB), cookie: 3n }, Buffer.alloc(MIB, 1));
    await aWhile();
    expect(setup.backend.calls).toEqual([]);
    setup.exp.paused = false;
    for (const connected of setup.exp.clients) connected.resume();
    expect(await client.reply(512)).toMatch(/^simple #1 ok/);
    expect(await client.reply(512)).toMatch(/^simple #2 ok/);
    expect(await bystander.reply()).toBe('simple #3 ok');
    client.close();
    bystander.close();
  });

  test('a write whose data arrives in one waits too', async () => {
    const setup = await start();
    const client = await enter(setup);
    client.request({ type: WRITE, length: BigInt(MIB) }, Buffer.alloc(1000, 1));
    await aWhile(50);
    setup.exp.paused = true;
    client.send(Buffer.alloc(MIB - 1000, 1));
    await aWhile();
    expect(setup.backend.calls).toEqual([]);
    setup.exp.paused = false;
    for (const connected of setup.exp.clients) connected.resume();
    expect(await client.reply()).toBe('simple #1 ok');
    client.close();
  });
});

describe('extended headers', () => {
  const contexts = ['base:allocation', 'qemu:allocation-depth'];

  test('all commands', async () => {
    const setup = await start();
    const client = await enter(setup, { extended: true, contexts });
    const run = (type: number, offset: bigint, length: bigint, flags = 0, payload?: Buffer) =>
      client.transactExtended({ type, offset, length, flags, cookie: 3n }, payload);
    const PAYLOAD = CommandFlag.payloadLength;
    expect(await run(WRITE, 4096n, 4096n, PAYLOAD, Buffer.alloc(4096, 1))).toBe('ext #3 @4096 flags=1 NONE');
    expect(await run(READ, 4096n, 512n)).toBe('ext #3 @4096 flags=1 OFFSET_DATA @4096 [1*512]');
    expect(await run(READ, 0n, 8192n)).toBe(
      'ext #3 @0 flags=0 OFFSET_HOLE @0 4096 | ext #3 @0 flags=1 OFFSET_DATA @4096 [1*4096]',
    );
    expect(await run(READ, 0n, 0n)).toBe('ext #3 @0 flags=1 NONE');
    expect(await run(FLUSH, 0n, 0n)).toBe('ext #3 @0 flags=1 NONE');
    expect(await run(WRITE_ZEROES, 0n, 4n * MIBn)).toBe('ext #3 @0 flags=1 NONE');
    expect(await run(TRIM, 0n, 8192n)).toBe('ext #3 @0 flags=1 NONE');
    expect(await run(CACHE, 0n, 8192n)).toBe('ext #3 @0 flags=1 NONE');
    expect(await run(BLOCK_STATUS, 0n, 4n * MIBn)).toBe(
      `ext #3 @0 flags=0 BLOCK_STATUS_EXT ctx=0 n=1 ${4 * MIB}:3 | ext #3 @0 flags=1 BLOCK_STATUS_EXT ctx=1 n=1 ${4 * MIB}:1`,
    );
    client.close();
  });

  test('64-bit offsets and lengths out of range are errors, and are repeated exactly', async () => {
    const setup = await start();
    const client = await enter(setup, { extended: true, contexts });
    const offset = 0xfedcba9876543210n;
    expect(await client.transactExtended({ type: TRIM, offset, length: 1n << 40n })).toBe(
      `ext #1 @${offset} flags=1 ERROR EINVAL "operation past EOF; From: ${offset}, Len: ${2 ** 40}, Size: ${4 * MIB}"`,
    );
    expect(await client.transactExtended({ type: BLOCK_STATUS, length: 1n << 63n })).toContain(
      'ERROR EINVAL',
    );
    expect(await client.transactExtended({ type: READ, length: 1n << 33n })).toContain(
      'is larger than max len',
    );
    expect(await client.transactExtended({ type: FLUSH })).toBe('ext #1 @0 flags=1 NONE');
    client.close();
  });

  test('payloads where there should be none are passed over', async () => {
    const setup = await start();
    const client = await enter(setup, { extended: true, contexts });
    const flags = CommandFlag.payloadLength;
    for (const bytes of [5, 5000, 3 * MIB]) {
      for (const type of [READ, FLUSH, TRIM, 42]) {
        const reply = await client.transactExtended(
          { type, flags, length: BigInt(bytes) },
          Buffer.alloc(bytes),
        );
        expect(reply).toContain('ERROR EINVAL');
      }
    }
    expect(await client.transactExtended({ type: WRITE, length: 512n })).toContain('ERROR EINVAL');
    expect(await client.transactExtended({ type: FLUSH })).toBe('ext #1 @0 flags=1 NONE');
    expect(setup.backend.calls).toEqual(['flush']);
    client.close();
  });

  test('a payload that is too long ends the connection', async () => {
    const setup = await start();
    const client = await enter(setup, { extended: true, contexts });
    client.extendedRequest({ type: WRITE, flags: CommandFlag.payloadLength, length: 1n << 40n });
    expect(await client.reply()).toContain('ERROR EINVAL');
    expect(await client.end()).toBe('EOF');
  });

  test('the compact magic is an error', async () => {
    const setup = await start();
    const client = await enter(setup, { extended: true });
    client.request({ type: READ, length: 512n }, Buffer.alloc(4));
    expect(await client.reply()).toContain('ERROR EINVAL "invalid magic (got 0x25609513)"');
    expect(await client.end()).toBe('EOF');
  });

  test('BLOCK_STATUS with a list of contexts', async () => {
    const setup = await start();
    const client = await enter(setup, { extended: true, contexts });
    const ask = (effectLength: bigint, ...ids: number[]) => {
      const payload = Buffer.alloc(8 + ids.length * 4);
      payload.writeBigUInt64BE(effectLength);
      for (const [i, id] of ids.entries()) payload.writeUInt32BE(id, 8 + i * 4);
      const flags = CommandFlag.payloadLength;
      return client.transactExtended({ type: BLOCK_STATUS, flags, length: BigInt(payload.length) }, payload);
    };
    expect(await ask(8192n, 1)).toBe('ext #1 @0 flags=1 BLOCK_STATUS_EXT ctx=1 n=1 8192:1');
    expect(await ask(8192n, 0)).toBe('ext #1 @0 flags=1 BLOCK_STATUS_EXT ctx=0 n=1 8192:3');
    expect(await ask(8192n, 1, 0)).toContain('ctx=0 n=1 8192:3 | ext #1 @0 flags=1 BLOCK_STATUS_EXT ctx=1');
    expect(await ask(8192n)).toContain('ERROR EINVAL');
    expect(await ask(8192n, 0, 0)).toContain('ERROR EINVAL');
    expect(await ask(8192n, 0, 1, 2)).toContain('ERROR EINVAL');
    expect(await ask(8192n, 9)).toContain('ERROR EINVAL');
    expect(await ask(0n, 0)).toContain('ERROR EINVAL "need non-zero length"');
    expect(await ask(1n << 62n, 0)).toContain('ERROR EINVAL "operation past EOF');
    expect(await ask(4096n, 0)).toContain('ctx=0 n=1 4096:3');
    client.close();
  });
});
