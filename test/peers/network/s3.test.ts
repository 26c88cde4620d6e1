/** s3 against a server (signatures are checked by test/drivers/network/s3-signature.test.ts): objects read in ranges, and made from front to back. */

import { execFile } from 'node:child_process';
import { rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { drivers } from '../../../src/drivers/table.ts';
import { E } from '../../../src/errors/errno.ts';
import { openRemote, type RemoteNode, testPattern } from '../../drivers/network/remote-node.ts';
import { makeScratchDir, repositoryRoot } from '../daemons.ts';
import { type S3Server, startS3 } from './servers/s3.ts';

const run = promisify(execFile);
const MiB = 1024 * 1024;
const img = path.join(repositoryRoot, 'daemon/bin/qblock-img');
const secrets = { key: 'S3RVER' };
let dir: string;
let server: S3Server;
let remote: RemoteNode | null = null;

beforeAll(async () => {
  dir = makeScratchDir();
  server = await startS3(path.join(dir, 's3'));
});

afterEach(async () => {
  await remote?.close();
  remote = null;
});

afterAll(async () => {
  await server.close();
  rmSync(dir, { recursive: true });
});

async function open(key: string, more: Record<string, unknown> = {}, writable = false): Promise<RemoteNode> {
  remote = await openRemote({ ...server.options(key), ...more }, { secrets, writable });
  return remote;
}

/** Announces an object, as blockdev-create does. */
async function create(key: string, size: number): Promise<void> {
  const { layer, close } = await openRemote({ driver: 'null-co' }, { secrets });
  const { creation } = await drivers.s3.load();
  const { driver: _none, ...location } = server.options(key);
  await creation!.create!(layer, { location, size }, { update: () => undefined });
  await close();
}

async function close(): Promise<void> {
  await remote!.close();
  remote = null;
}

test('an object is written in parts, a little out of order, and is there when it is whole', async () => {
  const data = testPattern(83 * MiB);
  await create('a/new object+%.img', data.length);
  const writer = await open('a/new object+%.img', {}, true);
  const step = MiB;
  for (let at = 0; at < data.length; at += 8 * step) {
    const places = Array.from({ length: 8 }, (_, i) => at + (7 - i) * step).filter(
      (place) => place < data.length,
    );
    await Promise.all(places.map((place) => writer.write(place, data.subarray(place, place + step))));
  }
  await expect(writer.write(0, data.subarray(0, step))).rejects.toMatchObject({ errno: E.ESPIPE });
  await expect(openRemote(server.options('a/new object+%.img'), { secrets })).rejects.toThrow(
    'has not been written',
  );
  await writer.backend.flush();
  await close();
  const reader = await open('a/new object+%.img');
  expect(reader.node.totalBytes).toBe(data.length);
  for (let i = 0; i < 20; i++) {
    const offset = Math.floor(Math.random() * (data.length - MiB));
    expect((await reader.read(offset, MiB)).equals(data.subarray(offset, offset + MiB))).toBe(true);
  }
  expect(reader.filename).toBe(
    `s3://images/a/new%20object%2B%25.img?endpoint=${encodeURIComponent(`http://127.0.0.1:${server.port}`)}`,
  );
});

test('an object of which something is missing is not made, and said so', async () => {
  await create('part.img', 4 * MiB);
  const { write, reports } = await open('part.img', {}, true);
  await write(0, testPattern(MiB));
  await write(2 * MiB, testPattern(2 * MiB));
  await close();
  expect(reports).toEqual([expect.stringContaining('so it was not made')]);
  await expect(open('part.img')).rejects.toThrow('has not been written');
});

test('what is there is not written to', async () => {
  await create('zero.img', 0);
  expect((await open('zero.img')).node.totalBytes).toBe(0);
  await close();
  await create('done.img', MiB);
  const { write } = await open('done.img', {}, true);
  await write(0, testPattern(MiB));
  await close();
  await expect(open('done.img', {}, true)).rejects.toThrow('only be written when they are made');
  const { node } = await open('done.img', { 'auto-read-only': true, 'read-only': false });
  expect(node.readOnly).toBe(true);
});

test('wrong credentials, no object, odd options', async () => {
  await expect(open('none.img')).rejects.toThrow('error: 404');
  await expect(open('none.img', { endpoint: 'ftp://x' })).rejects.toThrow("Parameter 'endpoint'");
  await expect(open('../x')).rejects.toThrow("Parameter 'key'");
  await expect(open('x', { 'secret-access-key': undefined })).rejects.toThrow('must be used together');
});

test('the tools convert to an object and from it, with credentials of the environment', async () => {
  const source = path.join(dir, 'source.raw');
  const data = testPattern(12 * MiB);
  data.fill(0, 5 * MiB);
  writeFileSync(source, data);
  const env = {
    ...process.env,
    AWS_ACCESS_KEY_ID: 'S3RVER',
    AWS_SECRET_ACCESS_KEY: 'S3RVER',
    AWS_ENDPOINT_URL: `http://127.0.0.1:${server.port}`,
  };
  await run(img, ['convert', '-f', 'raw', '-O', 'raw', source, 's3://images/tool.raw'], { env });
  await run(img, ['compare', '-f', 'raw', '-F', 'raw', source, 's3://images/tool.raw'], { env });
  const { stdout } = await run(img, ['info', 's3://images/tool.raw'], { env });
  expect(stdout).toContain('image: s3://images/tool.raw\nfile format: raw\nvirtual size: 12 MiB');
});
