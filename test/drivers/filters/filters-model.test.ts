/** preallocate and copy-on-read against a Buffer as the model: many requests at once, faults, and what is left at the end. */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import type { BlockBackend } from '../../../src/block/backend.ts';
import { createBitmap, releaseBitmap } from '../../../src/block/bitmaps/dirty-bitmap.ts';
import { Perm, Req, Status } from '../../../src/block/contract/request.ts';
import type { BlockNode } from '../../../src/block/graph/node.ts';
import { wrapped } from '../../../src/block/io/callbacks.ts';
import { addNode } from '../../../src/block/open/open.ts';
import { creation } from '../../../src/drivers/formats/qcow2/change/create-options.ts';
import { testLayer } from '../qcow2/open-layer.ts';
import { createRandom } from '../qcow2/random.ts';

const KiB = 1024;
const owner = { describe: () => 'the test', drainedBegin: () => undefined, drainedEnd: () => undefined };

let folder: string;
let session: ReturnType<typeof testLayer>;

beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'qb-filters-'));
  session = testLayer();
});
afterEach(async () => {
  await session.close();
  rmSync(folder, { recursive: true, force: true });
});

function filled(bytes: number, value: number) {
  const memory = allocateIoMemory(bytes);
  memory.buf.fill(value);
  return vectorOf(memory, 0, bytes);
}

async function read(node: BlockNode, offset: number, bytes: number, flags = 0): Promise<Buffer> {
  const memory = allocateIoMemory(bytes);
  memory.buf.fill(0xaa);
  await wrapped.preadv(node, offset, bytes, vectorOf(memory, 0, bytes), flags);
  return memory.buf.subarray(0, bytes);
}

/** All permissions: what a format takes of its file. */
function use(node: BlockNode): Promise<BlockBackend> {
  return session.layer.createBackend(node, { perm: Perm.all, shared: Perm.all }, owner);
}

describe('preallocate', () => {
  /** How zero writes fail below the filter; none: they do not. */
  const faults = {
    none: [],
    once: [{ event: 'none', iotype: 'write-zeroes', errno: 28, once: true }],
    always: [{ event: 'none', iotype: 'write-zeroes', errno: 95 }],
  } as const;

  test.each(Object.entries(faults))(
    'grows under many writes, zero writes below fail: %s',
    async (_name, rules) => {
      for (let seed = 1; seed <= 12; seed++) {
        const random = createRandom(seed);
        const filename = path.join(folder, `disk${seed}`);
        writeFileSync(filename, '');
        const { layer } = session;
        await addNode(layer, { driver: 'file', 'node-name': 'f', filename });
        const image = rules.length > 0 ? 'd' : 'f';
        if (image === 'd')
          await addNode(layer, { driver: 'blkdebug', 'node-name': 'd', image: 'f', 'inject-error': rules });
        const sizes = {
          'prealloc-size': random.pick([0, 4 * KiB, 100 * KiB]),
          'prealloc-align': random.pick([512, 64 * KiB]),
        };
        const node = await addNode(layer, { driver: 'preallocate', 'node-name': 'p', file: image, ...sizes });
        const backend = await use(node);
        const model = Buffer.alloc(512 * KiB);
        let end = 0;
        for (let round = 0; round < 12; round++) {
          // Neighbours at the same time, most of them behind the end.
          let at = Math.max(0, end - random.below(32 * KiB));
          at -= at % 512;
          const requests: Promise<void>[] = [];
          for (let i = 0; i < 6 && at < 500 * KiB; i++) {
            const bytes = 512 * (1 + random.below(12));
            const value = random.pick([0, 0, 1 + random.below(255)]);
            requests.push(
              value === 0
                ? wrapped.pwriteZeroes(node, at, bytes, Req.mayUnmap)
                : wrapped.pwritev(node, at, bytes, filled(bytes, value), 0),
            );
            model.fill(value, at, at + bytes);
            end = Math.max(end, at + bytes);
            at += bytes + 512 * random.below(8);
          }
          const results = await Promise.allSettled(requests);
          expect(results.filter(({ status }) => status === 'rejected')).toEqual([]);
          expect(node.totalBytes).toBe(end);
          if (random.below(4) === 0) {
            end = Math.max(0, end + 512 * (random.below(40) - 20));
            await wrapped.truncate(node, end, true, 'off', false);
            model.fill(0, end);
          }
          expect((await read(node, 0, end)).equals(model.subarray(0, end)), `seed ${seed}`).toBe(true);
        }
        await backend.close();
        expect(readFileSync(filename).equals(model.subarray(0, end)), `seed ${seed}`).toBe(true);
        for (const name of ['p', ...(image === 'd' ? ['d'] : []), 'f']) await layer.deleteNode(name);
      }
    },
  );
});

