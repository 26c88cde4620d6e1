/** The typed client against the daemon: commands, events, jobs, lost connections, and the examples. */

import { execFileSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import path from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { fleece } from '../../client/examples/fleecing.ts';
import { fullBackup, incrementalBackup } from '../../client/examples/incremental-backup.ts';
import { moveTo } from '../../client/examples/live-mirror.ts';
import { type Client, ConnectionLostError, connect, JobError, QmpError } from '../../client/node.ts';
import { createLineSplitter } from '../../client/transport.ts';
import { makeScratchDir, type RunningDaemon, repositoryRoot, startDaemon } from '../peers/daemons.ts';

const cleanUp: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of cleanUp.splice(0).reverse()) await step();
});

async function daemon(args: readonly string[] = []): Promise<RunningDaemon> {
  const running = await startDaemon('qblockd', { args: ['--qmp', 'unix:$DIR/client.sock', ...args] });
  cleanUp.push(() => running.stop());
  return running;
}

async function clientOf({ dir }: RunningDaemon, options = {}): Promise<Client> {
  const client = await connect(`unix:${dir}/client.sock`, options);
  cleanUp.push(() => client.close());
  return client;
}

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer();
    server.listen(0, '127.0.0.1', () => {
      const address = server.address();
      server.close(() => resolve(typeof address === 'object' && address !== null ? address.port : 0));
    });
  });
}

const img = path.join(repositoryRoot, 'daemon/bin/qblock-img');
const io = path.join(repositoryRoot, 'daemon/bin/qblock-io');

test('commands are methods, by both kinds of names, and errors have their class', async () => {
  const client = await clientOf(await daemon());
  expect(client.greeting.version.qemu.major).toBeGreaterThan(6);
  await client.blockdevAdd({ driver: 'null-co', 'node-name': 'n', size: 1048576 });
  await client.blockResize({ 'node-name': 'n', size: 2097152 }).catch(() => undefined);
  const nodes = await client.execute('query-named-block-nodes', { flat: true });
  expect(nodes.map((node) => node['node-name'])).toEqual(['n']);
  const failure = client.blockJobCancel({ device: 'none' });
  await expect(failure).rejects.toThrow(QmpError);
  await expect(failure).rejects.toMatchObject({ errorClass: 'DeviceNotActive', command: 'block-job-cancel' });
});

test('events come to every iterator, by name, and end with it', async () => {
  const client = await clientOf(await daemon());
  const all = client.events();
  const some = client.events('BLOCK_EXPORT_DELETED');
  const stop = new AbortController();
  const stopped = client.events('JOB_STATUS_CHANGE', { signal: stop.signal });
  const waits = stopped.next();
  stop.abort(new Error('enough'));
  await expect(waits).rejects.toThrow('enough');
  expect(await stopped.next()).toEqual({ done: true, value: undefined });
  await client.blockdevAdd({ driver: 'null-co', 'node-name': 'n', size: 1048576 });
  await client.blockdevCreate({
    'job-id': 'j',
    options: { driver: 'file', filename: '/nonexistent/x', size: 512 },
  });
  await expect(client.job('j').finished()).rejects.toThrow(JobError);
  const names: string[] = [];
  for await (const event of all) {
    names.push(event.name === 'JOB_STATUS_CHANGE' ? event.data.status : event.name);
    if (names.at(-1) === 'null') break;
  }
  expect(names).toEqual(['created', 'running', 'aborting', 'concluded', 'null']);
  const end = some.next();
  await client.close();
  expect((await end).done).toBe(true);
});

test('over a WebSocket and over TCP it is the same client', async () => {
  const ports = [await freePort(), await freePort()];
  const running = await startDaemon('qblockd', {
    args: ['--qmp', `ws:127.0.0.1:${ports[0]},token=open sesame`, '--qmp', `tcp:127.0.0.1:${ports[1]}`],
  });
  cleanUp.push(() => running.stop());
  const addresses = [`ws://127.0.0.1:${ports[0]}/?token=open%20sesame`, `tcp:127.0.0.1:${ports[1]}`];
  for (const address of addresses) {
    const client = await connect(address);
    cleanUp.push(() => client.close());
    expect((await client.queryVersion()).qemu.major).toBeGreaterThan(6);
    const job = client.events('JOB_STATUS_CHANGE').next();
    await client.blockdevCreate({
      'job-id': 'j',
      options: { driver: 'file', filename: '/nonexistent/x', size: 512 },
    });
    expect((await job).value?.data.id).toBe('j');
    await client
      .job('j')
      .finished()
      .catch(() => undefined);
  }
  await expect(connect(`ws://127.0.0.1:${ports[0]}/?token=wrong`)).rejects.toThrow(/Cannot connect/);
});

test('a call can be given up; the connection goes on', async () => {
  const client = await clientOf(await daemon());
  const stop = new AbortController();
  const call = client.queryQmpSchema(undefined as never, { signal: stop.signal });
  stop.abort(new Error('too long'));
  await expect(call).rejects.toThrow('too long');
  expect(await client.queryJobs()).toEqual([]);
});

test('without reconnecting, everything that waits fails when the daemon goes', async () => {
  const running = await daemon();
  const client = await clientOf(running);
  const event = client.events('BLOCK_EXPORT_DELETED').next();
  event.catch(() => undefined);
  running.process.kill('SIGKILL');
  await expect(event).rejects.toThrow(ConnectionLostError);
  await expect(client.queryJobs()).rejects.toThrow(ConnectionLostError);
});

