/** Trace events, the log of slow requests, x-query-requests, the debug dump, and reloading. */

import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { limitMs } from '../../patience.ts';
import { daemonProgram, type RunningDaemon, repositoryRoot, startDaemon } from '../../peers/daemons.ts';
import type { QmpClient } from '../../peers/qmp-client.ts';
import { requirePeer } from '../../peers/requires.ts';

const PATIENCE = { timeout: limitMs(20_000) };
const io = path.join(repositoryRoot, 'daemon/bin/qblock-io');
const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function start(
  args: readonly string[],
  prepare: (dir: string) => void = () => undefined,
): Promise<{ daemon: RunningDaemon; client: QmpClient; file: (name: string) => string }> {
  const daemon = await startDaemon('qblockd', { args, prepare });
  cleanups.push(() => daemon.stop());
  const client = await daemon.connect();
  await client.negotiate();
  cleanups.push(() => client.close());
  return { daemon, client, file: (name) => path.join(daemon.dir, name) };
}

const DISK = [
  ...['--blockdev', 'driver=file,node-name=f,filename=$DIR/disk'],
  ...['--blockdev', 'driver=raw,node-name=d,file=f'],
  ...['--nbd-server', 'addr.type=unix,addr.path=$DIR/nbd.sock'],
  ...['--export', 'nbd,id=e,node-name=d,writable=on'],
];
const makeDisk = (dir: string): void => writeFileSync(path.join(dir, 'disk'), Buffer.alloc(1024 * 1024));
const lines = (file: string): string[] => readFileSync(file, 'utf8').trim().split('\n');

function run(file: (name: string) => string, ...commands: string[]): void {
  const args = commands.flatMap((command) => ['-c', command]);
  execFileSync(io, ['-f', 'raw', ...args, `nbd+unix:///d?socket=${file('nbd.sock')}`], { stdio: 'ignore' });
}

test('events are traced by pattern, into a file, a line each; secrets are not', async () => {
  const { client, file } = await start(
    [...DISK, ...['--trace', 'enable=bdrv_*,file=$DIR/trace'], ...['-T', 'events=$DIR/events']],
    (dir) => {
      makeDisk(dir);
      writeFileSync(path.join(dir, 'events'), '# commands\nqmp_enter_*\njob_*\n-qmp_enter_query_*\n');
    },
  );
  run(file, 'write -f 0 512', 'write -z 64k 64k');
  await client.execute('object-add', { 'qom-type': 'secret', id: 's', data: 'geheim' });
  await client.execute('query-jobs');
  await client.execute('blockdev-create', {
    'job-id': 'j',
    options: { driver: 'file', filename: file('new'), size: 65536 },
  });
  await expect.poll(() => lines(file('trace')).join('\n'), PATIENCE).toMatch(/job_completed job j/);
  const traced = lines(file('trace'));
  // Also of nodes whose options stand in front of the trace's.
  expect(traced).toContainEqual(
    expect.stringMatching(/^bdrv_open_common bs f filename ".*disk" format_name "file"$/),
  );
  expect(traced).toContainEqual(expect.stringMatching(/^bdrv_co_pwritev_part bs d offset 0x0 bytes 0x200/));
  expect(traced).toContainEqual(
    expect.stringMatching(/^bdrv_co_pwrite_zeroes bs f offset 0x10000 bytes 0x10000/),
  );
  expect(traced).toContainEqual('qmp_enter_object_add {"qom-type":"secret","id":"s","data":"***"}');
  expect(traced).toContain('job_state_transition job j attempting allowed transition (created-->running)');
  expect(traced.filter((line) => /query_jobs|blk_co|geheim/.test(line))).toEqual([]);
});

test('--trace help lists events, and those with the names of the original are there', (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const list = (program: string): string[] =>
    spawnSync(program, ['--trace', 'help'], { encoding: 'utf8' }).stdout.trim().split('\n').slice(0);
  const ours = list(daemonProgram('qblockd'));
  const theirs = new Set(list('qemu-storage-daemon').map((line) => line.trim()));
  expect(ours.length).toBeGreaterThan(150);
  // Ours alone begin with x_, or are of commands that 7.2 does not have.
  const own = ours.filter((name) => !theirs.has(name) && !/^x_|^qmp_(enter|exit)_/.test(name));
  expect(own).toEqual([]);
  const unknown = spawnSync(daemonProgram('qblockd'), ['--trace', 'nope', '--trace', 'help'], {
    encoding: 'utf8',
  });
  expect(unknown.stderr).toContain("warning: trace event 'nope' does not exist");
  const missing = spawnSync(daemonProgram('qblockd'), ['--trace', 'events=/nope/x'], { encoding: 'utf8' });
  expect(missing.status).toBe(1);
  expect(missing.stderr).toMatch(/\/nope\/x.*No such file/);
});

const SLOW = JSON.stringify({
  driver: 'blkdebug',
  'node-name': 'd',
  image: { driver: 'file', 'node-name': 'f', filename: '$DIR/disk' },
  'inject-error': [{ event: 'none', iotype: 'read', errno: 0, 'delay-ns': 400_000_000 }],
});
const SLOW_DISK = ['--blockdev', SLOW, ...DISK.slice(4)];

