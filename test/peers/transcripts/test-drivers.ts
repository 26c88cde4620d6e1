/** Transcripts of blkverify, blklogwrites and quorum nodes: options, permissions, names, requests, events. */

import { cmd, type Step, type Transcript } from '../transcript.ts';

const MiB = 1024 * 1024;

const add = (options: object): Step => cmd('blockdev-add', options);
const del = (name: string): Step => cmd('blockdev-del', { 'node-name': name });
const query = cmd('query-named-block-nodes');
const file = (name: string, rest: object = {}): Step =>
  add({ driver: 'file', 'node-name': name, filename: `$DIR/${name}`, ...rest });
const resize = (name: string, size: number): Step => cmd('block_resize', { 'node-name': name, size });
const change = (parent: string, rest: object = {}): Step => cmd('x-blockdev-change', { parent, ...rest });
const startServer = cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd' } } });
const exported = (name: string, writable = true): Step =>
  cmd('block-export-add', { type: 'nbd', id: name, 'node-name': name, writable });
const io = (name: string, ...commands: string[]): Step => ({
  run: ['qemu-io', '-f', 'raw', '-t', 'writeback', ...commands.flatMap((each) => ['-c', each])].concat(
    `nbd+unix:///${name}?socket=$DIR/nbd`,
  ),
});

/** Each is added and, where that worked, deleted again. */
function tried(driver: string, ...options: readonly object[]): readonly Step[] {
  return options.flatMap((each) => [add({ driver, 'node-name': 'n', ...each }), del('n')]);
}

const blkverify: Transcript = {
  name: 'blkverify',
  files: { a: MiB, b: MiB, big: 2 * MiB },
  steps: [
    ...['a', 'b', 'big'].map((name) => file(name)),
    ...tried(
      'blkverify',
      {},
      { test: 'a' },
      { raw: 'a' },
      { test: 'a', raw: 'nowhere' },
      { test: 'nowhere', raw: 'a' },
      { test: 'a', raw: 'a' },
      { test: 'a', raw: 'b', cache: {} },
      { test: 'a', raw: 'b', 'x-raw': '$DIR/a' },
    ),
    add({ driver: 'blkverify', 'node-name': 'v', test: 'a', raw: 'b' }),
    add({ driver: 'blkverify', 'node-name': 'v2', test: 'a', raw: 'b' }),
    query,
    resize('v', 2 * MiB),
    query,
    resize('b', MiB),
    resize('a', MiB),
    del('v2'),
    startServer,
    exported('v'),
    add({ driver: 'blkverify', 'node-name': 'v2', test: 'a', raw: 'b', 'read-only': true }),
    io('v', 'write -P 1 0 64k', 'discard 8k 4k', 'read -P 1 0 64k', 'map', 'flush'),
    { run: ['cmp', '-n', '1048576', '$DIR/a', '$DIR/b'] },
    cmd('block-export-del', { id: 'v' }),
    del('v'),
    { note: 'lengths of their own, children of their own' },
    ...[
      { test: 'a', raw: 'big' },
      { test: 'big', raw: 'a' },
      { test: { driver: 'raw', file: 'a' }, raw: 'b' },
      { test: { driver: 'raw', file: 'a', offset: 0 }, raw: { driver: 'file', filename: '$DIR/b' } },
    ].flatMap((options) => [add({ driver: 'blkverify', 'node-name': 'v', ...options }), query, del('v')]),
  ],
};

const blkverifyMismatch: Transcript = {
  name: 'blkverify.mismatch',
  files: { a: () => Buffer.alloc(65536, 1), b: () => Buffer.alloc(65536, 1) },
  steps: [
    ...['a', 'b'].map((name) => file(name)),
    add({ driver: 'blkverify', 'node-name': 'v', test: 'a', raw: 'b' }),
    startServer,
    exported('v'),
    exported('b'),
    io('v', 'read -q 0 64k'),
    io('b', 'write -q -P 2 5000 1'),
    io('v', 'read -q 0 4k', 'read 4k 4k'),
    { exit: true },
  ],
};

