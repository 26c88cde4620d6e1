/** Transcripts of the filters throttle, copy-on-read, preallocate and compress: options, permissions, names, effects. */

import { cmd, type Step, type Transcript } from '../transcript.ts';

const MiB = 1024 * 1024;
const SOCKET = { type: 'unix', data: { path: '$DIR/nbd.sock' } };

const add = (driver: string, name: string, rest: object = {}): Step =>
  cmd('blockdev-add', { driver, 'node-name': name, ...rest });
const del = (name: string): Step => cmd('blockdev-del', { 'node-name': name });
const reopen = (...options: readonly object[]): Step => cmd('blockdev-reopen', { options });
const file = (name: string, filename: string, rest: object = {}): Step =>
  add('file', name, { filename: `$DIR/${filename}`, ...rest });
const group = (id: string, rest: object = {}): Step =>
  cmd('object-add', { 'qom-type': 'throttle-group', id, ...rest });
const setLimits = (id: string, value: unknown): Step =>
  cmd('qom-set', { path: `/objects/${id}`, property: 'limits', value });
const getLimits = (id: string): Step => cmd('qom-get', { path: `/objects/${id}`, property: 'limits' });
const query = cmd('query-named-block-nodes', { flat: true });
const queryWithBacking = cmd('query-named-block-nodes');
const serve: readonly Step[] = [cmd('nbd-server-start', { addr: SOCKET })];
const share = (id: string, node: string, rest: object = {}): Step =>
  cmd('block-export-add', { type: 'nbd', id, 'node-name': node, name: id, ...rest });
/** The client has gone by then: else the export goes after the answer. */
const unshare = (id: string): readonly Step[] => [
  { run: ['sleep', '0.3'] },
  cmd('block-export-del', { id, mode: 'hard' }),
];
const io = (id: string, ...commands: readonly string[]): Step => ({
  run: [
    ...['qemu-io', '-f', 'raw', ...commands.flatMap((command) => ['-c', command])],
    `nbd+unix:///${id}?socket=$DIR/nbd.sock`,
  ],
});
const map = (name: string): Step => ({
  run: ['qemu-img', 'map', '-U', '--output=json', '-f', 'qcow2', `$DIR/${name}`],
});
const img = (...args: readonly string[]): Step => ({ run: ['qemu-img', ...args] });
const length = (name: string): Step => ({ run: ['stat', '-c', '%s', `$DIR/${name}`] });

const throttle: Transcript = {
  name: 'filters.throttle',
  files: { disk: MiB },
  steps: [
    file('f', 'disk'),
    add('throttle', 't', { file: 'f' }),
    add('throttle', 't', { 'throttle-group': 'nope' }),
    add('throttle', 't', { 'throttle-group': 'nope', file: 'f' }),
    add('throttle', 't', { 'throttle-group': 'nope', file: 'nothing' }),
    add('throttle', 't', { 'throttle-group': '', file: 'f' }),
    add('throttle', 't', { 'throttle-group': 'g', file: 'f', iops: 1 }),
    cmd('object-add', { 'qom-type': 'secret', id: 's', data: 'x' }),
    add('throttle', 't', { 'throttle-group': 's', file: 'f' }),
    group('g', { limits: { 'iops-total': 10 } }),
    add('throttle', 't', { 'throttle-group': 'g', file: 'f' }),
    cmd('object-del', { id: 'g' }),
    query,
    queryWithBacking,
    add('throttle', 't2', { 'throttle-group': 'g', file: 't', 'read-only': true }),
    del('t'),
    query,
    group('g2', { 'x-bps-total': 1024, 'x-bps-total-max': 2048, 'x-bps-total-max-length': 3 }),
    getLimits('g2'),
    reopen({ driver: 'throttle', 'node-name': 't', 'throttle-group': 'nope', file: 'f' }),
    reopen({ driver: 'throttle', 'node-name': 't', file: 'f' }),
    cmd('object-del', { id: 'g2' }),
    group('g2'),
    reopen({ driver: 'throttle', 'node-name': 't', 'throttle-group': 'g2', file: 'f' }),
    cmd('object-del', { id: 'g2' }),
    del('t2'),
    cmd('object-del', { id: 'g' }),
    reopen({ driver: 'throttle', 'node-name': 't', 'throttle-group': 'g2', file: 'f', 'read-only': true }),
    query,
    del('t'),
    cmd('object-del', { id: 'g2' }),
    cmd('object-del', { id: 'g2' }),
  ],
};

