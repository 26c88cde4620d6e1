/**
 * The nbd driver over TLS: both daemons against qemu-nbd with certificates and pre-shared keys, and with credentials
 * that do not fit. Where GnuTLS and OpenSSL word a failure differently, only that it fails is compared.
 */

import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { waitUntil } from '../patience.ts';
import { type DaemonKind, makeScratchDir, startDaemon } from './daemons.ts';
import { hasPeer, type PeerName, requirePeer } from './requires.ts';
import { makeCredentials } from './tls-credentials.ts';

const NEEDS: readonly PeerName[] = ['certtool', 'psktool', 'qemu-nbd', 'qemu-storage-daemon'];
const ready = NEEDS.every((name) => hasPeer(name));
const SERVERS = ['x509', 'x509-any', 'psk', 'plain'] as const;
type ServerName = (typeof SERVERS)[number];

let dir: string;
let otherDir: string;
const ports = new Map<ServerName, number>();

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const address = server.address();
      server.close(() => resolve(typeof address === 'object' && address !== null ? address.port : 0));
    });
  });
}

const OBJECTS: Readonly<Record<ServerName, string>> = {
  x509: 'tls-creds-x509,id=t,dir=$T/pki,endpoint=server,verify-peer=on',
  'x509-any': 'tls-creds-x509,id=t,dir=$T/pki,endpoint=server,verify-peer=off',
  psk: 'tls-creds-psk,id=t,dir=$T/psk,endpoint=server',
  plain: '',
};

beforeAll(async () => {
  if (!ready) return;
  dir = makeScratchDir();
  otherDir = makeScratchDir();
  makeCredentials(dir);
  makeCredentials(otherDir);
  mkdirSync(path.join(dir, 'ca-only'));
  writeFileSync(path.join(dir, 'ca-only/ca-cert.pem'), readFileSync(path.join(dir, 'pki/ca-cert.pem')));
  const disk = path.join(dir, 'disk.raw');
  writeFileSync(disk, Buffer.alloc(1024 * 1024, 7));
  for (const name of SERVERS) {
    const port = await freePort();
    const object = OBJECTS[name].replaceAll('$T', dir);
    const tls = object === '' ? [] : ['--object', object, '--tls-creds', 't'];
    const pidFile = path.join(dir, `${name}.pid`);
    spawn('qemu-nbd', [
      ...['-f', 'raw', '-t', '-e', '8', '-b', '127.0.0.1', '-p', String(port), '--pid-file', pidFile],
      ...tls,
      disk,
    ]);
    await waitUntil(`qemu-nbd for ${name}`, () => existsSync(pidFile));
    ports.set(name, port);
  }
});

afterAll(() => {
  if (!ready) return;
  for (const name of SERVERS) process.kill(Number(readFileSync(path.join(dir, `${name}.pid`), 'utf8')));
  execFileSync('rm', ['-rf', dir, otherDir]);
});

interface Case {
  readonly server: ServerName;
  readonly creds?: string;
  readonly hostname?: string;
  readonly host?: string;
  /** The failure's text is OpenSSL's own. */
  readonly ownWords?: boolean;
}

const CREDENTIALS: Readonly<Record<string, object>> = {
  good: { 'qom-type': 'tls-creds-x509', id: 'good', dir: '$T/pki', endpoint: 'client' },
  unchecked: {
    'qom-type': 'tls-creds-x509',
    id: 'unchecked',
    dir: '$T/pki',
    endpoint: 'client',
    'verify-peer': false,
  },
  nobody: { 'qom-type': 'tls-creds-x509', id: 'nobody', dir: '$T/ca-only', endpoint: 'client' },
  other: { 'qom-type': 'tls-creds-x509', id: 'other', dir: '$O/pki', endpoint: 'client' },
  server: { 'qom-type': 'tls-creds-x509', id: 'server', dir: '$T/pki', endpoint: 'server' },
  alice: { 'qom-type': 'tls-creds-psk', id: 'alice', dir: '$T/psk', endpoint: 'client', username: 'alice' },
  mallory: {
    'qom-type': 'tls-creds-psk',
    id: 'mallory',
    dir: '$O/psk',
    endpoint: 'client',
    username: 'alice',
  },
};

const CASES: readonly Case[] = [
  { server: 'plain' },
  { server: 'plain', creds: 'good' },
  { server: 'x509' },
  { server: 'psk' },
  { server: 'x509', creds: 'good' },
  { server: 'x509', creds: 'good', host: '127.0.0.1' },
  { server: 'x509', creds: 'good', host: '127.0.0.1', hostname: 'localhost' },
  { server: 'x509', creds: 'good', hostname: 'example.org' },
  { server: 'x509', creds: 'unchecked', hostname: 'example.org' },
  { server: 'x509', creds: 'nobody', ownWords: true },
  { server: 'x509-any', creds: 'nobody' },
  { server: 'x509-any', creds: 'other' },
  { server: 'x509', creds: 'server' },
  { server: 'psk', creds: 'alice' },
  { server: 'psk', creds: 'mallory', ownWords: true },
  { server: 'psk', creds: 'good', ownWords: true },
  { server: 'x509', creds: 'alice', ownWords: true },
];

/** What a daemon answers in each case, and what node it has then. */
async function answers(kind: DaemonKind): Promise<string[]> {
  const daemon = await startDaemon(kind);
  try {
    const client = await daemon.connect();
    await client.negotiate();
    const run = async (execute: string, args: object): Promise<string> => {
      const text = JSON.stringify({ execute, arguments: args })
        .replaceAll('$T', dir)
        .replaceAll('$O', otherDir);
      client.send(`${text}\n`);
      const reply = await client.next();
      const { desc } = (reply?.error ?? {}) as { desc?: string };
      return desc ?? JSON.stringify(reply?.return ?? null);
    };
    for (const object of Object.values(CREDENTIALS)) await run('object-add', object);
    const found: string[] = [];
    for (const { server, creds, hostname, host = 'localhost', ownWords } of CASES) {
      const address = { type: 'inet', host, port: String(ports.get(server)), ipv4: true };
      const options = {
        ...{ driver: 'nbd', 'node-name': 'n', server: address },
        ...(creds !== undefined && { 'tls-creds': creds }),
        ...(hostname !== undefined && { 'tls-hostname': hostname }),
      };
      const answer = await run('blockdev-add', options);
      const name = `${server}, ${creds ?? 'no credentials'}, ${host}, ${hostname ?? 'no name'}`;
      found.push(`${name}: ${ownWords === true && answer !== '{}' ? 'fails' : answer}`);
      if (answer !== '{}') continue;
      await run('blockdev-add', { driver: 'raw', 'node-name': 'r', file: 'n' });
      await run('blockdev-del', { 'node-name': 'r' });
      const nodes = await run('query-named-block-nodes', { flat: true });
      const { file } = (JSON.parse(nodes) as { file: string }[])[0] as { file: string };
      found.push(
        file.startsWith('json:')
          ? JSON.stringify(Object.entries(JSON.parse(file.slice(5)) as object).sort())
          : file,
      );
      await run('blockdev-del', { 'node-name': 'n' });
    }
    client.close();
    return found;
  } finally {
    await daemon.stop();
  }
}

test('credentials that fit and credentials that do not', async (context) => {
  requirePeer(context, ...NEEDS);
  const theirs = await answers('qemu-storage-daemon');
  const ours = await answers('qblockd');
  expect(ours).toEqual(theirs);
  expect(ours.filter((line) => line.endsWith(': {}')).length).toBeGreaterThan(5);
});
