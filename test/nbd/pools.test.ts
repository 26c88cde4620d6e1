/** The pool of request buffers and the map of known data. */

import { expect, test } from 'vitest';
import { POOL_MAX_FREE_BYTES } from '../../src/nbd/protocol/limits.ts';
import { BufferPool, HEADROOM_BYTES, setPayload } from '../../src/nbd/server/buffers.ts';
import { DataMap } from '../../src/nbd/server/data-map.ts';

test('a buffer is aligned, has room for a header, and is reused', () => {
  const pool = new BufferPool();
  const buffer = pool.take(5000);
  expect(buffer.capacity).toBe(8192);
  expect((buffer.mem.addr + HEADROOM_BYTES) % 4096).toBe(0);
  setPayload(buffer, 5000);
  expect(buffer.vector).toEqual({
    segments: [{ mem: buffer.mem, start: HEADROOM_BYTES, length: 5000 }],
    bytes: 5000,
  });
  pool.give(buffer);
  expect(pool.take(8192)).toBe(buffer);
  expect(pool.take(1)).not.toBe(buffer);
  pool.clear();
});

test('the smallest buffers do not overlap', () => {
  const pool = new BufferPool();
  const buffers = Array.from({ length: 100 }, () => pool.take(4096));
  for (const [i, buffer] of buffers.entries()) {
    expect((buffer.mem.addr + HEADROOM_BYTES) % 4096).toBe(0);
    expect(buffer.mem.buf.length).toBe(HEADROOM_BYTES + 4096);
    buffer.mem.buf.fill(i);
  }
  for (const [i, buffer] of buffers.entries()) expect(buffer.mem.buf.every((byte) => byte === i)).toBe(true);
  expect(new Set(buffers.map((buffer) => buffer.mem.addr)).size).toBe(100);
  pool.clear();
});

test('the pool keeps a bounded amount', () => {
  const pool = new BufferPool();
  const buffers = Array.from({ length: 5 }, () => pool.take(32 * 1024 * 1024));
  for (const buffer of buffers) pool.give(buffer);
  expect(pool.freeBytes).toBe(POOL_MAX_FREE_BYTES);
  pool.clear();
});

test('buffers that are not needed are given back', () => {
  const pool = new BufferPool();
  const buffers = Array.from({ length: 10 }, () => pool.take(8192));
  for (const buffer of buffers) pool.give(buffer);
  pool.trim();
  pool.give(pool.take(8192));
  pool.trim();
  expect(pool.freeBytes).toBe(8192);
  pool.trim();
  expect(pool.freeBytes).toBe(0);
  pool.clear();
});

const MIB = 1024 * 1024;

test('the data map remembers whole regions, until they expire or are forgotten', () => {
  const map = new DataMap(10 * MIB + 100);
  map.tick(0);
  expect(map.covers(0, 4096)).toBe(false);
  map.remember(MIB / 2, 4 * MIB);
  expect(map.covers(0, 4096)).toBe(false);
  expect(map.covers(MIB, 4 * MIB)).toBe(true);
  expect(map.covers(MIB, 4 * MIB + 1)).toBe(false);
  map.forget(2 * MIB + 1, 2 * MIB + 2);
  expect(map.covers(2 * MIB, 2 * MIB + 1)).toBe(false);
  expect(map.covers(MIB, 2 * MIB)).toBe(true);
  map.remember(9 * MIB, 10 * MIB + 100);
  expect(map.covers(10 * MIB + 99, 10 * MIB + 100)).toBe(true);
  map.tick(500);
  expect(map.covers(MIB, 2 * MIB)).toBe(true);
  map.tick(1001);
  expect(map.covers(MIB, 2 * MIB)).toBe(false);
});

test('the data map survives many seconds and huge disks', () => {
  const map = new DataMap(8 * 1024 * 1024 * MIB);
  expect(map.regionBytes).toBe(8 * MIB);
  for (let second = 0; second < 600; second++) {
    map.tick(second * 1001);
    expect(map.covers(0, 8 * MIB)).toBe(false);
    map.remember(0, 8 * MIB);
    expect(map.covers(0, 8 * MIB)).toBe(true);
  }
});
