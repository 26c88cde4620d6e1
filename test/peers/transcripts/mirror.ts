/** Transcripts of mirror jobs: what they refuse, their life and its events, the graph around them, their error policies. */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { cmd, type Step, type Transcript } from '../transcript.ts';

const MiB = 1024 * 1024;
const changed: Step = { event: 'JOB_STATUS_CHANGE' };
const ready: Step = { event: 'BLOCK_JOB_READY' };
const nodes = cmd('query-named-block-nodes', { flat: true });
const jobs = cmd('query-block-jobs');

/** Time for a job to copy as much as its speed allows, and go to sleep. */
const aWhile: Step = { run: ['sleep', '0.3'] };

function times(count: number, step: Step): Step[] {
  return Array.from({ length: count }, () => step);
}

/** The end of a job that has done its work: waiting, pending, concluded, null. */
const endsWell = times(4, changed);
/** Of one that failed or was cancelled: aborting, concluded, null. */
const endsBadly = times(3, changed);

function addRaw(name: string, more: object = {}): Step {
  return cmd('blockdev-add', {
    driver: 'raw',
    'node-name': name,
    file: { driver: 'file', filename: `$DIR/${name}.img`, 'node-name': `${name}-file` },
    ...more,
  });
}

function mirror(more: object = {}): Step {
  return cmd('blockdev-mirror', { 'job-id': 'j', device: 's', target: 't', sync: 'full', ...more });
}

/** A mirror with these arguments becomes ready, and is cancelled. */
function works(more: object): Step[] {
  return [mirror(more), ready, cmd('block-job-cancel', { device: 'j' }), ...endsWell];
}

/** It is created, starts, fails. */
function fails(more: object): Step[] {
  return [mirror(more), ...endsBadly];
}

const files = { 's.img': MiB, 't.img': MiB, 'small.img': MiB / 2, 'big.img': 2 * MiB, 'other.img': MiB };

const refused: Transcript = {
  name: 'mirror.refused',
  files,
  steps: [
    addRaw('s'),
    addRaw('t'),
    addRaw('small'),
    addRaw('big'),
    addRaw('other', { 'read-only': true }),
    { note: 'names' },
    mirror({ 'job-id': undefined }),
    mirror({ 'job-id': '' }),
    mirror({ 'job-id': '1x' }),
    mirror({ device: 'nobody' }),
    mirror({ target: 'nobody' }),
    mirror({ target: 's' }),
    mirror({ target: 's-file' }),
    mirror({ device: 's-file' }),
    mirror({ target: 'other' }),
    { note: 'sizes' },
    ...fails({ target: 'small' }),
    ...fails({ target: 'big' }),
    { note: 'numbers' },
    ...[1, 256, 513, 1000, 128 * MiB, -1, 2 ** 32].map((granularity) => mirror({ granularity })),
    mirror({ 'buf-size': -1 }),
    mirror({ speed: -1 }),
    { note: 'the replaced node' },
    ...['nobody', 's-file', 't', 'big'].map((replaces) => mirror({ replaces })),
    { note: 'modes' },
    mirror({ sync: 'incremental' }),
    mirror({ sync: 'bitmap' }),
    mirror({ sync: 'nothing' }),
    mirror({ sync: undefined }),
    mirror({ 'copy-mode': 'foreground' }),
    mirror({ unmap: true }),
    { note: 'the name of the filter' },
    ...['s', '1', 'a'.repeat(32)].map((name) => mirror({ 'filter-node-name': name })),
    { note: 'nothing is left' },
    nodes,
    jobs,
  ],
};

const accepted: Transcript = {
  name: 'mirror.accepted',
  files,
  steps: [
    addRaw('s'),
    addRaw('t'),
    ...[0, 512, 1024, 64 * MiB].flatMap((granularity) => works({ granularity })),
    ...[0, 1, 1000, 65536].flatMap((size) => works({ 'buf-size': size })),
    ...works({ speed: 2 ** 40 }),
    ...works({ replaces: 's' }),
    ...works({ sync: 'top' }),
    ...works({ 'filter-node-name': 'f' }),
    ...['ignore', 'enospc', 'stop', 'auto'].flatMap((policy) =>
      works({ 'on-source-error': policy, 'on-target-error': policy }),
    ),
    nodes,
  ],
};

