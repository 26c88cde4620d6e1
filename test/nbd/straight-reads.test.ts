/**
 * Large reads straight from a mapping of the file: slow and vanishing clients, files that shrink below the mapping,
 * clusters that change hands while their old content is on its way, drained sections. That the mapping is used at all is
 * told by the mappedReadDone calls.
 */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { createEngine } from '../../src/aio/create-engine.ts';
import type { EngineKind } from '../../src/aio/engine.ts';
import type { BlockBackend } from '../../src/block/backend.ts';
import { Perm } from '../../src/block/contract/request.ts';
import { drainedBegin } from '../../src/block/graph/drain.ts';
import { BlockLayer } from '../../src/block/layer.ts';
import { addNode } from '../../src/block/open/open.ts';
import { qcow2 } from '../../src/drivers/formats/qcow2/driver.ts';
import { raw } from '../../src/drivers/formats/raw.ts';
import { file } from '../../src/drivers/protocols/file/file.ts';
import { Command } from '../../src/nbd/protocol/messages.ts';
import { requirePeer } from '../peers/requires.ts';
import { DiskClient, type Style } from './disk-client.ts';
import type { RawClient } from './raw-client.ts';
import { makeExport, serve, type TestServer } from './serve.ts';

const PIECE = 256 * 1024;
const SIZE = 16 * PIECE;

/** Bytes that tell where they belong. */
function pattern(bytes: number, seed: number): Buffer {
  const data = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; at += 4) data.writeUInt32LE((Math.imul(at + 1, 2654435761) ^ seed) >>> 0, at);
  return data;
}

interface Setup {
  readonly server: TestServer;
  readonly layer: BlockLayer;
  readonly backend: BlockBackend;
  readonly image: string;
  /** Bytes that have been sent from a mapping. */
  readonly mapped: () => number;
  enter(style?: Style): Promise<{ raw: RawClient; client: DiskClient }>;
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

async function setUp(
  format: 'raw' | 'qcow2',
  content: Buffer,
  kind: EngineKind = 'io_uring',
): Promise<Setup> {
  const source = path.join(folder, 'source');
  const image = format === 'raw' ? source : path.join(folder, 'image.qcow2');
  writeFileSync(source, content);
  if (format === 'qcow2') execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', source, image]);
  readFileSync(image);
  const { engine } = createEngine(kind);
  const layer = new BlockLayer({
    engine,
    events: { emit: () => undefined },
    drivers: { file, raw, qcow2 } as never,
  });
  const node = await addNode(layer, {
    ...{ driver: format, 'node-name': 'disk', discard: 'unmap' },
    file: { driver: 'file', filename: image },
  });
  const exported: { exp: ReturnType<typeof makeExport> | null } = { exp: null };
  const owner = {
    describe: () => 'a test',
    drainedBegin: () => {
      if (exported.exp !== null) exported.exp.paused = true;
    },
    drainedEnd: () => {
      if (exported.exp === null) return;
      exported.exp.paused = false;
      for (const client of exported.exp.clients) client.resume();
    },
  };
  const backend = await layer.createBackend(
    node,
    { perm: Perm.consistentRead | Perm.write, shared: Perm.all },
    owner,
  );
  let bytesMapped = 0;
  backend.mappedReadDone = ((bytes: number) => {
    bytesMapped += bytes;
  }) as () => void;
  exported.exp = makeExport(backend, content.length);
  const server = await serve([exported.exp], {}, kind);
  cleanUp.push(async () => {
    await server.stop();
    await backend.close();
    await layer.deleteNode('disk');
    engine.close();
  });
  return {
    server,
    layer,
    backend,
    image,
    mapped: () => bytesMapped,
    enter: async (style = 'simple') => {
      const connection = await server.connect();
      return { raw: connection, client: await DiskClient.enter(connection, 'disk', style) };
    },
  };
}

describe.each(['io_uring', 'threads'] as const)('engine %s', (kind) => {
  test.each(['simple', 'structured', 'extended'] as const)(
    'many reads to a slow %s client',
    async (style) => {
      const content = pattern(SIZE, 1);
      const { enter, mapped } = await setUp('raw', content, kind);
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
      expect(mapped()).toBeGreaterThan(8 * PIECE);
      await client.leave();
    },
  );

  test('a read larger than the socket holds', async () => {
    const content = pattern(SIZE, 2);
    const { enter, mapped } = await setUp('raw', content, kind);
    const { client } = await enter();
    for (let i = 0; i < 3; i++)
      expect((await client.read(512, SIZE - 512)).equals(content.subarray(512))).toBe(true);
    expect(mapped()).toBe(3 * (SIZE - 512));
    await client.leave();
  });

  test('a client that goes away with reads waiting', async () => {
    const { enter, server } = await setUp('raw', pattern(SIZE, 3), kind);
    const { raw: connection, client } = await enter();
    connection.socket.pause();
    const reads = Array.from({ length: 40 }, () => client.read(0, PIECE).catch(() => null));
    await new Promise((resolve) => setTimeout(resolve, 20));
    connection.socket.destroy();
    await Promise.all(reads);
    while (server.server.connectionCount > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  });
});

test('a file that shrinks below its mapping reads as zeroes behind its end, and nothing crashes', async () => {
  const content = pattern(SIZE, 4);
  const { enter, image, mapped } = await setUp('raw', content);
  const { raw: connection, client } = await enter();
  expect((await client.read(8 * PIECE, PIECE)).equals(content.subarray(8 * PIECE, 9 * PIECE))).toBe(true);
  expect(mapped()).toBe(PIECE);
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

test('clusters that change hands while their old content is on its way', async (context) => {
  requirePeer(context, 'qemu-img');
  const content = pattern(SIZE, 5);
  const { enter, mapped } = await setUp('qcow2', content);
  const { raw: connection, client } = await enter();
  const other = (await enter()).client;
  for (let round = 0; round < 8; round++) {
    const at = round * PIECE;
    connection.socket.pause();
    const read = client.read(at, PIECE);
    const late = Array.from({ length: 6 }, () => client.read(at, PIECE));
    await new Promise((resolve) => setTimeout(resolve, 5));
    // What it has read is given back, and the clusters are given to another part of the disk.
    await other.command(Command.TRIM, at, PIECE);
    await other.command(Command.FLUSH, 0, 0);
    await other.write(at, pattern(PIECE, 100 + round));
    connection.socket.resume();
    expect((await read).equals(content.subarray(at, at + PIECE))).toBe(true);
    for (const data of await Promise.all(late)) {
      const isOld = data.equals(content.subarray(at, at + PIECE));
      expect(isOld || data.equals(pattern(PIECE, 100 + round)) || data.every((byte) => byte === 0)).toBe(
        true,
      );
    }
  }
  expect(mapped()).toBeGreaterThan(0);
  await client.leave();
  await other.leave();
});

test('a drained section holds back reads that wait for the socket, and lets them go on', async () => {
  const content = pattern(SIZE, 6);
  const { enter, backend } = await setUp('raw', content);
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
