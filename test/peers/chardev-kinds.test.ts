/** WebSocket and tn3270 on socket devices, serial lines, vsock addresses: both daemons; and what only later releases have. */

import { spawn } from 'node:child_process';
import { constants, createReadStream, existsSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import path from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import WebSocket from 'ws';
import { limitMs } from '../patience.ts';
import { type DaemonKind, makeScratchDir, type RunningDaemon, startDaemon } from './daemons.ts';
import { QmpClient } from './qmp-client.ts';
import { requirePeer } from './requires.ts';

const KINDS: readonly DaemonKind[] = ['qemu-storage-daemon', 'qblockd'];
const PATIENCE = { timeout: limitMs(20_000) };
const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function started(
  kind: DaemonKind,
  ...args: string[]
): Promise<{ daemon: RunningDaemon; client: QmpClient }> {
  const daemon = await startDaemon(kind, { args });
  cleanups.push(() => daemon.stop());
  const client = await daemon.connect();
  cleanups.push(() => client.close());
  await client.negotiate();
  return { daemon, client };
}

async function deviceName(client: QmpClient, id: string): Promise<string> {
  const list = (await client.execute('query-chardev')) as { label: string; filename: string }[];
  return list.find(({ label }) => label === id)!.filename;
}

const listening = (more: string): string => `socket,id=c,host=127.0.0.1,port=0,server=on,wait=off,${more}`;

async function portOf(client: QmpClient): Promise<number> {
  return Number(/:(\d+),server/.exec(await deviceName(client, 'c'))![1]);
}

/** Everything a connection has received, as text of one character a byte. */
function collect(socket: Socket): { text: string } {
  const got = { text: '' };
  socket.on('data', (data: Buffer) => {
    got.text += data.toString('latin1');
  });
  socket.on('error', () => undefined);
  cleanups.push(() => socket.destroy());
  return got;
}

/** What differs between two right answers. */
const plain = (text: string): string =>
  text
    .replace(/"version": \{.*?\}, "package": "[^"]*"\}/, '<version>')
    .replace(/127\.0\.0\.1:\d+/g, '<address>');

describe.each(KINDS)('%s', (kind) => {
  test('serves QMP in WebSocket messages', async (context) => {
    requirePeer(context, 'qemu-storage-daemon');
    const { client } = await started(kind, '--chardev', listening('websocket=on'), '--monitor', 'c');
    expect(plain(await deviceName(client, 'c'))).toBe('disconnected:websocket:<address>,server=on');
    const url = `ws://127.0.0.1:${await portOf(client)}`;
    const refused = new WebSocket(`${url}/other`);
    const status = await new Promise((resolve) => {
      refused.on('unexpected-response', (_request, response) => resolve(response.statusCode));
      refused.on('error', resolve);
    });
    expect(status).toBe(404);
    const socket = new WebSocket(`${url}/`, 'binary');
    cleanups.push(() => socket.terminate());
    const messages: string[] = [];
    socket.on('message', (data: Buffer, isBinary) =>
      messages.push(`${isBinary ? '' : 'text '}${String(data)}`),
    );
    await new Promise((resolve) => socket.once('open', resolve));
    expect(socket.protocol).toBe('binary');
    await expect.poll(() => messages.join(''), PATIENCE).toMatch(/^\{"QMP": .*\r\n$/);
    // The original does not see a message that comes along with another one.
    if (kind === 'qemu-storage-daemon') return;
    socket.send(Buffer.from('{"execute":"qmp_capab'));
    socket.send(Buffer.from('ilities","id":1}'));
    await expect.poll(() => messages.join(''), PATIENCE).toContain('{"return": {}, "id": 1}\r\n');
    expect(plain(await deviceName(client, 'c'))).toBe('websocket:<address>,server=on <-> <address>');
    socket.terminate();
    // The next client has its turn.
    const next = new WebSocket(`${url}/`);
    cleanups.push(() => next.terminate());
    const greeted = new Promise((resolve) => next.once('message', (data: Buffer) => resolve(String(data))));
    expect(await greeted).toMatch(/^\{"QMP"/);
  });

  test('serves QMP on a serial line', async (context) => {
    requirePeer(context, 'qemu-storage-daemon', 'socat');
    const dir = makeScratchDir();
    cleanups.push(() => rmSync(dir, { recursive: true, force: true }));
    const [here, there] = [path.join(dir, 'here'), path.join(dir, 'there')];
    const line = spawn('socat', [`pty,raw,echo=0,link=${here}`, `pty,raw,echo=0,link=${there}`]);
    cleanups.push(() => line.kill('SIGKILL'));
    await expect.poll(() => existsSync(here) && existsSync(there), PATIENCE).toBe(true);
    const fd = openSync(here, constants.O_RDWR | constants.O_NOCTTY);
    const { client } = await started(kind, '--chardev', `serial,id=c,path=${there}`, '--monitor', 'c');
    expect(await deviceName(client, 'c')).toBe('serial');
    let text = '';
    const input = createReadStream('', { fd });
    input.on('data', (data) => {
      text += String(data);
    });
    input.on('error', () => undefined);
    cleanups.push(() => input.destroy());
    await expect.poll(() => text, PATIENCE).toMatch(/^\{"QMP": .*\r\n$/);
    writeSync(fd, '{"execute":"qmp_capabilities","id":7}\n');
    await expect.poll(() => text, PATIENCE).toContain('{"return": {}, "id": 7}\r\n');
    expect(await client.execute('chardev-send-break', { id: 'c' })).toEqual({});
    line.kill('SIGKILL');
  });
});

test('tn3270: greeting and what is taken out are those of the original', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const sides: string[] = [];
  for (const kind of KINDS) {
    const { client } = await started(kind, '--chardev', listening('tn3270=on'), '--monitor', 'c');
    const socket = connect(await portOf(client), '127.0.0.1');
    const got = collect(socket);
    await expect.poll(() => got.text, PATIENCE).toMatch(/\r\n$/);
    for (const hex of ['fffb19fffb00fffd00fffb18', 'fffd19', 'fff1', 'ffff']) {
      socket.write(Buffer.from(hex, 'hex'));
      // A control character makes the reader start anew, and is answered.
      socket.write(`\u0001{"execute":"qmp_capabilities","id":"${hex}"}`);
      await expect.poll(() => got.text, PATIENCE).toContain(`"id": "${hex}"`);
    }
    sides.push(`${plain(got.text)}\n${plain(await deviceName(client, 'c'))}`);
  }
  expect(sides[1]).toBe(sides[0]);
  expect(sides[0]!.startsWith('\xff\xfd\x19')).toBe(true);
});

test('vsock addresses: checked, bound, named and refused as by the original', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  if (!existsSync('/dev/vsock')) context.skip('the kernel has no vsock');
  const vsock = (cid: string, port: string): object => ({ type: 'vsock', data: { cid, port } });
  const sides: unknown[] = [];
  for (const kind of KINDS) {
    const { client } = await started(kind);
    const tell = async (command: string, args: object): Promise<unknown> =>
      client.execute(command, args).catch((error: unknown) => (error as Error).message);
    const device = (id: string, data: object): object => ({ id, backend: { type: 'socket', data } });
    const answers = [
      await tell('nbd-server-start', { addr: vsock('x', '1') }),
      await tell('nbd-server-start', { addr: vsock('1', 'y') }),
      await tell('nbd-server-start', { addr: vsock('4294967296', '1') }),
      await tell('nbd-server-start', { addr: vsock('77', '9') }),
      await tell('nbd-server-start', { addr: vsock('4294967295', '10440') }),
      await tell('nbd-server-stop', {}),
      await tell('chardev-add', device('v', { addr: vsock('4294967295', '10441'), wait: false })),
      await tell('qom-get', { path: '/chardevs/v', property: 'addr' }),
      await deviceName(client, 'v'),
      await tell('blockdev-add', {
        driver: 'nbd',
        'node-name': 'n',
        server: { type: 'vsock', cid: '2', port: '10442' },
      }),
    ];
    sides.push(answers);
    // The other one is to have the same ports.
    for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
  }
  expect(sides[1]).toEqual(sides[0]);
});

describe('of later releases', () => {
  test('a hub joins devices: output to all, input from any', async () => {
    const { daemon, client } = await started(
      'qblockd',
      ...['--chardev', 'socket,id=a,path=$DIR/a,server=on,wait=off'],
      ...['--chardev', 'socket,id=b,path=$DIR/b,server=on,wait=off'],
      ...['--chardev', 'hub,id=h,chardevs.0=a,chardevs.1=b', '--monitor', 'h'],
    );
    const a = connect(path.join(daemon.dir, 'a'));
    const fromA = collect(a);
    await expect.poll(() => fromA.text, PATIENCE).toContain('"QMP"');
    const b = connect(path.join(daemon.dir, 'b'));
    const fromB = collect(b);
    await expect.poll(async () => await deviceName(client, 'b'), PATIENCE).not.toContain('disconnected');
    b.write('{"execute":"qmp_capabilities","id":1}');
    for (const got of [fromA, fromB]) await expect.poll(() => got.text, PATIENCE).toContain('"id": 1');
    // The session goes on as long as one of them is there.
    a.end();
    b.write('{"execute":"query-version","id":2}');
    await expect.poll(() => fromB.text, PATIENCE).toContain('"id": 2');
    const hub = (chardevs: string[]): object => ({ id: 'x', backend: { type: 'hub', data: { chardevs } } });
    await expect(client.execute('chardev-add', hub(['a']))).rejects.toThrow(/'a' is in use/);
    await expect(client.execute('chardev-add', hub(['nope']))).rejects.toThrow(/'nope' not found/);
    await expect(client.execute('chardev-add', hub([]))).rejects.toThrow(/chardevs/);
  });

  test('a monitor comes and goes as an object, with its peer where it is told to', async () => {
    const { daemon, client } = await started('qblockd');
    const add = async (id: string, more: object): Promise<void> => {
      const addr = { type: 'unix', data: { path: path.join(daemon.dir, id) } };
      await client.execute('chardev-add', { id, backend: { type: 'socket', data: { addr, wait: false } } });
      await client.execute('object-add', {
        'qom-type': 'monitor-qmp',
        id: `mon-${id}`,
        chardev: id,
        ...more,
      });
    };
    await add('once', { 'close-action': 'delete' });
    await add('long', {});
    for (const id of ['once', 'long', 'long']) {
      const other = await QmpClient.connect(path.join(daemon.dir, id));
      await other.negotiate();
      expect(await other.execute('query-jobs')).toEqual([]);
      other.close();
    }
    const ids = async (): Promise<string[]> =>
      ((await client.execute('query-chardev')) as { label: string }[]).map(({ label }) => label).sort();
    await expect.poll(ids, PATIENCE).not.toContain('once');
    expect(await ids()).toContain('long');
    await expect(client.execute('object-del', { id: 'mon-once' })).rejects.toThrow(/not found/);
    // One that deletes itself answers first.
    const own = await QmpClient.connect(path.join(daemon.dir, 'long'));
    await own.negotiate();
    expect(await own.execute('object-del', { id: 'mon-long' })).toEqual({});
    expect(await client.execute('chardev-remove', { id: 'long' })).toEqual({});
    own.close();
    // The device is free as soon as the answer is there, whether a peer is connected, has sent something, or is not there.
    for (const [id, peers] of [
      ['alone', 0],
      ['visited', 1],
    ] as const) {
      await add(id, {});
      const visitor = peers === 0 ? null : await QmpClient.connect(path.join(daemon.dir, id));
      await visitor?.negotiate();
      visitor?.send('{"execute":');
      const [gone, removed] = await Promise.all([
        client.execute('object-del', { id: `mon-${id}` }),
        client.execute('chardev-remove', { id }),
      ]);
      expect([gone, removed]).toEqual([{}, {}]);
      visitor?.close();
    }
  });

  test('reconnect-ms, and time stamps in the log', async () => {
    const dir = makeScratchDir();
    cleanups.push(() => rmSync(dir, { recursive: true, force: true }));
    const { client } = await started('qblockd');
    const addr = { type: 'unix', data: { path: path.join(dir, 's') } };
    const backend = (more: object): object => ({
      id: 'c',
      backend: { type: 'socket', data: { addr, server: false, ...more } },
    });
    await expect(client.execute('chardev-add', backend({ reconnect: 1, 'reconnect-ms': 5 }))).rejects.toThrow(
      /mutually exclusive/,
    );
    await client.execute(
      'chardev-add',
      backend({ 'reconnect-ms': 20, logfile: path.join(dir, 'log'), logtimestamp: true }),
    );
    await client.execute('object-add', { 'qom-type': 'monitor-qmp', id: 'm', chardev: 'c' });
    const peers: Socket[] = [];
    const server = createServer((socket) => {
      socket.on('error', () => undefined);
      socket.on('data', () => undefined);
      peers.push(socket);
    });
    await new Promise<void>((resolve) => server.listen(path.join(dir, 's'), resolve));
    cleanups.push(() => server.close());
    await expect.poll(() => peers.length, PATIENCE).toBe(1);
    peers[0]!.destroy();
    await expect.poll(() => peers.length, PATIENCE).toBe(2);
    cleanups.push(() => peers[1]!.destroy());
    await expect
      .poll(() => readFileSync(path.join(dir, 'log'), 'utf8'), PATIENCE)
      .toMatch(/^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \{"QMP".*\r\n){2,}/);
  });
});
