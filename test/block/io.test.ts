/** The I/O path on a disk with awkward limits, against a Buffer as the model. */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { allocateIoMemory, concatVectors, vectorOf } from '../../src/aio/memory.ts';
import type { BlockBackend } from '../../src/block/backend.ts';
import { Perm, Req } from '../../src/block/contract/request.ts';
import { addNode } from '../../src/block/open/open.ts';
import { type MemoryDisk, memoryDisk, memoryLayer } from './memory-driver.ts';

const DISK_BYTES = 64 * 1024;
const owner = { describe: () => 'a test', drainedBegin: () => undefined, drainedEnd: () => undefined };

async function open(disk: MemoryDisk, options: Record<string, unknown> = {}): Promise<BlockBackend> {
  const layer = memoryLayer(disk);
  await addNode(layer, { driver: 'memory', 'node-name': 'm', discard: 'unmap', ...options });
  const node = await addNode(layer, { driver: 'raw', 'node-name': 'r', file: 'm', discard: 'unmap' });
  return layer.createBackend(node, { perm: Perm.consistentRead | Perm.write, shared: Perm.all }, owner);
}

function filled(bytes: number, value: number) {
  const memory = allocateIoMemory(bytes);
  memory.buf.fill(value);
  return vectorOf(memory);
}

async function read(backend: BlockBackend, offset: number, bytes: number): Promise<Buffer> {
  const half = Math.floor(bytes / 2);
  const parts = [allocateIoMemory(half), allocateIoMemory(bytes - half)] as const;
  await backend.preadv(offset, bytes, concatVectors(vectorOf(parts[0]), vectorOf(parts[1])), 0);
  return Buffer.concat([parts[0].buf, parts[1].buf]);
}

const limitsCases = [
  { requestAlignment: 1 },
  { requestAlignment: 512 },
  { requestAlignment: 4096, maxTransfer: 8192 },
  { requestAlignment: 512, maxPwriteZeroes: 1024, maxTransfer: 1536 },
];

const operation = fc.record({
  kind: fc.constantFrom('write', 'zero', 'read', 'fua'),
  offset: fc.nat(DISK_BYTES - 1),
  bytes: fc.integer({ min: 1, max: 10_000 }),
  value: fc.integer({ min: 1, max: 255 }),
});

test('more segments in one block than the driver takes', async () => {
  const disk = memoryDisk(DISK_BYTES, { limits: { requestAlignment: 512, maxIov: 3 } });
  const backend = await open(disk);
  const pieces = (bytes: number): ReturnType<typeof allocateIoMemory>[] =>
    Array.from({ length: bytes / 10 }, () => allocateIoMemory(10));
  const written = pieces(2000);
  for (const [index, { buf }] of written.entries()) buf.fill(index + 1);
  await backend.pwritev(700, 2000, concatVectors(...written.map((mem) => vectorOf(mem))), 0);
  const got = pieces(2000);
  await backend.preadv(700, 2000, concatVectors(...got.map((mem) => vectorOf(mem))), 0);
  const bytes = Buffer.concat(written.map(({ buf }) => buf));
  expect(Buffer.concat(got.map(({ buf }) => buf)).equals(bytes)).toBe(true);
  expect(disk.data.equals(Buffer.concat([Buffer.alloc(700), bytes, Buffer.alloc(DISK_BYTES - 2700)]))).toBe(
    true,
  );
  await backend.close();
});

describe.each(limitsCases)('limits %o', (limits) => {
  test.each([true, false])('one after another, zero writes %s', async (canZero) => {
    await fc.assert(
      fc.asyncProperty(fc.array(operation, { maxLength: 12 }), async (operations) => {
        const disk = memoryDisk(DISK_BYTES, { limits, canZero });
        const backend = await open(disk);
        const model = Buffer.alloc(DISK_BYTES);
        for (const { kind, offset, bytes: wanted, value } of operations) {
          const bytes = Math.min(wanted, DISK_BYTES - offset);
          if (kind === 'read')
            expect((await read(backend, offset, bytes)).equals(model.subarray(offset, offset + bytes))).toBe(
              true,
            );
          else if (kind === 'zero') await backend.pwriteZeroes(offset, bytes, Req.mayUnmap);
          else await backend.pwritev(offset, bytes, filled(bytes, value), kind === 'fua' ? Req.fua : 0);
          if (kind !== 'read') model.fill(kind === 'zero' ? 0 : value, offset, offset + bytes);
        }
        expect(disk.data.equals(model)).toBe(true);
        await backend.close();
      }),
      { numRuns: 40 },
    );
  });

  test('neighbours written at the same time do not undo each other', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: 1, max: 3000 }), { minLength: 2, maxLength: 12 }),
        async (lengths) => {
          const disk = memoryDisk(DISK_BYTES, { limits });
          const backend = await open(disk);
          const model = Buffer.alloc(DISK_BYTES);
          const writes: Promise<void>[] = [];
          let offset = 0;
          for (const [i, bytes] of lengths.entries()) {
            if (offset + bytes > DISK_BYTES) break;
            writes.push(backend.pwritev(offset, bytes, filled(bytes, i + 1), 0));
            model.fill(i + 1, offset, offset + bytes);
            offset += bytes;
          }
          await Promise.all(writes);
          expect(disk.data.equals(model)).toBe(true);
          await backend.close();
        },
      ),
      { numRuns: 40 },
    );
  });
});

test('a write that must be stable is followed by a flush when the driver cannot do it itself', async () => {
  const disk = memoryDisk(DISK_BYTES);
  const backend = await open(disk);
  await backend.pwritev(0, 512, filled(512, 1), Req.fua);
  expect(disk.calls.filter((name) => name === 'pwritev' || name === 'flush')).toEqual(['pwritev', 'flush']);
});

test('a flush with nothing written since the last one does not reach the disk', async () => {
  const disk = memoryDisk(DISK_BYTES);
  const backend = await open(disk);
  const flushes = (): number => disk.calls.filter((name) => name === 'flush').length;
  await backend.pwritev(0, 512, filled(512, 1), 0);
  await backend.flush();
  await backend.flush();
  expect(flushes()).toBe(1);
  await backend.pwritev(0, 512, filled(512, 1), 0);
  await Promise.all([backend.flush(), backend.flush(), backend.flush()]);
  expect(flushes()).toBe(2);
});

test('detect-zeroes turns a write of zeroes into a zero write', async () => {
  const disk = memoryDisk(DISK_BYTES);
  const backend = await open(disk, { 'detect-zeroes': 'unmap' });
  await backend.pwritev(0, 4096, filled(4096, 0), 0);
  await backend.pwritev(0, 4096, filled(4096, 1), 0);
  expect(disk.calls.filter((name) => name.startsWith('pwrite'))).toEqual(['pwriteZeroes', 'pwritev']);
});

test('requests outside the disk are refused', async () => {
  const backend = await open(memoryDisk(DISK_BYTES));
  const vec = filled(512, 1);
  for (const offset of [-1, DISK_BYTES - 511, DISK_BYTES, 2 ** 60, Number.NaN]) {
    await expect((async () => backend.pwritev(offset, 512, vec, 0))()).rejects.toThrow();
    await expect((async () => backend.preadv(offset, 512, vec, 0))()).rejects.toThrow();
  }
});