const blkverifyOutcome: Transcript = {
  name: 'blkverify.outcome',
  files: { a: MiB, b: MiB },
  steps: [
    file('a'),
    file('b'),
    add({
      driver: 'blkdebug',
      'node-name': 'd',
      image: 'b',
      'inject-error': [{ event: 'none', iotype: 'write', sector: 16 }],
    }),
    add({ driver: 'blkverify', 'node-name': 'v', test: 'a', raw: 'd' }),
    startServer,
    exported('v'),
    io('v', 'write -q 0 8k', 'write 4k 8k'),
    { exit: true },
  ],
};

const blklogwrites: Transcript = {
  name: 'blklogwrites',
  files: { a: MiB, b: MiB, log: 0, used: 8 * MiB, ro: MiB },
  steps: [
    ...['a', 'b', 'log', 'used'].map((name) => file(name)),
    file('ro', { 'read-only': true }),
    ...tried(
      'blklogwrites',
      { file: 'a' },
      { log: 'log' },
      { file: 'a', log: 'nowhere' },
      { file: 'a', log: 'log', cache: {} },
      ...[0, 1, 16, 32, 256, 513, 4096, 2 ** 23, 2 ** 24, 2 ** 32, -1].map((size) => ({
        file: 'a',
        log: 'log',
        'log-sector-size': size,
      })),
      { file: 'a', log: 'log', 'log-super-update-interval': 0 },
      { file: 'a', log: 'log', 'log-super-update-interval': -1 },
      { file: 'a', log: 'used', 'log-append': true },
      { file: 'a', log: 'used', 'log-append': true, 'log-sector-size': 512 },
      { file: 'a', log: 'used', 'read-only': true },
      { file: 'a', log: 'ro' },
      { file: 'ro', log: 'used' },
    ),
    add({ driver: 'blklogwrites', 'node-name': 'l', file: 'a', log: 'log', 'log-sector-size': 4096 }),
    query,
    resize('log', 4 * MiB),
    resize('l', 2 * MiB),
    resize('a', MiB),
    add({ driver: 'blklogwrites', 'node-name': 'l2', file: 'b', log: 'log' }),
    add({ driver: 'blklogwrites', 'node-name': 'l2', file: 'b', log: 'log', 'read-only': true }),
    startServer,
    exported('l'),
    exported('a'),
    cmd('block-export-del', { id: 'l' }),
    del('l'),
    ...[
      { file: { driver: 'file', filename: '$DIR/b' }, log: { driver: 'file', filename: '$DIR/new' } },
      { file: 'b', log: 'log', 'log-append': true, 'log-super-update-interval': 2 },
      { file: 'b', log: 'used', 'log-append': false, 'log-super-update-interval': -1 },
    ].flatMap((options) => [add({ driver: 'blklogwrites', 'node-name': 'l', ...options }), query, del('l')]),
  ],
};

/** A log that says something wrong of itself. */
function badLog(edit: (log: Buffer) => void): () => Buffer {
  return () => {
    const log = Buffer.alloc(4096);
    log.writeBigUInt64LE(0x6a736677736872n, 0);
    log.writeBigUInt64LE(1n, 8);
    log.writeBigUInt64LE(1n, 16);
    log.writeUInt32LE(512, 24);
    log.writeBigUInt64LE(1n, 520);
    edit(log);
    return log;
  };
}

const badLogs: Readonly<Record<string, () => Buffer>> = {
  good: badLog(() => undefined),
  magic: badLog((log) => log.writeUInt8(0, 0)),
  version: badLog((log) => log.writeUInt8(2, 8)),
  sector: badLog((log) => log.writeUInt32LE(500, 24)),
  small: badLog((log) => log.writeUInt32LE(16, 24)),
  entries: badLog((log) => log.writeBigUInt64LE(100n, 16)),
  long: badLog((log) => log.writeBigUInt64LE(1000n, 520)),
  empty: () => Buffer.alloc(0),
};

const blklogwritesAppend: Transcript = {
  name: 'blklogwrites.append',
  files: { a: MiB, ...badLogs },
  steps: [
    file('a'),
    ...Object.keys(badLogs).flatMap((log) => [
      file(log),
      ...tried('blklogwrites', { file: 'a', log, 'log-append': true }),
      del(log),
    ]),
  ],
};

