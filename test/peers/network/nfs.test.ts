/** nfs against a real server (nfs-ganesha), which dies and comes back under way. */

import { execFile } from 'node:child_process';
import { readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { openRemote, type RemoteNode, testPattern } from '../../drivers/network/remote-node.ts';
import { makeScratchDir, repositoryRoot } from '../daemons.ts';
import { hasPeer, requirePeer } from '../requires.ts';
import { randomIo } from './random-io.ts';
import { type NfsServer, startGanesha } from './servers/ganesha.ts';

const ready = hasPeer('nfs-ganesha') && hasPeer('libnfs');
const run = promisify(execFile);
const MiB = 1024 * 1024;
const img = path.join(repositoryRoot, 'daemon/bin/qblock-img');
let dir: string;
let share: string;
let server: NfsServer | null = null;
let remote: RemoteNode | null = null;

beforeAll(async () => {
  if (!ready) return;
  dir = makeScratchDir();
  server = await startGanesha(dir);
  ({ share } = server);
}, 60_000);

afterEach(async () => {
  await remote?.close();
  remote = null;
});

afterAll(() => {
  if (!ready) return;
  server?.end();
  rmSync(dir, { recursive: true });
});

async function open(name: string, more: Record<string, unknown> = {}): Promise<RemoteNode> {
  const options = {
    driver: 'nfs',
    server: { type: 'inet', host: '127.0.0.1' },
    path: path.join(share, name),
  };
  remote = await openRemote({ ...options, ...more }, { writable: more['read-only'] !== true });
  return remote;
}

test('random reads and writes; sizes', async (context) => {
  requirePeer(context, 'nfs-ganesha', 'libnfs');
  const file = path.join(share, 'model.img');
  writeFileSync(file, testPattern(16 * MiB));
  const node = await open('model.img');
  const model = readFileSync(file);
  await randomIo(node, model, { rounds: 12, zeroes: true });
  expect(readFileSync(file).equals(model)).toBe(true);
  await node.backend.truncate(20 * MiB, true, 'off');
  expect(await node.read(20 * MiB - 512, 512)).toEqual(Buffer.alloc(512));
  await node.backend.truncate(MiB, true, 'off');
  expect(statSync(file).size).toBe(MiB);
});

test('a server that dies and comes back: requests go on', async (context) => {
  requirePeer(context, 'nfs-ganesha', 'libnfs');
  const file = path.join(share, 'again.img');
  writeFileSync(file, testPattern(4 * MiB));
  const node = await open('again.img');
  let restarted: Promise<void> | null = null;
  const model = readFileSync(file);
  await randomIo(node, model, {
    rounds: 12,
    between(round) {
      if (round === 4) restarted = server!.kill().then(server!.start);
    },
  });
  await restarted;
  expect(readFileSync(file).equals(model)).toBe(true);
}, 60_000);

test('the tools: create, convert, names, errors', async (context) => {
  requirePeer(context, 'nfs-ganesha', 'libnfs');
  const name = (file: string): string => `nfs://127.0.0.1${path.join(share, file)}`;
  const file = path.join(dir, 'data.img');
  writeFileSync(file, testPattern(3 * MiB));
  await run(img, ['convert', '-f', 'raw', '-O', 'qcow2', file, name('new.qcow2')]);
  await run(img, ['compare', '-f', 'raw', '-F', 'qcow2', file, name('new.qcow2')]);
  const { stdout } = await run(img, ['info', '--output=json', name('new.qcow2')]);
  expect(JSON.parse(stdout)).toMatchObject({ format: 'qcow2', filename: name('new.qcow2') });
  await expect(run(img, ['info', name('none')])).rejects.toThrow(
    'Failed to open file : open call failed with "NFS: Lookup of /none failed with NFS3ERR_NOENT(-2)"',
  );
  await expect(run(img, ['info', `${name('x')}?a=1`])).rejects.toThrow('Unknown NFS parameter name: a');
});