const life: Transcript = {
  name: 'mirror.life',
  files,
  steps: [
    addRaw('s'),
    addRaw('t'),
    addRaw('other'),
    cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd.sock' } } }),
    cmd('block-export-add', { type: 'nbd', id: 'e', 'node-name': 's', name: 'e', writable: true }),
    { note: 'a ready job and what it forbids' },
    mirror({ 'filter-node-name': 'f' }),
    ready,
    nodes,
    jobs,
    cmd('query-jobs'),
    mirror({ 'job-id': 'k', target: 'other' }),
    mirror({ 'job-id': 'k', device: 'f', target: 'other' }),
    mirror({ 'job-id': 'k', device: 't', target: 'other' }),
    ...['s', 't', 'f'].map((target) => mirror({ 'job-id': 'k', device: 'other', target })),
    mirror({ device: 'other' }),
    ...['s', 't', 'f'].map((name) => cmd('blockdev-del', { 'node-name': name })),
    ...['s', 't', 'f'].map((name) => cmd('block_resize', { 'node-name': name, size: 2 * MiB })),
    cmd('block-export-add', { type: 'nbd', id: 'r', 'node-name': 't', name: 'r' }),
    cmd('block-export-add', { type: 'nbd', id: 'w', 'node-name': 't', name: 'w', writable: true }),
    { note: 'writes while it is ready, completion' },
    { run: ['qemu-io', '-f', 'raw', '-c', 'write -P 7 4k 128k', 'nbd+unix:///e?socket=nbd.sock'] },
    cmd('block-job-complete', { device: 'j' }),
    ...endsWell,
    nodes,
    cmd('query-block-exports'),
    { run: ['qemu-io', '-f', 'raw', '-c', 'read -P 7 4k 128k', 'nbd+unix:///e?socket=nbd.sock'] },
    cmd('blockdev-del', { 'node-name': 's' }),
    cmd('blockdev-del', { 'node-name': 't' }),
    cmd('block-export-del', { id: 'e' }),
    cmd('blockdev-del', { 'node-name': 't' }),
    { run: ['cmp', 's.img', 't.img'] },
  ],
};

const control: Transcript = {
  name: 'mirror.control',
  files,
  steps: [
    addRaw('s'),
    addRaw('t'),
    { note: 'running' },
    mirror({ speed: 65536, 'buf-size': 65536, granularity: 65536 }),
    cmd('job-complete', { id: 'j' }),
    cmd('block-job-complete', { device: 'j' }),
    aWhile,
    cmd('job-pause', { id: 'j' }),
    cmd('job-pause', { id: 'j' }),
    jobs,
    cmd('block-job-cancel', { device: 'j' }),
    cmd('block-job-resume', { device: 'j' }),
    cmd('block-job-set-speed', { device: 'j', speed: -1 }),
    cmd('block-job-set-speed', { device: 'j', speed: 0 }),
    ready,
    { note: 'ready' },
    jobs,
    cmd('block-job-pause', { device: 'j' }),
    jobs,
    cmd('job-complete', { id: 'j' }),
    cmd('block-job-complete', { device: 'j' }),
    jobs,
    cmd('block-job-resume', { device: 'j' }),
    ...endsWell,
    { note: 'cancelled before it is ready' },
    ...[
      cmd('block-job-cancel', { device: 'j' }),
      cmd('block-job-cancel', { device: 'j', force: true }),
      cmd('job-cancel', { id: 'j' }),
    ].flatMap((cancel) => [
      mirror({ speed: 65536, 'buf-size': 65536, granularity: 65536 }),
      aWhile,
      cancel,
      ...endsBadly,
    ]),
    { note: 'cancelled by force when it is ready' },
    mirror(),
    ready,
    cmd('job-cancel', { id: 'j' }),
    ...endsBadly,
    { note: 'finalized and dismissed by hand' },
    mirror({ 'auto-finalize': false, 'auto-dismiss': false, 'filter-node-name': 'f' }),
    ready,
    cmd('job-complete', { id: 'j' }),
    { event: 'BLOCK_JOB_PENDING' },
    cmd('query-jobs'),
    nodes,
    cmd('block-job-finalize', { id: 'j' }),
    nodes,
    cmd('block-job-dismiss', { id: 'j' }),
    { note: 'cancelled while it is pending' },
    mirror({ 'auto-finalize': false, 'auto-dismiss': false }),
    ready,
    cmd('block-job-cancel', { device: 'j' }),
    { event: 'BLOCK_JOB_PENDING' },
    cmd('job-cancel', { id: 'j' }),
    cmd('query-jobs'),
    nodes,
    cmd('job-dismiss', { id: 'j' }),
    { note: 'the end of the daemon' },
    mirror(),
    ready,
    cmd('quit'),
    { exit: true },
  ],
};

