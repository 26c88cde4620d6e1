/** blockdev-reopen: what can change and what cannot, several nodes as one, children with their parents. */

import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { cmd, type Step, type Transcript } from '../transcript.ts';

type Options = Readonly<Record<string, unknown>>;

const nodes = cmd('query-named-block-nodes', { flat: true });
const graph = cmd('x-debug-query-block-graph');

export function file(name: string, more: Options = {}): Options {
  return { driver: 'file', filename: `$DIR/${name}`, ...more };
}

function named(node: string, name: string, more: Options = {}): Options {
  return { ...file(name), 'node-name': node, ...more };
}

function reopen(...options: readonly Options[]): Step {
  return cmd('blockdev-reopen', { options });
}

/** A reopening of the same options with one or more of them other. */
function each(base: Options, ...changes: readonly Options[]): Step[] {
  return changes.map((change) => reopen({ ...base, ...change }));
}

/** An image made by `qemu-img create` with these arguments after the format. */
export function qcow2Image(...args: readonly string[]): () => Buffer {
  return () => {
    const folder = mkdtempSync(path.join(tmpdir(), 'image-'));
    try {
      const image = path.join(folder, 'image');
      spawnSync('qemu-img', [
        'create',
        '-q',
        '-f',
        'qcow2',
        ...args.slice(0, -1),
        image,
        args.at(-1) ?? '1M',
      ]);
      return readFileSync(image);
    } finally {
      rmSync(folder, { recursive: true });
    }
  };
}

const MIB = 2 ** 20;
const f = named('f', 'a.raw');
const readOnly = { 'read-only': true };
const direct = { cache: { direct: true } };

const protocol: Transcript = {
  name: 'reopen-file',
  files: { 'a.raw': MIB, 'b.raw': MIB },
  steps: [
    cmd('blockdev-add', f),
    reopen(f),
    { note: 'what cannot change' },
    ...each(
      f,
      { filename: '$DIR/b.raw' },
      { filename: 'a.raw' },
      { driver: 'null-co' },
      { 'force-share': true },
      { 'force-share': false },
      { 'force-share': true, ...readOnly },
      { locking: 'off' },
      { locking: 'auto' },
      { aio: 'threads' },
      { aio: 'native', ...direct },
      { 'aio-max-batch': 5 },
      { 'pr-manager': 'x' },
    ),
    reopen({ driver: 'file', filename: '$DIR/b.raw', 'node-name': 'f', locking: 'off', aio: 'native' }),
    reopen({ driver: 'null-co', 'node-name': 'f' }),
    reopen({ driver: 'raw', 'node-name': 'f', file: 'f' }),
    { note: 'what can' },
    reopen({ ...f, ...readOnly }),
    nodes,
    reopen(f),
    reopen({ ...f, ...direct }),
    nodes,
    reopen({ ...f, cache: { 'no-flush': true } }),
    nodes,
    reopen({ ...f, cache: {} }),
    reopen({ ...f, 'auto-read-only': true }),
    nodes,
    { note: 'discards stay as they are when they are left out' },
    ...each(
      f,
      { 'detect-zeroes': 'unmap' },
      { discard: 'unmap', 'detect-zeroes': 'unmap' },
      { 'detect-zeroes': 'unmap' },
      { discard: 'ignore', 'detect-zeroes': 'unmap' },
      { discard: 'ignore' },
      { 'detect-zeroes': 'unmap' },
      { 'detect-zeroes': 'on' },
    ),
    nodes,
    { note: 'an option that is given once must be given ever after' },
    ...each(f, { 'drop-cache': false }, {}, { 'drop-cache': true }, { 'x-check-cache-dropped': true }),
    nodes,
    cmd('blockdev-add', { ...named('g', 'b.raw'), locking: 'on', aio: 'threads', 'drop-cache': true }),
    ...['locking', 'aio', 'drop-cache'].map((missing) =>
      reopen(
        Object.fromEntries(
          Object.entries({
            ...named('g', 'b.raw'),
            locking: 'on',
            aio: 'threads',
            'drop-cache': true,
          }).filter(([name]) => name !== missing),
        ),
      ),
    ),
    { note: 'who' },
    reopen({ driver: 'file', filename: '$DIR/a.raw' }),
    reopen(named('zz', 'a.raw')),
    reopen(named('', 'a.raw')),
    cmd('blockdev-reopen'),
    cmd('blockdev-reopen', { options: {} }),
    cmd('blockdev-reopen', { options: [1] }),
    { note: 'twice: the options add up' },
    reopen({ ...f, 'drop-cache': true, ...readOnly }, { ...f, 'drop-cache': true }),
    nodes,
    reopen(
      { ...f, 'drop-cache': true, ...readOnly },
      { ...f, 'drop-cache': true, 'read-only': false, ...direct },
    ),
    nodes,
  ],
};

