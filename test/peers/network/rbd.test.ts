/** rbd against a real (one-machine) Ceph cluster. */

import { execFile, execFileSync } from 'node:child_process';
import { rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { Status } from '../../../src/block/contract/request.ts';
import { openRemote, type RemoteNode, testPattern } from '../../drivers/network/remote-node.ts';
import { makeScratchDir, repositoryRoot } from '../daemons.ts';
import { hasPeer, requirePeer } from '../requires.ts';
import { randomIo } from './random-io.ts';
import { type CephCluster, startCeph } from './servers/ceph.ts';

const ready = hasPeer('ceph') && hasPeer('librbd');
const run = promisify(execFile);
const KiB = 1024;
const MiB = 1024 * KiB;
const img = path.join(repositoryRoot, 'daemon/bin/qblock-img');
let dir: string;
let ceph: CephCluster;
let remote: RemoteNode | null = null;

beforeAll(async () => {
  if (!ready) return;
  dir = makeScratchDir();
  ceph = await startCeph(dir);
}, 90_000);

afterEach(async () => {
  await remote?.close();
  remote = null;
});

afterAll(() => {
  if (!ready) return;
  ceph?.kill();
  rmSync(dir, { recursive: true });
});

async function open(image: string, more: Record<string, unknown> = {}): Promise<RemoteNode> {
  const options = { driver: 'rbd', pool: 'rbd', image, conf: ceph.conf, ...more };
  remote = await openRemote(options, { writable: more['read-only'] !== true, secrets: { s: 'open sesame' } });
  return remote;
}

function make(image: string, bytes: number): void {
  ceph.run('rbd', 'create', '--size', `${bytes / KiB}K`, image);
}

const name = (image: string): string => `rbd:rbd/${image}:conf=${ceph.conf}`;

test('random reads and writes, several at a time, end up in the image', async (context) => {
  requirePeer(context, 'ceph', 'librbd', 'qemu-img', 'qemu-block-extra');
  const size = 16 * MiB;
  make('model', size);
  const model = Buffer.alloc(size);
  await randomIo(await open('model'), model, { rounds: 25, zeroes: true });
  await remote?.close();
  remote = null;
  const file = path.join(dir, 'model.img');
  writeFileSync(file, model);
  execFileSync('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', file, name('model')]);
});

test('status by the object map; sizes; growing behind the end', async (context) => {
  requirePeer(context, 'ceph', 'librbd');
  make('status', 64 * MiB);
  const { node, backend, write, read } = await open('status');
  await write(9 * MiB, testPattern(4096));
  await backend.flush();
  const status = async (offset: number, bytes: number) => {
    const { flags, bytes: length } = await node.layer.graphLock.withRead((guard) =>
      node.driver.blockStatus!(node, guard, true, offset, bytes),
    );
    return [(flags & Status.zero) === 0 ? 'data' : 'zero', length / MiB];
  };
  expect(await status(0, 64 * MiB)).toEqual(['zero', 8]);
  expect(await status(1 * MiB, 2 * MiB)).toEqual(['zero', 2]);
  expect(await status(8 * MiB, 56 * MiB)).toEqual(['data', 4]);
  expect(await status(10 * MiB, 1 * MiB)).toEqual(['data', 1]);
  expect(await status(12 * MiB, 52 * MiB)).toEqual(['zero', 52]);
  await backend.truncate(65 * MiB, true, 'off');
  await write(65 * MiB - 512, testPattern(512));
  await backend.truncate(64 * MiB, true, 'off');
  await backend.truncate(66 * MiB, true, 'off');
  expect(await read(65 * MiB - 512, 512)).toEqual(Buffer.alloc(512));
  expect(ceph.run('rbd', 'info', 'status')).toContain('size 66 MiB');
});

