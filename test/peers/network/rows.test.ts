/**
 * Every network driver with its real server, in the ways in which users meet it: `qblock-img convert` from it and to it,
 * `blockdev-add`, a backing file by its name, and a backup out of it. Each row the same, from the table of servers.
 */

import { execFile } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { testPattern } from '../../drivers/network/remote-node.ts';
import { makeScratchDir, repositoryRoot, startDaemon } from '../daemons.ts';
import type { QmpClient } from '../qmp-client.ts';
import { requirePeer } from '../requires.ts';
import { NETWORK_KINDS, type NetworkKind } from './servers/kinds.ts';

const run = promisify(execFile);
const MiB = 1024 * 1024;
const img = path.join(repositoryRoot, 'daemon/bin/qblock-img');
const io = path.join(repositoryRoot, 'daemon/bin/qblock-io');
/** Data, nothing, and data again. */
const DATA = Buffer.concat([testPattern(2 * MiB), Buffer.alloc(MiB), testPattern(MiB, 3)]);
let dir: string;

beforeAll(() => {
  dir = makeScratchDir();
});

afterAll(() => {
  rmSync(dir, { recursive: true, force: true });
});

async function withDaemon(
  args: readonly string[],
  action: (client: QmpClient) => Promise<void>,
): Promise<void> {
  const daemon = await startDaemon('qblockd', { args: [...args] });
  try {
    const client = await daemon.connect();
    await client.negotiate();
    await action(client);
  } finally {
    await daemon.stop();
  }
}

/** Waits for the job's end; throws what it failed with. */
async function completed(client: QmpClient): Promise<void> {
  for (;;) {
    const message = await client.next();
    if (message === null) throw new Error('the daemon has gone');
    if (message.event !== 'BLOCK_JOB_COMPLETED') continue;
    const { error } = message.data as { readonly error?: string };
    if (error !== undefined) throw new Error(error);
    return;
  }
}

/** Makes the image that these options are for, by `blockdev-create`. */
function create({ driver, ...location }: Record<string, unknown>, args: readonly string[]): Promise<void> {
  return withDaemon(args, async (client) => {
    const { 'retry-delay': _none, ...place } = location;
    const options = { driver, location: place, size: DATA.length };
    await client.execute('blockdev-create', { 'job-id': 'c', options });
    interface Job {
      readonly status: string;
      readonly error?: string;
    }
    let job: Job | undefined;
    do {
      await new Promise((resolve) => setTimeout(resolve, 20));
      [job] = (await client.execute('query-jobs')) as Job[];
    } while (job !== undefined && job.status !== 'concluded');
    expect(job).not.toHaveProperty('error');
    await client.execute('job-dismiss', { id: 'c' });
  });
}

const jsonName = (options: object): string => `json:${JSON.stringify(options)}`;

for (const [driver, kind] of Object.entries(NETWORK_KINDS) as [string, NetworkKind][])
  test(`${driver}: convert, blockdev-add, backing file, backup`, async (context) => {
    requirePeer(context, ...kind.needs);
    const folder = path.join(dir, driver);
    const server = path.join(folder, 'server');
    mkdirSync(server, { recursive: true });
    const { make, place, end } = await kind.start(server);
    const at = (name: string): string => path.join(folder, name);
    const args = kind.args ?? [];
    const tool = (program: string, command: string, ...more: string[]): Promise<{ stdout: string }> =>
      run(program, [command, ...args, ...more], { maxBuffer: 8 * MiB });
    try {
      const options = await make('disk', DATA);
      writeFileSync(at('source'), DATA);

      await tool(img, 'convert', '-f', 'raw', '-O', 'raw', jsonName(options), at('copy'));
      expect(readFileSync(at('copy')).equals(DATA)).toBe(true);

      // To it: into a new image where the driver makes one, else into one that is there.
      const target = place('new') ?? (await make('new', Buffer.alloc(DATA.length)));
      if (place('new') !== null) await create(target, args);
      const into = ['-n', at('source'), jsonName(target)];
      const writing = tool(img, 'convert', '-f', 'raw', '-O', 'raw', ...into);
      if (kind.isWritable || place('new') !== null) {
        await writing;
        await tool(img, 'compare', '-f', 'raw', '-F', 'raw', at('source'), jsonName(target));
      } else await expect(writing).rejects.toThrow(/not support|Read-only|writes/i);

      // An image that stays on the server, below one that is here.
      const backing = ['-b', jsonName({ driver: 'raw', file: options }), '-F', 'raw'];
      await run(img, ['create', '-q', '-u', '-f', 'qcow2', ...backing, at('overlay'), String(DATA.length)]);
      const write = ['-c', 'write -q -P 9 1M 64k', at('overlay')];
      await run(io, [...args, ...write]);
      const model = Buffer.from(DATA);
      model.fill(9, MiB, MiB + 65_536);
      await tool(img, 'convert', '-O', 'raw', at('overlay'), at('whole'));
      expect(readFileSync(at('whole')).equals(model)).toBe(true);

      await withDaemon(args, async (client) => {
        await client.execute('blockdev-add', { 'node-name': 'n', 'read-only': true, ...options });
        const file = { driver: 'file', filename: at('overlay') };
        await client.execute('blockdev-add', { 'node-name': 'o', driver: 'qcow2', file });
        for (const [node, content] of [
          ['n', DATA],
          ['o', model],
        ] as const) {
          writeFileSync(at(`backup-${node}`), Buffer.alloc(DATA.length));
          const place = { driver: 'file', filename: at(`backup-${node}`) };
          await client.execute('blockdev-add', { 'node-name': 't', ...place });
          await client.execute('blockdev-backup', { 'job-id': 'j', device: node, target: 't', sync: 'full' });
          await completed(client);
          await client.execute('blockdev-del', { 'node-name': 't' });
          expect(readFileSync(at(`backup-${node}`)).equals(content), node).toBe(true);
        }
      });
    } finally {
      await end();
    }
  });
