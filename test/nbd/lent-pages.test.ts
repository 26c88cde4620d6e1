/**
 * Whose pages may be lent to a socket, and that nobody else's are: a reply that a slow client has not taken yet must go on
 * saying what was there when the read was answered, wherever that has a meaning. Each of these tests fails when the driver
 * in question lends pages.
 */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { connect } from 'node:tls';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { BlockDriver } from '../../src/block/contract/driver.ts';
import { driverBehind, type LazyDriver } from '../../src/block/contract/face.ts';
import { drivers } from '../../src/drivers/table.ts';
import { Command, Option } from '../../src/nbd/protocol/messages.ts';
import { createTlsPsk } from '../../src/objects/tls-creds-psk.ts';
import { requirePeer } from '../peers/requires.ts';
import { DiskClient } from './disk-client.ts';
import { type ImageServer, type ImageServerOptions, serveNodes } from './image-server.ts';
import { infoPayload, RawClient } from './raw-client.ts';

const PIECE = 256 * 1024;
const SIZE = 16 * PIECE;

let folder: string;
let served: ImageServer | null;

beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'qb-lent-'));
  served = null;
});

afterEach(async () => {
  await served?.stop();
  rmSync(folder, { recursive: true });
});

/** Bytes that tell where they belong. */
function pattern(bytes: number, seed: number): Buffer {
  const data = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; at += 4) data.writeUInt32LE((Math.imul(at + 1, 2654435761) ^ seed) >>> 0, at);
  return data;
}

function makeFile(name: string, content: Buffer): string {
  const file = path.join(folder, name);
  writeFileSync(file, content);
  return file;
}