const throttleLimits: Transcript = {
  name: 'filters.throttle-limits',
  files: { disk: MiB },
  steps: [
    file('f', 'disk'),
    group('g'),
    add('throttle', 't', { 'throttle-group': 'g', file: 'f' }),
    ...serve,
    share('e', 't', { writable: true }),
    getLimits('g'),
    setLimits('g', { 'iops-total': 1000, 'bps-read': 1e9 }),
    getLimits('g'),
    io('e', 'write -q -P 1 0 64k', 'read -q -P 1 0 64k'),
    setLimits('g', { 'bps-read-max': 2e9, 'bps-read-max-length': 2, 'iops-size': 4096 }),
    getLimits('g'),
    cmd('qom-get', { path: 'g', property: 'x-bps-read-max' }),
    ...[
      { 'iops-read': 1 },
      { 'bps-total': 1 },
      { 'iops-total': -1 },
      { 'bps-read-max': 1 },
      { 'bps-read': 0 },
      { 'iops-total-max-length': 2 },
      { 'iops-total-max-length': 0 },
      { 'iops-total': 10 ** 15 + 1 },
      { 'iops-total': 0 },
      { 'bps-read-max-length': 2 ** 33 },
      { 'bps-read-max-length': 2 ** 31 },
      { foo: 1 },
      { 'iops-total': 'x' },
      17,
      [],
    ].map((value) => setLimits('g', value)),
    getLimits('g'),
    cmd('qom-set', { path: 'g', property: 'x-iops-total', value: 3 }),
    setLimits('g', { 'iops-size': 0, 'iops-total': 0, 'bps-read-max-length': 1 }),
    setLimits('g', { 'bps-read-max': 0, 'bps-read': 0 }),
    getLimits('g'),
    ...unshare('e'),
  ],
};

/** b: 0..256k; m: 64k..128k; o: 128k..192k; 64 KiB clusters. */
const chain: readonly Step[] = [
  img('create', '-q', '-f', 'qcow2', '$DIR/b', '1M'),
  { run: ['qemu-io', '-f', 'qcow2', '-c', 'write -q -P 1 0 256k', '$DIR/b'] },
  img('create', '-q', '-f', 'qcow2', '-b', '$DIR/b', '-F', 'qcow2', '$DIR/m'),
  { run: ['qemu-io', '-f', 'qcow2', '-c', 'write -q -P 2 64k 64k', '$DIR/m'] },
  img('create', '-q', '-f', 'qcow2', '-b', '$DIR/m', '-F', 'qcow2', '$DIR/o'),
  { run: ['qemu-io', '-f', 'qcow2', '-c', 'write -q -P 3 128k 64k', '$DIR/o'] },
];

const inChain = (name: string, rest: object): Step =>
  add('qcow2', name, { file: { driver: 'file', filename: `$DIR/${name}` }, ...rest });
const openChain: readonly Step[] = [
  inChain('b', { 'read-only': true }),
  inChain('m', { 'read-only': true, backing: 'b' }),
  inChain('o', { backing: 'm' }),
];
const READS = ['read -P 1 0 4k', 'read -P 2 100k 10k', 'read -P 3 150k 10k', 'read -P 1 250k 1'];
const onDisk: readonly Step[] = [del('c'), del('o'), map('o')];

function copied(name: string, options: object, ...reads: readonly string[]): Transcript {
  return {
    name: `filters.copy-on-read-${name}`,
    needs: ['qemu-img'],
    steps: [
      ...chain,
      ...openChain,
      add('copy-on-read', 'c', { file: 'o', ...options }),
      ...serve,
      share('e', 'c', { writable: !('read-only' in options) }),
      io('e', ...(reads.length > 0 ? reads : READS)),
      ...unshare('e'),
      ...onDisk,
      img('check', '-q', '-f', 'qcow2', '$DIR/o'),
    ],
  };
}

