/**
 * Jobs to and from every network driver that is written to, in the daemon: mirror, backup, commit onto it, stream from
 * it; full disks; and secrets, which are shown nowhere. What came out is read back by qblock-img.
 */

import { execFile, execFileSync, spawn } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { testPattern } from '../../drivers/network/remote-node.ts';
import { limitMs } from '../../patience.ts';
import { makeScratchDir, type RunningDaemon, repositoryRoot, startDaemon } from '../daemons.ts';
import type { QmpClient } from '../qmp-client.ts';
import { requirePeer } from '../requires.ts';
import { NETWORK_KINDS } from './servers/kinds.ts';
import { startTgt } from './servers/tgt.ts';

const run = promisify(execFile);
const MiB = 1024 * 1024;
const SIZE = 4 * MiB;
/** Longer than any of the small disks. */
const LARGE = 16 * MiB;
const ENDS_IN_MS = 5000;
const img = path.join(repositoryRoot, 'daemon/bin/qblock-img');
const io = path.join(repositoryRoot, 'daemon/bin/qblock-io');
/** Half data, half nothing. */
const DATA = Buffer.concat([testPattern(SIZE / 2), Buffer.alloc(SIZE / 2)]);
let dir: string;
const ends: (() => unknown)[] = [];

beforeAll(() => {
  dir = makeScratchDir();
  writeFileSync(path.join(dir, 'source.raw'), DATA);
});

afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

afterAll(() => {
  rmSync(dir, { recursive: true, force: true });
});

function contentFile(folder: string, name: string, content: Buffer | null): string {
  const file = path.join(folder, name);
  writeFileSync(file, content ?? '');
  truncateSync(file, SIZE);
  return file;
}

function folderOf(name: string): string {
  const folder = path.join(dir, name);
  mkdirSync(folder);
  return folder;
}

async function daemonWith(
  args: readonly string[] = [],
): Promise<{ daemon: RunningDaemon; client: QmpClient }> {
  const daemon = await startDaemon('qblockd', { args });
  ends.push(daemon.stop);
  const client = await daemon.connect();
  await client.negotiate();
  return { daemon, client };
}

/** Waits for an event of the job; throws what it failed with. */
async function jobEvent(client: QmpClient, id: string, name: string): Promise<void> {
  for (;;) {
    const message = await client.next();
    const data = (message?.data ?? {}) as { readonly device?: string; readonly error?: string };
    if (data.device !== id) continue;
    if (data.error !== undefined) throw new Error(data.error);
    if (message?.event === name) return;
  }
}

async function sameAs(options: Record<string, unknown>, file: string): Promise<void> {
  await run(img, [
    'compare',
    '-f',
    'raw',
    '-F',
    'raw',
    path.join(dir, file),
    `json:${JSON.stringify(options)}`,
  ]);
}

for (const [driver, kind] of Object.entries(NETWORK_KINDS).filter(([, { isWritable }]) => isWritable))
  test(`${driver}: mirror, backup, commit and stream; a server that stops under way`, async (context) => {
    requirePeer(context, ...kind.needs, 'nbdcopy');
    const { make, freeze, end } = await kind.start(folderOf(driver));
    ends.push(end);
    const { client } = await daemonWith();
    const add = (name: string, options: object): Promise<unknown> =>
      client.execute('blockdev-add', { 'node-name': name, ...options });
    await add('source', { driver: 'file', filename: path.join(dir, 'source.raw') });
    for (const [job, more] of [
      ['blockdev-mirror', { sync: 'full' }],
      ['blockdev-backup', { sync: 'full' }],
    ] as const) {
      const options = await make(job, testPattern(SIZE, 7));
      await add('target', options);
      await client.execute(job, { 'job-id': 'j', device: 'source', target: 'target', ...more });
      if (job === 'blockdev-mirror') {
        await jobEvent(client, 'j', 'BLOCK_JOB_READY');
        await client.execute('block-job-cancel', { device: 'j' });
      }
      await jobEvent(client, 'j', 'BLOCK_JOB_COMPLETED');
      await client.execute('blockdev-del', { 'node-name': 'target' });
      await sameAs(options, 'source.raw');
    }
    const model = Buffer.from(DATA);
    model.fill(9, MiB, MiB + 65_536);
    writeFileSync(path.join(dir, `${driver}.raw`), model);
    const base = await make('base', DATA);
    const overlay = path.join(dir, `${driver}.qcow2`);
    for (const job of ['block-stream', 'block-commit']) {
      await run(img, ['create', '-q', '-f', 'qcow2', overlay, String(SIZE)]);
      await run(io, ['-c', 'write -q -P 9 1M 64k', overlay]);
      await add('base', base);
      const file = { driver: 'file', filename: overlay };
      await add('overlay', { driver: 'qcow2', file, backing: 'base' });
      await client.execute(job, { 'job-id': 'j', device: 'overlay' });
      if (job === 'block-commit') {
        await jobEvent(client, 'j', 'BLOCK_JOB_READY');
        await client.execute('block-job-complete', { device: 'j' });
      }
      await jobEvent(client, 'j', 'BLOCK_JOB_COMPLETED');
      await client.execute('blockdev-del', { 'node-name': 'overlay' });
      await client.execute('blockdev-del', { 'node-name': 'base' });
      if (job === 'block-commit') await sameAs(base, `${driver}.raw`);
      else await run(img, ['compare', path.join(dir, `${driver}.raw`), overlay, '-f', 'raw']);
    }
    await endsWithRequestsUnderWay(await make('stuck', DATA), freeze);
  });