/** An image of qcow2 in the scratch folder: made before the daemon starts. */
function image(...commands: readonly (readonly string[])[]): () => Buffer {
  return () => {
    const dir = mkdtempSync(path.join(tmpdir(), 'qb-image-'));
    try {
      for (const [program = '', ...args] of commands)
        execFileSync(program, args, { cwd: dir, stdio: 'ignore' });
      return readFileSync(path.join(dir, 'image'));
    } finally {
      rmSync(dir, { recursive: true });
    }
  };
}

const create = (...options: readonly string[]): readonly string[] => [
  'qemu-img',
  'create',
  '-q',
  '-f',
  'qcow2',
  ...options,
];
const write = (what: string): readonly string[] => ['qemu-io', '-f', 'qcow2', '-c', what, 'image'];
const empty = image(create('image', '4M'));
const base = create('base.q', '4M');
const above = ['-b', 'base.q', '-F', 'qcow2'];

function addQcow2(name: string, backing: string | null | undefined, more: object = {}): Step {
  return cmd('blockdev-add', {
    driver: 'qcow2',
    'node-name': name,
    file: { driver: 'file', filename: `$DIR/${name}.q`, 'node-name': `${name}-file` },
    ...(backing !== undefined && { backing }),
    ...more,
  });
}

const completed: Step[] = [cmd('job-complete', { id: 'j' }), ...endsWell, nodes];
/** Which parts an image holds itself. */
const map = (file: string): Step => ({ run: ['qemu-io', '-r', '-f', 'qcow2', '-c', 'map', file] });
const gone = (...names: readonly string[]): Step[] =>
  names.map((name) => cmd('blockdev-del', { 'node-name': name }));

const chains: Transcript = {
  name: 'mirror.chains',
  needs: ['qemu-img', 'qemu-io'],
  files: {
    'base.q': image(create('image', '4M'), write('write -P 1 0 1M')),
    's.q': image(base, create(...above, 'image', '4M'), write('write -P 2 512k 1M')),
    'full.q': empty,
    'top.q': image(base, create(...above, 'image', '4M')),
    'none.q': empty,
    'read-only.q': empty,
    'direct.q': empty,
    'overlay.q': image(create('image', '4M')),
  },
  steps: [
    addQcow2('base', undefined, { 'read-only': true }),
    addQcow2('s', 'base'),
    { note: 'full' },
    addQcow2('full', undefined),
    mirror({ target: 'full' }),
    ready,
    nodes,
    ...completed,
    ...gone('full', 's'),
    { run: ['qemu-img', 'compare', 's.q', 'full.q'] },
    map('full.q'),
    { note: 'top, on an image that is put on the base later' },
    addQcow2('s', 'base'),
    addQcow2('top', null),
    mirror({ target: 'top', sync: 'top', granularity: 4096 }),
    ready,
    ...completed,
    ...gone('top', 's'),
    { run: ['qemu-img', 'compare', 's.q', 'top.q'] },
    map('top.q'),
    { note: 'none' },
    addQcow2('s', 'base'),
    addQcow2('none', undefined),
    // Ready before the command is answered.
    mirror({ target: 'none', sync: 'none' }),
    ...completed,
    ...gone('none', 's'),
    map('none.q'),
    { note: 'write-blocking' },
    addQcow2('s', 'base'),
    addQcow2('direct', undefined),
    mirror({ target: 'direct', 'copy-mode': 'write-blocking' }),
    ready,
    nodes,
    ...completed,
    ...gone('direct'),
    { note: 'a source that is read-only' },
    addQcow2('read-only', undefined, { 'read-only': true }),
    addQcow2('full', undefined),
    mirror({ device: 'read-only', target: 'full' }),
    ready,
    ...completed,
    { note: 'images that others are on' },
    addQcow2('overlay', 's'),
    mirror({ device: 'base', target: 'none' }),
    mirror({ device: 's', target: 'none' }),
    addQcow2('none', undefined),
    mirror({ device: 'none', target: 's' }),
    mirror({ device: 'none', target: 'base' }),
  ],
};

