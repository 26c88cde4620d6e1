/** TLS without credentials (tls-creds-anon) between both daemons: each as server and as client of the other. */

import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { expect, test } from 'vitest';
import { limitMs } from '../patience.ts';
import { type DaemonKind, type RunningDaemon, startDaemon } from './daemons.ts';
import { requirePeer } from './requires.ts';

type Run = (name: string, args: object) => Promise<unknown>;

async function runner(daemon: RunningDaemon): Promise<Run> {
  const client = await daemon.connect();
  await client.negotiate();
  return (name, args) => client.execute(name, args);
}

const BYTES = 2 ** 20;

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
    const file = (daemon: RunningDaemon, name: string, data: Buffer): object => {
      const filename = path.join(daemon.dir, name);
      writeFileSync(filename, data);
      return { driver: 'file', 'node-name': name, filename };
    };
    const [first, second] = [randomBytes(BYTES), randomBytes(BYTES)];
    await serve('blockdev-add', file(serving, 'n', first));
    await serve('nbd-server-start', { addr: { type: 'unix', data: { path: socket } }, 'tls-creds': 't' });
    await serve('block-export-add', { type: 'nbd', id: 'n', 'node-name': 'n', writable: true });
    const use = await runner(using);
    await use('object-add', { 'qom-type': 'tls-creds-anon', id: 't' });
    const options = { driver: 'nbd', export: 'n', server: { type: 'unix', path: socket } };
    await use('blockdev-add', { ...options, 'node-name': 'safe', 'tls-creds': 't' });
    await use('blockdev-add', file(using, 'copy', Buffer.alloc(BYTES)));
    await use('blockdev-add', file(using, 'new', second));
    const copy = async (source: string, target: string): Promise<void> => {
      const job = { 'job-id': 'j', 'auto-dismiss': false };
      await use('blockdev-backup', { ...job, device: source, target, sync: 'full' });
      const until = Date.now() + limitMs(30_000);
      for (;;) {
        const [state] = (await use('query-jobs', {})) as { status: string; error?: string }[];
        expect(state).not.toHaveProperty('error');
        if (state?.status === 'concluded') break;
        if (Date.now() > until) throw new Error(`the job has not ended: ${JSON.stringify(state)}`);
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
      await use('job-dismiss', { id: 'j' });
    };
    await copy('safe', 'copy');
    expect(readFileSync(path.join(using.dir, 'copy')).equals(first)).toBe(true);
    await copy('new', 'safe');
    expect(readFileSync(path.join(serving.dir, 'n')).equals(second)).toBe(true);
    await expect(use('blockdev-add', { ...options, 'node-name': 'plain' })).rejects.toThrow();
  } finally {
    for (const daemon of daemons.reverse()) await daemon.stop();
  }
});
