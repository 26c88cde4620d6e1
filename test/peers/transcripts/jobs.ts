/** Transcripts of jobs: their states and verbs, blockdev-create of files and qcow2 images, the end of the daemon. */

import { cmd, type Step, type Transcript } from '../transcript.ts';

const MiB = 1024 * 1024;
const changed: Step = { event: 'JOB_STATUS_CHANGE' };
const query = cmd('query-jobs');

function create(options: object, id = 'j'): Step {
  return cmd('blockdev-create', { 'job-id': id, options });
}

function verb(name: string, id = 'j'): Step {
  return cmd(`job-${name}`, { id });
}

/** A creation that succeeds: the command is answered while the job runs. */
function succeeds(options: object): Step[] {
  return [create(options), changed, changed, changed, query, verb('dismiss')];
}

/** One that fails before it has done any I/O: it has ended when the command is answered. */
function failsAtOnce(options: object): Step[] {
  return [create(options), query, verb('dismiss')];
}

/** One that fails later. */
function failsLater(options: object): Step[] {
  return [create(options), changed, changed, query, verb('dismiss')];
}

const newFile = { driver: 'file', filename: '$DIR/new.img' };
const size = (file: string): Step => ({ run: ['stat', '-c', '%n %s', file] });

const verbs: Transcript = {
  name: 'jobs.verbs',
  steps: [
    query,
    { note: 'no such job' },
    ...['pause', 'resume', 'cancel', 'complete', 'dismiss', 'finalize'].map((name) => verb(name, 'nobody')),
    verb('pause', ''),
    cmd('job-pause'),
    cmd('job-pause', { id: 5 }),
    cmd('job-pause', { id: 'j', force: true }),
    { note: 'names of jobs' },
    ...['', '1', '1abc', 'a b', '-', '_x', 'ä'].map((id) => create({ ...newFile, size: MiB }, id)),
    { note: 'a job that has concluded' },
    create({ ...newFile, size: 1000 }),
    changed,
    changed,
    changed,
    size('new.img'),
    query,
    create({ ...newFile, size: 2000 }),
    ...['pause', 'resume', 'cancel', 'complete', 'finalize'].map((name) => verb(name)),
    query,
    verb('dismiss'),
    verb('dismiss'),
    query,
  ],
};

const running: Transcript = {
  name: 'jobs.running',
  steps: [
    { note: 'a job without pause points; it is at work for some time' },
    create({ ...newFile, size: 400 * MiB, preallocation: 'full' }),
    query,
    verb('resume'),
    verb('complete'),
    verb('finalize'),
    verb('dismiss'),
    verb('pause'),
    verb('pause'),
    query,
    verb('resume'),
    verb('resume'),
    verb('pause'),
    verb('cancel'),
    query,
    verb('cancel'),
    changed,
    changed,
    query,
    create({ ...newFile, filename: '$DIR/second.img', size: 512 }, 'second'),
    changed,
    changed,
    changed,
    query,
    { note: 'the end of the daemon is theirs, newest first' },
    cmd('quit'),
    { exit: true },
  ],
};

const quitWhileRunning: Transcript = {
  name: 'jobs.quit',
  steps: [
    create({ ...newFile, size: 100 * MiB, preallocation: 'full' }),
    cmd('quit'),
    { exit: true },
    size('new.img'),
  ],
};