const raw = { driver: 'raw', 'node-name': 'r' };

const children: Transcript = {
  name: 'reopen-children',
  files: { 'a.raw': MIB, 'b.raw': MIB },
  args: ['--nbd-server', 'addr.type=unix,addr.path=$DIR/nbd.sock'],
  steps: [
    cmd('blockdev-add', f),
    { note: 'a child by reference is not touched' },
    cmd('blockdev-add', { ...raw, file: 'f' }),
    ...each(
      { ...raw, file: 'f' },
      direct,
      { offset: 512 },
      { offset: 512, size: 512 },
      { size: 513 },
      { size: 2 ** 30 },
      { offset: 2 ** 30 },
      { offset: -1 },
      {},
      { file: 'zz' },
      { file: null },
      { file: file('a.raw') },
      { file: 'r' },
      { driver: 'qcow2' },
      { driver: 'qcow2', backing: 'f' },
      { driver: 'qcow2', backing: null },
    ),
    reopen({ ...raw, file: 'f', ...readOnly }, { ...f, ...readOnly }),
    nodes,
    reopen({ ...f, ...readOnly }, { ...raw, file: 'f' }),
    nodes,
    reopen(f),
    cmd('blockdev-del', { 'node-name': 'r' }),
    { note: 'an inline child is reopened with its parent' },
    cmd('blockdev-add', { ...raw, file: file('b.raw') }),
    ...each(
      { ...raw, file: file('b.raw') },
      {},
      readOnly,
      direct,
      { ...direct, file: file('b.raw', { cache: { direct: false, 'no-flush': true } }) },
      { file: file('b.raw', readOnly) },
      { file: file('a.raw') },
      { file: file('b.raw', { locking: 'off' }) },
      { file: { driver: 'null-co' } },
    ).flatMap((step) => [step, nodes]),
    { note: 'and replaced: then it is gone' },
    reopen({ ...raw, file: 'f' }),
    nodes,
    reopen({ ...raw, file: file('b.raw') }),
    cmd('blockdev-del', { 'node-name': 'r' }),
    { note: 'with a name' },
    cmd('blockdev-add', { ...raw, file: named('fb', 'b.raw') }),
    reopen({ ...raw, file: 'fb', ...readOnly, ...direct }),
    nodes,
    reopen({ ...raw, file: named('fb', 'b.raw') }),
    reopen({ ...raw, file: named('fx', 'b.raw') }),
    { note: 'a name that was left out once is lost' },
    reopen({ ...raw, file: file('b.raw') }),
    reopen({ ...raw, file: named('fb', 'b.raw') }),
    reopen(named('fb', 'b.raw', readOnly)),
    reopen({ ...raw, file: 'fb' }),
    nodes,
    cmd('blockdev-del', { 'node-name': 'r' }),
    { note: 'in use by a writer' },
    cmd('blockdev-add', { ...raw, file: named('fb', 'b.raw') }),
    cmd('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'r', writable: true }),
    reopen({ ...raw, file: 'fb', ...readOnly }),
    reopen({ ...raw, file: named('fb', 'b.raw', readOnly) }),
    reopen(named('fb', 'b.raw', readOnly)),
    reopen({ ...raw, file: 'fb', ...direct }),
    reopen({ ...raw, file: 'fb', size: 512 }),
    nodes,
    reopen({ ...raw, file: 'f' }),
    graph,
    { note: 'force-share' },
    cmd('blockdev-add', { ...named('fs', 'b.raw'), 'force-share': true, ...readOnly }),
    ...each(named('fs', 'b.raw'), readOnly, { ...readOnly, 'force-share': true }, { 'force-share': false }),
  ],
};

const n = { driver: 'null-co', 'node-name': 'n', size: 4096, 'read-zeroes': true };

const atomic: Transcript = {
  name: 'reopen-atomic',
  files: { 'a.raw': MIB },
  steps: [
    cmd('blockdev-add', n),
    cmd('blockdev-add', { driver: 'null-co', 'node-name': 'm' }),
    cmd('blockdev-add', { ...raw, file: 'n' }),
    cmd('blockdev-add', { driver: 'raw', 'node-name': 's', file: 'r' }),
    ...each(n, { size: 8192 }, { 'read-zeroes': false }, { 'latency-ns': 1 }, readOnly),
    reopen({ driver: 'null-co', 'node-name': 'n' }),
    reopen({ driver: 'null-co', 'node-name': 'n', size: 1, 'read-zeroes': false }),
    reopen(n),
    { note: 'cycles' },
    reopen({ ...raw, file: 's' }),
    reopen({ ...raw, file: 'r' }),
    { note: 'all' },
    reopen({ ...raw, file: 'm', size: 512 }, { driver: 'raw', 'node-name': 's', file: 'n', ...readOnly }),
    nodes,
    graph,
    { note: 'two nodes change places, and back; the order counts' },
    reopen({ ...raw, file: 'm' }, { driver: 'raw', 'node-name': 's', file: 'r' }),
    reopen({ driver: 'raw', 'node-name': 's', file: 'n' }, { ...raw, file: 's' }),
    graph,
    reopen({ driver: 'raw', 'node-name': 's', file: 'r' }, { ...raw, file: 'n' }),
    reopen({ ...raw, file: 'n' }, { driver: 'raw', 'node-name': 's', file: 'r' }),
    graph,
    { note: 'or none: each one fails in turn' },
    reopen({ ...raw, file: 'n' }, { driver: 'raw', 'node-name': 's', file: 'r', size: 511 }),
    reopen({ ...raw, file: 'n', size: 511 }, { driver: 'raw', 'node-name': 's', file: 'r' }),
    reopen({ ...raw, file: 'n' }, { ...n, size: 5 }),
    reopen({ ...n, ...readOnly }, { ...raw, file: 'zz' }),
    nodes,
    graph,
    cmd('blockdev-add', { driver: 'blkdebug', 'node-name': 'd', image: 'm' }),
    ...each(
      { driver: 'blkdebug', 'node-name': 'd', image: 'm' },
      {},
      { align: 4096 },
      { image: 'n' },
      direct,
    ),
    nodes,
  ],
};

const q = { driver: 'qcow2', 'node-name': 'q' };

const qcow2: Transcript = {
  name: 'reopen-qcow2',
  needs: ['qemu-img'],
  files: { 'a.q': qcow2Image('1M'), 'b.raw': MIB, 'v2.q': qcow2Image('-o', 'compat=0.10', '1M') },
  steps: [
    cmd('blockdev-add', { ...q, file: file('a.q') }),
    ...each(
      { ...q, file: file('a.q') },
      { 'lazy-refcounts': true },
      { 'lazy-refcounts': false },
      { 'pass-discard-request': true, 'pass-discard-snapshot': false, 'pass-discard-other': true },
      { 'overlap-check': 'all' },
      { 'overlap-check': 'zz' },
      { 'overlap-check': { template: 'none', 'main-header': true } },
      { 'cache-size': MIB },
      { 'cache-size': MIB, 'l2-cache-size': 2 * MIB },
      { 'cache-size': -5 },
      { 'l2-cache-size': MIB, 'l2-cache-entry-size': 512 },
      { 'l2-cache-entry-size': 4097 },
      { 'refcount-cache-size': MIB },
      { 'cache-clean-interval': 5 },
      { 'cache-clean-interval': -1 },
      { encrypt: { format: 'luks', 'key-secret': 'x' } },
      { 'data-file': 'zz' },
      { 'data-file': null },
      { 'data-file': file('b.raw') },
      { backing: null },
      { backing: 'zz' },
      { backing: 'q' },
      { backing: file('b.raw') },
      {},
    ),
    { run: ['qemu-io', '-U', '-r', '-f', 'qcow2', '-c', 'map', '$DIR/a.q'] },
    reopen({ ...q, file: file('a.q'), ...readOnly }),
    nodes,
    reopen({ ...q, file: file('a.q') }),
    nodes,
    reopen({ ...q, file: file('a.q', readOnly) }),
    { note: 'a backing image comes and goes' },
    cmd('blockdev-add', named('bb', 'b.raw')),
    reopen({ ...q, file: file('a.q'), backing: 'bb' }),
    nodes,
    graph,
    reopen({ ...q, file: file('a.q') }),
    reopen({ ...q, file: file('a.q'), backing: 'bb' }, { ...named('bb', 'b.raw'), ...readOnly }),
    cmd('blockdev-del', { 'node-name': 'bb' }),
    reopen({ ...q, file: file('a.q'), backing: null }),
    nodes,
    cmd('blockdev-del', { 'node-name': 'bb' }),
    cmd('blockdev-add', { ...q, 'node-name': 'v2', file: file('v2.q') }),
    reopen({ ...q, 'node-name': 'v2', file: file('v2.q'), 'lazy-refcounts': true }),
    { note: 'read-only, with a file that becomes writable when it is needed' },
    cmd('blockdev-del', { 'node-name': 'v2' }),
    cmd('blockdev-add', {
      ...q,
      'node-name': 'v2',
      file: file('v2.q', { 'auto-read-only': true }),
      ...readOnly,
    }),
    nodes,
    reopen({ ...q, 'node-name': 'v2', file: file('v2.q', { 'read-only': true }) }),
    reopen({ ...q, 'node-name': 'v2', file: file('v2.q') }),
    reopen({ ...q, 'node-name': 'v2', file: file('v2.q', { 'read-only': true }) }),
    nodes,
  ],
};

const OVERLAY = ['-u', '-b', 'base.raw', '-F', 'raw'];

const backing: Transcript = {
  name: 'reopen-backing',
  needs: ['qemu-img'],
  files: { 'base.raw': MIB, 'b.raw': MIB, 'ov.q': qcow2Image(...OVERLAY, '1M') },
  steps: [
    cmd('blockdev-add', named('bb', 'b.raw')),
    { note: 'the one that the image names' },
    cmd('blockdev-add', { ...q, file: file('ov.q') }),
    nodes,
    reopen({ ...q, file: file('ov.q') }),
    reopen({ ...q, file: file('ov.q'), backing: null }),
    nodes,
    reopen({ ...q, file: file('ov.q') }),
    reopen({ ...q, file: file('ov.q'), backing: 'bb' }),
    nodes,
    cmd('blockdev-del', { 'node-name': 'q' }),
    { note: 'one that is defined inline' },
    cmd('blockdev-add', { ...q, file: file('ov.q'), backing: { ...raw, file: file('base.raw') } }),
    ...(
      [
        { driver: 'raw', file: file('base.raw') },
        'r',
        { driver: 'raw', file: file('base.raw', direct) },
        { driver: 'raw', file: file('base.raw'), 'read-only': false },
        { driver: 'raw', file: file('base.raw'), 'auto-read-only': true },
        { driver: 'qcow2', file: file('base.raw') },
        file('base.raw'),
      ] as const
    ).flatMap((given) => [reopen({ ...q, file: file('ov.q'), backing: given }), nodes]),
    reopen({ ...q, file: file('ov.q'), backing: 'r', ...readOnly }),
    nodes,
    reopen({ ...q, file: file('ov.q'), backing: 'bb' }),
    nodes,
    graph,
    cmd('blockdev-del', { 'node-name': 'bb' }),
    cmd('blockdev-del', { 'node-name': 'q' }),
  ],
};

const readOnlyFile = (more: Options): Options => ({
  driver: 'file',
  'node-name': 'f',
  filename: '/sys/kernel/uevent_seqnum',
  locking: 'off',
  ...more,
});

/** A file that nobody can write to, not even root. */
const autoReadOnly: Transcript = {
  name: 'auto-read-only',
  files: { 'a.q': qcow2Image('1M') },
  needs: ['qemu-img'],
  args: ['--nbd-server', 'addr.type=unix,addr.path=$DIR/nbd.sock'],
  steps: [
    cmd('blockdev-add', readOnlyFile({})),
    cmd('blockdev-add', readOnlyFile({ 'read-only': true })),
    reopen(readOnlyFile({})),
    nodes,
    reopen(readOnlyFile({ 'auto-read-only': true })),
    nodes,
    cmd('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'f', writable: true }),
    cmd('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'f' }),
    cmd('block-export-del', { id: 'e' }),
    cmd('blockdev-add', { driver: 'raw', 'node-name': 'r', file: 'f' }),
    cmd('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'r', writable: true }),
    cmd('block_resize', { 'node-name': 'r', size: 8192 }),
    reopen(readOnlyFile({})),
    cmd('blockdev-del', { 'node-name': 'r' }),
    cmd('blockdev-del', { 'node-name': 'f' }),
    cmd('blockdev-add', readOnlyFile({ 'auto-read-only': true })),
    nodes,
    cmd('blockdev-add', { driver: 'qcow2', 'node-name': 'q', 'auto-read-only': true, file: file('a.q') }),
    nodes,
    cmd('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'q', writable: true }),
  ],
};

export const reopenTranscripts: readonly Transcript[] = [
  protocol,
  children,
  atomic,
  qcow2,
  backing,
  autoReadOnly,
];