test('with reconnecting, commands wait for the daemon to come back', async () => {
  const first = await daemon();
  const client = await clientOf(first, { reconnect: true, maxReconnectDelayMs: 100 });
  const events = client.eventsAndReconnects('JOB_STATUS_CHANGE');
  first.process.kill('SIGKILL');
  await first.exited;
  const waiting = client.queryJobs().catch(() => client.queryJobs());
  rmSync(path.join(first.dir, 'client.sock'), { force: true });
  const second = await startDaemon('qblockd', { dir: first.dir, args: ['--qmp', 'unix:$DIR/client.sock'] });
  cleanUp.push(() => second.stop());
  expect(await waiting).toEqual([]);
  expect((await events.next()).value).toEqual({ name: 'reconnected' });
});

test('a server that says nonsense, half of something, or nothing', async () => {
  const dir = makeScratchDir();
  cleanUp.push(() => rmSync(dir, { recursive: true, force: true }));
  const file = path.join(dir, 's');
  let answer: (socket: Socket) => void = () => undefined;
  const server = createServer((socket) => answer(socket));
  await new Promise<void>((resolve) => server.listen(file, resolve));
  cleanUp.push(() => server.close());
  answer = (socket) => socket.end('{"QMP": {"version": ');
  await expect(connect(file)).rejects.toThrow(ConnectionLostError);
  answer = (socket) => socket.end('hello\n');
  await expect(connect(file)).rejects.toThrow(/not speak QMP/);
  answer = () => undefined;
  await expect(connect(file, { signal: AbortSignal.timeout(50) })).rejects.toThrow(/timeout/);
  await expect(connect(path.join(dir, 'nobody'))).rejects.toThrow(/Cannot connect to .*nobody/);
});

test('lines are put together however the stream is cut', () => {
  const text = '{"a": 1}\r\n\r\n{"b": "é"}\n{"c"';
  for (let cut = 1; cut < 6; cut++) {
    const lines: string[] = [];
    const split = createLineSplitter((line) => lines.push(line));
    for (let at = 0; at < text.length; at += cut) split(text.slice(at, at + cut));
    expect(lines).toEqual(['{"a": 1}', '{"b": "é"}']);
  }
});

/** A daemon with a qcow2 disk of 4 MiB, node `disk`, whose first 64 KiB are filled with 1, and two empty images. */
async function withDisk(): Promise<{ readonly running: RunningDaemon; readonly client: Client }> {
  const running = await startDaemon('qblockd', {
    args: ['--qmp', 'unix:$DIR/client.sock'],
    prepare: (dir) => {
      for (const name of ['disk', 'a', 'b']) {
        execFileSync(img, ['create', '-q', '-f', 'qcow2', path.join(dir, name), '4M']);
      }
      execFileSync(io, ['-f', 'qcow2', '-c', 'write -q -P 1 0 64k', path.join(dir, 'disk')]);
    },
  });
  cleanUp.push(() => running.stop());
  const client = await clientOf(running);
  for (const name of ['disk', 'a', 'b']) {
    await client.blockdevAdd({
      driver: 'file',
      'node-name': `${name}-file`,
      filename: path.join(running.dir, name),
    });
    await client.blockdevAdd({ driver: 'qcow2', 'node-name': name, file: `${name}-file` });
  }
  await client.nbdServerStart({ addr: { type: 'unix', data: { path: path.join(running.dir, 'nbd') } } });
  return { running, client };
}

/** Runs commands of the image shell on an export. */
function onExport(running: RunningDaemon, name: string, ...commands: readonly string[]): string {
  const readOnly = commands.every((command) => command.startsWith('read')) ? ['-r'] : [];
  const args = commands.flatMap((command) => ['-c', command]);
  return execFileSync(
    io,
    [...readOnly, ...args, '-f', 'raw', `nbd+unix:///${name}?socket=${running.dir}/nbd`],
    {
      encoding: 'utf8',
    },
  );
}

test('example: full and incremental backup', async () => {
  const { running, client } = await withDisk();
  await client.blockExportAdd({ type: 'nbd', id: 'e', 'node-name': 'disk', name: 'disk', writable: true });
  await fullBackup(client, 'disk', 'a');
  onExport(running, 'disk', 'write -q -P 2 1M 64k', 'flush');
  await incrementalBackup(client, 'disk', 'b');
  for (const name of ['a', 'b']) {
    await client.blockExportAdd({ type: 'nbd', id: name, 'node-name': name, name });
  }
  expect(onExport(running, 'a', 'read -q -P 1 0 64k', 'read -q -P 0 1M 64k')).toBe('');
  expect(onExport(running, 'b', 'read -q -P 0 0 64k', 'read -q -P 2 1M 64k')).toBe('');
});

test('example: a disk moves while it is exported', async () => {
  const { running, client } = await withDisk();
  await client.blockExportAdd({ type: 'nbd', id: 'e', 'node-name': 'disk', name: 'disk', writable: true });
  await moveTo(client, 'disk', 'a');
  expect((await client.queryBlockExports())[0]?.['node-name']).toBe('a');
  expect(onExport(running, 'disk', 'read -q -P 1 0 64k')).toBe('');
});

test('example: fleecing shows the disk as it was', async () => {
  const { running, client } = await withDisk();
  const snapshot = await fleece(client, 'disk', 'a');
  await client.blockExportAdd({
    type: 'nbd',
    id: 'e',
    'node-name': 'disk-cbw',
    name: 'disk',
    writable: true,
  });
  onExport(running, 'disk', 'write -q -P 9 0 64k');
  expect(onExport(running, snapshot.exportName, 'read -q -P 1 0 64k')).toBe('');
  await client.blockExportDel({ id: 'e', mode: 'hard' });
  await snapshot.end();
  expect((await client.queryNamedBlockNodes({})).map((node) => node['node-name'])).not.toContain('disk-cbw');
});
