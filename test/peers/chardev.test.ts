/** Character devices: the same commands on both daemons, and how their sockets behave towards clients. */

import { execFile, spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, statSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import path from 'node:path';
import { connect as connectTls } from 'node:tls';
import { afterEach, describe, expect, test } from 'vitest';
import { limitMs } from '../patience.ts';
import { makeCertificates } from './certificates.ts';
import { type Command, compareCommands } from './compare.ts';
import { type DaemonKind, type RunningDaemon, startDaemon } from './daemons.ts';
import { QmpClient } from './qmp-client.ts';
import { requirePeer } from './requires.ts';

const kinds: readonly DaemonKind[] = ['qemu-storage-daemon', 'qblockd'];

const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function daemonOf(kind: DaemonKind, ...args: string[]): Promise<RunningDaemon> {
  const daemon = await startDaemon(kind, { args });
  cleanups.push(() => daemon.stop());
  return daemon;
}

async function monitorOf(daemon: RunningDaemon): Promise<QmpClient> {
  const client = await daemon.connect();
  cleanups.push(() => client.close());
  await client.negotiate();
  return client;
}

const add = (id: string, type: string, data: object): Command => [
  'chardev-add',
  { id, backend: { type, data } },
];
const unix = (name: string, more: object = {}): object => ({
  addr: { type: 'unix', data: { path: `$DIR/${name}`, ...more } },
  wait: false,
});
const inet = (data: object, more: object = {}): object => ({
  addr: { type: 'inet', data },
  wait: false,
  ...more,
});

test('creation, removal and what is reported', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const long = 'x'.repeat(109);
  const { theirs, ours } = await compareCommands(
    [
      add('n', 'null', {}),
      add('n', 'null', {}),
      add('f', 'file', { out: '$DIR/out' }),
      add('g', 'file', { out: '$DIR/out2', in: '/nope' }),
      add('g', 'file', { out: '$DIR/out2', in: '/etc/hostname', append: true }),
      add('p', 'pipe', { device: '$DIR/nope' }),
      add('p', 'pipe', { device: '$DIR/fifo' }),
      add('q', 'pipe', { device: '$DIR/pair' }),
      add('st', 'stdio', {}),
      add('s', 'socket', unix('s.sock')),
      add('t', 'socket', unix('s.sock')),
      add('c', 'socket', { ...unix('s.sock'), server: false, wait: undefined }),
      add('d', 'socket', { ...unix('nope.sock'), server: false, wait: undefined }),
      add('d', 'socket', { ...unix('s.sock'), server: false }),
      add('d', 'socket', { ...unix('s.sock'), reconnect: 1 }),
      add('d', 'socket', { ...unix('s.sock'), server: false, wait: undefined, websocket: true }),
      add('d', 'socket', { ...unix('d.sock'), 'tls-creds': 'nope' }),
      add('d', 'socket', { ...unix('d.sock'), 'tls-authz': 'nope' }),
      add('d', 'socket', unix('missing/d.sock')),
      add('d', 'socket', unix('folder')),
      add('d', 'socket', unix(long)),
      add('a1', 'socket', unix('abstract', { abstract: true })),
      add('a2', 'socket', unix('abstract2', { abstract: true, tight: false })),
      add('a3', 'socket', unix('abstract3', { abstract: true, tight: true })),
      add('i', 'socket', inet({ host: '127.0.0.1', port: 'nope' })),
      add('i', 'socket', inet({ host: 'localhost', port: '0', ipv4: false, ipv6: false })),
      add('i', 'socket', inet({ host: '::1', port: '0', ipv4: true })),
      add('i', 'socket', inet({ host: 'localhost', port: '0', numeric: true })),
      add('i', 'socket', inet({ host: '10.254.254.254', port: '0' })),
      add('i', 'socket', inet({ host: 'name.invalid', port: '1' })),
      add('i', 'socket', inet({ host: '127.0.0.1', port: '1' }, { server: false, wait: undefined })),
      add('i', 'socket', { addr: { type: 'fd', data: { str: '1' } }, wait: false }),
      add('u', 'udp', { remote: { type: 'unix', data: { path: '/x' } } }),
      add('u', 'udp', { remote: { type: 'inet', data: { host: '127.0.0.1', port: '4444' } } }),
      add('l', 'null', { logfile: '$DIR/log', logappend: true }),
      add('m', 'null', { logfile: '$DIR/missing/log' }),
      ['query-chardev'],
      ['qom-list', { path: '/chardevs' }],
      ['qom-list', { path: '/chardevs/s' }],
      ['qom-get', { path: 's', property: 'addr' }],
      ['qom-get', { path: 's', property: 'connected' }],
      ['qom-get', { path: 'a3', property: 'addr' }],
      ['qom-set', { path: 's', property: 'connected', value: true }],
      ['chardev-send-break', { id: 'n' }],
      ['chardev-send-break', { id: 'nope' }],
      ['chardev-change', { id: 'nope', backend: { type: 'null', data: {} } }],
      ['chardev-change', { id: 'qmp0', backend: { type: 'null', data: {} } }],
      ['chardev-change', { id: 'n', backend: { type: 'ringbuf', data: { size: 16 } } }],
      ['chardev-remove', { id: 'c' }],
      ['chardev-change', { id: 't', backend: { type: 'socket', data: unix('s.sock') } }],
      ['query-chardev'],
      ...['n', 'n', 'qmp0', 'nope', 's', 't', 'c', 'f'].map((id): Command => ['chardev-remove', { id }]),
      ['query-chardev'],
    ],
    (dir) => {
      mkdirSync(path.join(dir, 'folder'));
      for (const name of ['fifo', 'pair.in', 'pair.out']) spawnSync('mkfifo', [path.join(dir, name)]);
    },
  );
  expect(ours).toEqual(theirs);
});

