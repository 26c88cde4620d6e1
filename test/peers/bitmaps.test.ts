/**
 * Persistent dirty bitmaps in qcow2 images, between the daemons: what one stores the other reads, also in damaged
 * images and after a crash.
 */

import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { bitmapDamages } from './bitmap-damages.ts';
import { type DaemonKind, type RunningDaemon, startDaemon } from './daemons.ts';
import type { QmpClient } from './qmp-client.ts';
import { missingPeer, requirePeer } from './requires.ts';

const MiB = 1024 * 1024;
const ORIGINAL = 'qemu-storage-daemon';
const dir = mkdtempSync(path.join(tmpdir(), 'qb-bitmaps-'));

interface Side {
  readonly daemon: RunningDaemon;
  readonly client: QmpClient;
}

async function start(kind: DaemonKind): Promise<Side> {
  const daemon = await startDaemon(kind);
  const client = await daemon.connect();
  await client.negotiate();
  return { daemon, client };
}

const sides = {} as Record<DaemonKind, Side>;

beforeAll(async () => {
  if (missingPeer([ORIGINAL]) === null) sides[ORIGINAL] = await start(ORIGINAL);
  sides.qblockd = await start('qblockd');
});

afterAll(async () => {
  for (const { daemon, client } of Object.values(sides)) {
    client.close();
    await daemon.stop();
  }
  rmSync(dir, { recursive: true, force: true });
});

// What a failed test has left open must not make the others fail.
afterEach(async () => {
  for (const { client } of Object.values(sides)) {
    for (const [command, args] of [['nbd-server-stop'], ['blockdev-del', { 'node-name': 'q' }]] as const)
      await client.execute(command, args).catch(() => undefined);
  }
});

function peer(tool: string, ...args: readonly string[]): string {
  return execFileSync(tool, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

function create(name: string, size: string, ...options: readonly string[]): string {
  const file = path.join(dir, name);
  peer('qemu-img', 'create', '-q', '-f', 'qcow2', ...options, file, size);
  return file;
}

async function open({ client }: Side, file: string, rest: object = {}): Promise<void> {
  const child = { driver: 'file', filename: file };
  await client.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'q', file: child, ...rest });
}

async function close({ client }: Side): Promise<void> {
  await client.execute('blockdev-del', { 'node-name': 'q' });
}

interface BitmapState {
  readonly name: string;
  readonly recording: boolean;
  readonly inconsistent?: boolean;
  readonly sha256?: string;
}

/** All that a daemon tells of the bitmaps of node q. */
async function bitmapsOf({ client }: Side): Promise<BitmapState[]> {
  const nodes = (await client.execute('query-named-block-nodes', { flat: true })) as {
    'node-name': string;
    'dirty-bitmaps'?: BitmapState[];
  }[];
  const bitmaps = nodes.find((node) => node['node-name'] === 'q')?.['dirty-bitmaps'] ?? [];
  const states: BitmapState[] = [];
  for (const bitmap of bitmaps) {
    // A name that is no UTF-8 is shown, but cannot be asked for.
    if (bitmap.name.includes('\ufffd')) {
      states.push(bitmap);
      continue;
    }
    const hash = await client.execute('x-debug-block-dirty-bitmap-sha256', { node: 'q', name: bitmap.name });
    states.push({ ...bitmap, ...(hash as object) });
  }
  return states;
}

/** What qemu-img says of the bitmaps in a file. */
function stored(file: string): readonly { name: string; granularity: number; flags: string[] }[] {
  const info = JSON.parse(peer('qemu-img', 'info', '-U', '--output=json', file)) as {
    'format-specific': { data: { bitmaps?: { name: string; granularity: number; flags: string[] }[] } };
  };
  return info['format-specific'].data.bitmaps ?? [];
}

/** Writes through an NBD export of node q. */
async function write({ daemon, client }: Side, commands: readonly string[]): Promise<void> {
  const socket = path.join(daemon.dir, 'nbd.sock');
  await client.execute('nbd-server-start', { addr: { type: 'unix', data: { path: socket } } });
  await client.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'q', writable: true });
  const options = commands.flatMap((command) => ['-c', command]);
  peer('qemu-io', '-f', 'raw', ...options, `nbd+unix:///q?socket=${socket}`);
  await client.execute('nbd-server-stop');
}

const addBitmap = ({ client }: Side, name: string, rest: object = {}): Promise<unknown> =>
  client.execute('block-dirty-bitmap-add', { node: 'q', name, persistent: true, ...rest });

