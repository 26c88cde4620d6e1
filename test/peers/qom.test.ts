/** Objects and their properties: the same commands on both daemons give the same replies. */

import { execFileSync } from 'node:child_process';
import { createCipheriv } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { expect, test } from 'vitest';
import { QOM_TYPES } from '../../src/objects/types.ts';
import { CERTIFICATE_CASES, KEY_PASSWORD, makeCertificates } from './certificates.ts';
import { type Command, compareCommands } from './compare.ts';
import { NEWER_NAMES, withoutNewer } from './newer-members.ts';
import { requirePeer } from './requires.ts';

const get = (target: string, property: string): Command => ['qom-get', { path: target, property }];
const set = (target: string, property: string, value: unknown): Command => [
  'qom-set',
  { path: target, property, value },
];
const add = (options: object): Command => ['object-add', options];
const list = (target: string): Command => ['qom-list', { path: target }];

test('paths and containers', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const { theirs, ours } = await compareCommands([
    ...['/', '//', 'objects', '/objects', '/nope', 'nope', '/chardevs', '/chardevs/', 'chardevs', 'qmp0'].map(
      list,
    ),
    add({ 'qom-type': 'secret', id: 's', data: 'x' }),
    add({ 'qom-type': 'secret', id: 'qmp0', data: 'x' }),
    ...['/', '/objects', '/objects/', 'objects//s', '/s', 's', 'qmp0', '', 'type', '/objects/s/data'].map(
      list,
    ),
    get('/', 'type'),
    get('/', 'objects'),
    get('/objects', 's'),
    get('/objects', 'nope'),
    get('', 'type'),
    get('qmp0', 'type'),
    get('/chardevs/qmp0', 'type'),
    get('/chardevs/qmp0', 'connected'),
    get('/chardevs/qmp0', 'addr'),
    set('/chardevs/qmp0', 'addr', 1),
    set('/', 'objects', 1),
    set('/objects', 's', 'x'),
    set('/objects', 'nope', 'x'),
    set('/nope', 'x', 1),
  ]);
  expect(ours).toEqual(theirs);
});

test('every type has the properties the original has', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  // The original goes when it is asked about some of its own.
  const untold = [...NEWER_NAMES, 'chardev-serial', 'chardev-parallel', 'qio-net-listener'];
  const names = [...Object.keys(QOM_TYPES).filter((name) => !untold.includes(name)), 'nope', ''];
  const { theirs, ours } = await compareCommands(
    names.map((typename) => ['qom-list-properties', { typename }]),
  );
  expect(withoutNewer(ours)).toEqual(theirs);
});

function typesOf(reply: unknown): unknown[] {
  return (reply as { return?: unknown[] } | undefined)?.return ?? [];
}

test('types are those of the original, with the same parents', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const arguments_ = [{}, { abstract: true }, { abstract: false }, { implements: 'nope' }].concat(
    ['user-creatable', 'chardev', 'object', 'interface', 'secret', 'authz', 'pr-manager', 'qio-channel'].map(
      (name) => ({
        implements: name,
      }),
    ),
  );
  const { theirs, ours } = await compareCommands(arguments_.map((args) => ['qom-list-types', args]));
  for (const [index, record] of ours.entries()) {
    const [mine = [], original = []] = [record, theirs[index]].map((side) => typesOf(side?.reply));
    expect(withoutNewer(mine)).toEqual(original);
  }
});

test('secrets', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const secret = (id: string, options: object): Command => add({ 'qom-type': 'secret', id, ...options });
  const iv = 'MTIzNDU2Nzg5MDEyMzQ1Ng==';
  const { theirs, ours } = await compareCommands([
    ...['raw', 'base64'].flatMap((format) =>
      ['', 'aGVsbG8=', 'aGVsbG8', 'a', 'a b', 'a-_b', 'aaaa\nbbbb', 'aaaa\r\n', '====', 'a\u0000b'].map(
        (data, index) => secret(`${format}${index}`, { data, format }),
      ),
    ),
    secret('k32', { data: 'MDEyMzQ1Njc4OTAxMjM0NTAxMjM0NTY3ODkwMTIzNDU=', format: 'base64' }),
    secret('e', { data: 'x', keyid: 'raw1', iv }),
    secret('e', { data: 'x', keyid: 'k32' }),
    secret('e', { data: 'x', keyid: 'k32', iv }),
    secret('e', { data: 'x', keyid: 'k32', iv: 'MTIz' }),
    secret('e', { data: 'x', keyid: 'k32', iv: 'MT z' }),
    secret('e', { data: 'bY5DRZNy4DjdBYLCZS3jxg==', format: 'base64', keyid: 'k32', iv }),
    secret('e', { data: 'x', loaded: true }),
    secret('e', { file: '/nope' }),
    secret('e', { file: '/tmp' }),
    secret('raw1', { file: '/nope' }),
    ...['data', 'file', 'format', 'loaded', 'keyid', 'iv', 'type', 'nope'].map((name) => get('raw1', name)),
    set('raw1', 'data', 3),
    set('raw1', 'data', null),
    set('raw1', 'format', 'base64'),
    set('raw1', 'format', 'nope'),
    set('raw1', 'format', 3),
    set('raw1', 'loaded', true),
    set('raw1', 'type', 'x'),
    set('raw1', 'nope', 'x'),
    ['object-del', { id: 'raw1' }],
    ['object-del', { id: 'raw1' }],
    ['object-del', { id: 'qmp0' }],
  ]);
  expect(ours).toEqual(theirs);
});