describe('copy-on-read', () => {
  const SIZE = 1024 * KiB + 512;

  async function openChain(
    bottom: 'base' | null,
  ): Promise<{ cor: BlockNode; overlay: BlockNode; model: Buffer }> {
    const { layer } = session;
    const random = createRandom(7);
    const model = Buffer.alloc(SIZE);
    for (let at = 0; at < SIZE; at += 4 * KiB)
      if (random.below(3) > 0) model.fill(1 + random.below(255), at, at + 4 * KiB);
    writeFileSync(path.join(folder, 'base'), model);
    const filename = path.join(folder, 'overlay');
    const values = { size: String(SIZE), cluster_size: '16384' };
    await creation.createFile(layer, filename, values, { update: () => undefined });
    await addNode(layer, {
      driver: 'file',
      'node-name': 'base',
      filename: path.join(folder, 'base'),
      'read-only': true,
    });
    const overlay = await addNode(layer, {
      driver: 'qcow2',
      'node-name': 'overlay',
      file: { driver: 'file', filename },
      backing: 'base',
    });
    const limit = bottom === null ? {} : { bottom };
    const cor = await addNode(layer, {
      driver: 'copy-on-read',
      'node-name': 'cor',
      file: 'overlay',
      ...limit,
    });
    return { cor, overlay, model };
  }

  test.each([null, 'base'] as const)('reads and writes at the same time, bottom %s', async (bottom) => {
    const { cor, overlay, model } = await openChain(bottom);
    const backend = await use(cor);
    const random = createRandom(3);
    for (let round = 0; round < 40; round++) {
      const requests: Promise<unknown>[] = [];
      let at = random.below(64 * KiB);
      // Pieces of the same clusters, in any order: each is read or written by one request.
      while (at < SIZE && requests.length < 24) {
        const offset = at;
        const bytes = Math.min(1 + random.below(12 * KiB), SIZE - at);
        const kind = random.below(4);
        if (kind === 0) {
          const value = 1 + random.below(255);
          model.fill(value, offset, offset + bytes);
          requests.push(wrapped.pwritev(cor, offset, bytes, filled(bytes, value), 0));
        } else if (kind === 1) {
          requests.push(wrapped.preadv(cor, offset, bytes, filled(bytes, 0), Req.prefetch));
        } else {
          const expected = Buffer.from(model.subarray(offset, offset + bytes));
          requests.push(
            read(cor, offset, bytes).then((found) => {
              if (!found.equals(expected))
                throw new Error(`wrong data at ${offset}+${bytes}, round ${round}`);
            }),
          );
        }
        at += bytes + random.below(40 * KiB);
      }
      await Promise.all(requests);
    }
    for (let at = 0; at < SIZE; at += 100_000) await read(cor, at, Math.min(100_000, SIZE - at));
    await backend.close();
    // Nothing is left to be looked up below.
    for (let at = 0; at < SIZE; ) {
      const status = await wrapped.blockStatus(overlay, false, at, SIZE - at);
      expect(status.flags & Status.allocated, `at ${at}`).toBe(Status.allocated);
      at += status.bytes;
    }
    expect((await read(overlay, 0, SIZE)).equals(model)).toBe(true);
  });

  test('dirty bitmaps do not see copies', async () => {
    const { cor, overlay } = await openChain(null);
    const bitmap = createBitmap(overlay, { name: null, granularityBytes: 4096, enabled: true });
    await read(cor, 0, 256 * KiB);
    expect(bitmap.bits.count).toBe(0);
    releaseBitmap(bitmap);
  });
});
