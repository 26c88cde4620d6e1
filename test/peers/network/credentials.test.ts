/** What is said to those whom a server does not let in: alike by qblockd and qemu-storage-daemon, word by word. */

import { chmodSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { makeScratchDir, startDaemon } from '../daemons.ts';
import { type PeerName, requirePeer } from '../requires.ts';
import { startCeph } from './servers/ceph.ts';
import { startGanesha } from './servers/ganesha.ts';
import { startNginx } from './servers/nginx.ts';
import { startSshd } from './servers/sshd.ts';
import { startTgt } from './servers/tgt.ts';
import { startVsftpd } from './servers/vsftpd.ts';

const DATA = Buffer.alloc(1024 * 1024, 1);
let dir: string;
const ends: (() => unknown)[] = [];

beforeAll(() => {
  dir = makeScratchDir();
  chmodSync(dir, 0o755);
});

afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

afterAll(() => {
  rmSync(dir, { recursive: true, force: true });
});

function folderOf(name: string): string {
  const folder = path.join(dir, name);
  mkdirSync(folder);
  return folder;
}

/** What each of the daemons says of these nodes; the secret "wrong" is "guess", "right" is "open sesame". */
async function saidBy(kind: 'qblockd' | 'qemu-storage-daemon', nodes: readonly object[]): Promise<string[]> {
  const secrets = ['secret,id=wrong,data=guess', 'secret,id=right,data=open sesame'];
  const args = secrets.flatMap((secret) => ['--object', secret]);
  const daemon = await startDaemon(kind, { args, env: { SSH_AUTH_SOCK: '/none', HOME: dir } });
  try {
    const client = await daemon.connect();
    await client.negotiate();
    const said: string[] = [];
    for (const options of nodes)
      said.push(
        await client.execute('blockdev-add', { 'node-name': 'n', 'read-only': true, ...options }).then(
          () => 'added',
          (error: Error) => error.message,
        ),
      );
    return said;
  } finally {
    await daemon.stop();
  }
}

/** All of them are refused, and in the same words. */
async function refusedAlike(nodes: readonly object[]): Promise<void> {
  const ours = await saidBy('qblockd', nodes);
  expect(ours).not.toContain('added');
  expect(ours).toEqual(await saidBy('qemu-storage-daemon', nodes));
}

const original: readonly PeerName[] = ['qemu-storage-daemon', 'qemu-block-extra'];

test('http: no password, a wrong one', async (context) => {
  requirePeer(context, 'nginx', 'openssl', ...original);
  const server = await startNginx(folderOf('http'), false);
  ends.push(server.kill);
  writeFileSync(path.join(server.root, 'disk'), DATA);
  const url = `http://127.0.0.1:${server.port}/secret/disk`;
  await refusedAlike([
    { driver: 'http', url },
    { driver: 'http', url, username: 'ali', 'password-secret': 'wrong' },
    { driver: 'http', url, username: 'eve', 'password-secret': 'right' },
    { driver: 'http', url: url.replace('http://', 'http://ali:guess@') },
    { driver: 'http', url: url.replace('disk', 'none'), username: 'ali', 'password-secret': 'right' },
  ]);
});

test('ftp: a user who is not known', async (context) => {
  requirePeer(context, 'vsftpd', 'openssl', ...original);
  const server = await startVsftpd(folderOf('ftp'), false);
  ends.push(server.kill);
  writeFileSync(path.join(server.root, 'disk'), DATA);
  const url = `ftp://127.0.0.1:${server.port}/disk`;
  await refusedAlike([
    { driver: 'ftp', url, username: 'eve', 'password-secret': 'wrong' },
    { driver: 'ftp', url: url.replace('disk', 'none') },
  ]);
});

test('ssh: no key, another host', async (context) => {
  requirePeer(context, 'sshd', ...original);
  const folder = folderOf('ssh');
  const server = await startSshd(folder);
  ends.push(server.kill);
  writeFileSync(path.join(folder, 'disk'), DATA);
  const place = { driver: 'ssh', server: { host: '127.0.0.1', port: String(server.port) } };
  const here = { ...place, path: path.join(folder, 'disk'), 'host-key-check': { mode: 'none' } };
  const hash = { mode: 'hash', hash: '0123456789abcdef0123456789abcdef' };
  await refusedAlike([
    here,
    { ...here, user: 'eve' },
    { ...here, 'host-key-check': { ...hash, type: 'md5' } },
    { ...here, 'host-key-check': { ...hash, type: 'sha256' } },
  ]);
});

test('iscsi: no account, a wrong password', async (context) => {
  requirePeer(context, 'tgtd', 'libiscsi', ...original);
  const folder = folderOf('iscsi');
  const server = await startTgt(folder);
  ends.push(server.kill);
  writeFileSync(path.join(folder, 'disk'), DATA);
  server.addTarget('iqn.a:s', path.join(folder, 'disk'), { user: 'ali', password: 'open sesame' });
  const place = { driver: 'iscsi', transport: 'tcp', portal: `127.0.0.1:${server.port}`, target: 'iqn.a:s' };
  await refusedAlike([
    { ...place, lun: 1 },
    { ...place, lun: 1, user: 'ali', 'password-secret': 'wrong' },
    { ...place, lun: 1, user: 'eve', 'password-secret': 'right' },
    { ...place, target: 'iqn.a:none', lun: 1 },
    { ...place, lun: 7, user: 'ali', 'password-secret': 'right' },
  ]);
});

test('nfs: a file of somebody else', async (context) => {
  requirePeer(context, 'nfs-ganesha', 'libnfs', ...original);
  const server = await startGanesha(folderOf('nfs'));
  ends.push(server.end);
  const file = path.join(server.share, 'disk');
  writeFileSync(file, DATA, { mode: 0o600 });
  const place = { driver: 'nfs', server: { type: 'inet', host: '127.0.0.1' } };
  await refusedAlike([
    { ...place, path: file, user: 1234, group: 1234 },
    { ...place, path: path.join(server.share, 'none') },
    { ...place, path: '/none/disk' },
  ]);
});

test('rbd: a key where there are none, images and pools that are not there', async (context) => {
  requirePeer(context, 'ceph', 'librbd', ...original);
  const { conf, run, kill } = await startCeph(folderOf('rbd'));
  ends.push(kill);
  run('rbd', 'create', '--size', '4M', 'disk');
  const place = { driver: 'rbd', pool: 'rbd', image: 'disk', conf };
  await refusedAlike([
    { ...place, user: 'eve', 'key-secret': 'wrong', 'auth-client-required': ['cephx'] },
    { ...place, image: 'none' },
    { ...place, pool: 'none' },
    { ...place, namespace: 'none' },
    { ...place, snapshot: 'none' },
  ]);
});
