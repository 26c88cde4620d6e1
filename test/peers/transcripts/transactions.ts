/**
 * Transcripts of snapshots and transactions: checks and their order, what is taken back, what is left.
 *
 * Not here, because the original ends with a failed assertion: bitmap actions enable, disable and remove with
 * completion-mode=grouped.
 */

import { cmd, type Step, type Transcript } from '../transcript.ts';

const image = (name: string, ...options: string[]): Step => ({
  run: ['qemu-img', 'create', '-q', '-f', 'qcow2', ...options, `$DIR/${name}`, '1M'],
});

const open = (name: string, rest: object = {}): Step =>
  cmd('blockdev-add', {
    driver: 'qcow2',
    'node-name': name,
    file: { driver: 'file', filename: `$DIR/${name}` },
    ...rest,
  });

const act = (actions: readonly (readonly [string, object])[], properties?: object): Step =>
  cmd('transaction', {
    actions: actions.map(([type, data]) => ({ type, data })),
    ...(properties && { properties }),
  });

const abort = ['abort', {}] as const;
const nodes = cmd('query-named-block-nodes', { flat: true });
const serve = cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd.sock' } } });

/** Both daemons have noticed that the last client has gone. */
const disconnected: Step = { run: ['sleep', '0.3'] };

const exported = (id: string, node: string, writable = true): Step =>
  cmd('block-export-add', { type: 'nbd', id, 'node-name': node, name: id, writable });

const io = (exportName: string, ...commands: readonly string[]): Step => ({
  run: [
    ...['qemu-io', '-f', 'raw', ...commands.flatMap((command) => ['-c', command.replace(/^\w+/, '$& -q')])],
    `nbd+unix:///${exportName}?socket=$DIR/nbd.sock`,
  ],
});

const syntax: Transcript = {
  name: 'transaction.syntax',
  needs: ['qemu-img'],
  steps: [
    image('a'),
    open('a'),
    cmd('transaction'),
    cmd('transaction', { actions: {} }),
    cmd('transaction', { actions: [] }),
    cmd('transaction', { actions: [1] }),
    cmd('transaction', { actions: [{ type: 'abort' }] }),
    cmd('transaction', { actions: [{ data: {} }] }),
    cmd('transaction', { actions: [{ type: 'abort', data: {}, y: 1 }] }),
    cmd('transaction', { actions: [{ type: 'foo', data: {} }] }),
    cmd('transaction', { actions: [], properties: { 'completion-mode': 'x' } }),
    cmd('transaction', { actions: [], properties: { x: 1 } }),
    cmd('transaction', { actions: [], properties: {} }),
    act([abort]),
    act([['abort', { x: 1 }]]),
    act([abort], { 'completion-mode': 'grouped' }),
    act([['block-dirty-bitmap-add', { node: 'a', name: 'b' }]], { 'completion-mode': 'grouped' }),
    act([['blockdev-snapshot', { node: 'a', overlay: 'o' }]], { 'completion-mode': 'grouped' }),
    act([['blockdev-snapshot-internal-sync', { device: 'a', name: 's' }]], { 'completion-mode': 'grouped' }),
    act([abort], { 'completion-mode': 'individual' }),
    nodes,
  ],
};

const bitmapAction = (action: string, name = 'b') =>
  [`block-dirty-bitmap-${action}`, { node: 'a', name }] as const;

const bitmaps: Transcript = {
  name: 'transaction.bitmaps',
  needs: ['qemu-img', 'qemu-io'],
  steps: [
    image('a', '-o', 'preallocation=metadata'),
    open('a'),
    serve,
    exported('e', 'a'),
    act([bitmapAction('add'), abort]),
    nodes,
    act([bitmapAction('add'), bitmapAction('add')]),
    act([bitmapAction('add'), bitmapAction('add', 'c'), bitmapAction('disable', 'c')]),
    io('e', 'write -P 1 0 64k', 'write -P 1 256k 1'),
    nodes,
    act([bitmapAction('clear'), abort]),
    nodes,
    act([bitmapAction('remove'), bitmapAction('add'), abort]),
    act([bitmapAction('remove'), abort]),
    act([bitmapAction('disable'), bitmapAction('enable', 'c'), abort]),
    nodes,
    act([['block-dirty-bitmap-merge', { node: 'a', target: 'c', bitmaps: ['b'] }], abort]),
    cmd('x-debug-block-dirty-bitmap-sha256', { node: 'a', name: 'c' }),
    act([
      ['block-dirty-bitmap-merge', { node: 'a', target: 'c', bitmaps: ['b'] }],
      bitmapAction('clear'),
      bitmapAction('enable', 'c'),
    ]),
    nodes,
    act([['block-dirty-bitmap-merge', { node: 'a', target: 'c', bitmaps: ['nope'] }]]),
    act([['block-dirty-bitmap-merge', { node: 'a', target: 'nope', bitmaps: ['b'] }]]),
    act([bitmapAction('clear', 'nope')]),
    act([['block-dirty-bitmap-clear', { node: 'nope', name: 'b' }]]),
    act([['block-dirty-bitmap-add', { node: 'a', name: 'p', persistent: true }], bitmapAction('remove')]),
    nodes,
    act([bitmapAction('remove', 'p'), abort]),
    act([bitmapAction('remove', 'p'), bitmapAction('remove', 'c')]),
    nodes,
  ],
};

