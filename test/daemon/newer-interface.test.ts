/** What releases of the original later than 7.2 have added: commands, arguments and output. The schema says since when. */

import { execFileSync } from 'node:child_process';
import { existsSync, lstatSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type RunningDaemon, startDaemon } from '../peers/daemons.ts';
import type { QmpClient } from '../peers/qmp-client.ts';

let daemon: RunningDaemon;
let client: QmpClient;

beforeEach(async () => {
  daemon = await startDaemon('qblockd');
  client = await daemon.connect();
  await client.negotiate();
});

afterEach(async () => {
  client.close();
  await daemon.stop();
});

const file = (name: string): string => path.join(daemon.dir, name);

/** A qcow2 image of 16 MiB made by the daemon, with a pattern in its first megabyte. */
function makeImage(name: string, pattern: number): string {
  const tool = (program: string, ...args: string[]): void => {
    execFileSync(path.resolve(import.meta.dirname, '../../daemon/bin', program), args, { stdio: 'ignore' });
  };
  tool('qblock-img', 'create', '-q', '-f', 'qcow2', file(name), '16M');
  tool('qblock-io', '-c', `write -P ${pattern} 0 1M`, file(name));
  return file(name);
}

function io(command: string, image: string): string {
  const program = path.resolve(import.meta.dirname, '../../daemon/bin/qblock-io');
  return execFileSync(program, ['-r', '-U', '-c', command, image], { encoding: 'utf8' });
}

const qcow2 = (name: string, more: object = {}): object => ({
  driver: 'qcow2',
  'node-name': name,
  file: { driver: 'file', 'node-name': `${name}-file`, filename: file(`${name}.qcow2`) },
  ...more,
});

async function fails(command: string, args: object): Promise<string> {
  return await client.execute(command, args).then(
    () => 'no error',
    (error: unknown) => String((error as Error).message),
  );
}

interface NodeInfo {
  readonly 'node-name': string;
  readonly active: boolean;
  readonly ro: boolean;
  readonly children: { readonly child: string; readonly 'node-name': string }[];
  readonly image: { readonly limits: Record<string, number>; readonly 'format-specific': { type: string } };
}

async function nodeInfo(name: string): Promise<NodeInfo> {
  const nodes = (await client.execute('query-named-block-nodes', { flat: true })) as NodeInfo[];
  return nodes.find((node) => node['node-name'] === name)!;
}

test('nodes tell of their children, limits, and whether they are active', async () => {
  makeImage('a.qcow2', 1);
  await client.execute('blockdev-add', qcow2('a'));
  const node = await nodeInfo('a');
  expect(node).toMatchObject({ active: true, children: [{ child: 'file', 'node-name': 'a-file' }] });
  expect(node.image.limits).toMatchObject({ 'request-alignment': 1, 'max-iov': 1024 });
  expect((await nodeInfo('a-file')).image['format-specific']).toEqual({ type: 'file', data: {} });
  expect(await client.execute('query-block', { flat: true })).toEqual([]);
});

test('an image is handed over to another process and taken back, and read anew', async () => {
  const image = makeImage('a.qcow2', 1);
  await client.execute('blockdev-add', qcow2('a'));
  await client.execute('block-dirty-bitmap-add', { node: 'a', name: 'b', persistent: true });
  const other = await startDaemon('qblockd');
  try {
    const there = await other.connect();
    await there.negotiate();
    const options = { ...qcow2('a'), active: false };
    // Inactive: the lock is somebody else's.
    await there.execute('blockdev-add', options);
    await expect(there.execute('blockdev-set-active', { 'node-name': 'a', active: true })).rejects.toThrow(
      /Failed to get "write" lock/,
    );
    await client.execute('blockdev-set-active', { 'node-name': 'a', active: false });
    expect(await nodeInfo('a')).toMatchObject({ active: false, ro: false });
    expect(await nodeInfo('a-file')).toMatchObject({ active: false });
    await there.execute('blockdev-set-active', { active: true });
    await there.execute('block_resize', { 'node-name': 'a', size: 32 * 1024 * 1024 });
    await there.execute('block-dirty-bitmap-add', { node: 'a', name: 'c', persistent: true });
    await there.execute('blockdev-set-active', { active: false });
    await client.execute('blockdev-set-active', { 'node-name': 'a', active: true });
    const [node] = (await client.execute('query-named-block-nodes', { flat: true })) as [
      { image: Record<string, unknown>; 'dirty-bitmaps': { name: string }[] },
    ];
    expect(node.image['virtual-size']).toBe(32 * 1024 * 1024);
    expect(node['dirty-bitmaps'].map(({ name }) => name).sort()).toEqual(['b', 'c']);
    there.close();
  } finally {
    await other.stop();
  }
  expect(io('read -P 1 0 1M', image)).not.toContain('failed');
});