/** A job that is ready copies a write; reading the source for that, or writing or flushing the target, fails once. */
function failing(side: 'source' | 'target', policy: string, errno: number): Step[] {
  const iotype = side === 'source' ? 'read' : 'write';
  const rule = { event: 'none', iotype, errno, once: true, sector: 1024 };
  const bad = (name: string): Step =>
    cmd('blockdev-add', {
      driver: 'raw',
      'node-name': name,
      file: {
        driver: 'blkdebug',
        image: { driver: 'file', filename: `$DIR/${name}.img` },
        'inject-error': [rule],
      },
    });
  const stops = policy === 'stop' || (errno === 28 && (policy === 'enospc' || policy === 'auto'));
  return [
    { note: `${side}, ${policy}, ${errno}` },
    side === 'source' ? bad('s') : addRaw('s'),
    side === 'target' ? bad('t') : addRaw('t'),
    cmd('block-export-add', { type: 'nbd', id: 'e', 'node-name': 's', name: 'e', writable: true }),
    mirror({ sync: 'none', [`on-${side}-error`]: policy, 'auto-dismiss': false }),
    { run: ['qemu-io', '-f', 'raw', '-c', 'write -P 9 512k 64k', 'nbd+unix:///e?socket=nbd.sock'] },
    { event: 'BLOCK_JOB_ERROR' },
    ...(stops ? [changed, jobs, cmd('job-resume', { id: 'j' })] : []),
    ...(stops || policy === 'ignore'
      ? [cmd('block-job-cancel', { device: 'j' }), ...times(3, changed)]
      : times(2, changed)),
    jobs,
    cmd('job-dismiss', { id: 'j' }),
    cmd('block-export-del', { id: 'e' }),
    ...gone('s', 't'),
  ];
}

const errors: Transcript = {
  name: 'mirror.errors',
  files,
  steps: [
    cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd.sock' } } }),
    ...(['source', 'target'] as const).flatMap((side) =>
      ['report', 'ignore', 'enospc', 'stop', 'auto'].flatMap((policy) =>
        [5, 28].flatMap((errno) => failing(side, policy, errno)),
      ),
    ),
  ],
};

function drive(more: object = {}): Step {
  return cmd('drive-mirror', { 'job-id': 'j', device: 's', target: '$DIR/new.img', sync: 'full', ...more });
}

const drives: Transcript = {
  name: 'mirror.drive',
  needs: ['qemu-img', 'qemu-io'],
  files: {
    's.img': 4 * MiB,
    'small.img': MiB,
    'there.q': empty,
    'base.q': image(create('image', '4M'), write('write -P 1 0 1M')),
    'over.q': image(base, create(...above, 'image', '4M'), write('write -P 2 512k 1M')),
  },
  steps: [
    addRaw('s'),
    { note: 'refused' },
    drive({ device: 'nobody' }),
    drive({ device: 's-file' }),
    drive({ format: 'nothing' }),
    drive({ format: 'null-co' }),
    drive({ target: '/nowhere/new.img' }),
    drive({ target: '' }),
    drive({ mode: 'existing', target: '$DIR/nowhere.img' }),
    drive({ mode: 'existing', target: '$DIR/nowhere.img', format: 'raw' }),
    drive({ replaces: 's' }),
    drive({ replaces: 'nobody', 'node-name': 'n' }),
    drive({ 'node-name': 's' }),
    drive({ 'node-name': '1' }),
    drive({ granularity: 3 }),
    drive({ speed: -1 }),
    drive({ sync: 'incremental' }),
    drive({ mode: 'other' }),
    drive({ 'filter-node-name': 'f' }),
    nodes,
    { note: 'too small' },
    drive({ mode: 'existing', target: '$DIR/small.img', format: 'raw' }),
    ...endsBadly,
    nodes,
    ...[
      {},
      { format: 'qcow2', 'node-name': 'n' },
      { format: 'qcow2', 'node-name': 'n', replaces: 's', unmap: false, 'copy-mode': 'write-blocking' },
      { format: 'raw', sync: 'top' },
    ].flatMap((more): Step[] => [
      { note: `a new file ${JSON.stringify(more)}` },
      drive(more),
      ready,
      // How long the file of an image is differs.
      ...('format' in more && more.format === 'qcow2' ? gone('n') : [nodes]),
      cmd('job-cancel', { id: 'j' }),
      ...endsBadly,
      nodes,
    ]),
    { note: 'pivot' },
    drive({ format: 'qcow2', 'node-name': 'n' }),
    ready,
    ...completed,
    { run: ['qemu-img', 'compare', 's.img', 'new.img'] },
    { note: 'chains' },
    addQcow2('over', undefined),
    ...(['top', 'none'] as const).flatMap((sync): Step[] => [
      drive({ device: 'over', sync, 'node-name': 'n', target: `$DIR/${sync}.new` }),
      ...(sync === 'top' ? [ready] : []),
      ...gone('n'),
      cmd('job-cancel', { id: 'j' }),
      ...endsBadly,
      map(`${sync}.new`),
    ]),
    cmd('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'over' }),
    drive({ device: 'over', sync: 'top', 'node-name': 'n', target: '$DIR/top.new', mode: 'existing' }),
    ready,
    ...completed,
    cmd('query-block-exports'),
  ],
};

export const mirrorTranscripts: readonly Transcript[] = [
  refused,
  accepted,
  life,
  control,
  chains,
  errors,
  drives,
];
