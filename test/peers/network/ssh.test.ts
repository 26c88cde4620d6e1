/** ssh against OpenSSH's server: data, sizes, who is believed, and servers that go away. */

import { execFile, execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { E } from '../../../src/errors/errno.ts';
import { openRemote, type RemoteNode, testPattern } from '../../drivers/network/remote-node.ts';
import { makeScratchDir, repositoryRoot } from '../daemons.ts';
import { hasPeer, requirePeer } from '../requires.ts';
import { type SshServer, startSshd } from './servers/sshd.ts';

const ready = hasPeer('sshd');
const run = promisify(execFile);
const KiB = 1024;
const img = path.join(repositoryRoot, 'daemon/bin/qblock-img');
let dir: string;
let server: SshServer;
let remote: RemoteNode | null = null;

beforeAll(async () => {
  if (!ready) return;
  dir = makeScratchDir();
  server = await startSshd(dir);
});

afterEach(async () => {
  await remote?.close();
  remote = null;
});

afterAll(async () => {
  if (!ready) return;
  await server.kill();
  rmSync(dir, { recursive: true });
});

function make(name: string, data: Buffer): string {
  const file = path.join(dir, name);
  writeFileSync(file, data);
  return file;
}

async function open(name: string, more: Record<string, unknown> = {}): Promise<RemoteNode> {
  remote = await openRemote({ ...server.options(name), ...more }, { writable: more['read-only'] !== true });
  return remote;
}

test('random reads and writes, several at a time, end up in the file', async (context) => {
  requirePeer(context, 'sshd');
  const size = 2 * 1024 * KiB;
  const model = testPattern(size);
  const file = make('model.img', model);
  const { read, write, backend } = await open('model.img');
  for (let round = 0; round < 40; round++) {
    const slot = size / 8;
    await Promise.all(
      Array.from({ length: 8 }, async (_, i) => {
        const bytes = 1 + Math.floor(Math.random() * (slot - 1));
        const offset = i * slot + Math.floor(Math.random() * (slot - bytes));
        if (Math.random() < 0.5) {
          const data = testPattern(bytes, round * 8 + i + 2);
          await write(offset, data);
          data.copy(model, offset);
        } else expect((await read(offset, bytes)).equals(model.subarray(offset, offset + bytes))).toBe(true);
      }),
    );
  }
  await backend.flush();
  expect(readFileSync(file).equals(model)).toBe(true);
});

test('sizes: longer, shorter, odd; behind the end are zeroes', async (context) => {
  requirePeer(context, 'sshd');
  const file = make('size.img', Buffer.alloc(1000, 5));
  const { read, node, backend } = await open('size.img');
  expect(node.totalBytes).toBe(1024);
  expect(await read(960, 64)).toEqual(Buffer.concat([Buffer.alloc(40, 5), Buffer.alloc(24)]));
  await backend.truncate(1024 * KiB, true, 'off');
  expect(statSync(file).size).toBe(1024 * KiB);
  expect(await read(1024 * KiB - 512, 512)).toEqual(Buffer.alloc(512));
  await backend.truncate(512, true, 'off');
  expect(statSync(file).size).toBe(512);
  await expect(backend.truncate(1024, true, 'full')).rejects.toThrow("Unsupported preallocation mode 'full'");
});

describe('who is believed', () => {
  const keyOf = (type: 'ed25519' | 'rsa'): Buffer =>
    Buffer.from(readFileSync(`${server.hostKeys[type]}.pub`, 'utf8').split(' ')[1]!, 'base64');
  const line = (
    key: Buffer,
    type = 'ssh-ed25519',
    host = `[127.0.0.1]:${server.port}`,
    marker = '',
  ): string => `${marker}${host} ${type} ${key.toString('base64')}\n`;
  const reading = { 'read-only': true };

  async function openKnowing(text: string): Promise<RemoteNode> {
    make('x.img', Buffer.alloc(512));
    make('hosts', Buffer.from(text));
    return open('x.img', { ...reading, 'known-hosts': path.join(dir, 'hosts') });
  }

  test('hashes of the key', async (context) => {
    requirePeer(context, 'sshd');
    make('x.img', Buffer.alloc(512));
    for (const type of ['md5', 'sha1', 'sha256']) {
      const hash = createHash(type).update(keyOf('ed25519')).digest('hex');
      const colons = hash.toUpperCase().match(/../g)!.join(':');
      for (const good of [hash, colons]) {
        await (
          await open('x.img', { ...reading, 'host-key-check': { mode: 'hash', type, hash: good } })
        ).close();
        remote = null;
      }
      const bad = { mode: 'hash', type, hash: `${hash.slice(0, -1)}${hash.endsWith('0') ? '1' : '0'}` };
      await expect(open('x.img', { ...reading, 'host-key-check': bad })).rejects.toThrow(
        `remote host ssh-ed25519 key fingerprint '${type}:${hash}' does not match`,
      );
    }
  });

  test('known_hosts: hashed names, patterns, another type of key', async (context) => {
    requirePeer(context, 'sshd');
    const other = Buffer.from(keyOf('ed25519'));
    other[other.length - 1]! ^= 1;
    make('hashed', Buffer.from(line(keyOf('ed25519'))));
    execFileSync('ssh-keygen', ['-q', '-H', '-f', path.join(dir, 'hashed')], { stdio: 'ignore' });
    const hashed = readFileSync(path.join(dir, 'hashed'), 'utf8');
    expect(hashed).toMatch(/^\|1\|/);
    const good = [
      hashed,
      line(keyOf('ed25519'), 'ssh-ed25519', `other,[127.*]:${server.port}`),
      `# comment\n\nbroken\n${line(other, 'ssh-ed25519', 'other')}${line(keyOf('rsa'), 'ssh-rsa')}`,
    ];
    for (const text of good) {
      await (await openKnowing(text)).close();
      remote = null;
    }
    await expect(openKnowing('')).rejects.toThrow('no host key was found in known_hosts');
    await expect(openKnowing(line(other))).rejects.toThrow('this may be a possible attack');
    await expect(openKnowing(line(keyOf('ed25519'), 'ssh-ed25519', '127.0.0.1'))).rejects.toThrow(
      'no host key',
    );
    await expect(
      openKnowing(line(keyOf('ed25519'), 'ssh-ed25519', `[127.*]:*,![127.0.0.1]:${server.port}`)),
    ).rejects.toThrow('no host key');
    await expect(
      openKnowing(line(keyOf('ed25519')) + line(keyOf('ed25519'), 'ssh-ed25519', '*', '@revoked ')),
    ).rejects.toThrow('revoked');
    await expect(openKnowing(line(other, 'ecdsa-sha2-nistp256'))).rejects.toThrow('another type exists');
  });
});

test('an agent lets us in, and a key that nobody knows does not', async (context) => {
  requirePeer(context, 'sshd');
  make('x.img', Buffer.alloc(512));
  const socket = path.join(dir, 'agent');
  const agent = execFile('ssh-agent', ['-D', '-a', socket]);
  const before = process.env.SSH_AUTH_SOCK;
  try {
    await new Promise((resolve) => setTimeout(resolve, 300));
    execFileSync('ssh-add', [server.identityFile], {
      env: { ...process.env, SSH_AUTH_SOCK: socket },
      stdio: 'ignore',
    });
    process.env.SSH_AUTH_SOCK = socket;
    const { 'identity-file': _none, ...options } = server.options('x.img');
    remote = await openRemote(options);
    execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', path.join(dir, 'stranger')]);
    await expect(open('x.img', { 'identity-file': path.join(dir, 'stranger') })).rejects.toThrow(
      'failed to authenticate using publickey authentication',
    );
  } finally {
    process.env.SSH_AUTH_SOCK = before ?? '';
    agent.kill();
  }
});

test('a server that is killed in the middle and comes back: nothing is lost', async (context) => {
  requirePeer(context, 'sshd');
  const data = testPattern(8 * 1024 * KiB, 7);
  const file = make('killed.img', Buffer.alloc(data.length));
  const { write, read, backend } = await open('killed.img', { retries: 20 });
  const step = 256 * KiB;
  const offsets = Array.from({ length: data.length / step }, (_, i) => i * step);
  const writes = Promise.all(offsets.map((at) => write(at, data.subarray(at, at + step))));
  await new Promise((resolve) => setTimeout(resolve, 15));
  await server.kill();
  await server.start();
  await writes;
  await backend.flush();
  expect(readFileSync(file).equals(data)).toBe(true);
  const reads = Promise.all(offsets.map((at) => read(at, step)));
  await server.kill();
  await server.start();
  expect(Buffer.concat(await reads).equals(data)).toBe(true);
});

test('a server that hangs: requests fail after the timeout, or at once when they are given up', async (context) => {
  requirePeer(context, 'sshd');
  make('hang.img', Buffer.alloc(1024 * KiB, 3));
  const { read, layer } = await open('hang.img', { timeout: 1, retries: 0 });
  server.freeze(true);
  try {
    await expect(read(0, 4096)).rejects.toMatchObject({ errno: E.ETIMEDOUT });
    const given = Promise.allSettled([read(0, 4096), read(4096, 4096)]);
    await new Promise((resolve) => setTimeout(resolve, 50));
    layer.cancelRequests();
    for (const result of await given) expect(result.status).toBe('rejected');
  } finally {
    server.freeze(false);
  }
  expect(await read(0, 4096)).toEqual(Buffer.alloc(4096, 3));
});

test('a server that has another key when it comes back is not spoken to', async (context) => {
  requirePeer(context, 'sshd');
  make('x.img', Buffer.alloc(4096, 1));
  const { read } = await open('x.img', { retries: 2 });
  await server.kill();
  const kept = ['host_ed25519', 'host_rsa'].map(
    (name) => [name, readFileSync(path.join(dir, name))] as const,
  );
  for (const [name] of kept) {
    rmSync(path.join(dir, name));
    rmSync(path.join(dir, `${name}.pub`));
    execFileSync('ssh-keygen', ['-q', '-t', name.slice(5), '-N', '', '-f', path.join(dir, name)]);
  }
  await server.start();
  await expect(read(0, 4096)).rejects.toMatchObject({ errno: E.EPERM });
  await server.kill();
  for (const [name, key] of kept) writeFileSync(path.join(dir, name), key);
  await server.start();
});

test('qcow2 over ssh: made, written, checked, resized; read by the original', async (context) => {
  requirePeer(context, 'sshd', 'qemu-img');
  const { driver, ...options } = server.options('disk.qcow2');
  const source = make('source.raw', testPattern(3 * 1024 * KiB));
  execFileSync(img, ['create', '-q', '-f', 'qcow2', path.join(dir, 'disk.qcow2'), '3M']);
  const name = `json:${JSON.stringify({ driver: 'qcow2', file: { driver, ...options } })}`;
  await run(img, [
    'convert',
    '-n',
    '--target-image-opts',
    '-f',
    'raw',
    source,
    imageOptions({ driver: 'qcow2', file: { driver, ...options } }),
  ]);
  await run('qemu-img', ['check', path.join(dir, 'disk.qcow2')]);
  await run('qemu-img', ['compare', '-f', 'raw', '-F', 'qcow2', source, path.join(dir, 'disk.qcow2')]);
  await run(img, ['compare', '-f', 'raw', source, name]);
});

/** Options as one argument of the tools. */
function imageOptions(options: object, prefix = ''): string {
  return Object.entries(options)
    .map(([key, value]) =>
      typeof value === 'object'
        ? imageOptions(value, `${prefix}${key}.`)
        : `${prefix}${key}=${String(value)}`,
    )
    .join(',');
}
