/**
 * Servers that take a connection and never say anything: other nodes notice nothing while a node of theirs is being
 * opened, and `quit` and SIGTERM end the daemon soon. Malformed addresses are clear errors.
 */

import { writeFileSync } from 'node:fs';
import { type AddressInfo, createServer, type Server } from 'node:net';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { limitMs } from '../../patience.ts';
import { startDaemon } from '../daemons.ts';
import { type PeerName, requirePeer } from '../requires.ts';

let silent: Server;
let port: string;

beforeAll(async () => {
  silent = createServer((socket) => socket.on('error', () => undefined));
  await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve));
  port = String((silent.address() as AddressInfo).port);
});

afterAll(() => {
  silent.close();
});

const ENDS_IN_MS = 5000;

/** Options of nodes whose server is the silent one; nfs asks a fixed port first, which must not be there. */
function nodes(): Readonly<
  Record<string, { readonly needs: readonly PeerName[]; readonly options: object }>
> {
  const inet = { host: '127.0.0.1', port };
  const url = (scheme: string): object => ({ url: `${scheme}://127.0.0.1:${port}/x` });
  const bucket = { endpoint: `http://127.0.0.1:${port}`, bucket: 'b', key: 'k', 'access-key-id': 'a' };
  return {
    http: { needs: [], options: { ...url('http'), timeout: 1000 } },
    https: { needs: [], options: { ...url('https'), timeout: 1000 } },
    ftp: { needs: [], options: { ...url('ftp'), timeout: 1000 } },
    ftps: { needs: [], options: { ...url('ftps'), timeout: 1000 } },
    s3: { needs: [], options: bucket },
    ssh: { needs: [], options: { server: inet, path: '/x', user: 'u' } },
    iscsi: {
      needs: ['libiscsi'],
      options: { transport: 'tcp', portal: `127.0.0.1:${port}`, target: 'iqn.a' },
    },
    nfs: { needs: ['libnfs'], options: { server: { type: 'inet', host: '192.0.2.77' }, path: '/a/b' } },
    rbd: { needs: ['librbd'], options: { pool: 'p', image: 'i', server: [inet] } },
    gluster: {
      needs: ['libgfapi'],
      options: { volume: 'v', path: 'p', server: [{ type: 'inet', ...inet }], logfile: '/dev/null' },
    },
    nbd: { needs: [], options: { server: { type: 'inet', ...inet } } },
  };
}

describe('a server that says nothing', () => {
  for (const driver of ['http', 'https', 'ftp', 'ftps', 's3', 'ssh', 'iscsi', 'nfs', 'rbd', 'gluster', 'nbd'])
    test(`${driver}: quit and SIGTERM end soon`, async (context) => {
      const { needs, options } = nodes()[driver]!;
      requirePeer(context, ...needs);
      for (const way of ['quit', 'SIGTERM']) {
        const secret = ['--object', 'secret,id=s,data=x'];
        const daemon = await startDaemon('qblockd', {
          args: secret,
          env: { AWS_ACCESS_KEY_ID: 'a', AWS_SECRET_ACCESS_KEY: 'b' },
        });
        try {
          const client = await daemon.connect();
          await client.negotiate();
          const add = { driver, 'node-name': 'n', 'read-only': true, ...options };
          client.send(`${JSON.stringify({ execute: 'blockdev-add', arguments: add })}\n`);
          await new Promise((resolve) => setTimeout(resolve, 200));
          const began = performance.now();
          if (way === 'quit') client.send(`${JSON.stringify({ execute: 'quit' })}\n`);
          else daemon.process.kill('SIGTERM');
          const { status, signal } = await daemon.exited;
          expect([status, signal], way).toEqual([0, null]);
          expect(performance.now() - began, way).toBeLessThan(limitMs(ENDS_IN_MS));
        } finally {
          await daemon.stop();
        }
      }
    });
});

