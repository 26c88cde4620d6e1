/**
 * Hostile input: whatever is opened, sent or asked for, the daemon goes on serving others, keeps its memory bounded and
 * ends when it is told to. Turns are measured in processor time (QBLOCKD_TURN_PROBE), not by the clock.
 */

import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type RunningDaemon, startDaemon } from '../peers/daemons.ts';
import type { QmpClient } from '../peers/qmp-client.ts';

/** Processor time that one turn may take, in milliseconds: the collector of garbage is in it. */
const TURN_MS = 100;
const MIB = 1024 * 1024;

let dir = '';
let daemon: RunningDaemon | null = null;

beforeEach(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'qb-host-'));
});

afterEach(async () => {
  await daemon?.stop();
  daemon = null;
  rmSync(dir, { recursive: true, force: true });
});

const file = (name: string): string => path.join(dir, name);

async function start(...args: string[]): Promise<RunningDaemon> {
  daemon = await startDaemon('qblockd', { args, dir, env: { QBLOCKD_TURN_PROBE: file('turns') } });
  return daemon;
}

/** A monitor of its own socket, besides that of startDaemon. */
async function monitor(): Promise<QmpClient> {
  const { QmpClient: Client } = await import('../peers/qmp-client.ts');
  const client = await Client.connect(file('more.sock'));
  await client.negotiate();
  return client;
}

const MORE = ['--qmp', 'unix:$DIR/more.sock'];

function longestTurnMs(): number {
  if (!existsSync(file('turns'))) return 0;
  return Math.max(0, ...readFileSync(file('turns'), 'utf8').split('\n').map(Number));
}

function statusOf({ process: { pid } }: RunningDaemon, field: string): number {
  const text = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(new RegExp(`^${field}:\\s+(\\d+)`, 'm').exec(text)?.[1]);
}

async function until(what: string, holds: () => boolean): Promise<void> {
  for (let tries = 0; tries < 600; tries++) {
    if (holds()) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`never: ${what}`);
}

test('FIFOs hold up nothing, whatever their name is used for', { timeout: 60_000 }, async () => {
  execFileSync('mkfifo', [file('fifo')]);
  const running = await start(...MORE);
  const qmp = await monitor();
  const fifo = file('fifo');
  await expect(
    qmp.execute('blockdev-add', { driver: 'file', 'node-name': 'a', filename: fifo }),
  ).rejects.toThrow(`'file' driver requires '${fifo}' to be a regular file`);
  await expect(
    qmp.execute('blockdev-add', { driver: 'host_device', 'node-name': 'a', filename: fifo }),
  ).rejects.toThrow('requires');
  await expect(qmp.execute('object-add', { 'qom-type': 'secret', id: 's', file: fifo })).rejects.toThrow(
    'Resource temporarily unavailable',
  );
  await qmp.execute('chardev-add', { id: 'c', backend: { type: 'file', data: { out: fifo, in: fifo } } });
  await qmp.execute('chardev-add', { id: 'd', backend: { type: 'null', data: { logfile: fifo } } });
  expect(await qmp.execute('query-named-block-nodes')).toEqual([]);
  running.process.kill('SIGTERM');
  expect((await running.exited).status).toBe(0);
});

test('a secret comes through a pipe that somebody writes to', { timeout: 60_000 }, async () => {
  execFileSync('mkfifo', [file('fifo')]);
  await start(...MORE);
  const qmp = await monitor();
  const added = qmp.execute('object-add', { 'qom-type': 'secret', id: 's', file: file('fifo') });
  execFileSync('sh', ['-c', `printf abc > '${file('fifo')}'`]);
  await added;
});