test.each([false, true])(
  'an image that has grown meanwhile loses nothing; its file was active: %s',
  async (fileActive) => {
    const tool = (program: string, ...args: string[]): string =>
      execFileSync(path.resolve(import.meta.dirname, '../../daemon/bin', program), args, {
        encoding: 'utf8',
      });
    const image = file('v.vmdk');
    tool('qblock-img', 'create', '-q', '-f', 'vmdk', image, '16M');
    const vmdk = (active: boolean, withFile: boolean): object => ({
      ...{ driver: 'vmdk', 'node-name': 'v', active },
      file: { driver: 'file', 'node-name': 'v-file', filename: image, active: withFile },
    });
    const other = await startDaemon('qblockd');
    try {
      const there = await other.connect();
      await there.negotiate();
      await there.execute('blockdev-add', vmdk(true, true));
      await client.execute('blockdev-add', vmdk(false, fileActive));
      expect(await fails('blockdev-set-active', { 'node-name': 'v', active: true })).toMatch(/"write" lock/);
      expect((await nodeInfo('v-file')).active).toBe(fileActive);
      await there.execute('blockdev-set-active', { active: false });
      there.close();
    } finally {
      await other.stop();
    }
    tool('qblock-io', '-f', 'vmdk', '-c', 'write -P 2 4M 1M', image);
    await client.execute('blockdev-set-active', { 'node-name': 'v', active: true });
    await client.execute('nbd-server-start', {
      addr: { type: 'unix', data: { path: file('nbd.sock') } },
    });
    await client.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'v', writable: true });
    tool('qblock-io', '-f', 'raw', '-c', 'write -P 3 8M 1M', `nbd+unix:///v?socket=${file('nbd.sock')}`);
    await client.execute('block-export-del', { id: 'e', mode: 'hard' });
    await client.execute('blockdev-del', { 'node-name': 'v' });
    const reads = ['read -P 2 4M 1M', 'read -P 3 8M 1M'].flatMap((line) => ['-c', line]);
    expect(tool('qblock-io', '-r', '-f', 'vmdk', ...reads, image)).not.toMatch(/failed/);
  },
);

test('an inactive node is refused to those who write, and exported with allow-inactive', async () => {
  makeImage('a.qcow2', 5);
  makeImage('t.qcow2', 0);
  await client.execute('blockdev-add', { ...qcow2('a'), active: false });
  await client.execute('blockdev-add', qcow2('t'));
  expect(await fails('blockdev-backup', { 'job-id': 'j', device: 'a', target: 't', sync: 'full' })).toMatch(
    /Inactive 'a' can't be a file child of active/,
  );
  expect(await fails('block_resize', { 'node-name': 'a', size: 1024 })).toMatch(/'a' is inactive/);
  await client.execute('nbd-server-start', {
    addr: { type: 'unix', data: { path: file('nbd.sock') } },
  });
  const exportOf = (more: object): object => ({
    type: 'nbd',
    id: 'e',
    'node-name': 'a',
    writable: true,
    ...more,
  });
  await client.execute('block-export-add', exportOf({ 'allow-inactive': true }));
  expect((await nodeInfo('a')).active).toBe(false);
  const program = path.resolve(import.meta.dirname, '../../daemon/bin/qblock-io');
  const run = (...commands: string[]): string => {
    const args = commands.flatMap((command) => ['-c', command]);
    const url = `nbd+unix:///a?socket=${file('nbd.sock')}`;
    return execFileSync('sh', ['-c', '"$0" "$@" 2>&1 || true', program, ...args, '-f', 'raw', url], {
      encoding: 'utf8',
    });
  };
  const inactive = run('read -P 5 0 1M', 'write -P 6 0 64k');
  expect(inactive).toContain('read 1048576/1048576');
  expect(inactive).not.toContain('Pattern verification failed');
  expect(inactive).toContain('write failed: Operation not permitted');
  await client.execute('blockdev-set-active', { active: true });
  expect(run('write -P 6 0 64k', 'read -P 6 0 64k', 'read -P 5 64k 64k')).not.toMatch(/failed/);
  // An export without it keeps its node active.
  await client.execute('block-export-del', { id: 'e', mode: 'hard' });
  await client.execute('blockdev-set-active', { 'node-name': 'a', active: false });
  await client.execute('block-export-add', exportOf({}));
  expect((await nodeInfo('a')).active).toBe(true);
  expect(await fails('blockdev-set-active', { 'node-name': 'a', active: false })).toMatch(/'a' is in use/);
});