const snapshots: Transcript = {
  name: 'blockdev-snapshot',
  needs: ['qemu-img', 'qemu-io'],
  steps: [
    ...['a', 'b', 'o1', 'o2', 'o3'].map((name) => image(name)),
    open('a'),
    open('b'),
    open('o1', { backing: null }),
    open('o2', { backing: null }),
    open('o3', { backing: null }),
    cmd('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: 1 << 20 }),
    serve,
    exported('e', 'a'),
    cmd('blockdev-snapshot', { node: 'nope', overlay: 'o1' }),
    cmd('blockdev-snapshot', { node: 'a', overlay: 'nope' }),
    cmd('blockdev-snapshot', { node: 'a', overlay: 'n' }),
    cmd('blockdev-snapshot', { node: 'a', overlay: 'a' }),
    exported('used', 'o3', false),
    cmd('blockdev-snapshot', { node: 'a', overlay: 'o3' }),
    { note: 'what fails is taken back' },
    act([
      ['blockdev-snapshot', { node: 'a', overlay: 'o1' }],
      ['blockdev-snapshot', { node: 'b', overlay: 'o2' }],
      abort,
    ]),
    act([
      ['blockdev-snapshot', { node: 'a', overlay: 'o1' }],
      ['blockdev-snapshot', { node: 'o1', overlay: 'o2' }],
      abort,
    ]),
    act([
      ['blockdev-snapshot', { node: 'a', overlay: 'o1' }],
      ['blockdev-snapshot', { node: 'b', overlay: 'o1' }],
    ]),
    nodes,
    cmd('query-block-exports'),
    { note: 'the export goes along' },
    io('e', 'write -P 1 0 64k'),
    cmd('blockdev-snapshot', { node: 'a', overlay: 'o1' }),
    cmd('query-block-exports'),
    io('e', 'read -P 1 0 64k', 'write -P 2 32k 64k', 'read -P 1 0 32k', 'read -P 2 32k 64k'),
    { note: 'in use now' },
    cmd('blockdev-snapshot', { node: 'a', overlay: 'o2' }),
    cmd('blockdev-snapshot', { node: 'o1', overlay: 'o1' }),
    cmd('blockdev-snapshot', { node: 'o1', overlay: 'a' }),
    cmd('blockdev-del', { 'node-name': 'a' }),
    cmd('blockdev-del', { 'node-name': 'o1' }),
    act([
      ['blockdev-snapshot', { node: 'o1', overlay: 'o2' }],
      ['block-dirty-bitmap-add', { node: 'o2', name: 'new' }],
    ]),
    cmd('query-block-exports'),
    io('e', 'read -P 1 0 32k', 'read -P 2 32k 64k', 'write -P 3 0 1M'),
    disconnected,
    cmd('block-export-del', { id: 'e' }),
    cmd('blockdev-del', { 'node-name': 'o2' }),
    cmd('blockdev-del', { 'node-name': 'o1' }),
    cmd('blockdev-del', { 'node-name': 'a' }),
    nodes,
  ],
};

const sync: Transcript = {
  name: 'blockdev-snapshot-sync',
  needs: ['qemu-img', 'qemu-io'],
  steps: [
    image('a'),
    image('backed', '-b', 'a', '-F', 'qcow2'),
    open('a'),
    serve,
    exported('e', 'a'),
    cmd('blockdev-snapshot-sync', { 'snapshot-file': '$DIR/x' }),
    cmd('blockdev-snapshot-sync', { 'node-name': 'nope', 'snapshot-file': '$DIR/x' }),
    cmd('blockdev-snapshot-sync', { device: 'a', 'snapshot-file': '$DIR/x' }),
    cmd('blockdev-snapshot-sync', { 'node-name': 'a', 'snapshot-file': '$DIR/x' }),
    ...[
      { 'snapshot-node-name': 'a' },
      { 'snapshot-node-name': '9' },
      { 'snapshot-node-name': 'x', format: 'nope' },
      { 'snapshot-node-name': 'x', format: 'raw' },
      { 'snapshot-node-name': 'x', format: 'file' },
      { 'snapshot-node-name': 'x', mode: 'nope' },
      { 'snapshot-node-name': 'x', 'snapshot-file': '/nonexistent/x' },
      { 'snapshot-node-name': 'x', 'snapshot-file': '$DIR/nope', mode: 'existing' },
      { 'snapshot-node-name': 'x', 'snapshot-file': '$DIR/nope', mode: 'existing', format: 'nope' },
    ].map((rest) => cmd('blockdev-snapshot-sync', { 'node-name': 'a', 'snapshot-file': '$DIR/x', ...rest })),
    nodes,
    io('e', 'write -P 1 0 64k'),
    cmd('blockdev-snapshot-sync', {
      'node-name': 'a',
      'snapshot-file': '$DIR/y',
      'snapshot-node-name': 'y',
    }),
    cmd('query-block-exports'),
    io('e', 'read -P 1 0 64k', 'write -P 2 32k 64k'),
    { run: ['sh', '-c', "qemu-img info -U $DIR/y | grep -v 'disk size'"] },
    act([
      ['blockdev-snapshot-sync', { 'node-name': 'y', 'snapshot-file': '$DIR/z', 'snapshot-node-name': 'z' }],
      abort,
    ]),
    cmd('query-block-exports'),
    io('e', 'read -P 1 0 32k', 'read -P 2 32k 64k', 'write -P 3 0 4k'),
    cmd('blockdev-snapshot-sync', {
      'node-name': 'y',
      'snapshot-file': '$DIR/backed',
      'snapshot-node-name': 'z2',
      mode: 'existing',
    }),
    io('e', 'read -P 3 0 4k', 'read -P 1 4k 28k'),
    cmd('blockdev-del', { 'node-name': 'y' }),
    disconnected,
    cmd('block-export-del', { id: 'e' }),
    cmd('blockdev-del', { 'node-name': 'z2' }),
    cmd('blockdev-del', { 'node-name': 'a' }),
  ],
};

const internal: Transcript = {
  name: 'blockdev-snapshot-internal-sync',
  needs: ['qemu-img', 'qemu-io'],
  files: { raw: 1 << 20 },
  steps: [
    image('a'),
    open('a'),
    cmd('blockdev-add', { driver: 'raw', 'node-name': 'r', file: { driver: 'file', filename: '$DIR/raw' } }),
    image('ro'),
    image('q'),
    open('ro', { 'read-only': true }),
    cmd('blockdev-snapshot-internal-sync', { device: 'nope', name: 's' }),
    cmd('blockdev-snapshot-internal-sync', { device: 'a', name: '' }),
    cmd('blockdev-snapshot-internal-sync', { device: 'r', name: 's' }),
    cmd('blockdev-snapshot-internal-sync', { device: 'ro', name: 's' }),
    cmd('blockdev-snapshot-internal-sync', { device: 'a', name: 's' }),
    cmd('blockdev-snapshot-internal-sync', { device: 'a', name: 's' }),
    act([['blockdev-snapshot-internal-sync', { device: 'a', name: 't' }], abort]),
    act([
      ['blockdev-snapshot-internal-sync', { device: 'a', name: 't' }],
      ['blockdev-snapshot-internal-sync', { device: 'a', name: 'u' }],
    ]),
    cmd('blockdev-snapshot-delete-internal-sync', { device: 'nope' }),
    cmd('blockdev-snapshot-delete-internal-sync', { device: 'a' }),
    cmd('blockdev-snapshot-delete-internal-sync', { device: 'a', name: 'nope' }),
    cmd('blockdev-snapshot-delete-internal-sync', { device: 'a', id: '9' }),
    cmd('blockdev-snapshot-delete-internal-sync', { device: 'a', id: '1', name: 't' }),
    cmd('blockdev-snapshot-delete-internal-sync', { device: 'r', name: 's' }),
    cmd('blockdev-snapshot-delete-internal-sync', { device: 'ro', name: 's' }),
    // Filters and windows have the snapshots of the image that they have all their data from.
    image('f'),
    cmd('object-add', { 'qom-type': 'throttle-group', id: 'tg' }),
    cmd('blockdev-add', {
      ...{ driver: 'raw', 'node-name': 'top' },
      file: {
        ...{ driver: 'throttle', 'node-name': 'slow', 'throttle-group': 'tg' },
        file: { driver: 'qcow2', 'node-name': 'f', file: { driver: 'file', filename: '$DIR/f' } },
      },
    }),
    cmd('blockdev-snapshot-internal-sync', { device: 'top', name: 's' }),
    cmd('blockdev-snapshot-internal-sync', { device: 'top', name: 's' }),
    act([['blockdev-snapshot-internal-sync', { device: 'top', name: 't' }], abort]),
    { run: ['sh', '-c', 'qemu-img snapshot -U -l "$1" | cut -c 1-12', 'sh', '$DIR/f'] },
    cmd('blockdev-snapshot-delete-internal-sync', { device: 'top', name: 'nope' }),
    cmd('blockdev-add', {
      ...{ driver: 'quorum', 'node-name': 'q', 'vote-threshold': 1 },
      children: [{ driver: 'qcow2', file: { driver: 'file', filename: '$DIR/q' } }],
    }),
    cmd('blockdev-snapshot-internal-sync', { device: 'q', name: 's' }),
    // The original's transaction that was undone leaves a cluster: only damage counts.
    { run: ['sh', '-c', 'qemu-img check -U -q "$1" 2>&1 | grep -v ^Leaked', 'sh', '$DIR/a'] },
  ],
};

export const transactionTranscripts: readonly Transcript[] = [syntax, bitmaps, snapshots, sync, internal];