const quorumOptions: Transcript = {
  name: 'quorum.options',
  files: { a: MiB, b: MiB, c: MiB, big: 2 * MiB, ro: MiB },
  steps: [
    ...['a', 'b', 'c', 'big'].map((name) => file(name)),
    file('ro', { 'read-only': true }),
    ...tried(
      'quorum',
      { children: [], 'vote-threshold': 1 },
      { children: ['a'], 'vote-threshold': 2 },
      { children: ['a'], 'vote-threshold': 1 },
      { children: ['a', 'b'], 'vote-threshold': 0 },
      { children: ['a', 'b'], 'vote-threshold': -1 },
      { children: ['a', 'b'] },
      { 'vote-threshold': 1 },
      { children: ['a', 'nowhere'], 'vote-threshold': 1 },
      { children: ['a', 'b', 'c'], 'vote-threshold': 2, blkverify: true },
      { children: ['a', 'b'], 'vote-threshold': 1, blkverify: true },
      { children: ['a', 'b'], 'vote-threshold': 2, blkverify: true, 'rewrite-corrupted': true },
      { children: ['a', 'b'], 'vote-threshold': 2, 'read-pattern': 'any' },
      {
        ...{ children: ['a', 'b'], 'vote-threshold': 2, blkverify: true, 'rewrite-corrupted': true },
        'read-pattern': 'fifo',
      },
      { children: ['a', 'b', 'c'], 'vote-threshold': 9, 'read-pattern': 'fifo' },
      { children: ['a', 'b', 'big'], 'vote-threshold': 2 },
      { children: ['a', 'a'], 'vote-threshold': 2 },
      { children: ['a', 'b', 'ro'], 'vote-threshold': 2 },
      { children: ['a', 'b', 'ro'], 'vote-threshold': 2, 'rewrite-corrupted': true },
      { children: ['a', 'b', 'ro'], 'vote-threshold': 2, 'rewrite-corrupted': true, 'read-only': true },
      { children: ['a', 'b'], 'vote-threshold': 2, cache: {} },
    ),
    ...[
      { children: ['a', 'b', 'c'], 'vote-threshold': 2 },
      { children: ['a', 'b'], 'vote-threshold': 2, blkverify: true },
      { children: ['a', 'b'], 'vote-threshold': 1, 'rewrite-corrupted': true },
      { children: ['a', 'b'], 'vote-threshold': 1, 'read-pattern': 'fifo' },
      {
        children: [{ driver: 'raw', file: 'a' }, { driver: 'raw', offset: 0, file: 'b' }, 'c'],
        'vote-threshold': 2,
      },
      {
        children: ['big', { driver: 'file', filename: '$DIR/big', locking: 'off' }],
        'vote-threshold': 1,
        'read-only': true,
      },
    ].flatMap((options) => [add({ driver: 'quorum', 'node-name': 'q', ...options }), query, del('q')]),
  ],
};