test('blkdebug delays requests', async () => {
  writeFileSync(file('raw'), Buffer.alloc(65536, 3));
  await client.execute('blockdev-add', {
    driver: 'blkdebug',
    'node-name': 'd',
    image: { driver: 'file', filename: file('raw') },
    'inject-error': [{ event: 'none', iotype: 'read', errno: 0, 'delay-ns': 300_000_000, once: true }],
  });
  writeFileSync(file('out'), Buffer.alloc(65536));
  await client.execute('blockdev-add', { driver: 'file', 'node-name': 't', filename: file('out') });
  const started = performance.now();
  await client.execute('blockdev-backup', {
    'job-id': 'j',
    device: 'd',
    target: 't',
    sync: 'full',
    'auto-dismiss': false,
  });
  for (;;) {
    const [job] = (await client.execute('query-jobs')) as { status: string; error?: string }[];
    if (job?.status === 'concluded') {
      expect(job.error).toBe(undefined);
      break;
    }
  }
  expect(performance.now() - started).toBeGreaterThan(290);
  expect(readFileSync(file('out')).every((byte) => byte === 3)).toBe(true);
});

test('qom-list-get tells the values of several objects at once', async () => {
  await client.execute('object-add', { 'qom-type': 'iothread', id: 'io', 'poll-weight': 2 });
  await client.execute('object-add', { 'qom-type': 'secret', id: 's', data: 'x' });
  const answer = (await client.execute('qom-list-get', { paths: ['/objects/io', '/objects/s'] })) as {
    properties: { name: string; type: string; value?: unknown }[];
  }[];
  expect(answer).toHaveLength(2);
  expect(answer[0]!.properties).toContainEqual({ name: 'poll-weight', type: 'int', value: 2 });
  expect(answer[1]!.properties).toContainEqual({ name: 'type', type: 'string', value: 'secret' });
  expect(await fails('qom-list-get', { paths: ['/objects/io', '/objects/nope'] })).toMatch(/not found/);
});

test('a mirror job trusts a target that is zero, and tells when it is in sync', async () => {
  writeFileSync(file('src'), Buffer.alloc(65536, 9));
  truncateSync(file('src'), 1024 * 1024);
  // Not zero: what the user has said is believed, so it stays.
  writeFileSync(file('dst'), Buffer.alloc(1024 * 1024, 7));
  for (const name of ['src', 'dst'])
    await client.execute('blockdev-add', { driver: 'file', 'node-name': name, filename: file(name) });
  await client.execute('blockdev-mirror', {
    'job-id': 'm',
    device: 'src',
    target: 'dst',
    sync: 'full',
    'target-is-zero': true,
    'copy-mode': 'write-blocking',
  });
  for (;;) {
    const [job] = (await client.execute('query-block-jobs')) as {
      ready: boolean;
      'actively-synced': boolean;
    }[];
    // It is ready a moment before the last copy has ended.
    if (job?.ready !== true || !job['actively-synced']) continue;
    break;
  }
  await client.execute('block-job-cancel', { device: 'm' });
  while (((await client.execute('query-jobs')) as unknown[]).length > 0);
  const copy = readFileSync(file('dst'));
  expect(copy.subarray(0, 65536).every((byte) => byte === 9)).toBe(true);
  expect(copy.subarray(1024 * 1024 - 65536).every((byte) => byte === 7)).toBe(true);
});