/** With a server that has stopped in the middle: other nodes go on, and `quit` and SIGTERM end the daemon soon. */
async function endsWithRequestsUnderWay(
  options: Record<string, unknown>,
  freeze: (frozen: boolean) => void,
): Promise<void> {
  for (const way of ['quit', 'SIGTERM']) {
    const { daemon, client } = await daemonWith();
    const local = { driver: 'file', filename: path.join(dir, 'source.raw') };
    await client.execute('blockdev-add', { 'node-name': 'local', 'read-only': true, ...local });
    // Caches of the libraries have nothing yet.
    await client.execute('blockdev-add', { 'node-name': 'stuck', ...options, cache: { direct: true } });
    const socket = path.join(daemon.dir, 'nbd');
    await client.execute('nbd-server-start', { addr: { type: 'unix', data: { path: socket } } });
    for (const name of ['local', 'stuck'])
      await client.execute('block-export-add', { type: 'nbd', id: name, 'node-name': name });
    const uri = (name: string): string => `nbd+unix:///${name}?socket=${socket}`;
    freeze(true);
    try {
      const hanging = spawn('nbdcopy', [uri('stuck'), 'null:'], { stdio: 'ignore' });
      await new Promise((resolve) => setTimeout(resolve, 300));
      await run('nbdcopy', [uri('local'), 'null:']);
      await client.execute('query-named-block-nodes', { flat: true });
      const began = performance.now();
      if (way === 'quit') client.send('{"execute":"quit"}');
      else daemon.process.kill('SIGTERM');
      const { status, signal } = await daemon.exited;
      expect([status, signal], way).toEqual([0, null]);
      expect(performance.now() - began, way).toBeLessThan(limitMs(ENDS_IN_MS));
      hanging.kill();
    } finally {
      freeze(false);
    }
  }
}

/** What is on a file system with less room than the image is long, and with how much (servers keep their own there too). */
const FULL = { ssh: '1m', nfs: '1m', gluster: '12m' } as const;

for (const [driver, room] of Object.entries(FULL) as [keyof typeof FULL, string][])
  test(`${driver}: a disk that is full fails the write, by its name, and the daemon goes on`, async (context) => {
    const kind = NETWORK_KINDS[driver];
    requirePeer(context, ...kind.needs);
    const folder = folderOf(`full-${driver}`);
    if (!mountSmall(folder, room)) {
      context.skip('no tmpfs can be mounted here');
      return;
    }
    ends.push(() => execFileSync('umount', ['-l', folder]));
    const server = await kind.start(folder);
    ends.push(server.end);
    const large = path.join(dir, 'large');
    writeFileSync(large, testPattern(LARGE));
    const { client } = await daemonWith();
    const file = { driver: 'file', filename: large };
    await client.execute('blockdev-add', { 'node-name': 'source', ...file });
    const options = await server.make('disk', Buffer.alloc(512));
    await client.execute('blockdev-add', { 'node-name': 'target', ...options });
    await client.execute('block_resize', { 'node-name': 'target', size: LARGE });
    const job = { 'job-id': 'j', device: 'source', target: 'target', sync: 'full' };
    await client.execute('blockdev-backup', job);
    await expect(jobEvent(client, 'j', 'BLOCK_JOB_COMPLETED')).rejects.toThrow('No space left on device');
    await client.execute('blockdev-del', { 'node-name': 'target' });
  });