async function serveHere(
  nodes: readonly Readonly<Record<string, unknown>>[],
  exported: readonly string[],
  options: ImageServerOptions = {},
): Promise<ImageServer> {
  served = await serveNodes(nodes, exported, options);
  return served;
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

test('only files and raw images lend pages', async () => {
  const lenders: string[] = [];
  for (const [name, face] of Object.entries<BlockDriver | LazyDriver>(drivers)) {
    const driver = await driverBehind(face);
    if (driver.lendPages !== undefined) lenders.push(name);
  }
  // All but raw are one driver, which refuses for devices.
  expect(lenders.sort()).toEqual(['file', 'host_cdrom', 'host_device', 'io_uring', 'raw']);
});

test('the snapshot that a fleecing client reads is not changed by writes that are answered before it has read', async () => {
  const before = pattern(SIZE, 1);
  const disk = makeFile('disk', before);
  const target = makeFile('target', Buffer.alloc(SIZE));
  const server = await serveHere(
    [
      { driver: 'raw', 'node-name': 'disk', file: { driver: 'file', filename: disk } },
      { driver: 'raw', 'node-name': 'target', file: { driver: 'file', filename: target } },
      { driver: 'copy-before-write', 'node-name': 'cbw', file: 'disk', target: 'target' },
      { driver: 'snapshot-access', 'node-name': 'snapshot', file: 'cbw' },
    ],
    ['cbw', 'snapshot'],
  );
  const fleecing = await server.disk('snapshot').enter();
  const guest = await server.disk('cbw').enter();
  for (let round = 0; round < 8; round++) {
    const at = round * PIECE;
    fleecing.raw.socket.pause();
    const reads = [fleecing.client.read(at, PIECE), fleecing.client.read(at + PIECE / 2, PIECE / 2)];
    await pause(5);
    await guest.client.write(at, pattern(PIECE, 100 + round));
    fleecing.raw.socket.resume();
    const [all, half] = await Promise.all(reads);
    expect(all!.equals(before.subarray(at, at + PIECE))).toBe(true);
    expect(half!.equals(before.subarray(at + PIECE / 2, at + PIECE))).toBe(true);
    // And from the copy, which the next snapshot of the same place may reuse.
    expect((await fleecing.client.read(at, PIECE)).equals(before.subarray(at, at + PIECE))).toBe(true);
  }
  expect(server.disk('snapshot').lent() + server.disk('cbw').lent()).toBe(0);
  await fleecing.client.leave();
  await guest.client.leave();
});

test('clusters that change hands while their old content is on its way', async (context) => {
  requirePeer(context, 'qemu-img');
  const content = pattern(SIZE, 5);
  const image = path.join(folder, 'image.qcow2');
  execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', makeFile('source', content), image]);
  const server = await serveHere(
    [{ driver: 'qcow2', 'node-name': 'disk', discard: 'unmap', file: { driver: 'file', filename: image } }],
    ['disk'],
  );
  const disk = server.disk('disk');
  const { raw: connection, client } = await disk.enter();
  const other = (await disk.enter()).client;
  for (let round = 0; round < 8; round++) {
    const at = round * PIECE;
    connection.socket.pause();
    const read = client.read(at, PIECE);
    const late = Array.from({ length: 6 }, () => client.read(at, PIECE));
    await pause(5);
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
  expect(disk.lent()).toBe(0);
  await client.leave();
  await other.leave();
});

test('a backing image is not lent through its overlay', async (context) => {
  requirePeer(context, 'qemu-img');
  const content = pattern(SIZE, 6);
  const base = makeFile('base', content);
  const overlay = path.join(folder, 'overlay.qcow2');
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', overlay]);
  const server = await serveHere(
    [{ driver: 'qcow2', 'node-name': 'disk', file: { driver: 'file', filename: overlay } }],
    ['disk'],
  );
  const { client } = await server.disk('disk').enter();
  expect((await client.read(0, PIECE)).equals(content.subarray(0, PIECE))).toBe(true);
  expect(server.disk('disk').lent()).toBe(0);
  await client.leave();
});

test('a write beside a read of a raw image: all of the answer is old or new, and nothing else', async () => {
  const before = pattern(SIZE, 7);
  const after = pattern(SIZE, 8);
  const file = { driver: 'file', filename: makeFile('disk', before) };
  const server = await serveHere([{ driver: 'raw', 'node-name': 'disk', file }], ['disk']);
  const { raw: connection, client } = await server.disk('disk').enter();
  const writer = (await server.disk('disk').enter()).client;
  connection.socket.pause();
  const reads = Array.from({ length: 12 }, (_, i) => client.read(i * PIECE, PIECE));
  await pause(5);
  for (let at = 0; at < SIZE; at += 2 * PIECE) await writer.write(at, after.subarray(at, at + PIECE));
  connection.socket.resume();
  for (const [i, data] of (await Promise.all(reads)).entries()) {
    let wrong = 0;
    for (let at = 0; at < PIECE; at += 4) {
      const word = data.readUInt32LE(at);
      const isOld = word === before.readUInt32LE(i * PIECE + at);
      if (!isOld && !(i % 2 === 0 && word === after.readUInt32LE(i * PIECE + at))) wrong++;
    }
    expect(wrong).toBe(0);
  }
  // Whoever asks after the write gets what was written.
  expect((await client.read(0, PIECE)).equals(after.subarray(0, PIECE))).toBe(true);
  expect(server.disk('disk').lent()).toBeGreaterThan(0);
  await client.leave();
  await writer.leave();
});

test('nothing is lent to a client that speaks TLS', async () => {
  const key = Buffer.alloc(32, 0x5c);
  writeFileSync(path.join(folder, 'keys.psk'), `alice:${key.toString('hex')}\n`);
  const { credentials } = createTlsPsk({
    ...{ 'qom-type': 'tls-creds-psk', id: 'tls0', dir: folder, endpoint: 'server' },
  });
  const content = pattern(SIZE, 9);
  const file = { driver: 'file', filename: makeFile('disk', content) };
  const tls = { credentials, authzId: null, findAuthorizer: () => null };
  const server = await serveHere([{ driver: 'raw', 'node-name': 'disk', file }], ['disk'], {
    settings: { tls },
  });
  const plain = await server.server.connect();
  await plain.greet();
  expect(await plain.ask(Option.STARTTLS)).toEqual(['STARTTLS ACK']);
  plain.socket.removeAllListeners('data');
  const session = connect({
    socket: plain.socket,
    ciphers: 'PSK:TLS_AES_128_GCM_SHA256',
    pskCallback: () => ({ identity: 'alice', psk: key }),
    checkServerIdentity: () => undefined,
  });
  await new Promise((resolve, reject) => session.once('secureConnect', resolve).once('error', reject));
  const encrypted = new RawClient(session);
  expect((await encrypted.ask(Option.GO, infoPayload('disk'))).at(-1)).toBe('GO ACK');
  const client = DiskClient.over(encrypted, 'simple');
  for (let at = 0; at < SIZE; at += PIECE)
    expect((await client.read(at, PIECE)).equals(content.subarray(at, at + PIECE))).toBe(true);
  expect(server.disk('disk').lent()).toBe(0);
  await client.leave();
});
