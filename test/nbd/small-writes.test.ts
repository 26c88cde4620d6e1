/**
 * Small writes, which are made from where they were received when they can be made at once, and from a buffer of their own
 * when they cannot: many at a time, with a backend that refuses now and then, against a model.
 */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { CommandFlag } from '../../src/nbd/protocol/messages.ts';
import { type ImageServer, serveNodes } from './image-server.ts';

const SIZE = 4 * 1024 * 1024;

let folder: string;
let served: ImageServer | null;

beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'qb-small-'));
  served = null;
});

afterEach(async () => {
  await served?.stop();
  rmSync(folder, { recursive: true });
});

function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return state / 2 ** 32;
  };
}

test.each([
  { style: 'simple', refuse: 0 },
  { style: 'simple', refuse: 0.05 },
  { style: 'extended', refuse: 0.3 },
] as const)('%o', async ({ style, refuse }) => {
  const image = path.join(folder, 'disk');
  const model = Buffer.alloc(SIZE, 0x11);
  writeFileSync(image, model);
  served = await serveNodes(
    [{ driver: 'raw', 'node-name': 'disk', file: { driver: 'file', filename: image } }],
    ['disk'],
  );
  const disk = served.disk('disk');
  const next = random(Math.round(refuse * 100) + 7);
  const tryPwritev = disk.backend.tryPwritev.bind(disk.backend);
  let [made, refused] = [0, 0];
  disk.backend.tryPwritev = (offset, bytes, vec, short) => {
    if (next() < refuse) {
      refused++;
      return false;
    }
    if (short === undefined) made++;
    return tryPwritev(offset, bytes, vec, short);
  };
  const { client } = await disk.enter(style);
  for (let round = 0; round < 40; round++) {
    const writes: Promise<void>[] = [];
    // Writes under way do not overlap: their order is nobody's.
    for (let at = Math.floor(next() * 8) * 512; writes.length < 48; ) {
      const bytes = 512 * (1 + Math.floor(next() * 30));
      const data = Buffer.alloc(bytes, 1 + ((round * 48 + writes.length) % 250));
      data.writeUInt32LE(at, bytes - 4);
      data.copy(model, at);
      writes.push(client.write(at, data, next() < 0.1 ? CommandFlag.fua : 0));
      at += bytes + 512 * Math.floor(next() * 4);
    }
    await Promise.all(writes);
  }
  expect((await client.read(0, SIZE)).equals(model)).toBe(true);
  // Both ways have been gone.
  expect(made).toBeGreaterThan(40);
  expect(refused > 0).toBe(refuse > 0);
  await client.leave();
});