test('slow requests are logged with their path, others are not', async () => {
  const { file } = await start([...SLOW_DISK, '--slow-requests', '250', '--log-file', '$DIR/log'], makeDisk);
  run(file, 'write 0 64k', 'read 4k 8k');
  const logged = lines(file('log')).map((line) => JSON.parse(line) as Record<string, unknown>);
  const slow = logged.filter(({ msg }) => msg === 'slow request');
  expect(slow).toHaveLength(1);
  expect(slow[0]).toMatchObject({ kind: 'preadv', node: 'd', offset: 4096, bytes: 8192 });
  expect(slow[0]!.ms).toBeGreaterThan(390);
  expect(slow[0]!.path).toEqual([
    expect.stringMatching(/^> preadv d \(blkdebug\) [4-9]\d\d/),
    expect.stringMatching(/^>> preadv f \(file\) .*begun after [4-9]\d\d/),
  ]);
  const bad = spawnSync(daemonProgram('qblockd'), ['--slow-requests', 'soon'], { encoding: 'utf8' });
  expect(bad.stderr).toContain("Invalid threshold 'soon', expected: milliseconds");
});

test('x-query-requests and the debug dump tell what is under way, and for how long', async () => {
  const { daemon, client, file } = await start([...SLOW_DISK, '--dump-file', '$DIR/dump'], makeDisk);
  expect(await client.execute('x-query-requests')).toEqual([]);
  const reader = spawn(io, ['-f', 'raw', '-c', 'read 4k 8k', `nbd+unix:///d?socket=${file('nbd.sock')}`], {
    stdio: 'ignore',
  });
  const ended = new Promise((resolve) => reader.once('exit', resolve));
  interface NodeRequests {
    'node-name': string;
    requests: { kind: string; offset: number; bytes: number; 'age-us': number; 'waits-for': string }[];
  }
  let found: NodeRequests | undefined;
  while (found === undefined) {
    const all = (await client.execute('x-query-requests')) as NodeRequests[];
    found = all.find(({ requests }) => requests.some(({ offset }) => offset === 4096));
  }
  expect(found).toMatchObject({
    'node-name': 'd',
    requests: [{ kind: 'read', offset: 4096, bytes: 8192, 'waits-for': 'driver', serialising: false }],
  });
  daemon.process.kill('SIGUSR2');
  await expect.poll(() => existsSync(file('dump')) && lines(file('dump')).length, PATIENCE).toBe(1);
  const dump = JSON.parse(lines(file('dump'))[0]!) as Record<string, unknown>;
  expect(dump).toMatchObject({ pid: daemon.process.pid, exports: [{ id: 'e', 'node-name': 'd' }] });
  expect(Object.keys(dump)).toEqual(
    expect.arrayContaining(['nodes', 'graph', 'requests', 'jobs', 'monitors', 'memory', 'graph-lock']),
  );
  await ended;
  const [later] = (await client.execute('x-query-requests', { 'node-name': 'd' })) as NodeRequests[];
  expect(later!.requests).toEqual([]);
  await expect(client.execute('x-query-requests', { 'node-name': 'nope' })).rejects.toThrow(/nope/);
});

test('SIGHUP reads the configuration again and opens the log anew; without either it ends the daemon', async () => {
  const entry = (name: string): string => `blockdev: [{driver: null-co, node-name: ${name}, size: 65536}]\n`;
  const { daemon, client, file } = await start(
    ['--config', '$DIR/conf', '--log-file', '$DIR/log', '--log-level', 'info'],
    (dir) => {
      mkdirSync(path.join(dir, 'conf'));
      writeFileSync(path.join(dir, 'conf/a.yaml'), entry('a'));
    },
  );
  const nodes = async (): Promise<string[]> => {
    const list = (await client.execute('query-named-block-nodes', { flat: true })) as {
      'node-name': string;
    }[];
    return list.map((node) => node['node-name']).sort();
  };
  expect(await nodes()).toEqual(['a']);
  renameSync(file('log'), file('log.1'));
  writeFileSync(file('conf/b.yaml'), entry('b'));
  writeFileSync(file('conf/c.yaml'), 'blockdev: [{driver: file, node-name: c, filename: /nope/x}]\n');
  writeFileSync(file('conf/a.yaml'), entry('a').replace('65536', '131072'));
  daemon.process.kill('SIGHUP');
  await expect.poll(nodes, PATIENCE).toEqual(['a', 'b']);
  await expect
    .poll(() => existsSync(file('log')) && readFileSync(file('log'), 'utf8'), PATIENCE)
    .toMatch(/configuration read again/);
  // Nonsense does not end a daemon that serves disks.
  writeFileSync(file('conf/d.yaml'), 'blockdev: {{{');
  daemon.process.kill('SIGHUP');
  writeFileSync(file('conf/e.yaml'), entry('e'));
  await client.execute('query-version');
  execFileSync('rm', [file('conf/d.yaml')]);
  daemon.process.kill('SIGHUP');
  await expect.poll(nodes, PATIENCE).toEqual(['a', 'b', 'e']);
  client.close();
  const { stderr } = await daemon.stop();
  expect(stderr).toMatch(/a\.yaml:1:\d+: is there already, and stays as it is until the daemon is restarted/);
  expect(stderr).toMatch(/c\.yaml:1:\d+: Could not open '\/nope\/x': No such file or directory/);
  const plain = await startDaemon('qblockd');
  plain.process.kill('SIGHUP');
  expect((await plain.exited).status).toBe(0);
  await plain.stop();
});
