/** ftp and ftps against vsftpd: data anywhere, few transfers for a reader from front to back, a server that goes away. */

import { rmSync, utimesSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { E } from '../../../src/errors/errno.ts';
import { openRemote, type RemoteNode, testPattern } from '../../drivers/network/remote-node.ts';
import { makeScratchDir } from '../daemons.ts';
import { hasPeer, requirePeer } from '../requires.ts';
import { type FtpServer, startVsftpd } from './servers/vsftpd.ts';

const ready = hasPeer('vsftpd') && hasPeer('openssl') && process.getuid?.() === 0;
const KiB = 1024;
const DATA = testPattern(3 * 1024 * KiB + 1000);
let dir: string;
let servers: Readonly<Record<'ftp' | 'ftps', FtpServer>>;
let remote: RemoteNode | null = null;

beforeAll(async () => {
  if (!ready) return;
  dir = makeScratchDir();
  servers = { ftp: await startVsftpd(dir, false), ftps: await startVsftpd(dir, true) };
  for (const { root } of Object.values(servers)) {
    writeFileSync(path.join(root, 'disk.img'), DATA);
    writeFileSync(path.join(root, 'empty.img'), '');
  }
});

afterEach(async () => {
  await remote?.close();
  remote = null;
});

afterAll(async () => {
  if (!ready) return;
  for (const server of Object.values(servers)) await server.kill();
  rmSync(dir, { recursive: true });
});

async function open(
  scheme: 'ftp' | 'ftps',
  name = 'disk.img',
  more: Record<string, unknown> = {},
): Promise<RemoteNode> {
  const tls = scheme === 'ftps' ? { sslverify: false } : {};
  const url = `${scheme}://127.0.0.1:${servers[scheme].port}/${name}`;
  remote = await openRemote({ driver: scheme, url, 'retry-delay': 20, ...tls, ...more });
  return remote;
}

describe.each(['ftp', 'ftps'] as const)('%s', (scheme) => {
  test('reads anywhere, several at a time, and behind the end', async (context) => {
    requirePeer(context, 'vsftpd', 'openssl');
    const { read, node } = await open(scheme);
    expect(node.totalBytes).toBe(3 * 1024 * KiB + 1024);
    const padded = Buffer.concat([DATA, Buffer.alloc(24)]);
    for (let round = 0; round < 5; round++) {
      await Promise.all(
        Array.from({ length: 8 }, async () => {
          const offset = Math.floor(Math.random() * (padded.length - 1));
          const bytes = Math.min(padded.length - offset, 1 + Math.floor(Math.random() * 300_000));
          expect((await read(offset, bytes)).equals(padded.subarray(offset, offset + bytes))).toBe(true);
        }),
      );
    }
    const step = 128 * KiB;
    const pieces = await Promise.all(Array.from({ length: 24 }, (_, i) => read(i * step, step)));
    expect(Buffer.concat(pieces).equals(DATA.subarray(0, 24 * step))).toBe(true);
  });

  test('a server that is killed in the middle and comes back', async (context) => {
    requirePeer(context, 'vsftpd', 'openssl');
    const { read } = await open(scheme, 'disk.img', { retries: 12 });
    await read(0, 4 * KiB);
    const reads = Promise.all([read(4 * KiB, 1024 * KiB), read(2048 * KiB, 512 * KiB)]);
    await servers[scheme].kill();
    await servers[scheme].start();
    const [first, second] = await reads;
    expect(first.equals(DATA.subarray(4 * KiB, 1028 * KiB))).toBe(true);
    expect(second.equals(DATA.subarray(2048 * KiB, 2560 * KiB))).toBe(true);
  });
});

test('what cannot be opened', async (context) => {
  requirePeer(context, 'vsftpd', 'openssl');
  expect((await open('ftp', 'empty.img')).node.totalBytes).toBe(0);
  await expect(open('ftp', 'none.img')).rejects.toThrow('CURL: Error opening file: The file does not exist');
  await expect(open('ftp', 'x', { username: 'a' })).rejects.toThrow('Access denied: 530');
  await expect(open('ftp', '%0d%0aDELE x')).rejects.toThrow('illegal format');
  await expect(open('ftps', 'disk.img', { sslverify: true })).rejects.toThrow(
    'server certificate verification failed',
  );
});

test('a file that has changed is noticed when its server is asked again', async (context) => {
  requirePeer(context, 'vsftpd', 'openssl');
  const { read, reports } = await open('ftp', 'disk.img', { connections: 1 });
  await read(0, 512);
  utimesSync(path.join(servers.ftp.root, 'disk.img'), 1_000_000_000, 1_000_000_000);
  await expect(read(2048 * KiB, 512)).rejects.toMatchObject({ errno: E.ESTALE });
  expect(reports).toHaveLength(1);
});