test('snapshots and namespaces, read by name', async (context) => {
  requirePeer(context, 'ceph', 'librbd');
  ceph.run('rbd', 'namespace', 'create', 'rbd/space');
  ceph.run('rbd', 'create', '--size', '4M', 'rbd/space/i');
  const { write, backend } = await open('i', { namespace: 'space' });
  await write(0, testPattern(4096, 5));
  await backend.flush();
  ceph.run('rbd', 'snap', 'create', 'rbd/space/i@before');
  await write(0, testPattern(4096, 6));
  await remote?.close();
  remote = null;
  await expect(open('i', { namespace: 'space', snapshot: 'before' })).rejects.toThrow('read-only');
  const snapshot = await open('i', { namespace: 'space', snapshot: 'before', 'read-only': true });
  expect(await snapshot.read(0, 4096)).toEqual(testPattern(4096, 5));
});

test('the tools: create, convert, encryption, names, errors', async (context) => {
  requirePeer(context, 'ceph', 'librbd');
  const file = path.join(dir, 'data.img');
  writeFileSync(file, Buffer.concat([testPattern(5 * MiB + 512), Buffer.alloc(3 * MiB - 512)]));
  await run(img, ['convert', '-f', 'raw', '-O', 'qcow2', file, name('converted')]);
  await run(img, ['compare', '-f', 'raw', '-F', 'qcow2', file, name('converted')]);
  const info = JSON.parse((await run(img, ['info', '--output=json', name('converted')])).stdout);
  expect(info.format).toBe('qcow2');
  await run(img, ['create', '-f', 'raw', '-o', 'cluster_size=64k', name('small'), '1M']);
  expect(ceph.run('rbd', 'info', 'small')).toContain('order 16');
  const overlay = path.join(dir, 'overlay.qcow2');
  await run(img, ['create', '-f', 'qcow2', '-b', name('converted'), '-F', 'qcow2', overlay]);
  await run(img, ['compare', '-f', 'raw', '-F', 'qcow2', file, overlay]);
  const secret = ['--object', 'secret,id=s,data=open sesame'];
  const encryption = 'encrypt.format=luks2,encrypt.key-secret=s';
  await run(img, ['create', ...secret, '-f', 'raw', '-o', encryption, name('locked'), '40M']);
  const locked = await open('locked', { encrypt: { format: 'luks2', 'key-secret': 's' } });
  expect(locked.node.totalBytes).toBe(40 * MiB);
  await locked.backend.truncate(42 * MiB, true, 'off');
  expect(await locked.backend.getLength()).toBe(42 * MiB);
  await locked.write(0, testPattern(4096, 9));
  await locked.backend.flush();
  expect(await locked.read(0, 4096)).toEqual(testPattern(4096, 9));
  await locked.close();
  remote = null;
  const below = await open('locked', { 'read-only': true });
  expect((await below.read(0, 4)).toString('latin1')).toBe('LUKS');
  const failures: readonly (readonly [string, string])[] = [
    [name('none'), 'error reading header from none: No such file or directory'],
    [`rbd:none/none:conf=${ceph.conf}`, 'error opening pool none: No such file or directory'],
    [`rbd:rbd/x:conf=${dir}/none`, `error reading conf file ${dir}/none: No such file or directory`],
    ['rbd:rbd', 'Pool name is required'],
    ['rbd:a/b:foo', 'conf option foo has no value'],
    ['rbd:a/b:foo=1', 'invalid conf option foo: No such file or directory'],
  ];
  for (const [image, text] of failures)
    await expect(run(img, ['info', image])).rejects.toThrow(`Could not open '${image}': ${text}`);
});

test('an OSD that stops for a while: requests wait, and can be given up', async (context) => {
  requirePeer(context, 'ceph', 'librbd');
  make('patient', 8 * MiB);
  const { write, read, node, backend } = await open('patient', { cache: { direct: true } });
  await write(0, testPattern(4096));
  await backend.flush();
  ceph.freezeOsd(true);
  try {
    const waiting = read(0, 4096);
    await new Promise((resolve) => setTimeout(resolve, 300));
    ceph.freezeOsd(false);
    expect(await waiting).toEqual(testPattern(4096));
    ceph.freezeOsd(true);
    const given = read(0, 4096);
    const failed = expect(given).rejects.toThrow('canceled');
    await new Promise((resolve) => setTimeout(resolve, 100));
    node.driver.cancelInFlight?.(node);
    await failed;
  } finally {
    ceph.freezeOsd(false);
  }
  expect(await read(0, 4096)).toEqual(testPattern(4096));
});
