/**
 * Large reads, answered with the pages of the file where those may be lent: slow and vanishing clients, files that shrink,
 * windows and odd lengths, disks that fail, drained sections. Who may lend, and what comes of it when others must not:
 * lent-pages.test.ts.
 */

import { closeSync, mkdtempSync, openSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { drainedBegin } from '../../src/block/graph/drain.ts';
import { type ImageServerOptions, type ServedDisk, serveNodes } from './image-server.ts';
import type { TestServer } from './serve.ts';

const PIECE = 256 * 1024;
const SIZE = 16 * PIECE;

/** Bytes that tell where they belong. */
function pattern(bytes: number, seed: number): Buffer {
  const data = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; at += 4) data.writeUInt32LE((Math.imul(at + 1, 2654435761) ^ seed) >>> 0, at);
  return data;
}

let folder: string;
let cleanUp: (() => Promise<void>)[];

beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'qb-straight-'));
  cleanUp = [];
});

afterEach(async () => {
  for (const step of cleanUp.reverse()) await step();
  rmSync(folder, { recursive: true });
});

/** A raw image; `window`: the part of it that is the disk. */
async function setUp(
  content: Buffer,
  options: ImageServerOptions = {},
  window: { readonly offset?: number; readonly size?: number } = {},
): Promise<ServedDisk & { readonly server: TestServer; readonly image: string }> {
  const image = path.join(folder, 'image.raw');
  writeFileSync(image, content);
  const file = { driver: 'file', filename: image };
  const node = { driver: 'raw', 'node-name': 'disk', discard: 'unmap', file, ...window };
  const served = await serveNodes([node], ['disk'], options);
  cleanUp.push(() => served.stop());
  return { ...served.disk('disk'), server: served.server, image };
}