/** A key of the kernel that every process may read, whatever its session. */
function addKey(value: string): number {
  const text = execFileSync('keyctl', ['add', 'user', `qblockd-test-${process.pid}`, value, '@u'], {
    encoding: 'utf8',
  });
  const serial = Number(text);
  execFileSync('keyctl', ['setperm', text.trim(), '0x3f3f3f3f']);
  return serial;
}

test('secrets in the key ring', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  requirePeer(context, 'keyctl');
  const serial = addKey('c2VjcmV0');
  const secret = (id: string, options: object): Command =>
    add({ 'qom-type': 'secret_keyring', id, ...options });
  try {
    const { theirs, ours } = await compareCommands([
      secret('a', {}),
      secret('a', { serial: 1 }),
      secret('a', { serial: -1 }),
      secret('a', { serial: 0 }),
      secret('a', { serial: 2 ** 31 }),
      secret('a', { serial: 'x' }),
      secret('a', { serial, loaded: true }),
      secret('a', { serial, keyid: 'none' }),
      secret('a', { serial }),
      secret('a', { serial }),
      secret('b', { serial, format: 'base64' }),
      secret('c', { serial, keyid: 'a' }),
      ...['serial', 'iv', 'keyid', 'loaded', 'format', 'data', 'type'].map((name) => get('b', name)),
      ...[0, 'a', 2 ** 31, 1.5, 77].map((value) => set('b', 'serial', value)),
      get('b', 'serial'),
      ['object-del', { id: 'b' }],
    ]);
    expect(ours).toEqual(theirs);
  } finally {
    execFileSync('keyctl', ['unlink', String(serial), '@u']);
  }
});

test('the main loop, cipher suites and TLS without credentials', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const anon = (id: string, options: object): Command =>
    add({ 'qom-type': 'tls-creds-anon', id, ...options });
  const suites = (id: string, options: object): Command =>
    add({ 'qom-type': 'tls-cipher-suites', id, ...options });
  const { theirs, ours } = await compareCommands(
    [
      add({ 'qom-type': 'main-loop', id: 'm', 'aio-max-batch': 7, 'thread-pool-min': 4 }),
      ...['aio-max-batch', 'thread-pool-min', 'thread-pool-max', 'type', 'poll-max-ns'].map((name) =>
        get('m', name),
      ),
      set('m', 'aio-max-batch', 9),
      get('m', 'aio-max-batch'),
      set('m', 'thread-pool-max', 'x'),
      ['object-del', { id: 'm' }],
      suites('c', {}),
      suites('c', { priority: 'NORMAL', loaded: true }),
      suites('c', { priority: 'NORMAL', endpoint: 'server' }),
      suites('c', { priority: 'NORMAL' }),
      list('/objects/c'),
      ...['priority', 'endpoint', 'dir', 'verify-peer', 'loaded', 'data'].map((name) => get('c', name)),
      set('c', 'priority', 'x'),
      get('c', 'priority'),
      anon('a', { loaded: true }),
      anon('a', { endpoint: 'server', dir: '$DIR/dh' }),
      anon('a', { endpoint: 'server', dir: '$DIR/none', priority: 'NORMAL' }),
      anon('a', { endpoint: 'server' }),
      anon('b', { 'verify-peer': false, dir: '$DIR/dh' }),
      list('/objects/a'),
      ...['priority', 'endpoint', 'dir', 'verify-peer', 'loaded'].map((name) => get('a', name)),
      get('b', 'verify-peer'),
      ['object-del', { id: 'a' }],
    ],
    (dir) => {
      mkdirSync(path.join(dir, 'dh'));
      writeFileSync(path.join(dir, 'dh', 'dh-params.pem'), 'nothing');
    },
  );
  expect(ours).toEqual(theirs);
});