const files: Transcript = {
  name: 'blockdev-create.file',
  files: { 'old.img': 'old content', 'locked.img': 4096, folder: 'dir/', link: { link: 'target.img' } },
  steps: [
    { note: 'arguments' },
    cmd('blockdev-create'),
    cmd('blockdev-create', { 'job-id': 'j' }),
    create({}),
    create({ driver: 'file' }),
    create({ driver: 'file', filename: '$DIR/new.img' }),
    create({ driver: 'file', size: 5 }),
    create({ ...newFile, size: 'a' }),
    create({ ...newFile, size: 5, foo: 1 }),
    create({ ...newFile, size: 5, preallocation: 'foo' }),
    create({ ...newFile, size: 5, nocow: 1 }),
    create({ driver: 'nothing' }),
    { note: 'drivers that cannot' },
    create({ driver: 'raw' }),
    create({ driver: 'null-co' }),
    create({ driver: 'host_device' }),
    create({ driver: 'raw' }, '1'),
    create({ driver: 'raw', filename: 'x' }),
    { note: 'sizes' },
    ...succeeds({ ...newFile, size: 1000 }),
    size('new.img'),
    ...[0, 1, 511, 513, 4096].flatMap((bytes) => [
      ...succeeds({ ...newFile, size: bytes }),
      { run: ['stat', '-c', '%s %b', 'new.img'] } as const,
    ]),
    ...succeeds({ ...newFile, size: 0 }),
    size('new.img'),
    ...failsLater({ ...newFile, size: -1 }),
    ...failsLater({ ...newFile, size: 2 ** 62 }),
    { note: 'preallocation and hints' },
    ...succeeds({ ...newFile, size: MiB, preallocation: 'off' }),
    ...failsLater({ ...newFile, size: MiB, preallocation: 'metadata' }),
    ...succeeds({ ...newFile, size: MiB, preallocation: 'falloc' }),
    ...succeeds({ ...newFile, size: MiB + 1, preallocation: 'full' }),
    { run: ['stat', '-c', '%s %b', 'new.img'] },
    ...succeeds({ ...newFile, size: MiB, nocow: true, 'extent-size-hint': 0 }),
    ...succeeds({ ...newFile, size: MiB, 'extent-size-hint': 2 ** 32 - 1 }),
    ...failsAtOnce({ ...newFile, size: MiB, 'extent-size-hint': 2 ** 32 }),
    ...failsAtOnce({ ...newFile, size: MiB, 'extent-size-hint': -1 }),
    ...failsLater({ ...newFile, size: 2 ** 52, preallocation: 'falloc' }),
    { note: 'what is there already' },
    ...succeeds({ driver: 'file', filename: '$DIR/old.img', size: 16 }),
    { run: ['od', '-c', 'old.img'] },
    ...succeeds({ driver: 'file', filename: '$DIR/link', size: 16 }),
    size('target.img'),
    ...failsAtOnce({ driver: 'file', filename: '$DIR/folder', size: 16 }),
    ...failsAtOnce({ driver: 'file', filename: '$DIR/none/new.img', size: 16 }),
    ...failsAtOnce({ driver: 'file', filename: '$DIR/old.img/new.img', size: 16 }),
    ...failsAtOnce({ driver: 'file', filename: '', size: 16 }),
    ...failsLater({ driver: 'file', filename: '/dev/null', size: 0 }),
    { note: 'a file that somebody relies on' },
    { hold: ['--blockdev', 'driver=file,node-name=h,filename=$DIR/locked.img', ...exportArgs()] },
    ...failsAtOnce({ driver: 'file', filename: '$DIR/locked.img', size: 16 }),
    size('locked.img'),
    { release: true },
    ...succeeds({ driver: 'file', filename: '$DIR/locked.img', size: 16 }),
  ],
};

/** A writable export makes the holder rely on the size. */
function exportArgs(): string[] {
  return [
    '--nbd-server',
    'addr.type=unix,addr.path=$DIR/hold.sock',
    '--export',
    'nbd,id=e,node-name=h,writable=on',
  ];
}

function qcow2(options: object): object {
  return { driver: 'qcow2', file: 'f', size: 64 * MiB, ...options };
}

const info: Step = { run: ['qemu-img', 'info', '-U', '-f', 'qcow2', 'f.img'] };
const check: Step = { run: ['qemu-img', 'check', '-U', '-f', 'qcow2', 'f.img'] };
const open = cmd('blockdev-add', { driver: 'qcow2', 'node-name': 'q', file: 'f', backing: null });
const close = cmd('blockdev-del', { 'node-name': 'q' });