const quorumChildren: Transcript = {
  name: 'quorum.children',
  files: { a: MiB, b: MiB, c: MiB, d: MiB, big: 2 * MiB },
  steps: [
    ...['a', 'b', 'c', 'd', 'big'].map((name) => file(name)),
    add({ driver: 'quorum', 'node-name': 'q', children: ['a', 'b', 'c'], 'vote-threshold': 2 }),
    add({ driver: 'raw', 'node-name': 'r', file: 'd' }),
    resize('a', 2 * MiB),
    resize('q', 2 * MiB),
    add({ driver: 'quorum', 'node-name': 'q2', children: ['a', 'b', 'c'], 'vote-threshold': 2 }),
    del('q2'),
    change('q'),
    change('nowhere'),
    change('nowhere', { child: 'x', node: 'y' }),
    change('q', { node: 'nowhere' }),
    change('q', { child: 'nowhere' }),
    change('q', { child: 'children.0', node: 'big' }),
    change('q', { child: 'children.9', node: 'big' }),
    change('r', { node: 'b' }),
    change('r', { node: 'big' }),
    change('r', { child: 'file' }),
    change('r', { child: 'children.0' }),
    del('r'),
    change('q', { node: 'big' }),
    query,
    change('q', { child: 'children.3' }),
    change('q', { node: 'd' }),
    change('q', { child: 'children.0' }),
    query,
    change('q', { node: 'a' }),
    change('q', { child: 'children.0' }),
    change('q', { child: 'children.1' }),
    change('q', { child: 'children.2' }),
    change('q', { child: 'children.3' }),
    query,
    change('q', { node: 'd' }),
    change('q', { node: 'q' }),
    del('d'),
    del('q'),
    { note: 'blkverify' },
    add({ driver: 'quorum', 'node-name': 'q', children: ['a', 'b'], 'vote-threshold': 2, blkverify: true }),
    change('q', { node: 'c' }),
    change('q', { child: 'children.0' }),
    del('q'),
    { note: 'a child that only the quorum holds goes with it' },
    add({
      driver: 'quorum',
      'node-name': 'q',
      children: [{ driver: 'raw', 'node-name': 'inner', file: 'a' }, 'b'],
      'vote-threshold': 1,
    }),
    change('q', { child: 'children.0' }),
    query,
  ],
};

const quorumPermissions: Transcript = {
  name: 'quorum.permissions',
  files: { a: MiB, b: MiB, c: MiB, d: MiB },
  steps: [
    ...['a', 'b', 'c', 'd'].map((name) => file(name)),
    add({ driver: 'quorum', 'node-name': 'q', children: ['a', 'b', 'c'], 'vote-threshold': 2 }),
    startServer,
    exported('q'),
    exported('a'),
    exported('a', false),
    cmd('block-export-del', { id: 'a' }),
    cmd('block-export-del', { id: 'q' }),
    exported('q', false),
    exported('a'),
    add({
      driver: 'quorum',
      'node-name': 'qr',
      children: ['a', 'b', 'c'],
      'vote-threshold': 2,
      'rewrite-corrupted': true,
    }),
    exported('d'),
    change('q', { node: 'd' }),
    cmd('block-export-del', { id: 'd' }),
    change('q', { node: 'd' }),
    exported('d'),
    change('q', { child: 'children.3' }),
    exported('d'),
  ],
};

/** A quorum `name` on three files, of which some fail as the rules say. */
function failing(
  name: string,
  rules: readonly (readonly [iotype: string, errno: number] | null)[],
  rest: object = {},
): readonly Step[] {
  const children = rules.map((rule, index) => {
    const image = { driver: 'file', filename: `$DIR/${'abcd'[index]}`, locking: 'off' };
    const own = `${name}${index}`;
    if (rule === null) return { ...image, 'node-name': own };
    const [iotype, errno] = rule;
    return {
      driver: 'blkdebug',
      'node-name': own,
      image,
      'inject-error': [{ event: 'none', iotype, errno }],
    };
  });
  return [
    add({ driver: 'quorum', 'node-name': name, children, 'vote-threshold': 2, ...rest }),
    exported(name),
  ];
}

const content = (value: number) => () => Buffer.alloc(MiB, value);
/** Lets the events that rate limits hold back come. */
const pause: Step = { run: ['sleep', '1.2'] };
const settle: readonly Step[] = [pause, cmd('query-block')];

const quorumFaults: Transcript = {
  name: 'quorum.faults',
  files: { a: content(1), b: content(1), c: content(1), d: content(1) },
  steps: [
    startServer,
    ...failing('r1', [['read', 5], null, null]),
    io('r1', 'read -P 1 4k 512', 'read -q 100 1000'),
    ...settle,
    ...failing('w1', [['write', 5], null, null]),
    io('w1', 'write 4k 1024'),
    ...settle,
    ...failing('w2', [['write', 5], ['write', 28], null]),
    io('w2', 'write 4k 1024'),
    ...settle,
    ...failing('w3', [
      ['write', 28],
      ['write', 5],
      ['write', 5],
    ]),
    io('w3', 'write 4k 1024'),
    ...settle,
    ...failing('z1', [['write-zeroes', 5], null, null]),
    io('z1', 'write -z 4k 1024'),
    ...settle,
    ...failing('f1', [['flush', 5], null, null]),
    io('f1', 'write -f 4k 1024'),
    ...settle,
    ...failing('s1', [['block-status', 5], null, null]),
    io('s1', 'map'),
    ...settle,
    ...failing('o1', [['read', 5], null, null], { 'read-pattern': 'fifo' }),
    io('o1', 'read 512k 512'),
    ...settle,
    ...failing('c1', [['read', 5], null, null], { 'rewrite-corrupted': true }),
    io('c1', 'read 512k 512'),
    ...settle,
  ],
};