test('block-commit and block-stream write raw for a backing file that is a protocol node', async () => {
  writeFileSync(file('base.raw'), Buffer.alloc(16 * 1024 * 1024));
  makeImage('mid.qcow2', 1);
  makeImage('top.qcow2', 2);
  await client.execute('blockdev-add', { driver: 'file', 'node-name': 'base', filename: file('base.raw') });
  await client.execute('blockdev-add', qcow2('mid', { backing: 'base' }));
  await client.execute('blockdev-add', qcow2('top', { backing: 'mid' }));
  await client.execute('block-commit', {
    'job-id': 'c',
    device: 'top',
    'top-node': 'mid',
    'base-node': 'base',
    'backing-mask-protocol': true,
  });
  while (((await client.execute('query-jobs')) as unknown[]).length > 0);
  const info = (await nodeInfo('top')) as unknown as { image: Record<string, unknown> };
  expect(info.image).toMatchObject({
    'backing-filename': file('base.raw'),
    'backing-filename-format': 'raw',
  });
});

test('a backup goes on past failing copies, and fails, with on-cbw-error=break-snapshot', async () => {
  writeFileSync(file('src'), Buffer.alloc(1024 * 1024, 1));
  writeFileSync(file('dst'), Buffer.alloc(1024 * 1024));
  await client.execute('blockdev-add', { driver: 'file', 'node-name': 'src', filename: file('src') });
  await client.execute('blockdev-add', {
    driver: 'blkdebug',
    'node-name': 'dst',
    image: { driver: 'file', filename: file('dst') },
    'inject-error': [{ event: 'none', iotype: 'write', errno: 28 }],
  });
  await client.execute('nbd-server-start', { addr: { type: 'unix', data: { path: file('nbd.sock') } } });
  await client.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'src', writable: true });
  await client.execute('blockdev-backup', {
    'job-id': 'b',
    device: 'src',
    target: 'dst',
    sync: 'none',
    'on-cbw-error': 'break-snapshot',
    'x-perf': { 'min-cluster-size': 131072 },
    'auto-dismiss': false,
  });
  const program = path.resolve(import.meta.dirname, '../../daemon/bin/qblock-io');
  const url = `nbd+unix:///src?socket=${file('nbd.sock')}`;
  const written = execFileSync(program, ['-f', 'raw', '-c', 'write -P 2 0 4k', url], { encoding: 'utf8' });
  expect(written).toContain('wrote 4096/4096');
  for (;;) {
    const [job] = (await client.execute('query-jobs')) as { status: string; error?: string }[];
    if (job?.status !== 'concluded') continue;
    expect(job.error).toMatch(/No space left/);
    break;
  }
  expect(
    await fails('blockdev-backup', {
      'job-id': 'b2',
      device: 'src',
      target: 'dst',
      sync: 'none',
      'x-perf': { 'min-cluster-size': 100_000 },
    }),
  ).toMatch(/power of 2/);
});

test('a pseudo terminal has a link, which goes with it', async () => {
  const link = file('tty');
  const answer = (await client.execute('chardev-add', {
    id: 'p',
    backend: { type: 'pty', data: { path: link } },
  })) as { pty: string };
  expect(lstatSync(link).isSymbolicLink()).toBe(true);
  expect(answer.pty).toMatch(/^\/dev\/pts\//);
  expect(await fails('chardev-add', { id: 'q', backend: { type: 'pty', data: { path: link } } })).toMatch(
    /File exists/,
  );
  await client.execute('chardev-remove', { id: 'p' });
  expect(existsSync(link)).toBe(false);
});

test('an export may name several iothreads, all of which must be there', async () => {
  for (const id of ['i1', 'i2']) await client.execute('object-add', { 'qom-type': 'iothread', id });
  await client.execute('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: 65536 });
  await client.execute('nbd-server-start', { addr: { type: 'unix', data: { path: file('nbd.sock') } } });
  const exportOf = (iothread: unknown): object => ({ type: 'nbd', id: 'e', 'node-name': 'n', iothread });
  expect(await fails('block-export-add', exportOf(['i1', 'nope']))).toMatch(/iothread "nope" not found/);
  expect(await fails('block-export-add', exportOf([]))).toMatch(/must not be empty/);
  await client.execute('block-export-add', exportOf(['i1', 'i2']));
  expect(await client.execute('query-block-exports')).toMatchObject([{ id: 'e' }]);
});
