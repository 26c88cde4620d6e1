/** Transcripts of copy-before-write filters and snapshot-access nodes: image fleecing by hand. */

import { cmd, type Step, type Transcript } from '../transcript.ts';

const MiB = 1024 * 1024;
const KiB = 1024;

const add = (options: object): Step => cmd('blockdev-add', options);
const del = (name: string): Step => cmd('blockdev-del', { 'node-name': name });
const file = (name: string, rest: object = {}): Step =>
  add({ driver: 'file', 'node-name': name, filename: `$DIR/${name}.img`, ...rest });
const cbw = (rest: object = {}): Step =>
  add({ driver: 'copy-before-write', 'node-name': 'c', file: 's', target: 't', ...rest });
const access = (name: string, below: string, rest: object = {}): Step =>
  add({ driver: 'snapshot-access', 'node-name': name, file: below, ...rest });
const server: Step = cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd.sock' } } });
const share = (name: string, writable = false): Step =>
  cmd('block-export-add', { type: 'nbd', id: `e-${name}`, 'node-name': name, name, writable });
const resize = (name: string, size: number): Step => cmd('block_resize', { 'node-name': name, size });
const io = (name: string, ...commands: string[]): Step => ({
  run: [
    'qemu-io',
    ...['-f', 'raw'],
    ...commands.flatMap((each) => ['-c', each]),
    `nbd+unix:///${name}?socket=$DIR/nbd.sock`,
  ],
});
const look = (name: string, ...commands: string[]): Step => {
  const step = io(name, ...commands) as { readonly run: readonly string[] };
  return { run: ['qemu-io', '-r', ...step.run.slice(1)] };
};

const patterned = (bytes: number) => () => Buffer.alloc(bytes, 1);

const options: Transcript = {
  name: 'copy-before-write.options',
  files: { 's.img': MiB, 't.img': MiB, 'small.img': 512 * KiB },
  steps: [
    file('s'),
    file('t'),
    file('small'),
    add({ driver: 'copy-before-write', 'node-name': 'c' }),
    add({ driver: 'copy-before-write', 'node-name': 'c', file: 's' }),
    cbw({ file: 'none' }),
    cbw({ target: 'none' }),
    cbw({ file: null }),
    cbw({ bitmap: { node: 's', name: 'b' } }),
    cbw({ bitmap: { node: 'x', name: 'b' } }),
    cbw({ bitmap: { node: 's' } }),
    cbw({ bitmap: 'b' }),
    cbw({ 'cbw-timeout': -1 }),
    cbw({ 'cbw-timeout': 4294967296 }),
    cbw({ 'on-cbw-error': 'x' }),
    cbw({ unknown: 1 }),
    cbw({ 'read-only': true }),
    del('c'),
    { note: 'source and target may be one node, and the target may be too small, until somebody writes' },
    cbw({ target: 's' }),
    server,
    share('c', true),
    share('c'),
    cmd('block-export-del', { id: 'e-c' }),
    del('c'),
    cbw({ target: 'small' }),
    del('c'),
    cbw({ 'cbw-timeout': 2, 'on-cbw-error': 'break-snapshot' }),
    cmd('query-named-block-nodes', { flat: true }),
    cmd('query-named-block-nodes'),
    cmd('query-blockstats', { 'query-nodes': true }),
    del('s'),
    del('t'),
    del('c'),
    del('s'),
  ],
};

const bitmap: Transcript = {
  name: 'copy-before-write.bitmap',
  files: { 's.img': patterned(MiB), 't.img': MiB },
  steps: [
    file('s'),
    file('t'),
    server,
    cmd('block-dirty-bitmap-add', { node: 's', name: 'b', granularity: 32 * KiB }),
    share('s', true),
    io('s', 'write -P 2 100k 4k'),
    cmd('block-export-del', { id: 'e-s' }),
    cbw({ bitmap: { node: 's', name: 'b' } }),
    access('a', 'c'),
    cmd('query-named-block-nodes', { flat: true }),
    share('c', true),
    share('a'),
    io('c', 'write -P 3 0 1M'),
    look('a', 'read -P 2 100k 4k', 'read -P 1 64k 36k', 'read 0 1k', 'read 60k 8k', 'read 128k 1k'),
    {
      run: ['qemu-io', '-f', 'raw', '-r', '-c', 'read -P 0 0 64k', '-c', 'read -P 0 128k 896k', '$DIR/t.img'],
    },
    cmd('block-dirty-bitmap-remove', { node: 's', name: 'b' }),
    cmd('query-named-block-nodes', { flat: true }),
    { note: 'a bitmap of another size, a busy one, a disabled one' },
    cmd('block-export-del', { id: 'e-c' }),
    cmd('block-export-del', { id: 'e-a' }),
    del('a'),
    del('c'),
    resize('t', 2 * MiB),
    cmd('block-dirty-bitmap-add', { node: 't', name: 'other' }),
    cbw({ bitmap: { node: 't', name: 'other' } }),
    del('c'),
    cmd('block-dirty-bitmap-add', { node: 's', name: 'off', disabled: true }),
    cbw({ bitmap: { node: 's', name: 'off' } }),
    cmd('query-named-block-nodes', { flat: true }),
  ],
};