test('multiplexers', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const { theirs, ours } = await compareCommands([
    add('n', 'null', {}),
    add('x', 'mux', { chardev: 'nope' }),
    add('x', 'mux', {}),
    add('x', 'mux', { chardev: 'n' }),
    add('y', 'mux', { chardev: 'n' }),
    ['query-chardev'],
    ['qom-list', { path: '/chardevs/x' }],
    ['chardev-remove', { id: 'n' }],
    ['chardev-remove', { id: 'x' }],
    ['chardev-change', { id: 'n', backend: { type: 'null', data: {} } }],
    ['chardev-change', { id: 'x', backend: { type: 'null', data: {} } }],
    ['chardev-send-break', { id: 'x' }],
    ['ringbuf-read', { device: 'x', size: 1 }],
  ]);
  expect(ours).toEqual(theirs);
});

test('ring buffers', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const write = (data: string, format?: string): Command => [
    'ringbuf-write',
    { device: 'r', data, ...(format && { format }) },
  ];
  const read = (size: number, format?: string): Command => [
    'ringbuf-read',
    { device: 'r', size, ...(format && { format }) },
  ];
  const { theirs, ours } = await compareCommands([
    add('r', 'ringbuf', { size: 5 }),
    add('r', 'ringbuf', { size: -1 }),
    add('r', 'ringbuf', { size: 16 }),
    read(5),
    write('hello'),
    read(3),
    read(30),
    read(0),
    read(-1),
    write('0123456789abcdefghij'),
    read(4),
    write('zzz'),
    read(100),
    write('aGVsbG8=', 'base64'),
    read(100, 'base64'),
    write('a!', 'base64'),
    write('h\u00e9\u4e2d\u0007'),
    read(2),
    read(100),
    write('/w==', 'base64'),
    read(100),
    write('QUIAQw==', 'base64'),
    read(100),
    write('x', 'nope'),
    ['ringbuf-write', { device: 'qmp0', data: 'x' }],
    ['ringbuf-write', { device: 'nope', data: 'x' }],
    ['ringbuf-read', { device: 'qmp0', size: 1 }],
    ['ringbuf-read', { device: 'nope', size: 1 }],
  ]);
  expect(ours).toEqual(theirs);
});