test('messages of 30 MB are read and answered in short turns', { timeout: 120_000 }, async () => {
  await start(...MORE);
  await until('the start is over', () => existsSync(file('pid')));
  const socket = await socketTo(file('more.sock'));
  // A client that splits lines would be slower than the daemon: one message ends with a piece.
  const reply = (): Promise<string> =>
    new Promise((resolve) => {
      let head = '';
      const take = (data: Buffer): void => {
        if (head.length < 100) head += data.toString('latin1', 0, 100);
        if (data.at(-1) !== 0x0a) return;
        socket.off('data', take);
        resolve(head);
      };
      socket.on('data', take);
    });
  await reply();
  socket.write('{"execute":"qmp_capabilities"}');
  await reply();
  writeFileSync(file('turns'), '');
  const bodies = [
    `"${'é'.repeat(15 * MIB)}"`,
    `[${'1,'.repeat(500_000)}1]`,
    `[${'{"a":1},'.repeat(200_000)}1]`,
    `"${'\\u00e9'.repeat(4 * MIB)}"`,
  ];
  for (const body of bodies) {
    const answer = reply();
    socket.write(`{"execute":"query-version","id":${body}}\n`);
    expect(await answer).toMatch(/^\{"return": /);
  }
  socket.destroy();
  expect(longestTurnMs()).toBeLessThan(TURN_MS);
});

/** A header of LUKS version 1 with one active slot of `iterations`. */
function luksHeader(iterations: number): Buffer {
  const header = Buffer.alloc(4 * MIB);
  Buffer.from('LUKS\xba\xbe', 'latin1').copy(header);
  header.writeUInt16BE(1, 6);
  header.write('aes', 8);
  header.write('xts-plain64', 40);
  header.write('sha256', 72);
  header.writeUInt32BE(4096, 104);
  header.writeUInt32BE(64, 108);
  randomBytes(20).copy(header, 112);
  header.writeUInt32BE(1000, 164);
  for (let slot = 0; slot < 8; slot++) {
    const at = 208 + 48 * slot;
    header.writeUInt32BE(slot === 0 ? 0x00ac71f3 : 0x0000dead, at);
    header.writeUInt32BE(slot === 0 ? iterations : 0, at + 4);
    header.writeUInt32BE(8 + 504 * slot, at + 40);
    header.writeUInt32BE(4000, at + 44);
  }
  return header;
}

test('a key that takes minutes holds up neither other monitors nor the end', {
  timeout: 60_000,
}, async () => {
  writeFileSync(file('luks'), luksHeader(2 ** 28));
  const running = await start(...MORE, '--object', 'secret,id=s,data=abc');
  const qmp = await monitor();
  const add = {
    driver: 'luks',
    'node-name': 'l',
    'key-secret': 's',
    file: { driver: 'file', filename: file('luks') },
  };
  qmp.send(`${JSON.stringify({ execute: 'blockdev-add', arguments: add })}\n`);
  const other = await monitor();
  await other.execute('query-named-block-nodes');
  running.process.kill('SIGTERM');
  expect((await running.exited).status).toBe(0);
});

test('more iterations than anybody waits for are refused', { timeout: 60_000 }, async () => {
  writeFileSync(file('luks'), luksHeader(2 ** 31 - 1));
  await start(...MORE, '--object', 'secret,id=s,data=abc');
  const qmp = await monitor();
  const add = {
    driver: 'luks',
    'node-name': 'l',
    'key-secret': 's',
    file: { driver: 'file', filename: file('luks') },
  };
  await expect(qmp.execute('blockdev-add', add)).rejects.toThrow('iteration count 2147483647 is larger than');
});

test('a preallocation without end is ended by job-cancel and by quit', { timeout: 60_000 }, async () => {
  writeFileSync(file('x'), '');
  const running = await start(...MORE, '--blockdev', 'file,node-name=f,filename=$DIR/x');
  const qmp = await monitor();
  const options = {
    driver: 'qcow2',
    file: 'f',
    size: 2 ** 50,
    preallocation: 'metadata',
    'cluster-size': 2 * MIB,
  };
  const concluded = async (): Promise<boolean> => {
    const jobs = (await qmp.execute('query-jobs')) as { status: string }[];
    return jobs.every(({ status }) => status === 'concluded');
  };
  await qmp.execute('blockdev-create', { 'job-id': 'j', options });
  expect(await concluded()).toBe(false);
  await qmp.execute('job-cancel', { id: 'j' });
  while (!(await concluded())) await new Promise((resolve) => setTimeout(resolve, 20));
  await qmp.execute('job-dismiss', { id: 'j' });
  await qmp.execute('blockdev-create', { 'job-id': 'k', options });
  await qmp.execute('quit');
  expect((await running.exited).status).toBe(0);
});

test('a chain that backs itself is told at once', { timeout: 60_000 }, async () => {
  await start(...MORE);
  const qmp = await monitor();
  writeFileSync(file('x'), '');
  await qmp.execute('blockdev-add', { driver: 'file', 'node-name': 'f', filename: file('x') });
  const options = { driver: 'qcow2', file: 'f', size: MIB, 'backing-file': './x', 'backing-fmt': 'qcow2' };
  await qmp.execute('blockdev-create', { 'job-id': 'j', options });
  await until('created', () => readFileSync(file('x')).length > 0);
  const jobs = async () => (await qmp.execute('query-jobs')) as { status: string }[];
  while ((await jobs())[0]?.status !== 'concluded') await new Promise((resolve) => setTimeout(resolve, 20));
  await expect(qmp.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'q', file: 'f' })).rejects.toThrow(
    'creates an infinite loop',
  );
});

// ---- memory and connections ------------------------------------------------------------------------------------

function socketTo(place: string | number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = typeof place === 'number' ? connect(place, '127.0.0.1') : connect(place);
    socket.once('error', reject);
    socket.once('connect', () => resolve(socket.off('error', reject).on('error', () => undefined)));
  });
}

/** An NBD client of export x that has asked for 32 MiB and does not read them. */
async function greedyClient(): Promise<Socket> {
  const socket = await socketTo(file('n.sock'));
  const hello = Buffer.alloc(4 + 16 + 1);
  hello.writeUInt32BE(3, 0);
  hello.write('IHAVEOPT', 4);
  hello.writeUInt32BE(1, 12);
  hello.writeUInt32BE(1, 16);
  hello.write('x', 20);
  const read = Buffer.alloc(28);
  read.writeUInt32BE(0x25609513, 0);
  read.writeUInt32BE(32 * MIB, 24);
  socket.write(Buffer.concat([hello, read]));
  socket.pause();
  return socket;
}

