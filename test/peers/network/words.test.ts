/** What is said of options that are wrong and of servers that are not there: alike by qblockd and qemu-storage-daemon. */

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type RunningDaemon, startDaemon } from '../daemons.ts';
import type { QmpClient } from '../qmp-client.ts';
import { hasPeer, requirePeer } from '../requires.ts';

const ready = hasPeer('qemu-storage-daemon') && hasPeer('qemu-block-extra');
const nobody = { host: '127.0.0.1', port: '1' };
const URL = 'http://127.0.0.1:1/x';
const iscsi = { driver: 'iscsi', transport: 'tcp', portal: '127.0.0.1:1', target: 'iqn.a' };
const nfs = { driver: 'nfs', server: { type: 'inet', host: '127.0.0.1' }, path: '/a/b' };
const ssh = { driver: 'ssh', server: nobody, path: '/x' };
const rbd = { driver: 'rbd', pool: 'p', image: 'i' };
const gluster = { driver: 'gluster', volume: 'v', path: 'p' };

const OPTIONS: readonly Readonly<Record<string, unknown>>[] = [
  { driver: 'http' },
  { driver: 'http', url: 'ftp://x/' },
  { driver: 'http', url: URL, readahead: 1000 },
  { driver: 'http', url: URL, timeout: -1 },
  { driver: 'http', url: URL, timeout: 10_001 },
  { driver: 'http', url: URL, 'password-secret': 'none' },
  { driver: 'http', url: URL, 'read-only': false },
  { driver: 'http', url: URL, cookie: 'a', 'cookie-secret': 'none' },
  { driver: 'http', url: URL, sslverify: true },
  { driver: 'https', url: URL },
  { driver: 'https', url: 'https://x/', sslverify: 'on' },
  { driver: 'ftp', url: 'ftp://x/', username: 1 },
  { driver: 'ftp', url: 'ftp://x/', bogus: 1 },
  { driver: 'ftps', url: 'ftp://x/' },
  { driver: 'ssh' },
  { driver: 'ssh', path: '/x' },
  { driver: 'ssh', server: { host: 'h' }, path: '/x' },
  { driver: 'ssh', server: nobody },
  ssh,
  { ...ssh, 'host-key-check': { mode: 'maybe' } },
  { ...ssh, 'host-key-check': { mode: 'hash' } },
  { ...ssh, 'host-key-check': { mode: 'hash', type: 'sha512', hash: 'x' } },
  { driver: 'iscsi' },
  { ...iscsi, portal: undefined },
  { ...iscsi, target: undefined },
  { ...iscsi, transport: 'udp' },
  { ...iscsi, lun: 'x' },
  { ...iscsi, user: 'u', 'password-secret': 'none' },
  { ...iscsi, 'header-digest': 'md5' },
  { driver: 'nfs' },
  { ...nfs, path: undefined },
  { ...nfs, server: { type: 'unix', path: '/x' } },
  { ...nfs, user: 'root' },
  { driver: 'rbd', pool: 'p' },
  { driver: 'rbd', image: 'i' },
  { ...rbd, conf: '/none' },
  { ...rbd, 'auth-client-required': ['maybe'] },
  { ...rbd, server: [{ host: 'h' }] },
  { ...rbd, 'key-secret': 'none' },
  { ...rbd, encrypt: { format: 'luks3' } },
  { ...rbd, encrypt: { format: 'luks' } },
  { ...rbd, snapshot: 's', 'read-only': false },
  { driver: 'gluster' },
  gluster,
  { ...gluster, server: [] },
  { ...gluster, server: [{ type: 'inet', host: 'h' }] },
  { ...gluster, server: [{ type: 'unix', path: '/none' }], logfile: '/dev/null' },
  { ...gluster, server: [{ type: 'unix', path: '/none' }], debug: 'a' },
  { ...gluster, server: [{ type: 'inet', ...nobody, to: 5 }], logfile: '/dev/null' },
  { ...gluster, server: [{ type: 'inet', ...nobody, ipv4: true }], logfile: '/dev/null' },
];

const daemons: RunningDaemon[] = [];
const clients: QmpClient[] = [];

beforeAll(async () => {
  if (!ready) return;
  for (const kind of ['qblockd', 'qemu-storage-daemon'] as const) {
    const daemon = await startDaemon(kind);
    daemons.push(daemon);
    const client = await daemon.connect();
    await client.negotiate();
    clients.push(client);
  }
});

afterAll(async () => {
  for (const daemon of daemons) await daemon.stop();
});

describe('blockdev-add', () => {
  for (const options of OPTIONS)
    test(JSON.stringify(options), async (context) => {
      requirePeer(
        context,
        'qemu-storage-daemon',
        'qemu-block-extra',
        'libiscsi',
        'libnfs',
        'librbd',
        'libgfapi',
      );
      const said = await Promise.all(
        clients.map((client) =>
          client.execute('blockdev-add', { 'node-name': 'n', 'read-only': true, ...options }).then(
            () => 'added',
            (error: Error) => error.message,
          ),
        ),
      );
      expect(said[0]).toBe(said[1]);
    });
});
