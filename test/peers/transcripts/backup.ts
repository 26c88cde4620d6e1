/**
 * Transcripts of backup jobs: checks and their order, every sync mode, bitmaps, errors, events.
 *
 * Not here: commands that drain everything while a backup runs, which the original shows by a pause of the job.
 */

import { cmd, type Step, type Transcript } from '../transcript.ts';

const MiB = 1024 * 1024;
const KiB = 1024;

const patterned = (bytes: number) => () => Buffer.alloc(bytes, 1);
const add = (options: object): Step => cmd('blockdev-add', options);
const file = (name: string, rest: object = {}): Step =>
  add({ driver: 'file', 'node-name': name, filename: `$DIR/${name}.img`, ...rest });
const qcow2 = (name: string, rest: object = {}): Step =>
  add({
    driver: 'qcow2',
    'node-name': name,
    file: { driver: 'file', filename: `$DIR/${name}.qcow2` },
    ...rest,
  });
const backup = (rest: object = {}): Step =>
  cmd('blockdev-backup', { 'job-id': 'j', device: 's', target: 't', sync: 'full', ...rest });
const bitmap = (name: string, rest: object = {}): Step =>
  cmd('block-dirty-bitmap-add', { node: 's', name, granularity: 64 * KiB, ...rest });
const completed: Step = { event: 'BLOCK_JOB_COMPLETED' };
const pending: Step = { event: 'BLOCK_JOB_PENDING' };
const jobs: readonly Step[] = [cmd('query-jobs'), cmd('query-block-jobs')];
const nodes = cmd('query-named-block-nodes', { flat: true });
const serve = cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd.sock' } } });
const share = (name: string): Step =>
  cmd('block-export-add', { type: 'nbd', id: `e-${name}`, 'node-name': name, name, writable: true });
const unshare = (name: string): Step => cmd('block-export-del', { id: `e-${name}` });
const io = (name: string, ...commands: string[]): Step => ({
  run: [
    ...['qemu-io', '-f', 'raw'],
    ...commands.flatMap((each) => ['-c', each]),
    `nbd+unix:///${name}?socket=$DIR/nbd.sock`,
  ],
});
const look = (name: string, ...commands: string[]): Step => ({
  run: [
    ...['qemu-io', '-r', '-U', '-f', 'raw'],
    ...commands.flatMap((each) => ['-c', each]),
    `$DIR/${name}.img`,
  ],
});
const create = (name: string, ...options: string[]): Step => ({
  run: ['qemu-img', 'create', '-q', '-f', 'qcow2', ...options, `$DIR/${name}.qcow2`, '1M'],
});

const files = { 's.img': patterned(MiB), 't.img': MiB, 'small.img': 64 * KiB, 'other.img': MiB };

const checks: Transcript = {
  name: 'backup.checks',
  files: { ...files, 'ro.img': MiB },
  steps: [
    file('s'),
    file('t'),
    file('small'),
    file('ro', { 'read-only': true }),
    cmd('blockdev-backup', { device: 's', target: 't', sync: 'full' }),
    backup({ device: 'x' }),
    backup({ target: 'x' }),
    backup({ device: undefined }),
    backup({ sync: undefined }),
    backup({ target: undefined }),
    backup({ sync: 'some' }),
    backup({ target: 's' }),
    backup({ target: 'small' }),
    backup({ target: 'ro' }),
    backup({ 'job-id': '1bad' }),
    backup({ speed: -1 }),
    backup({ compress: true }),
    backup({ 'filter-node-name': 's' }),
    backup({ 'filter-node-name': '0' }),
    ...[0, -1, 2 ** 31].map((workers) => backup({ 'x-perf': { 'max-workers': workers } })),
    ...[-1, 4096].map((chunk) => backup({ 'x-perf': { 'max-chunk': chunk } })),
    { note: 'bitmaps' },
    ...['bitmap', 'incremental', 'full', 'top', 'none'].flatMap((sync) => [
      backup({ sync: `${sync}`, bitmap: 'none' }),
      backup({ sync: `${sync}`, bitmap: 'none', 'bitmap-mode': 'always' }),
    ]),
    backup({ sync: 'bitmap' }),
    backup({ sync: 'incremental' }),
    backup({ sync: 'bitmap', 'bitmap-mode': 'never' }),
    backup({ sync: 'incremental', 'bitmap-mode': 'never' }),
    backup({ 'bitmap-mode': 'never' }),
    bitmap('b'),
    ...['full', 'top', 'none'].flatMap((sync) => [
      backup({ sync, bitmap: 'b' }),
      backup({ sync, bitmap: 'b', 'bitmap-mode': 'never' }),
    ]),
    backup({ sync: 'none', bitmap: 'b', 'bitmap-mode': 'always' }),
    backup({ sync: 'bitmap', bitmap: 'b' }),
    backup({ sync: 'incremental', bitmap: 'b', 'bitmap-mode': 'always' }),
    cmd('block-dirty-bitmap-disable', { node: 's', name: 'b' }),
    serve,
    cmd('block-export-add', { type: 'nbd', id: 'e-s', 'node-name': 's', bitmaps: ['b'] }),
    backup({ bitmap: 'b', 'bitmap-mode': 'always' }),
    backup({ bitmap: 'b', 'bitmap-mode': 'never' }),
    backup({ sync: 'bitmap', bitmap: 'b', 'bitmap-mode': 'never' }),
    { note: 'which error comes first' },
    backup({ device: 'x', target: 'x2', sync: 'bitmap' }),
    backup({ sync: 'incremental', 'bitmap-mode': 'never', target: 's' }),
    backup({ target: 's', compress: true, 'x-perf': { 'max-workers': 0 } }),
    backup({ compress: true, target: 'small', 'x-perf': { 'max-workers': 0 } }),
    backup({ target: 'small', 'x-perf': { 'max-workers': 0, 'max-chunk': -1 } }),
    backup({ target: 'small', 'x-perf': { 'max-chunk': -1 } }),
    backup({ target: 'small', 'filter-node-name': 's' }),
    backup({ target: 'ro', 'filter-node-name': 's', 'job-id': '1bad' }),
    backup({ target: 'ro', 'x-perf': { 'max-chunk': 1 }, 'job-id': '1bad' }),
    backup({ 'x-perf': { 'max-chunk': 1 }, 'job-id': '1bad' }),
    backup({ 'job-id': '1bad', speed: -1 }),
    nodes,
    ...jobs,
  ],
};

