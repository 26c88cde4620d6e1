/** TLS without credentials (tls-creds-anon) between both daemons: each as server and as client of the other. */

import path from 'node:path';
import { expect, test } from 'vitest';
import { type DaemonKind, type RunningDaemon, startDaemon } from './daemons.ts';
import { requirePeer } from './requires.ts';

type Run = (name: string, args: object) => Promise<unknown>;

async function runner(daemon: RunningDaemon): Promise<Run> {
  const client = await daemon.connect();
  await client.negotiate();
  return (name, args) => client.execute(name, args);
}

const KINDS: readonly DaemonKind[] = ['qemu-storage-daemon', 'qblockd'];
const pairs = KINDS.flatMap((server) => KINDS.map((client) => ({ server, client })));

test.for(pairs)('$client at $server', async ({ server, client }, context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const daemons: RunningDaemon[] = [];
  try {
    const serving = await startDaemon(server);
    daemons.push(serving);
    const using = await startDaemon(client);
    daemons.push(using);
    const socket = path.join(serving.dir, 'nbd.sock');
    const serve = await runner(serving);
    await serve('object-add', { 'qom-type': 'tls-creds-anon', id: 't', endpoint: 'server' });
    await serve('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: 2 ** 20, 'read-zeroes': true });
    await serve('nbd-server-start', { addr: { type: 'unix', data: { path: socket } }, 'tls-creds': 't' });
    await serve('block-export-add', { type: 'nbd', id: 'n', 'node-name': 'n', writable: true });
    const use = await runner(using);
    await use('object-add', { 'qom-type': 'tls-creds-anon', id: 't' });
    const options = { driver: 'nbd', export: 'n', server: { type: 'unix', path: socket } };
    await use('blockdev-add', { ...options, 'node-name': 'safe', 'tls-creds': 't' });
    const nodes = (await use('query-named-block-nodes', { flat: true })) as {
      image: { 'virtual-size': number };
    }[];
    expect(nodes.map((node) => node.image['virtual-size'])).toEqual([2 ** 20]);
    // Data go both ways.
    await use('blockdev-add', {
      driver: 'null-co',
      'node-name': 'zeroes',
      size: 2 ** 20,
      'read-zeroes': true,
    });
    await use('blockdev-backup', { 'job-id': 'j', device: 'zeroes', target: 'safe', sync: 'full' });
    await expect(use('blockdev-add', { ...options, 'node-name': 'plain' })).rejects.toThrow();
  } finally {
    for (const daemon of daemons.reverse()) await daemon.stop();
  }
});