const quorumVotes: Transcript = {
  name: 'quorum.votes',
  files: { a: content(1), b: content(1), c: content(2), d: content(3) },
  steps: [
    startServer,
    ...failing('v1', [null, null, null]),
    io('v1', 'read -P 1 4k 512', 'read -P 1 100 1000'),
    ...settle,
    ...failing('v2', [null, null, null, null], { 'vote-threshold': 1 }),
    io('v2', 'read -P 1 4k 512'),
    ...settle,
    ...failing('v3', [null, ['read', 5], null, null], { 'vote-threshold': 1 }),
    io('v3', 'read -P 3 4k 512'),
    ...settle,
    ...failing('v4', [null, null, null, null], { 'rewrite-corrupted': true }),
    io('v4', 'read -P 1 64k 1k'),
    ...settle,
    { run: ['cmp', '-i', '65536', '-n', '1024', '$DIR/a', '$DIR/c'] },
    { run: ['cmp', '-i', '65536', '-n', '1024', '$DIR/a', '$DIR/d'] },
    { run: ['cmp', '-i', '66560', '-n', '1024', '$DIR/a', '$DIR/d'] },
    ...failing('v5', [null, null, null, null], { 'read-pattern': 'fifo', 'rewrite-corrupted': true }),
    io('v5', 'read -P 1 4k 512'),
    ...settle,
  ],
};

const quorumBlkverify: Transcript = {
  name: 'quorum.blkverify',
  files: { a: content(1), b: () => Buffer.alloc(MiB, 1).fill(2, 5000, 5001) },
  steps: [
    startServer,
    ...failing('v', [null, null], { blkverify: true }),
    io('v', 'read -q 0 4k', 'read 4k 4k'),
    { exit: true },
  ],
};

/** Images that name a backing file relative to themselves, in nodes that are in one place or in several. */
const relativeBacking: Transcript = {
  name: 'test-drivers.relative-backing',
  needs: ['qemu-img'],
  steps: [
    { run: ['qemu-img', 'create', '-q', '-f', 'qcow2', 'base', '1M'] },
    { run: ['qemu-img', 'create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2', 'a'] },
    { run: ['cp', 'a', 'b'] },
    file('a'),
    file('b'),
    add({ driver: 'quorum', 'node-name': 'q', children: ['a', 'b'], 'vote-threshold': 1 }),
    add({ driver: 'qcow2', 'node-name': 'image', file: 'q' }),
    add({ driver: 'qcow2', 'node-name': 'image', file: 'q', backing: null }),
    query,
    del('image'),
    del('q'),
    ...[
      { driver: 'blkverify', test: 'a', raw: 'b' },
      { driver: 'blkdebug', image: 'a', align: 512 },
    ].flatMap((options) => [
      add({ 'node-name': 'n', ...options }),
      add({ driver: 'qcow2', 'node-name': 'image', file: 'n' }),
      query,
      cmd('query-blockstats', { 'query-nodes': true }),
      cmd('blockdev-reopen', { options: [{ 'node-name': 'n', ...options }] }),
      del('image'),
      del('n'),
    ]),
  ],
};

export const testDriverTranscripts: readonly Transcript[] = [
  blkverify,
  blkverifyMismatch,
  blkverifyOutcome,
  blklogwrites,
  blklogwritesAppend,
  quorumOptions,
  quorumChildren,
  quorumPermissions,
  quorumFaults,
  quorumVotes,
  quorumBlkverify,
  relativeBacking,
];