const images: Transcript = {
  name: 'blockdev-create.qcow2',
  files: { 'f.img': 0, 'data.img': 0, 'inline.img': 0 },
  needs: ['qemu-img'],
  steps: [
    cmd('blockdev-add', { driver: 'file', 'node-name': 'f', filename: '$DIR/f.img' }),
    cmd('blockdev-add', { driver: 'file', 'node-name': 'ro', filename: '$DIR/f.img', 'read-only': true }),
    cmd('blockdev-add', { driver: 'file', 'node-name': 'd', filename: '$DIR/data.img' }),
    { note: 'arguments' },
    create({ driver: 'qcow2', file: 'f' }),
    create({ driver: 'qcow2', size: MiB }),
    create(qcow2({ 'backing-fmt': 'foo' })),
    create(qcow2({ version: 'v4' })),
    create(qcow2({ preallocation: 'foo' })),
    create(qcow2({ 'compression-type': 'lzma' })),
    create(qcow2({ encrypt: { format: 'aes' } })),
    create(qcow2({ encrypt: {} })),
    { note: 'images' },
    ...[
      {},
      { size: 0 },
      { version: 'v2' },
      { 'cluster-size': 512, 'refcount-bits': 1 },
      { 'cluster-size': 2 * MiB, 'refcount-bits': 64, 'lazy-refcounts': true, 'compression-type': 'zstd' },
      { 'extended-l2': true },
      { 'backing-file': '/none/base', 'backing-fmt': 'raw' },
      { 'backing-file': '/none/base' },
      { 'backing-file': '', 'backing-fmt': 'raw' },
      { preallocation: 'metadata', size: MiB },
    ].flatMap((options) => [...succeeds(qcow2(options)), info, open, close]),
    check,
    { note: 'an external data file' },
    ...succeeds(qcow2({ 'data-file': 'd', size: MiB })),
    info,
    size('data.img'),
    ...succeeds(qcow2({ 'data-file': 'd', 'data-file-raw': true, size: 3 * MiB })),
    info,
    size('data.img'),
    { note: 'a file defined inline' },
    ...succeeds(qcow2({ file: { driver: 'file', filename: '$DIR/inline.img' } })),
    { run: ['qemu-img', 'info', '-f', 'qcow2', 'inline.img'] },
    ...failsLater(qcow2({ file: { driver: 'file', filename: '$DIR/none.img' } })),
    ...failsLater(qcow2({ 'data-file': { driver: 'file', filename: '$DIR/none.img' } })),
    { note: 'refused before anything is written' },
    ...[
      { file: 'nobody' },
      { file: 'ro' },
      { size: MiB + 1 },
      ...[0, 256, 1000, 4 * MiB, -65536].map((bytes) => ({ 'cluster-size': bytes })),
      ...[0, 3, 128, -1].map((bits) => ({ 'refcount-bits': bits })),
      { 'refcount-bits': 32, version: 'v2' },
      { 'lazy-refcounts': true, version: 'v2' },
      { 'compression-type': 'zstd', version: 'v2' },
      { 'extended-l2': true, version: 'v2' },
      { 'extended-l2': true, 'cluster-size': 8192 },
      { 'data-file-raw': true },
      { 'data-file': 'd', version: 'v2' },
      { 'data-file': 'nobody' },
      { 'data-file': 'd', 'data-file-raw': true, 'backing-file': 'b', 'backing-fmt': 'raw' },
      { 'backing-fmt': 'raw' },
      { 'backing-file': 'b', 'backing-fmt': 'raw', preallocation: 'metadata' },
      { size: MiB + 1, 'cluster-size': 1000, file: 'nobody' },
      { 'cluster-size': 1000, 'refcount-bits': 3, version: 'v2', 'extended-l2': true },
      { 'backing-fmt': 'raw', 'lazy-refcounts': true, version: 'v2', 'refcount-bits': 3 },
    ].flatMap((options) => failsAtOnce(qcow2(options))),
    { note: 'refused on the way' },
    ...[
      { size: -512 },

      { size: 2 ** 40, 'cluster-size': 512 },
      { 'backing-file': 'b'.repeat(1024), 'backing-fmt': 'raw' },
      { 'backing-file': 'b'.repeat(1024) },
      { encrypt: { format: 'luks' } },
      { encrypt: { format: 'luks', 'key-secret': 'none' } },
      { encrypt: { format: 'qcow' } },
    ].flatMap((options) => failsLater(qcow2(options))),
    { note: 'a node in use' },
    ...succeeds(qcow2({})),
    open,
    ...failsAtOnce(qcow2({})),
    create(qcow2({ file: 'q', size: MiB })),
    changed,
    changed,
    changed,
    query,
  ],
};

function amend(nodeName: string, options: object, more: object = {}): Step {
  return cmd('x-blockdev-amend', { 'job-id': 'j', 'node-name': nodeName, options, ...more });
}

const amending: Transcript = {
  name: 'blockdev-amend',
  args: ['--object', 'secret,id=s0,data=abc'],
  files: { 'f.img': 0 },
  steps: [
    cmd('blockdev-add', { driver: 'file', 'node-name': 'f', filename: '$DIR/f.img' }),
    ...succeeds(qcow2({})),
    open,
    { note: 'arguments' },
    cmd('x-blockdev-amend'),
    cmd('x-blockdev-amend', { 'job-id': 'j', 'node-name': 'q' }),
    amend('q', {}),
    amend('q', { driver: 'qcow2', size: 5 }),
    amend('q', { driver: 'qcow2', encrypt: {} }),
    amend('q', { driver: 'qcow2', encrypt: { format: 'aes' } }),
    amend('q', { driver: 'qcow2', encrypt: { format: 'luks' } }),
    amend('q', { driver: 'qcow2', encrypt: { format: 'luks', state: 'foo' } }),
    amend('q', { driver: 'qcow2', encrypt: { format: 'luks', state: 'active', keyslot: 'a' } }),
    amend('q', { driver: 'qcow2', encrypt: { format: 'qcow', state: 'active' } }),
    amend('q', { driver: 'qcow2' }, { force: 1 }),
    { note: 'nodes and drivers' },
    amend('nobody', { driver: 'qcow2' }),
    amend('nobody', { driver: 'raw' }),
    amend('f', { driver: 'qcow2' }),
    amend('f', { driver: 'file' }),
    amend('q', { driver: 'raw' }),
    cmd('x-blockdev-amend', { 'job-id': '1', 'node-name': 'q', options: { driver: 'qcow2' } }),
    cmd('x-blockdev-amend', { 'job-id': '1', 'node-name': 'q', options: { driver: 'raw' } }),
    { note: 'jobs' },
    amend('q', { driver: 'qcow2' }),
    query,
    verb('dismiss'),
    ...[
      { format: 'luks', state: 'active', 'new-secret': 's0' },
      { format: 'luks', state: 'inactive' },
      { format: 'qcow' },
    ].flatMap((encrypt) => [amend('q', { driver: 'qcow2', encrypt }), query, verb('dismiss')]),
    close,
  ],
};

export const jobTranscripts: readonly Transcript[] = [
  verbs,
  running,
  quitWhileRunning,
  files,
  images,
  amending,
];