const copyOnReadOptions: Transcript = {
  name: 'filters.copy-on-read-options',
  needs: ['qemu-img'],
  files: { disk: MiB },
  steps: [
    ...chain,
    ...openChain,
    group('g'),
    add('throttle', 't', { file: 'b', 'throttle-group': 'g', 'read-only': true }),
    add('copy-on-read', 'c'),
    add('copy-on-read', 'c', { file: 'nothing', bottom: 'nothing' }),
    add('copy-on-read', 'c', { file: 'o', bottom: 'nothing' }),
    add('copy-on-read', 'c', { file: 'o', bottom: 't' }),
    add('copy-on-read', 'c', { file: 'm' }),
    add('copy-on-read', 'c', { file: 'm', 'read-only': true }),
    add('copy-on-read', 'c', { file: 'o', bottom: 'o' }),
    del('c'),
    add('copy-on-read', 'c', { file: 'o', bottom: 'm' }),
    query,
    queryWithBacking,
    ...serve,
    share('e', 'c', { writable: true }),
    share('e2', 'o', { writable: true }),
    share('e3', 'm'),
    reopen({ driver: 'copy-on-read', 'node-name': 'c', file: 'o', bottom: 'b' }),
    del('c'),
    ...unshare('e'),
    cmd('block_resize', { 'node-name': 'c', size: 2 * MiB }),
    cmd('block_resize', { 'node-name': 'o', size: MiB }),
    del('c'),
    file('f', 'disk'),
    add('copy-on-read', 'c', { file: 'f' }),
    add('copy-on-read', 'c2', { file: 'c' }),
    share('e4', 'c2', { writable: true }),
    io('e4', 'write -q -P 5 0 64k', 'read -P 5 0 64k', 'read -P 0 512k 64k'),
    share('e5', 'f', { writable: true }),
  ],
};

const preallocate: Transcript = {
  name: 'filters.preallocate',
  needs: ['qemu-img'],
  files: { disk: 65536 },
  steps: [
    file('f', 'disk'),
    add('blkdebug', 'd', { image: 'f', align: 4096 }),
    add('preallocate', 'p'),
    add('preallocate', 'p', { file: 'nothing', 'prealloc-align': 1 }),
    ...[1, 768, -1, -512, 2 ** 40].map((align) =>
      add('preallocate', 'p', { file: 'f', 'prealloc-align': align }),
    ),
    del('p'),
    add('preallocate', 'p', { file: 'f', 'prealloc-align': 1, 'prealloc-size': -1 }),
    add('preallocate', 'p', { file: 'd', 'prealloc-align': 512 }),
    add('preallocate', 'p', { file: 'd', 'prealloc-align': 4096, 'prealloc-size': 1 }),
    reopen({ driver: 'preallocate', 'node-name': 'p', file: 'd', 'prealloc-align': 512, 'prealloc-size': 1 }),
    reopen({ driver: 'preallocate', 'node-name': 'p', file: 'd', 'prealloc-align': 513, 'prealloc-size': 1 }),
    reopen({
      driver: 'preallocate',
      'node-name': 'p',
      file: 'd',
      'prealloc-align': 8192,
      'prealloc-size': -1,
    }),
    reopen({ driver: 'preallocate', 'node-name': 'p', file: 'd' }),
    reopen({ driver: 'preallocate', 'node-name': 'p', file: 'f', 'prealloc-align': 512, 'prealloc-size': 0 }),
    reopen({
      driver: 'preallocate',
      'node-name': 'p',
      file: 'f',
      'prealloc-align': 512,
      'prealloc-size': 0,
      'read-only': true,
    }),
    query,
    del('p'),
    add('preallocate', 'p', { file: 'f', 'read-only': true }),
    ...serve,
    share('e', 'p', { writable: true }),
    del('p'),
    add('preallocate', 'p', { file: 'f' }),
    share('e', 'p', { writable: true }),
    share('e2', 'f', { writable: true }),
    io('e', 'write -q -P 1 32k 32k', 'read -P 1 32k 32k'),
    length('disk'),
  ],
};