const full: Transcript = {
  name: 'backup.full',
  files,
  steps: [
    file('s'),
    file('t'),
    file('other'),
    backup(),
    completed,
    look('t', 'read -P 1 0 1M'),
    { note: 'step by step' },
    backup({ target: 'other', 'auto-finalize': false, 'auto-dismiss': false, 'filter-node-name': 'f' }),
    pending,
    ...jobs,
    nodes,
    cmd('blockdev-del', { 'node-name': 's' }),
    cmd('blockdev-del', { 'node-name': 'other' }),
    cmd('blockdev-del', { 'node-name': 'f' }),
    cmd('job-dismiss', { id: 'j' }),
    cmd('job-finalize', { id: 'j' }),
    ...jobs,
    nodes,
    cmd('job-dismiss', { id: 'j' }),
    ...jobs,
    look('other', 'read -P 1 0 1M'),
    { note: 'cancelled when all is copied' },
    backup({ 'auto-finalize': false }),
    pending,
    cmd('job-cancel', { id: 'j' }),
    nodes,
    { note: 'a node of another kind' },
    create('c'),
    qcow2('c'),
    backup({ target: 'c', compress: true }),
    completed,
    cmd('blockdev-del', { 'node-name': 'c' }),
    { run: ['qemu-img', 'compare', '-U', '$DIR/s.img', '$DIR/c.qcow2'] },
    { run: ['qemu-img', 'check', '$DIR/c.qcow2'] },
  ],
};

const none: Transcript = {
  name: 'backup.none',
  files,
  steps: [
    file('s'),
    file('t'),
    serve,
    share('s'),
    backup({ sync: 'none', 'filter-node-name': 'f', speed: 4096 }),
    ...jobs,
    nodes,
    io(
      's',
      'write -P 2 0 4k',
      'write -P 3 100k 64k',
      'write -z 512k 64k',
      'discard 900k 8k',
      'read -P 2 0 4k',
    ),
    ...jobs,
    look('t', 'read -P 1 0 192k', 'read -P 0 192k 320k', 'read -P 1 512k 64k', 'read -P 0 576k 320k'),
    cmd('job-pause', { id: 'j' }),
    ...jobs,
    io('s', 'write -P 4 300k 4k'),
    look('t', 'read -P 1 256k 64k'),
    cmd('job-resume', { id: 'j' }),
    ...jobs,
    cmd('job-complete', { id: 'j' }),
    cmd('block-job-set-speed', { device: 'j', speed: 0 }),
    cmd('blockdev-del', { 'node-name': 't' }),
    cmd('block-job-cancel', { device: 'j' }),
    nodes,
    io('s', 'write -P 5 700k 4k'),
    look('t', 'read -P 0 640k 64k'),
    unshare('s'),
    cmd('blockdev-del', { 'node-name': 't' }),
    cmd('blockdev-del', { 'node-name': 's' }),
  ],
};

const top: Transcript = {
  name: 'backup.top',
  files: {},
  steps: [
    create('base'),
    { run: ['qemu-io', '-c', 'write -P 1 0 1M', '$DIR/base.qcow2'] },
    create('s', '-b', 'base.qcow2', '-F', 'qcow2'),
    { run: ['qemu-io', '-c', 'write -P 2 128k 64k', '-c', 'write -z 512k 128k', '$DIR/s.qcow2'] },
    create('t', '-b', 'base.qcow2', '-F', 'qcow2'),
    qcow2('s'),
    qcow2('t', { backing: null }),
    backup({ sync: 'top', 'auto-finalize': false }),
    pending,
    ...jobs,
    cmd('job-finalize', { id: 'j' }),
    cmd('blockdev-del', { 'node-name': 't' }),
    { run: ['qemu-img', 'compare', '-U', '$DIR/s.qcow2', '$DIR/t.qcow2'] },
    { run: ['qemu-img', 'map', '--output=json', '$DIR/t.qcow2'] },
  ],
};