describe.each(kinds)('sockets of %s', (kind) => {
  test('one client at a time: the second is served when the first has left', async (context) => {
    requirePeer(context, 'qemu-storage-daemon');
    const daemon = await daemonOf(kind);
    const first = await daemon.connect();
    await first.negotiate();
    const second = await daemon.connect();
    second.send('{"execute": "qmp_capabilities"}{"execute": "query-chardev"}');
    expect(await second.next(300)).toBeNull();
    expect(await first.execute('query-chardev')).toHaveLength(1);
    first.close();
    expect(await second.next()).toHaveProperty('QMP');
    expect(await second.next()).toEqual({ return: {} });
    expect(await second.next()).toHaveProperty('return');
    second.close();
    // The state of the last client is not that of the next one.
    const third = await daemon.connect();
    await third.next();
    third.send('{"execute": "query-version"}');
    expect(await third.next()).toMatchObject({ error: { class: 'CommandNotFound' } });
    third.close();
  });

  test('a client that stops sending still gets its answers', async (context) => {
    requirePeer(context, 'qemu-storage-daemon', 'socat');
    const daemon = await daemonOf(kind);
    const script =
      '{"execute":"qmp_capabilities"}{"execute":"query-qmp-schema"}{"execute":"query-chardev","id":1}';
    const { stdout } = spawnSync('socat', ['-t5', '-', `UNIX-CONNECT:${daemon.socketPath}`], {
      input: script,
    });
    const lines = stdout.toString().trim().split('\r\n');
    expect(lines).toHaveLength(4);
    expect(JSON.parse(lines[3] ?? '')).toHaveProperty('id', 1);
  });

  test('a monitor that connects, and connects again', async (context) => {
    requirePeer(context, 'qemu-storage-daemon');
    const daemon = await daemonOf(kind);
    const control = await monitorOf(daemon);
    const socketPath = path.join(daemon.dir, 'back.sock');
    const peers: Socket[] = [];
    const arrivals: ((peer: Socket) => void)[] = [];
    const server = createServer((peer) => {
      peers.push(peer);
      arrivals.shift()?.(peer);
    });
    cleanups.push(() => {
      for (const peer of peers) peer.destroy();
      server.close();
    });
    await control.execute('chardev-add', {
      id: 'back',
      backend: {
        type: 'socket',
        data: { addr: { type: 'unix', data: { path: socketPath } }, server: false, reconnect: 1 },
      },
    });
    const next = (): Promise<Socket> => new Promise((resolve) => arrivals.push(resolve));
    const first = next();
    await new Promise<void>((resolve) => server.listen(socketPath, resolve));
    (await first).destroy();
    await next();
    await expect.poll(() => control.execute('qom-get', { path: 'back', property: 'connected' })).toBe(true);
  });

  test('two monitors share a device: Control-A c moves the focus', async (context) => {
    requirePeer(context, 'qemu-storage-daemon');
    const daemon = await daemonOf(
      kind,
      ...[
        '--chardev',
        'socket,id=x,path=$DIR/x.sock,server=on,wait=off,mux=on',
        '--monitor',
        'x',
        '--monitor',
        'x',
      ],
    );
    const client = await QmpClient.connect(path.join(daemon.dir, 'x.sock'));
    cleanups.push(() => client.close());
    const classOf = async (): Promise<unknown> => {
      client.send('{"execute": "query-version"}');
      return ((await client.next()) as { error?: { class: string } }).error?.class ?? 'none';
    };
    for (let greetings = 0; greetings < 2; greetings++) expect(await client.next()).toHaveProperty('QMP');
    client.send('{"execute": "qmp_capabilities"}');
    expect(await client.next()).toEqual({ return: {} });
    expect(await classOf()).toBe('none');
    client.send('\x01c');
    expect(await classOf()).toBe('CommandNotFound');
    // The key may come in the middle of a message, which goes on when its monitor is in focus again.
    client.send('\x01c{"execute": "query-ver\x01c');
    expect(await classOf()).toBe('CommandNotFound');
    client.send('\x01csion", "id": 1}');
    expect(await client.next()).toMatchObject({ id: 1 });
  });

  test('the socket is removed with the device', async (context) => {
    requirePeer(context, 'qemu-storage-daemon');
    const daemon = await daemonOf(kind);
    const control = await monitorOf(daemon);
    const file = path.join(daemon.dir, 'x.sock');
    const data = { addr: { type: 'unix', data: { path: file } }, wait: false };
    await control.execute('chardev-add', { id: 'x', backend: { type: 'socket', data } });
    expect(statSync(file).isSocket()).toBe(true);
    await control.execute('chardev-remove', { id: 'x' });
    expect(() => statSync(file)).toThrow('ENOENT');
  });

  test('files receive the output of a monitor, FIFOs carry it both ways', async (context) => {
    requirePeer(context, 'qemu-storage-daemon');
    const daemon = await startDaemon(kind, {
      args: [
        ...['--chardev', 'file,id=f,path=$DIR/out', '--monitor', 'f'],
        ...['--chardev', 'pipe,id=p,path=$DIR/fifo', '--monitor', 'p,pretty=on'],
      ],
      prepare: (dir) => {
        for (const name of ['fifo.in', 'fifo.out']) spawnSync('mkfifo', [path.join(dir, name)]);
      },
    });
    cleanups.push(() => daemon.stop());
    const file = path.join(daemon.dir, 'out');
    await expect.poll(() => readFileSync(file, 'utf8')).toMatch(/^\{"QMP": .*\}\r\n$/);
    const fifo = path.join(daemon.dir, 'fifo');
    const reader = new Promise<string>((resolve, reject) => {
      const script = `(echo '{"execute": "qmp_capabilities"}' > ${fifo}.in) & head -n 19 ${fifo}.out`;
      execFile('sh', ['-c', script], { timeout: limitMs(60_000) }, (error, stdout) =>
        error ? reject(error) : resolve(stdout),
      );
    });
    expect(await reader).toMatch(
      /^\{\r\n {4}"QMP": \{[\s\S]*\r\n\{\r\n {4}"return": \{\r\n {4}\}\r\n\}\r\n$/,
    );
  });

  test('a pseudo terminal is a monitor', async (context) => {
    requirePeer(context, 'qemu-storage-daemon', 'socat');
    const daemon = await daemonOf(kind);
    const control = await monitorOf(daemon);
    const { pty } = (await control.execute('chardev-add', {
      id: 'p',
      backend: { type: 'pty', data: {} },
    })) as {
      pty: string;
    };
    expect(pty).toMatch(/^\/dev\/pts\/\d+$/);
    expect(await control.execute('query-chardev')).toContainEqual({
      label: 'p',
      filename: `pty:${pty}`,
      'frontend-open': false,
    });
    await control.execute('chardev-remove', { id: 'p' });
  });
});

describe.each(kinds)('TLS monitors of %s', (kind) => {
  /** The first bytes a TLS client receives; empty when it is turned away. */
  function greetingOf(dir: string, port: number): Promise<string> {
    const pem = (name: string): Buffer => readFileSync(path.join(dir, `${name}.pem`));
    return new Promise((resolve) => {
      const socket = connectTls({
        ...{ host: '127.0.0.1', port, servername: 'localhost' },
        ...{ ca: pem('ca-cert'), cert: pem('client-cert'), key: pem('client-key') },
      });
      cleanups.push(() => socket.destroy());
      socket.once('data', (data) => resolve(data.toString()));
      socket.on('error', () => resolve(''));
      socket.once('close', () => resolve(''));
    });
  }

  test.each([
    ['CN=localhost,,O=Test', ''],
    ['O=Test,,CN=localhost', '{"QMP": '],
    ['CN=other', ''],
  ])('are there for whom %j means', async (identity, expected) => {
    const daemon = await startDaemon(kind, {
      args: [
        ...['--object', 'tls-creds-x509,id=tls,dir=$DIR/full,endpoint=server'],
        ...['--object', `authz-simple,id=who,identity=${identity}`],
        ...['--chardev', 'socket,id=t,host=127.0.0.1,port=0,server=on,wait=off,tls-creds=tls,tls-authz=who'],
        ...['--monitor', 't'],
      ],
      prepare: makeCertificates,
    });
    cleanups.push(() => daemon.stop());
    const control = await monitorOf(daemon);
    const { port } = (await control.execute('qom-get', { path: 't', property: 'addr' })) as { port: string };
    // Somebody who does not speak TLS is no obstacle to the next client.
    connect({ host: '127.0.0.1', port: Number(port) })
      .on('error', () => undefined)
      .end('not TLS\n');
    const greeting = await greetingOf(path.join(daemon.dir, 'full'), Number(port));
    expect(greeting.slice(0, expected.length || undefined)).toBe(expected);
  });
});