// One command each: the original does not survive a second attempt.
test.for([{ 'aio-max-batch': -3 }, { 'thread-pool-min': 65 }, { 'thread-pool-max': 0 }])(
  'main loop with %j',
  async (options, context) => {
    requirePeer(context, 'qemu-storage-daemon');
    const { theirs, ours } = await compareCommands([add({ 'qom-type': 'main-loop', id: 'm', ...options })]);
    expect(ours).toEqual(theirs);
  },
);

test('throttle groups', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const group = (id: string, options: object): Command =>
    add({ 'qom-type': 'throttle-group', id, ...options });
  const limits = (value: unknown): Command => set('t', 'limits', value);
  const { theirs, ours } = await compareCommands([
    group('t', {}),
    get('t', 'limits'),
    ...[
      ...[
        { 'iops-size': 10 },
        { 'iops-total-max': 10 },
        { 'iops-total': -1 },
        { 'bps-read': 2e15 },
        3,
        null,
        {},
      ],
      ...[{ nope: 3 }, { 'iops-size': 'a' }, { 'iops-total': 1.5 }, { 'bps-total': 5, 'bps-read': 5 }],
      ...[
        { 'bps-total-max-length': 4294967296 },
        { 'bps-total-max-length': 0 },
        { 'bps-total-max-length': 2 },
      ],
      { 'iops-total': 10, 'iops-total-max': 10, 'iops-total-max-length': 4294967295 },
      { 'iops-total': 10, 'iops-total-max': 1e15, 'iops-total-max-length': 10 },
      { 'iops-total': 10, 'iops-total-max': 5 },
      { 'iops-total': 10, 'iops-total-max': 0, 'iops-total-max-length': 1, 'iops-size': 8 },
      { 'iops-total': 0 },
      { 'iops-size': -1 },
    ].flatMap((value) => [limits(value), get('t', 'limits')]),
    set('t', 'x-iops-total', 5),
    set('t', 'x-iops-total', 'a'),
    get('t', 'x-iops-total'),
    group('t1', { 'x-iops-total': 5 }),
    group('t2', { 'x-iops-total': -5 }),
    group('t2', { 'x-iops-total': 5, 'x-iops-read': 5 }),
    group('t2', { 'x-iops-total-max-length': 5000000000 }),
    group('t2', { limits: { 'iops-total': 5, 'iops-read': 5 } }),
    group('t3', { limits: { 'iops-total': 5 }, 'x-iops-total': 9, 'x-bps-read': 4 }),
    get('t3', 'limits'),
  ]);
  expect(ours).toEqual(theirs);
});

test('iothreads and authorisation', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const { theirs, ours } = await compareCommands([
    add({ 'qom-type': 'iothread', id: 'io' }),
    ...[
      'poll-max-ns',
      'poll-grow',
      'poll-shrink',
      'aio-max-batch',
      'thread-pool-min',
      'thread-pool-max',
    ].flatMap((name) => [
      get('io', name),
      set('io', name, -1),
      set('io', name, '5'),
      set('io', name, 1.5),
      set('io', name, 7),
    ]),
    add({ 'qom-type': 'iothread', id: 'io1', 'poll-max-ns': -1 }),
    add({ 'qom-type': 'iothread', id: 'io1', 'thread-pool-min': 9, 'thread-pool-max': 8 }),
    add({ 'qom-type': 'authz-simple', id: 'as' }),
    add({ 'qom-type': 'authz-simple', id: 'as', identity: 'fred' }),
    set('as', 'identity', 'joe'),
    set('as', 'identity', 1),
    get('as', 'identity'),
    add({ 'qom-type': 'authz-list', id: 'al' }),
    get('al', 'policy'),
    get('al', 'rules'),
    // A list that is refused empties the original's: ours stays, so it is not looked at here.
    ...[
      [{ match: 'x' }],
      [{ policy: 'allow' }],
      [{ match: 'x', policy: 'z' }],
      [{ match: 'x', policy: 'deny', format: 'z' }],
      [{ match: 'x', policy: 'deny', foo: 1 }],
      [{ match: 4, policy: 'deny' }],
      'x',
      ['x'],
    ].map((rules) => set('al', 'rules', rules)),
    ...[[{ match: 'x', policy: 'allow' }], [{ match: 'x', policy: 'allow', format: 'glob' }], []].flatMap(
      (rules) => [set('al', 'rules', rules), get('al', 'rules')],
    ),
    set('al', 'policy', 'perhaps'),
    set('al', 'policy', 'allow'),
    get('al', 'policy'),
  ]);
  expect(ours).toEqual(theirs);
});

