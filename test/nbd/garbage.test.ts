/** Requests made of garbage: the server answers, hangs up or waits, and other clients notice nothing. */

import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { FakeBackend } from './fake-backend.ts';
import { makeExport, serve, type TestServer } from './serve.ts';

const MIB = 1024 * 1024;
let server: TestServer;

beforeAll(async () => {
  server = await serve([makeExport(new FakeBackend(MIB), MIB, { allocationDepth: true })]);
});
afterAll(() => server.stop());

const small = fc.bigInt({ min: 0n, max: 2n * BigInt(MIB) });
const anything = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });

const request = fc.record({
  magic: fc.oneof({ weight: 20, arbitrary: fc.constant(undefined) }, fc.integer({ min: 0, max: 0xffffffff })),
  type: fc.oneof({ weight: 10, arbitrary: fc.nat(8) }, fc.nat(65535)),
  flags: fc.oneof(
    { weight: 3, arbitrary: fc.constant(0) },
    { weight: 3, arbitrary: fc.nat(63) },
    fc.nat(65535),
  ),
  offset: fc.oneof({ weight: 3, arbitrary: small }, anything),
  length: fc.oneof({ weight: 3, arbitrary: small }, anything),
  payload: fc.oneof(fc.constant(0), fc.nat(5000)),
});

test.each(['simple', 'structured', 'extended'] as const)('in %s style', async (style) => {
  const witness = await server.connect();
  await witness.enter('disk');
  await fc.assert(
    fc.asyncProperty(fc.array(request, { maxLength: 30 }), async (requests) => {
      const client = await server.connect();
      await client.enter('disk', {
        structured: style === 'structured',
        extended: style === 'extended',
        contexts: style === 'simple' ? undefined : ['base:allocation', 'qemu:allocation-depth'],
      } as never);
      for (const { magic, payload, ...fields } of requests) {
        const full = magic === undefined ? fields : { ...fields, magic };
        if (style === 'extended') client.extendedRequest(full, Buffer.alloc(payload));
        else client.request({ ...full, length: full.length & 0xffffffffn }, Buffer.alloc(payload));
      }
      client.socket.end();
      expect(await witness.transact({ type: 3 })).toBe('simple #1 ok');
      client.socket.destroy();
    }),
    { numRuns: 100 },
  );
  witness.close();
  await expect.poll(() => server.server.connectionCount).toBe(0);
  expect(server.log.filter((line) => !line.startsWith('option negotiation failed'))).toEqual([]);
});