describe('stored by one, read by the other', () => {
  const directions = [
    ['qblockd', ORIGINAL],
    [ORIGINAL, 'qblockd'],
    ['qblockd', 'qblockd'],
  ] as const;
  const images = [
    ['64M', 'cluster_size=512'],
    ['64M', 'cluster_size=4096'],
    ['1000M', 'cluster_size=65536'],
    ['64M', 'cluster_size=2M'],
    ['64M', 'cluster_size=65536,extended_l2=on'],
    ['64M', 'cluster_size=65536,refcount_bits=1'],
    ['16T', 'cluster_size=65536'],
    ['33280', 'cluster_size=65536'],
  ] as const;
  for (const [from, to] of directions) {
    for (const [size, options] of images) {
      test(`${from}, then ${to}: ${size}, ${options}`, async (context) => {
        requirePeer(context, ORIGINAL, 'qemu-img', 'qemu-io');
        const file = create('round.qcow2', size, '-o', options);
        await open(sides[from], file);
        await addBitmap(sides[from], 'plain');
        const fine = size === '16T' ? 4096 : 512;
        await addBitmap(sides[from], 'fine', { granularity: fine });
        await addBitmap(sides[from], 'coarse', { granularity: MiB });
        await addBitmap(sides[from], 'off', { disabled: true });
        await write(sides[from], [
          'write -q 0 4k',
          'write -q 8k 512',
          ...(size === '33280'
            ? ['write -q 32k 512']
            : ['write -q -z 10M 20M', 'write -q 50M 100k', 'write -q 63M 1M']),
        ]);
        await addBitmap(sides[from], 'late');
        await write(sides[from], ['write -q 512 512', 'write -q 30k 1k']);
        const before = await bitmapsOf(sides[from]);
        await close(sides[from]);
        expect(stored(file).map(({ name, flags }) => [name, flags])).toEqual([
          ['late', ['auto']],
          ['off', []],
          ['coarse', ['auto']],
          ['fine', ['auto']],
          ['plain', ['auto']],
        ]);
        peer('qemu-img', 'check', '-q', file);
        await open(sides[to], file);
        const after = await bitmapsOf(sides[to]);
        // The order turns round each time: the newest comes first, and loaded ones are as old as their place.
        expect(after.toReversed()).toEqual(before);
        // Stored in the places of the old ones; one goes, one comes.
        await write(sides[to], ['write -q 16k 1k']);
        await sides[to].client.execute('block-dirty-bitmap-remove', { node: 'q', name: 'fine' });
        await sides[to].client.execute('block-dirty-bitmap-disable', { node: 'q', name: 'plain' });
        await addBitmap(sides[to], 'new', { granularity: fine });
        const changed = await bitmapsOf(sides[to]);
        await close(sides[to]);
        expect(stored(file).map(({ name, flags }) => [name, flags])).toEqual([
          ['late', ['auto']],
          ['off', []],
          ['coarse', ['auto']],
          ['plain', []],
          ['new', ['auto']],
        ]);
        peer('qemu-img', 'check', '-q', file);
        await open(sides[from], file, { 'read-only': true });
        const byName = (states: BitmapState[]): BitmapState[] =>
          states.toSorted((a, b) => a.name.localeCompare(b.name));
        expect(byName(await bitmapsOf(sides[from]))).toEqual(byName(changed));
        await close(sides[from]);
      });
    }
  }

  test('all of them removed leaves an image without bitmaps', async (context) => {
    requirePeer(context, ORIGINAL, 'qemu-img');
    const file = create('none.qcow2', '8M');
    for (const name of ['a', 'b', 'c']) peer('qemu-img', 'bitmap', '--add', file, name);
    await open(sides.qblockd, file);
    for (const name of ['b', 'a', 'c']) {
      await sides.qblockd.client.execute('block-dirty-bitmap-remove', { node: 'q', name });
    }
    await close(sides.qblockd);
    expect(stored(file)).toEqual([]);
    const autoclear = readFileSync(file).readBigUInt64BE(88);
    expect(autoclear).toBe(0n);
    peer('qemu-img', 'check', '-q', file);
  });

  test('qemu-img bitmap works on our bitmaps', async (context) => {
    requirePeer(context, ORIGINAL, 'qemu-img', 'qemu-io');
    const file = create('tool.qcow2', '8M');
    await open(sides.qblockd, file);
    await addBitmap(sides.qblockd, 'a');
    await addBitmap(sides.qblockd, 'b');
    await write(sides.qblockd, ['write -q 1M 64k']);
    await close(sides.qblockd);
    peer('qemu-img', 'bitmap', '--clear', file, 'a');
    peer('qemu-img', 'bitmap', '--merge', 'b', '--disable', file, 'a');
    peer('qemu-img', 'check', '-q', file);
    await open(sides.qblockd, file);
    const [b, a] = (await bitmapsOf(sides.qblockd)).toSorted((x, y) => y.name.localeCompare(x.name));
    expect(a?.sha256).toBe(b?.sha256);
    expect(a?.recording).toBe(false);
    await close(sides.qblockd);
  });
});

