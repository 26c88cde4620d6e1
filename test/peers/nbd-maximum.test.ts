/** The longest request that an NBD export advises: that of the nodes below it, as the original's exports say. */

import { execFileSync } from 'node:child_process';
import path from 'node:path';
import { expect, test } from 'vitest';
import { startDaemon } from './daemons.ts';
import { requirePeer } from './requires.ts';

const limited = (bytes: number, name: string, rest: object = {}) => ({
  driver: 'blkdebug',
  'node-name': name,
  image: 'disk',
  'max-transfer': bytes,
  ...rest,
});

/** The nodes exported, each with what is to be opened before it. */
const TOPS: readonly object[] = [
  { driver: 'raw', file: 'disk' },
  { driver: 'raw', file: 'max-64k' },
  { driver: 'blkdebug', image: 'max-64k' },
  { driver: 'blkdebug', image: 'max-64k', 'max-transfer': 4096 },
  { driver: 'raw', file: 'max-40m' },
  { driver: 'raw', file: 'max-1000' },
  { driver: 'raw', file: 'max-12k' },
  { driver: 'blkdebug', image: 'disk', 'max-transfer': 12288, align: 4096 },
  { driver: 'raw', file: 'max-64k', offset: 512 },
  { driver: 'throttle', 'throttle-group': 'group', file: 'max-128k' },
  { driver: 'qcow2', file: { driver: 'file', filename: '$DIR/i.qcow2' }, backing: 'max-64k' },
  {
    driver: 'qcow2',
    file: limited(131072, 'image', { image: { driver: 'file', filename: '$DIR/i.qcow2' } }),
  },
  { driver: 'quorum', children: ['disk', 'max-128k', 'max-64k'], 'vote-threshold': 2 },
  { driver: 'blkverify', test: 'max-64k', raw: { driver: 'raw', file: 'max-128k' } },
  { driver: 'preallocate', file: 'max-64k' },
];

async function advised(kind: 'qemu-storage-daemon' | 'qblockd'): Promise<string[]> {
  const daemon = await startDaemon(kind, {
    prepare: (dir) =>
      execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', path.join(dir, 'i.qcow2'), '4M']),
  });
  try {
    const client = await daemon.connect();
    await client.negotiate();
    const run = async (name: string, args: object): Promise<void> => {
      const text = JSON.stringify({ execute: name, arguments: args });
      client.send(`${text.replaceAll('$DIR', daemon.dir)}\n`);
      for (;;) {
        const message = await client.next();
        if (message === null || 'error' in message) throw new Error(`${text}: ${JSON.stringify(message)}`);
        if ('return' in message) return;
      }
    };
    const socket = path.join(daemon.dir, 'nbd.sock');
    await run('nbd-server-start', { addr: { type: 'unix', data: { path: socket } } });
    await run('object-add', { 'qom-type': 'throttle-group', id: 'group' });
    await run('blockdev-add', { driver: 'null-co', 'node-name': 'disk', size: 2 ** 22, 'read-zeroes': true });
    await run('blockdev-add', limited(65536, 'max-64k'));
    await run('blockdev-add', limited(131072, 'max-128k'));
    await run('blockdev-add', limited(40 * 2 ** 20, 'max-40m'));
    await run('blockdev-add', limited(1000, 'max-1000', { align: 1 }));
    await run('blockdev-add', limited(12288, 'max-12k', { align: 4096 }));
    const found: string[] = [];
    for (const [index, top] of TOPS.entries()) {
      const id = `top${index}`;
      await run('blockdev-add', { ...top, 'node-name': id });
      await run('block-export-add', { type: 'nbd', id, 'node-name': id });
      const text = execFileSync('qemu-nbd', ['-L', '-k', socket], { encoding: 'utf8' });
      found.push(`${JSON.stringify(top)} ${/max block: \d+/.exec(text.slice(text.indexOf(`'${id}'`)))?.[0]}`);
      await run('block-export-del', { id });
      await run('blockdev-del', { 'node-name': id });
    }
    client.close();
    return found;
  } finally {
    await daemon.stop();
  }
}

test('the maximum is that of the nodes', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  requirePeer(context, 'qemu-nbd');
  const [theirs, ours] = await Promise.all([advised('qemu-storage-daemon'), advised('qblockd')]);
  expect(ours).toEqual(theirs);
  expect(ours[1]).toContain('max block: 65536');
});