const fleecing: Transcript = {
  name: 'copy-before-write.fleecing',
  files: { 's.img': patterned(MiB), 't.img': MiB },
  steps: [
    file('s'),
    file('t', { discard: 'unmap' }),
    cbw(),
    access('a', 'c'),
    access('ro', 'c', { 'read-only': true }),
    access('none', 's'),
    add({ driver: 'snapshot-access', 'node-name': 'x' }),
    cmd('query-named-block-nodes', { flat: true }),
    server,
    share('a', true),
    share('none'),
    share('c', true),
    share('s'),
    { note: 'writes go through the filter only' },
    share('s', true),
    share('t', true),
    resize('s', 2 * MiB),
    resize('t', 2 * MiB),
    resize('c', 2 * MiB),
    resize('a', 2 * MiB),
    del('a'),
    del('c'),
    del('t'),
    io('a', 'read -P 1 0 1M', 'write 0 64k', 'write -z 0 64k', 'write -z -u 0 64k', 'flush'),
    io('c', 'read -P 1 0 1M', 'write -P 2 100k 64k', 'write -z 0 64k', 'discard 256k 64k', 'flush'),
    look('a', 'read -P 1 0 64k', 'read -P 1 64k 128k', 'read -P 1 192k 832k'),
    look('s', 'read -P 0 0 64k', 'read -P 1 64k 36k', 'read -P 2 100k 64k', 'read -P 1 164k 860k'),
    look('none', 'read 0 64k'),
    { note: 'what is given up cannot be read any more' },
    io(
      'a',
      'discard 60k 200k',
      'read -P 1 0 64k',
      'discard 64k 128k',
      'read 64k 1k',
      'read 60k 8k',
      'read 200k 1k',
    ),
    io('c', 'write -P 5 0 1M'),
    look('a', 'read -P 1 256k 512k', 'read -P 1 0 64k', 'read 128k 64k'),
    {
      run: [
        'qemu-io',
        '-f',
        'raw',
        '-r',
        '-c',
        'read -P 0 64k 192k',
        '-c',
        'read -P 1 256k 768k',
        '$DIR/t.img',
      ],
    },
    cmd('block-export-del', { id: 'e-a' }),
    del('a'),
    del('ro'),
  ],
};

const permissions: Transcript = {
  name: 'copy-before-write.permissions',
  files: { 's.img': MiB, 't.img': MiB },
  steps: [
    file('s'),
    file('t'),
    server,
    { note: 'without users the filter takes the target only' },
    cbw(),
    resize('s', MiB),
    resize('t', MiB),
    share('t', true),
    cmd('block-export-del', { id: 'e-t' }),
    share('s', true),
    access('a', 'c'),
    share('c', true),
    cmd('block-export-del', { id: 'e-s' }),
    share('c', true),
    resize('s', MiB),
    resize('c', MiB),
    resize('a', MiB),
    { note: 'a target that cannot be written' },
    file('r', { filename: '$DIR/t.img', 'read-only': true, 'force-share': true }),
    add({ driver: 'copy-before-write', 'node-name': 'c2', file: 's', target: 'r' }),
    add({ driver: 'null-co', 'node-name': 'n', size: MiB }),
    add({ driver: 'raw', 'node-name': 't2', size: 64 * KiB, file: { driver: 'null-co', size: 2 * MiB } }),
    add({ driver: 'copy-before-write', 'node-name': 'c2', file: 'n', target: 't2' }),
    cmd('query-named-block-nodes', { flat: true }),
    add({ driver: 'raw', 'node-name': 'top', file: 'c2' }),
    access('deep', 'top'),
    cmd('query-named-block-nodes', { flat: true }),
    share('deep'),
    look('deep', 'read 0 1k'),
  ],
};

export const copyBeforeWriteTranscripts: readonly Transcript[] = [options, bitmap, fleecing, permissions];