const bitmaps: Transcript = {
  name: 'backup.bitmaps',
  files,
  steps: [
    file('s'),
    file('t'),
    bitmap('b'),
    serve,
    share('s'),
    { note: 'nothing to copy' },
    backup({ sync: 'incremental', bitmap: 'b' }),
    io('s', 'write -P 2 64k 4k', 'write -P 3 512k 200k'),
    { note: 'the bitmap stays as it is' },
    backup({ sync: 'bitmap', bitmap: 'b', 'bitmap-mode': 'never', 'auto-finalize': false }),
    pending,
    nodes,
    cmd('block-dirty-bitmap-clear', { node: 's', name: 'b' }),
    cmd('block-dirty-bitmap-remove', { node: 's', name: 'b' }),
    io('s', 'write -P 4 960k 4k'),
    nodes,
    cmd('job-finalize', { id: 'j' }),
    nodes,
    look(
      't',
      'read -P 0 0 64k',
      'read -P 2 64k 4k',
      'read -P 1 68k 60k',
      'read -P 3 512k 200k',
      'read -P 0 960k 4k',
    ),
    { note: 'cancelled, then a success' },
    backup({ sync: 'incremental', bitmap: 'b', 'auto-finalize': false }),
    pending,
    io('s', 'write -P 5 0 4k'),
    cmd('job-cancel', { id: 'j' }),
    nodes,
    backup({ sync: 'incremental', bitmap: 'b', 'auto-finalize': false }),
    pending,
    ...jobs,
    io('s', 'write -P 6 256k 4k'),
    cmd('job-finalize', { id: 'j' }),
    nodes,
    { note: 'always: what was copied is clean although the job was cancelled' },
    backup({ sync: 'bitmap', bitmap: 'b', 'bitmap-mode': 'always', 'auto-finalize': false }),
    pending,
    io('s', 'write -P 7 128k 4k'),
    cmd('job-cancel', { id: 'j' }),
    nodes,
    { note: 'a full backup begins a chain' },
    backup({ bitmap: 'b', 'bitmap-mode': 'on-success', 'auto-finalize': false }),
    pending,
    io('s', 'write -P 8 320k 4k'),
    cmd('job-finalize', { id: 'j' }),
    nodes,
    { note: 'a disabled bitmap' },
    cmd('block-dirty-bitmap-disable', { node: 's', name: 'b' }),
    backup({ sync: 'bitmap', bitmap: 'b', 'bitmap-mode': 'on-success', 'auto-finalize': false }),
    pending,
    nodes,
    io('s', 'write -P 9 448k 4k'),
    cmd('job-finalize', { id: 'j' }),
    nodes,
  ],
};

/** A node that fails at its request number `at`, once or always. */
const failing = (name: string, rest: object): Step =>
  add({
    driver: 'blkdebug',
    'node-name': name,
    image: `${name}-file`,
    'inject-error': [{ event: 'none', ...rest }],
  });

const failures: Transcript = {
  name: 'backup.failures',
  files,
  steps: [
    file('s-file', { filename: '$DIR/s.img' }),
    failing('s', { iotype: 'read', errno: 5, sector: 0 }),
    file('t'),
    bitmap('b'),
    backup({ bitmap: 'b', 'bitmap-mode': 'on-success' }),
    completed,
    nodes,
    backup({ 'on-source-error': 'enospc' }),
    completed,
    backup({ 'on-source-error': 'stop' }),
    cmd('query-block-jobs'),
    cmd('block-job-cancel', { device: 'j' }),
  ],
};

const targetFailures: Transcript = {
  name: 'backup.target-failures',
  files,
  steps: [
    file('s'),
    file('t-file', { filename: '$DIR/t.img' }),
    failing('t', { iotype: 'write', errno: 28, once: true }),
    backup({ 'on-target-error': 'enospc' }),
    { event: 'BLOCK_JOB_ERROR' },
    cmd('query-block-jobs'),
    cmd('job-resume', { id: 'j' }),
    completed,
    look('t', 'read -P 1 0 1M'),
    cmd('blockdev-del', { 'node-name': 't' }),
    failing('t', { iotype: 'write', errno: 28, once: true }),
    backup({ 'on-target-error': 'ignore' }),
    completed,
    cmd('blockdev-del', { 'node-name': 't' }),
    failing('t', { iotype: 'write', errno: 28 }),
    backup({ 'on-target-error': 'report' }),
    completed,
    { note: 'a guest whose write cannot be copied before' },
    serve,
    share('s'),
    backup({ sync: 'none' }),
    io('s', 'write -P 2 0 4k', 'read -P 1 0 4k'),
    cmd('query-jobs'),
    cmd('job-cancel', { id: 'j' }),
    io('s', 'write -P 2 0 4k'),
  ],
};

export const backupTranscripts: readonly Transcript[] = [
  checks,
  full,
  none,
  top,
  bitmaps,
  failures,
  targetFailures,
];