describe.each([
  { kind: 'io_uring', tcp: false },
  { kind: 'io_uring', tcp: true },
  { kind: 'threads', tcp: false },
] as const)('with %o', (options) => {
  test.each(['simple', 'structured', 'extended'] as const)(
    'many reads to a slow %s client',
    async (style) => {
      const content = pattern(SIZE, 1);
      const { enter, lent } = await setUp(content, options);
      const { raw: connection, client } = await enter(style);
      // Tells the server that there are no holes.
      await client.read(0, SIZE);
      connection.socket.pause();
      const reads = Array.from({ length: 48 }, (_, i) => {
        const offset = ((i * 5) % 15) * PIECE + (i % 3) * 512;
        return client
          .read(offset, PIECE)
          .then((data) => data.equals(content.subarray(offset, offset + PIECE)));
      });
      const small = client.read(4096, 4096);
      const writing = client.write(SIZE - 4096, content.subarray(SIZE - 4096));
      await new Promise((resolve) => setTimeout(resolve, 30));
      connection.socket.resume();
      expect(await Promise.all(reads)).toEqual(reads.map(() => true));
      expect((await small).equals(content.subarray(4096, 8192))).toBe(true);
      await writing;
      expect(lent()).toBeGreaterThan(8 * PIECE);
      await client.leave();
    },
  );

  test('a read larger than the socket holds', async () => {
    const content = pattern(SIZE, 2);
    const { enter, lent } = await setUp(content, options);
    const { client } = await enter();
    for (let i = 0; i < 3; i++)
      expect((await client.read(512, SIZE - 512)).equals(content.subarray(512))).toBe(true);
    expect(lent()).toBe(3 * (SIZE - 512));
    await client.leave();
  });

  test('a client that goes away with reads waiting', async () => {
    const { enter, server } = await setUp(pattern(SIZE, 3), options);
    const { raw: connection, client } = await enter();
    connection.socket.pause();
    const reads = Array.from({ length: 40 }, () => client.read(0, PIECE).catch(() => null));
    await new Promise((resolve) => setTimeout(resolve, 20));
    connection.socket.destroy();
    await Promise.all(reads);
    while (server.server.connectionCount > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  });
});

test('a file that shrinks reads as zeroes behind its end, and nothing crashes', async () => {
  const content = pattern(SIZE, 4);
  const { enter, image, lent } = await setUp(content);
  const { raw: connection, client } = await enter();
  expect((await client.read(8 * PIECE, PIECE)).equals(content.subarray(8 * PIECE, 9 * PIECE))).toBe(true);
  expect(lent()).toBe(PIECE);
  connection.socket.pause();
  const reads = Array.from({ length: 8 }, (_, i) => client.read(i * PIECE, PIECE));
  truncateSync(image, PIECE + 5000);
  connection.socket.resume();
  const expected = Buffer.concat([content.subarray(0, PIECE + 5000), Buffer.alloc(SIZE)]);
  for (const [i, read] of reads.entries()) {
    const data = await read;
    const now = data.equals(expected.subarray(i * PIECE, (i + 1) * PIECE));
    // Answers that were on their way already hold what was there.
    expect(now || data.equals(content.subarray(i * PIECE, (i + 1) * PIECE))).toBe(true);
  }
  for (let i = 0; i < 4; i++) {
    const data = await client.read(i * PIECE, PIECE);
    expect(data.equals(expected.subarray(i * PIECE, (i + 1) * PIECE))).toBe(true);
  }
  await client.leave();
});

/** Has `meanwhile` run when the pages have been looked up and nothing has been sent yet. */
function beforeSending({ backend }: ServedDisk, meanwhile: () => void): void {
  const lendPages = backend.lendPages.bind(backend);
  backend.lendPages = (offset, bytes) => {
    const pages = lendPages(offset, bytes);
    if (pages !== null) meanwhile();
    return pages;
  };
}

test.each([0, 4096, PIECE - 5000, PIECE - 1])(
  'a file that shrinks to %i bytes between the head of a reply and its data',
  async (left) => {
    const content = pattern(SIZE, 7);
    const disk = await setUp(content);
    const { client } = await disk.enter();
    beforeSending(disk, () => truncateSync(disk.image, left));
    const data = await client.read(0, PIECE);
    expect(data.equals(Buffer.concat([content.subarray(0, left), Buffer.alloc(PIECE - left)]))).toBe(true);
    expect(disk.lent()).toBe(PIECE);
    expect((await client.read(PIECE, PIECE)).every((byte) => byte === 0)).toBe(true);
    await client.leave();
  },
);

test('a disk that fails when the head of the reply has gone out ends that connection and no other', async () => {
  const content = pattern(SIZE, 8);
  const disk = await setUp(content);
  const { client } = await disk.enter();
  const other = (await disk.enter()).client;
  const lendPages = disk.backend.lendPages.bind(disk.backend);
  // Nothing can be read from a descriptor that is open for writing.
  const unreadable = openSync(path.join(folder, 'unreadable'), 'w');
  disk.backend.lendPages = (offset, bytes) => {
    const pages = lendPages(offset, bytes);
    return pages === null || offset > 0 ? pages : { ...pages, fd: unreadable };
  };
  await expect(client.read(0, PIECE)).rejects.toThrow();
  expect((await other.read(PIECE, PIECE)).equals(content.subarray(PIECE, 2 * PIECE))).toBe(true);
  closeSync(unreadable);
  await other.leave();
});

test('windows of a file, and a file of an odd length', async () => {
  const content = pattern(SIZE, 9).subarray(0, SIZE - 1235);
  const [offset, size] = [3 * 512, SIZE - 4096];
  const disk = await setUp(content, {}, { offset, size: size - 512 });
  const { client } = await disk.enter();
  for (const at of [0, 512, 5 * PIECE + 1024, size - 512 - PIECE]) {
    const from = offset + at;
    expect((await client.read(at, PIECE)).equals(content.subarray(from, from + PIECE))).toBe(true);
  }
  expect(disk.lent()).toBe(4 * PIECE);
  await client.leave();
});

test('the last sector of a file of an odd length reads as zeroes behind its end', async () => {
  const content = pattern(SIZE, 10).subarray(0, SIZE - 1235);
  const disk = await setUp(content);
  const { client } = await disk.enter();
  const at = SIZE - PIECE;
  const size = disk.backend.node.totalBytes;
  const expected = Buffer.concat([content.subarray(at), Buffer.alloc(PIECE)]).subarray(0, size - at);
  expect((await client.read(at, size - at)).equals(expected)).toBe(true);
  await client.leave();
});

test('a drained section holds back reads that wait for the socket, and lets them go on', async () => {
  const content = pattern(SIZE, 6);
  const { enter, backend } = await setUp(content);
  const { raw: connection, client } = await enter();
  connection.socket.pause();
  const reads = Array.from({ length: 20 }, (_, i) => client.read((i % 16) * PIECE, PIECE));
  await new Promise((resolve) => setTimeout(resolve, 10));
  const section = await drainedBegin(backend.node);
  connection.socket.resume();
  await new Promise((resolve) => setTimeout(resolve, 20));
  section.end();
  for (const [i, read] of reads.entries()) {
    const at = (i % 16) * PIECE;
    expect((await read).equals(content.subarray(at, at + PIECE))).toBe(true);
  }
  await client.leave();
});