describe('over NBD', () => {
  const script = `
import nbd, sys
uri = 'nbd+unix:///n?socket=' + sys.argv[1]
for queries in ([], ['qemu:'], ['qemu:dirty-bitmap:'], ['qemu:dirty-bitmap:p'], ['qemu:dirty-bitmap'], [''],
                ['qemu:dirty-bitmap:x'], ['base:', 'qemu:dirty-bitmap:b'], ['qemu:dirty-bitmap:b', 'base:']):
    h = nbd.NBD()
    h.set_opt_mode(True)
    for query in queries:
        h.add_meta_context(query)
    h.connect_uri(uri)
    names = []
    h.opt_list_meta_context(lambda name: names.append(name) and 0)
    print(queries, names)
    h.opt_abort()
h = nbd.NBD()
for context in ('qemu:dirty-bitmap:p', 'base:allocation', 'qemu:dirty-bitmap:b'):
    h.add_meta_context(context)
h.connect_uri(uri)
show = lambda context, offset, entries, error: print(context, offset, entries)
h.pwrite(b'x' * 5000, 70000)
h.pwrite(b'x' * 512, 1048576 - 512)
for bytes, offset in ((1048576, 0), (70000, 10000), (1, 65535), (512, 70000)):
    h.block_status(bytes, offset, show)
h.block_status(1048576, 0, show, nbd.CMD_FLAG_REQ_ONE)
h.block_status(1048576 - 65536, 65536, show, nbd.CMD_FLAG_REQ_ONE)
`;

  async function contextsOf({ daemon, client }: Side): Promise<string> {
    const socket = path.join(daemon.dir, 'nbd.sock');
    await client.execute('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: MiB });
    await client.execute('block-dirty-bitmap-add', { node: 'n', name: 'p', granularity: 4096 });
    await client.execute('block-dirty-bitmap-add', { node: 'n', name: 'b' });
    await client.execute('nbd-server-start', { addr: { type: 'unix', data: { path: socket } } });
    await client.execute('block-export-add', {
      ...{ type: 'nbd', id: 'e', 'node-name': 'n', writable: true },
      ...{ bitmaps: ['p', 'b'], 'allocation-depth': true },
    });
    const output = peer('/usr/bin/python3', '-c', script, socket);
    await client.execute('nbd-server-stop');
    await client.execute('blockdev-del', { 'node-name': 'n' });
    return output;
  }

  test('contexts are listed and answered as by the original', async (context) => {
    requirePeer(context, ORIGINAL, 'nbdsh');
    expect(await contextsOf(sides.qblockd)).toBe(await contextsOf(sides[ORIGINAL]));
  });
});

describe('a daemon that is killed', () => {
  for (const [killed, next] of [
    ['qblockd', ORIGINAL],
    [ORIGINAL, 'qblockd'],
  ] as const) {
    test(`${killed}: its bitmaps are inconsistent for ${next}`, async (context) => {
      requirePeer(context, ORIGINAL, 'qemu-img', 'qemu-io');
      const file = create('killed.qcow2', '8M');
      for (const name of ['a', 'b']) peer('qemu-img', 'bitmap', '--add', file, name);
      const victim = await start(killed);
      await open(victim, file);
      expect(stored(file).map(({ flags }) => flags)).toEqual([
        ['in-use', 'auto'],
        ['in-use', 'auto'],
      ]);
      await addBitmap(victim, 'never stored');
      await write(victim, ['write -q 1M 64k', 'flush']);
      victim.daemon.process.kill('SIGKILL');
      await victim.daemon.stop();
      await open(sides[next], file);
      const states = await bitmapsOf(sides[next]);
      expect(states.map(({ name, inconsistent }) => [name, inconsistent])).toEqual([
        ['b', true],
        ['a', true],
      ]);
      await sides[next].client.execute('block-dirty-bitmap-remove', { node: 'q', name: 'a' });
      await close(sides[next]);
      expect(stored(file)).toEqual([{ name: 'b', granularity: 65_536, flags: ['in-use', 'auto'] }]);
      peer('qemu-img', 'bitmap', '--remove', file, 'b');
      peer('qemu-img', 'check', '-q', '-r', 'leaks', file);
    });
  }
});

describe('a damaged image', () => {
  const base = path.join(dir, 'base.qcow2');

  beforeAll(() => {
    if (missingPeer(['qemu-img', 'qemu-io']) !== null) return;
    create('base.qcow2', '64M');
    peer('qemu-img', 'bitmap', '--add', base, 'a');
    peer('qemu-img', 'bitmap', '--add', '--disable', base, 'bb');
    peer('qemu-io', '-c', 'write 3M 64k', base);
  });

  /** What opening it gives: an error or the bitmaps; and whether the image is all right afterwards. */
  async function outcome(side: Side, image: Buffer): Promise<unknown> {
    const file = path.join(dir, 'damaged.qcow2');
    writeFileSync(file, image);
    try {
      await open(side, file);
    } catch (error) {
      expect(readFileSync(file).equals(image)).toBe(true);
      return (error as Error).message;
    }
    const states = await bitmapsOf(side);
    await close(side);
    copyFileSync(file, path.join(dir, 'after.qcow2'));
    return { states, stored: stored(path.join(dir, 'after.qcow2')) };
  }

  for (const [name, damage] of Object.entries(bitmapDamages)) {
    test(name, async (context) => {
      requirePeer(context, ORIGINAL, 'qemu-img', 'qemu-io');
      const image = readFileSync(base);
      damage(image);
      const theirs = await outcome(sides[ORIGINAL], image);
      expect(await outcome(sides.qblockd, image)).toEqual(theirs);
    });
  }
});