function mountSmall(folder: string, size: string): boolean {
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'none', folder], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

/** Every secret holds this word, encoded or not. */
const WORD = 'hunter2hunter';

test('secrets are shown nowhere: replies, events, errors, logs, the process list', async (context) => {
  requirePeer(context, 'tgtd', 'libiscsi', 'librbd');
  const folder = folderOf('secrets');
  const tgt = await startTgt(folder);
  ends.push(tgt.kill);
  const account = { user: 'jane', password: `${WORD}1` };
  tgt.addTarget('iqn.2026-01.test:s', contentFile(folder, 'disk', DATA), account);
  const secretFile = path.join(folder, 'secret');
  writeFileSync(secretFile, account.password);
  const log = path.join(folder, 'log');
  const { daemon, client } = await daemonWith([
    ...['--object', `secret,id=s,file=${secretFile}`],
    ...['--log-level', 'debug', '--log-file', log],
  ]);
  const place = { transport: 'tcp', portal: `127.0.0.1:${tgt.port}`, target: 'iqn.2026-01.test:s', lun: 1 };
  const nobody = 'http://127.0.0.1:1/';
  const web = { driver: 'http', url: `http://joe:${WORD}@127.0.0.1:1/d?X-Amz-Signature=${WORD}` };
  const said: string[] = [];
  const ask = async (command: string, args?: object): Promise<void> => {
    client.send(`${JSON.stringify({ execute: command, ...(args && { arguments: args }) })}\n`);
    for (;;) {
      const message = (await client.next())!;
      said.push(JSON.stringify(message));
      if ('return' in message || 'error' in message) return;
    }
  };
  const add = (options: object): Promise<void> =>
    ask('blockdev-add', { 'node-name': 'n', 'read-only': true, ...options });
  await ask('blockdev-add', {
    'node-name': 'i',
    driver: 'iscsi',
    ...place,
    user: 'jane',
    'password-secret': 's',
  });
  await add({ driver: 'iscsi', ...place, user: 'joe', 'password-secret': 's' });
  await add(web);
  await add({ ...web, url: web.url.replace('http', 'https'), driver: 'https' });
  await add({ ...web, driver: 'ftp' });
  await add({ driver: 'ftp', url: `ftp://joe:${WORD}@127.0.0.1:1/d` });
  await add({ driver: 'http', url: nobody, cookie: `a=${WORD}` });
  await add({ driver: 'http', url: nobody, username: 'joe', 'password-secret': 's' });
  await add({
    driver: 's3',
    endpoint: nobody,
    bucket: 'b',
    key: 'k',
    'access-key-id': 'a',
    'secret-access-key': 's',
  });
  await add({
    driver: 'rbd',
    pool: 'p',
    image: 'i',
    'key-secret': 's',
    server: [{ host: '127.0.0.1', port: '1' }],
  });
  // The image is not there, but what names it is: backing files and json: names.
  const overlay = path.join(folder, 'overlay.qcow2');
  await run(img, ['create', '-q', '-u', '-f', 'qcow2', '-F', 'raw', '-b', 'x', overlay, '4M']);
  await ask('blockdev-add', {
    'node-name': 'o',
    driver: 'qcow2',
    file: { driver: 'file', filename: overlay },
    backing: 'i',
  });
  await add({ driver: 'raw', file: { ...web, driver: 'http' } });
  for (const query of [
    'query-named-block-nodes',
    'query-block-jobs',
    'x-debug-query-block-graph',
    'query-blockstats',
  ])
    await ask(query);
  await ask('qom-get', { path: '/objects/s', property: 'file' });
  const shown = [
    ...said,
    readFileSync(log, 'utf8'),
    execFileSync('ps', ['-o', 'args=', '-p', String(daemon.process.pid)], { encoding: 'utf8' }),
    readFileSync(`/proc/${daemon.process.pid}/environ`, 'latin1'),
  ];
  client.close();
  const report = await daemon.stop();
  shown.push(report.stdout, report.stderr);
  // The daemon of the test is one that would be found out.
  expect(said.join('')).toContain('iqn.2026-01.test:s');
  const secrets = [
    WORD,
    Buffer.from(WORD).toString('base64').slice(0, 12),
    Buffer.from(`joe:${WORD}`).toString('base64').slice(0, 16),
  ];
  for (const text of shown) for (const secret of secrets) expect(text).not.toContain(secret);
});