test('TLS credentials: good and bad files', async (context) => {
  requirePeer(context, 'qemu-storage-daemon', 'certtool');
  let count = 0;
  const x509 = (dir: string | undefined, options: object): Command =>
    add({
      'qom-type': 'tls-creds-x509',
      id: `x${count++}`,
      ...(dir !== undefined && { dir: `$DIR/${dir}` }),
      ...options,
    });
  const key = Buffer.alloc(32, 7);
  const iv = Buffer.alloc(16, 9);
  const cipher = createCipheriv('aes-256-cbc', key, iv);
  const password = Buffer.concat([cipher.update(KEY_PASSWORD), cipher.final()]).toString('base64');
  const common = { 'qom-type': 'secret', format: 'base64' };
  const { theirs, ours } = await compareCommands(
    [
      ...CERTIFICATE_CASES.flatMap((name) => [
        x509(name, { endpoint: 'server' }),
        x509(name, { endpoint: 'client' }),
        x509(name, { endpoint: 'server', 'sanity-check': false }),
      ]),
      x509(undefined, {}),
      x509('missing', { endpoint: 'server' }),
      x509('full', {}),
      x509('full', { loaded: true }),
      x509('full', { 'verify-peer': false, priority: 'NORMAL', endpoint: 'server' }),
      add({ ...common, id: 'key', data: key.toString('base64') }),
      add({ ...common, id: 'password', data: password, keyid: 'key', iv: iv.toString('base64') }),
      add({ 'qom-type': 'secret', id: 'wrong', data: 'wrong' }),
      x509('encrypted-key', { endpoint: 'server', passwordid: 'password' }),
      x509('encrypted-key', { endpoint: 'server', passwordid: 'wrong' }),
      x509('encrypted-key', { endpoint: 'server', passwordid: 'nobody' }),
      x509('encrypted-key', { endpoint: 'server', passwordid: 'x0' }),
      ...['endpoint', 'dir', 'verify-peer', 'priority', 'sanity-check', 'passwordid', 'loaded'].map((name) =>
        get('x0', name),
      ),
      set('x0', 'verify-peer', 'off'),
      set('x0', 'loaded', false),
      set('x0', 'endpoint', 'foo'),
    ],
    makeCertificates,
  );
  expect(ours).toEqual(theirs);
});

test('TLS credentials: pre-shared keys', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const keys = [
    'qemu:0123456789abcdef',
    'alice:0123456789ABCDEF',
    'short:abcd',
    'odd:abcde',
    'letters:xyzw',
    'nothing:',
    '#hash:0123456789abcdef',
    ' blank:0123456789abcdef',
    'carriage:0123456789abcdef\r',
    'qemu:ffffffffffffffff',
    'last:0123456789abcdef',
  ].join('\n');
  const users = [
    'qemu',
    'alice',
    'short',
    'odd',
    'letters',
    'nothing',
    '#hash',
    'blank',
    'carriage',
    'last',
    '',
    'q',
  ];
  const psk = (id: string, options: object): Command =>
    add({ 'qom-type': 'tls-creds-psk', id, dir: '$DIR/psk', ...options });
  const { theirs, ours } = await compareCommands(
    [
      ...users.map((username, index) => psk(`c${index}`, { endpoint: 'client', username })),
      psk('d', { endpoint: 'client' }),
      psk('s', { endpoint: 'server' }),
      psk('u', { endpoint: 'server', username: 'alice' }),
      psk('n', { endpoint: 'server', dir: '$DIR' }),
      psk('n', { endpoint: 'client', dir: '$DIR' }),
      psk('n', { endpoint: 'server', dir: '$DIR/psk/keys.psk' }),
      add({ 'qom-type': 'tls-creds-psk', id: 'n' }),
      ...['endpoint', 'dir', 'verify-peer', 'priority', 'username', 'loaded'].map((name) => get('c1', name)),
    ],
    (dir) => {
      mkdirSync(path.join(dir, 'psk'));
      writeFileSync(path.join(dir, 'psk/keys.psk'), keys);
    },
  );
  expect(ours).toEqual(theirs);
});