/** What is wrong, and what is said of it by blockdev-add. */
const MALFORMED: readonly (readonly [object, RegExp])[] = [
  [{ driver: 'http', url: 'http://[::1/' }, /URL using bad\/illegal format/],
  [{ driver: 'http', url: 'http://a b/' }, /URL using bad\/illegal format/],
  [{ driver: 'http', url: 'http://127.0.0.1:99999/' }, /URL using bad\/illegal format/],
  [{ driver: 'https', url: 'https://' }, /URL using bad\/illegal format/],
  [{ driver: 'http', url: 'http://a%zz:b%@127.0.0.1:1/' }, /Failed to connect to 127.0.0.1/],
  [{ driver: 'ftp', url: 'ftp://a%zz:%@127.0.0.1:1/%zz' }, /Failed to connect to 127.0.0.1/],
  [{ driver: 'ftp', url: 'ftp://u%0d%0aDELE:x@127.0.0.1:1/a' }, /URL using bad\/illegal format/],
  [{ driver: 'ftps', url: 'ftps://127.0.0.1:1/a%00b' }, /URL using bad\/illegal format/],
  [{ driver: 'iscsi', transport: 'tcp', portal: ':::', target: 'x' }, /portal/],
];

test('malformed addresses are clear errors, and the daemon goes on', async () => {
  const daemon = await startDaemon('qblockd');
  try {
    const client = await daemon.connect();
    await client.negotiate();
    for (const [options, text] of MALFORMED) {
      const adding = client.execute('blockdev-add', { 'node-name': 'n', 'read-only': true, ...options });
      const said = await adding.then(
        () => 'added',
        (error: Error) => error.message,
      );
      expect(said, JSON.stringify(options)).toMatch(text);
      expect(said).not.toContain('Internal');
    }
    await client.execute('blockdev-add', { driver: 'null-co', 'node-name': path.basename('n') });
  } finally {
    await daemon.stop();
  }
});

test('drivers whose devices cannot be reached say what is missing, and io_uring is our own', async () => {
  const daemon = await startDaemon('qblockd');
  try {
    const client = await daemon.connect();
    await client.negotiate();
    const cache = { direct: true };
    for (const [options, text] of [
      [{ driver: 'nvme', device: '0000:01:00.0', namespace: 1 }, 'needs a PCI device handed over by VFIO'],
      [{ driver: 'nvme-io_uring', path: '/dev/ng0n1', cache }, 'needs NVMe commands through io_uring'],
      [{ driver: 'virtio-blk-vfio-pci', path: '/sys/x', cache }, 'needs a PCI device handed over by VFIO'],
      [{ driver: 'virtio-blk-vhost-vdpa', path: '/dev/x', cache }, 'needs a vhost-vdpa device'],
    ] as const)
      await expect(client.execute('blockdev-add', { 'node-name': 'n', ...options })).rejects.toThrow(text);
    const file = path.join(daemon.dir, 'disk');
    writeFileSync(file, Buffer.alloc(4096, 7));
    await client.execute('blockdev-add', { driver: 'io_uring', 'node-name': 'n', filename: file });
    const nodes = (await client.execute('query-named-block-nodes')) as { image: object }[];
    expect(nodes[0]!.image).toMatchObject({ 'virtual-size': 4096, format: 'io_uring' });
  } finally {
    await daemon.stop();
  }
});

test('proxies of the environment with names that are not encoded as they should be', async () => {
  const proxy = `http://t%zz:%@127.0.0.1:1`;
  const daemon = await startDaemon('qblockd', { env: { http_proxy: proxy, no_proxy: '' } });
  try {
    const client = await daemon.connect();
    await client.negotiate();
    const options = { driver: 'http', 'node-name': 'n', 'read-only': true, url: 'http://127.0.0.1:2/' };
    await expect(client.execute('blockdev-add', options)).rejects.toThrow('CURL: Error opening file');
  } finally {
    await daemon.stop();
  }
});