const preallocated: Transcript = {
  name: 'filters.preallocate-effect',
  needs: ['qemu-img'],
  files: {},
  steps: [
    img('create', '-q', '-f', 'qcow2', '$DIR/q', '16M'),
    file('f', 'q'),
    add('preallocate', 'p', { file: 'f', 'prealloc-align': 16 * MiB, 'prealloc-size': 10 * MiB }),
    length('q'),
    add('qcow2', 'q', { file: 'p' }),
    ...serve,
    share('e', 'q', { writable: true }),
    length('q'),
    share('e3', 'f'),
    cmd('block_resize', { 'node-name': 'p', size: 64 * MiB }),
    cmd('block_resize', { 'node-name': 'f', size: 64 * MiB }),
    io('e', 'write -q -P 1 0 64k', 'write -q -P 2 1M 64k', 'read -P 1 0 64k', 'read -P 2 1M 64k'),
    length('q'),
    reopen({
      driver: 'preallocate',
      'node-name': 'p',
      file: 'f',
      'prealloc-align': MiB,
      'prealloc-size': 2 * MiB,
      'read-only': true,
    }),
    length('q'),
    ...unshare('e'),
    del('q'),
    length('q'),
    img('check', '-q', '-U', '-f', 'qcow2', '$DIR/q'),
    add('qcow2', 'q', { file: 'p' }),
    share('e', 'q', { writable: true }),
    io('e', 'write -q -P 3 2M 64k', 'read -P 1 0 64k', 'read -P 2 1M 64k', 'read -P 3 2M 64k'),
    length('q'),
    reopen({ driver: 'qcow2', 'node-name': 'q', file: 'f' }),
    length('q'),
    reopen({ driver: 'qcow2', 'node-name': 'q', file: 'p' }),
    io('e', 'write -q -P 4 3M 64k', 'read -P 3 2M 64k', 'read -P 4 3M 64k'),
    length('q'),
    ...unshare('e'),
    del('q'),
    del('p'),
    length('q'),
    img('check', '-q', '-U', '-f', 'qcow2', '$DIR/q'),
  ],
};

const compress: Transcript = {
  name: 'filters.compress',
  needs: ['qemu-img'],
  files: { disk: MiB },
  steps: [
    img('create', '-q', '-f', 'qcow2', '$DIR/q', '1M'),
    img('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', '$DIR/small', '1050112'),
    file('f', 'disk'),
    add('raw', 'r', { file: 'f' }),
    add('null-co', 'n'),
    add('compress', 'c'),
    ...['nothing', 'f', 'r', 'n'].map((name) => add('compress', 'c', { file: name })),
    add('qcow2', 'q', { file: { driver: 'file', filename: '$DIR/q' } }),
    group('g'),
    add('throttle', 't', { file: 'q', 'throttle-group': 'g' }),
    add('throttle', 'tr', { file: 'r', 'throttle-group': 'g' }),
    add('compress', 'c', { file: 'tr' }),
    del('c'),
    add('copy-on-read', 'cor', { file: 't' }),
    add('compress', 'c', { file: 'cor' }),
    add('compress', 'c2', { file: 'c' }),
    del('c'),
    add('compress', 'c', { file: 'q' }),
    query,
    ...serve,
    share('e', 'c', { writable: true }),
    { run: ['nbdinfo', 'nbd+unix:///e?socket=$DIR/nbd.sock'] },
    io(
      'e',
      'write -q -P 1 0 64k',
      'write -q -P 2 100k 10k',
      'write -q -z 256k 64k',
      'write -q -P 3 512k 100k',
    ),
    io('e', 'read -P 1 0 64k', 'read -P 2 100k 10k', 'read -P 0 64k 36k', 'read -P 3 512k 100k'),
    io('e', 'write -q -P 4 1000 1', 'write -q -f -P 5 2000 1', 'discard -q 0 64k', 'read -P 1 3000 10k'),
    reopen({ driver: 'compress', 'node-name': 'c', file: 'q' }),
    cmd('block_resize', { 'node-name': 'c', size: 2 * MiB }),
    ...unshare('e'),
    cmd('block_resize', { 'node-name': 'c', size: 2 * MiB }),
    del('c'),
    map('q'),
    add('qcow2', 's', { file: { driver: 'file', filename: '$DIR/small' } }),
    add('compress', 'c', { file: 's' }),
    share('e', 'c', { writable: true }),
    io('e', 'write -q -P 6 1044480 4096', 'read -P 6 1044480 4096'),
    ...unshare('e'),
    del('c'),
    add('qcow2', 'ro', { file: { driver: 'file', filename: '$DIR/small' }, 'read-only': true }),
    add('compress', 'c', { file: 'ro' }),
    share('e', 'c', { writable: true }),
    share('e', 'c'),
  ],
};

export const filterTranscripts: readonly Transcript[] = [
  throttle,
  throttleLimits,
  copyOnReadOptions,
  copied('whole-chain', {}),
  copied('bottom', { bottom: 'm' }),
  copied('bottom-base', { bottom: 'b' }),
  copied('read-only', { 'read-only': true }),
  copied('writes', {}, 'write -q -P 9 60k 8k', 'read -P 1 0 4k', 'read -P 9 60k 8k', 'write -q -z 192k 1k'),
  preallocate,
  preallocated,
  compress,
];
