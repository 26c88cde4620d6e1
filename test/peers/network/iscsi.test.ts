/** iscsi against a real target (tgt), also through a connection that breaks. */

import { execFile } from 'node:child_process';
import { readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { Status } from '../../../src/block/contract/request.ts';
import { openRemote, type RemoteNode, testPattern } from '../../drivers/network/remote-node.ts';
import { makeScratchDir, repositoryRoot } from '../daemons.ts';
import { hasPeer, requirePeer } from '../requires.ts';
import { randomIo } from './random-io.ts';
import { freePort } from './servers/ports.ts';
import { type IscsiServer, startTgt } from './servers/tgt.ts';

const ready = hasPeer('tgtd') && hasPeer('libiscsi');
const run = promisify(execFile);
const MiB = 1024 * 1024;
const SIZE = 32 * MiB;
const TARGET = 'iqn.2026-01.test:disk';
const GUARDED = 'iqn.2026-01.test:guarded';
const img = path.join(repositoryRoot, 'daemon/bin/qblock-img');
let dir: string;
let disk: string;
let port: number;
let server: IscsiServer | null = null;
let remote: RemoteNode | null = null;

beforeAll(async () => {
  if (!ready) return;
  dir = makeScratchDir();
  disk = path.join(dir, 'disk.img');
  writeFileSync(disk, '');
  truncateSync(disk, SIZE);
  server = await startTgt(dir);
  ({ port } = server);
  server.addTarget(TARGET, disk);
  server.addTarget(GUARDED, disk, { user: 'jane', password: 'secretsecret' });
});

afterEach(async () => {
  await remote?.close();
  remote = null;
});

afterAll(() => {
  if (!ready) return;
  server?.kill();
  rmSync(dir, { recursive: true });
});

async function open(more: Record<string, unknown> = {}): Promise<RemoteNode> {
  const place = { transport: 'tcp', portal: `127.0.0.1:${port}`, target: TARGET, lun: 1 };
  remote = await openRemote(
    { driver: 'iscsi', ...place, discard: 'unmap', ...more },
    { writable: true, secrets: { right: 'secretsecret', wrong: 'wrongwrongwrong' } },
  );
  return remote;
}

test('random reads and writes, several at a time, end up on the disk', async (context) => {
  requirePeer(context, 'tgtd', 'libiscsi');
  const model = readFileSync(disk);
  await randomIo(await open(), model, { rounds: 20, zeroes: true });
  expect(readFileSync(disk).equals(model)).toBe(true);
});

test('connections that break under way: the library logs in anew, nothing is lost', async (context) => {
  requirePeer(context, 'tgtd', 'libiscsi');
  const sockets = new Set<Socket>();
  let accepted = 0;
  const proxy: Server = createServer((client) => {
    accepted++;
    const target = connect(port, '127.0.0.1');
    for (const socket of [client, target]) {
      sockets.add(socket);
      socket.on('error', () => undefined).on('close', () => sockets.delete(socket));
    }
    client.pipe(target).pipe(client);
  });
  const front = await freePort();
  await new Promise<void>((resolve) => proxy.listen(front, '127.0.0.1', resolve));
  try {
    const node = await open({ portal: `127.0.0.1:${front}` });
    const model = readFileSync(disk);
    await randomIo(node, model, {
      rounds: 6,
      zeroes: true,
      between(round) {
        if (round % 3 === 1) for (const socket of sockets) socket.destroy();
      },
    });
    expect(readFileSync(disk).equals(model)).toBe(true);
    expect(accepted).toBeGreaterThan(2);
    await node.close();
    remote = null;
  } finally {
    for (const socket of sockets) socket.destroy();
    proxy.close();
  }
});

test('unmapped blocks are zeroes; sizes stay; CHAP', async (context) => {
  requirePeer(context, 'tgtd', 'libiscsi');
  const { node, backend, write } = await open();
  await write(0, testPattern(MiB));
  await backend.pdiscard(MiB, SIZE - MiB);
  const status = await node.layer.graphLock.withRead((guard) =>
    node.driver.blockStatus!(node, guard, true, 2 * MiB, MiB),
  );
  expect([status.flags & Status.zero, status.bytes]).toEqual([Status.zero, MiB]);
  await expect(backend.truncate(SIZE + 512, true, 'off')).rejects.toThrow('Cannot resize iSCSI devices');
  await remote?.close();
  remote = null;
  const guarded = { target: GUARDED, user: 'jane' };
  await expect(open({ ...guarded, 'password-secret': 'wrong' })).rejects.toThrow('Failed to connect to LUN');
  await (await open({ ...guarded, 'password-secret': 'right', 'header-digest': 'crc32c' })).read(0, 512);
});

test('the tools: names, convert, errors', async (context) => {
  requirePeer(context, 'tgtd', 'libiscsi');
  const file = path.join(dir, 'data.img');
  writeFileSync(file, Buffer.concat([testPattern(3 * MiB), Buffer.alloc(SIZE - 3 * MiB)]));
  const name = (target: string, lun: number, at = port): string => `iscsi://127.0.0.1:${at}/${target}/${lun}`;
  await run(img, ['convert', '-n', '-f', 'raw', '-O', 'raw', file, name(TARGET, 1)]);
  expect(readFileSync(disk).equals(readFileSync(file))).toBe(true);
  const none = await freePort();
  for (const [image, text] of [
    [name(TARGET, 7), 'LOGICAL_UNIT_NOT_SUPPORTED(0x2500)'],
    [name('iqn.none', 1), 'Failed to log in to target. Status: Target not found(515)'],
    [name(TARGET, 1, none), 'Connection refused(111)'],
    ['iscsi://a', 'Failed to parse URL : iscsi://a'],
  ] as const)
    await expect(run(img, ['info', image])).rejects.toThrow(text);
});
