/** Several clients at once, in all three reply styles, against a model of the disk. */

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { DiskClient, type Style } from './disk-client.ts';
import { FakeBackend } from './fake-backend.ts';
import { mergeModels, operations, runModel } from './model.ts';
import { makeExport, serve } from './serve.ts';

const UNITS = 6;
const STYLES: readonly Style[] = ['simple', 'structured', 'extended'];

test.each(['io_uring', 'threads'] as const)('clients see what they wrote (%s)', async (kind) => {
  await fc.assert(
    fc.asyncProperty(fc.array(operations(UNITS), { minLength: 3, maxLength: 3 }), async (lists) => {
      const size = UNITS * STYLES.length * 4096;
      const backend = new FakeBackend(size);
      backend.jitterMs = 2;
      const server = await serve([makeExport(backend, size)], {}, kind);
      try {
        const clients = await Promise.all(
          STYLES.map(async (style) => DiskClient.enter(await server.connect(), 'disk', style)),
        );
        const models = await Promise.all(
          clients.map((client, i) =>
            runModel(client, i, STYLES.length, lists[i] ?? [], STYLES[i] !== 'simple'),
          ),
        );
        const disk = mergeModels(models, UNITS);
        for (const client of clients) expect((await client.read(0, size)).equals(disk)).toBe(true);
        expect(backend.bytes.equals(disk)).toBe(true);
        await Promise.all(clients.map((client) => client.leave()));
      } finally {
        await server.stop();
      }
    }),
    { numRuns: 25 },
  );
});