test('clients that do not read their replies share one bound, and give back what they held', {
  timeout: 120_000,
}, async () => {
  execFileSync('truncate', ['-s', '64M', file('disk')]);
  const running = await start(
    ...MORE,
    ...['--blockdev', 'file,node-name=f,filename=$DIR/disk'],
    ...['--nbd-server', 'addr.type=unix,addr.path=$DIR/n.sock', '--export', 'nbd,id=e,node-name=f,name=x'],
  );
  const clients: Socket[] = [];
  for (let i = 0; i < 60; i++) clients.push(await greedyClient());
  await new Promise((resolve) => setTimeout(resolve, 2000));
  expect(statusOf(running, 'VmHWM') / 1024).toBeLessThan(900);
  for (const client of clients) client.destroy();
  await until('memory is given back', () => statusOf(running, 'VmRSS') / 1024 < 250);
});

test('WebSocket clients without a token, or without a word, keep no descriptor', {
  timeout: 120_000,
}, async () => {
  const running = await start('--qmp', 'ws:127.0.0.1:0,token=abc,token-file=$DIR/token', ...MORE);
  const inode = createHash('md5').digest('hex');
  const { pid } = running.process;
  const descriptors = (): number => readdirSync(`/proc/${pid}/fd`).length;
  const port = listeningPort(pid ?? 0);
  const before = descriptors();
  const request = `GET /?token=${inode} HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n`;
  const clients: Socket[] = [];
  for (let i = 0; i < 100; i++) {
    const client = await socketTo(port);
    client.pause();
    clients.push(client);
    if (i < 50) client.write(request);
  }
  await until('refused and silent clients have gone', () => descriptors() <= before + 2);
  for (const client of clients) client.destroy();
});

/** The TCP port that a process listens on. */
function listeningPort(pid: number): number {
  const inodes = readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
    try {
      return [execFileSync('readlink', [`/proc/${pid}/fd/${fd}`]).toString()];
    } catch {
      return [];
    }
  });
  for (const line of readFileSync(`/proc/${pid}/net/tcp`, 'utf8').split('\n')) {
    const [, local = '', , state, , , , , , inode] = line.trim().split(/\s+/);
    if (state === '0A' && inodes.some((link) => link.includes(`[${inode}]`)))
      return Number.parseInt(local.split(':')[1] ?? '0', 16);
  }
  throw new Error('no listening port');
}

test('transactions of 60,000 actions and reopenings of 5,000 nodes are checked in short turns', {
  timeout: 120_000,
}, async () => {
  await start(...MORE);
  const qmp = await monitor();
  await qmp.execute('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: 1 << 20 });
  await qmp.execute('block-dirty-bitmap-add', { node: 'n', name: 'b' });
  const actions = (name: string): object[] =>
    Array.from({ length: 60_000 }, () => ({ type: 'block-dirty-bitmap-disable', data: { node: 'n', name } }));
  const options = Array.from({ length: 5000 }, (_, i) => ({ driver: 'null-co', 'node-name': `x${i}` }));
  // The first time takes what compiling takes.
  for (let round = 0; round < 3; round++) {
    if (round < 2) writeFileSync(file('turns'), '');
    await qmp.execute('transaction', { actions: actions('b') });
    await expect(qmp.execute('transaction', { actions: actions('c') })).rejects.toThrow('not found');
    await expect(qmp.execute('transaction', { actions: [...actions('b'), 1] })).rejects.toThrow(
      "'actions[60000]'",
    );
    await expect(qmp.execute('blockdev-reopen', { options })).rejects.toThrow('x0');
  }
  // 92 to 129 ms when the arguments were checked in one turn.
  expect(longestTurnMs()).toBeLessThan(50);
});

test('graphs of 2,000 nodes are told in short turns', { timeout: 120_000 }, async () => {
  await start(...MORE);
  const qmp = await monitor();
  const add = (name: string, options: object): Promise<unknown> =>
    qmp.execute('blockdev-add', { 'node-name': name, ...options });
  for (let i = 0; i < 1000; i++) {
    await add(`n${i}`, { driver: 'null-co' });
    await add(`r${i}`, { driver: 'raw', file: `n${i}` });
  }
  // The first time takes what compiling takes.
  for (const rounds of [1, 2]) {
    writeFileSync(file('turns'), '');
    for (let round = 0; round < rounds; round++) {
      const { members, edges } = (await qmp.execute('x-query-block-graph')) as {
        members: unknown[];
        edges: unknown[];
      };
      expect([members.length, edges.length]).toEqual([2000, 1000]);
      await qmp.execute('x-debug-query-block-graph');
      await qmp.execute('query-blockstats', { 'query-nodes': true });
      expect(await qmp.execute('query-named-block-nodes')).toHaveLength(2000);
    }
  }
  // 28 ms when the graph was told in one turn; what is left is the collection of garbage.
  expect(longestTurnMs()).toBeLessThan(25);
});
