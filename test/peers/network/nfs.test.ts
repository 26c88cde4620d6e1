/** nfs against a real server (nfs-ganesha), which dies and comes back under way. */

import { type ChildProcess, execFile, spawn, spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { openRemote, type RemoteNode, testPattern } from '../../drivers/network/remote-node.ts';
import { makeScratchDir, repositoryRoot } from '../daemons.ts';
import { hasPeer, requirePeer } from '../requires.ts';
import { freePort } from './ports.ts';
import { waitForPort } from './sshd.ts';

const ready = hasPeer('nfs-ganesha') && hasPeer('libnfs');
const run = promisify(execFile);
const MiB = 1024 * 1024;
const img = path.join(repositoryRoot, 'daemon/bin/qblock-img');
let dir: string;
let share: string;
let port: number;
let mapper: ChildProcess | null = null;
let server: ChildProcess | null = null;
let remote: RemoteNode | null = null;

async function startServer(): Promise<void> {
  const args = ['-F', '-L', path.join(dir, 'log'), '-f', path.join(dir, 'conf'), '-p', path.join(dir, 'pid')];
  server = spawn('ganesha.nfsd', args, { stdio: 'ignore' });
  await waitForPort(port);
}

async function killServer(): Promise<void> {
  const gone = new Promise((resolve) => server!.once('exit', resolve));
  server!.kill('SIGKILL');
  await gone;
}

beforeAll(async () => {
  if (!ready) return;
  dir = makeScratchDir();
  share = path.join(dir, 'share');
  mkdirSync(share);
  if (spawnSync('rpcinfo', ['-p', '127.0.0.1']).status !== 0) {
    mapper = spawn('/usr/sbin/rpcbind', ['-f'], { stdio: 'ignore' });
    await waitForPort(111);
  }
  port = await freePort();
  const mountPort = await freePort();
  const lines = [
    'NFS_CORE_PARAM {',
    `NFS_Port = ${port}; MNT_Port = ${mountPort}; Protocols = 3; Bind_addr = 127.0.0.1;`,
    'Enable_NLM = false; Enable_RQUOTA = false; mount_path_pseudo = false; }',
    `NFSV4 { RecoveryRoot = ${dir}; Graceless = true; RecoveryBackend = fs; }`,
    'NFS_KRB5 { Active_krb5 = false; }',
    `EXPORT { Export_Id = 1; Path = ${share}; Pseudo = /share; Protocols = 3;`,
    'Access_Type = RW; Squash = None; SecType = sys; FSAL { Name = VFS; } }',
  ];
  writeFileSync(path.join(dir, 'conf'), lines.join('\n'));
  await startServer();
}, 60_000);

afterEach(async () => {
  await remote?.close();
  remote = null;
});

afterAll(() => {
  if (!ready) return;
  server?.kill('SIGKILL');
  mapper?.kill();
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

async function randomIo(
  { read, write, backend }: RemoteNode,
  file: string,
  between: (round: number) => void,
) {
  const model = readFileSync(file);
  const slot = model.length / 16;
  for (let round = 0; round < 12; round++) {
    const all = Array.from({ length: 16 }, async (_, i) => {
      const bytes = 1 + Math.floor(Math.random() * (slot - 1));
      const offset = i * slot + Math.floor(Math.random() * (slot - bytes));
      if (Math.random() < 0.5) {
        const data = testPattern(bytes, round * 16 + i + 2);
        await write(offset, data);
        data.copy(model, offset);
      } else expect((await read(offset, bytes)).equals(model.subarray(offset, offset + bytes))).toBe(true);
    });
    between(round);
    await Promise.all(all);
  }
  await backend.flush();
  expect(readFileSync(file).equals(model)).toBe(true);
}

test('random reads and writes; sizes', async (context) => {
  requirePeer(context, 'nfs-ganesha', 'libnfs');
  const file = path.join(share, 'model.img');
  writeFileSync(file, testPattern(16 * MiB));
  const node = await open('model.img');
  await randomIo(node, file, () => undefined);
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
  await randomIo(node, file, (round) => {
    if (round === 4) restarted = killServer().then(startServer);
  });
  await restarted;
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
