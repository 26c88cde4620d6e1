/** Transcripts of external snapshots: blockdev-snapshot and blockdev-snapshot-sync, in success and failure. */

import { cmd, type Step, type Transcript } from '../transcript.ts';

const MiB = 1024 * 1024;

const img = (...args: readonly string[]): Step => ({ run: ['qemu-img', ...args] });

const nodes = cmd('query-named-block-nodes', { flat: true });
const graph = cmd('x-debug-query-block-graph');

const file = (name: string, filename: string, rest: object = {}): Step =>
  cmd('blockdev-add', { driver: 'file', 'node-name': name, filename: `$DIR/${filename}`, ...rest });

const image = (driver: string, name: string, below: unknown, rest: object = {}): Step =>
  cmd('blockdev-add', { driver, 'node-name': name, file: below, ...rest });

const onFile = (filename: string): object => ({ driver: 'file', filename: `$DIR/${filename}` });

const del = (name: string): Step => cmd('blockdev-del', { 'node-name': name });

const snapshot = (node: unknown, overlay: unknown): Step => cmd('blockdev-snapshot', { node, overlay });

const sync = (args: object): Step => cmd('blockdev-snapshot-sync', args);

const serve = cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd.sock' } } });

/** Both daemons have noticed that the last client has gone. */
const disconnected: Step = { run: ['sleep', '0.3'] };

const exported = (id: string, node: string, rest: object = {}): Step =>
  cmd('block-export-add', { type: 'nbd', id, 'node-name': node, name: id, ...rest });

const unexport = (id: string): Step => cmd('block-export-del', { id });

const io = (exportName: string, ...commands: readonly string[]): Step => ({
  run: [
    ...['qemu-io', '-f', 'raw', ...commands.flatMap((command) => ['-c', command.replace(/^\w+/, '$& -q')])],
    `nbd+unix:///${exportName}?socket=$DIR/nbd.sock`,
  ],
});

const onto: Transcript = {
  name: 'snapshots.blockdev-snapshot',
  needs: ['qemu-img'],
  files: { 'base.img': 4 * MiB },
  steps: [
    img('create', '-q', '-f', 'qcow2', '$DIR/a.qcow2', '4M'),
    img('create', '-q', '-f', 'qcow2', '$DIR/b.qcow2', '4M'),
    img('create', '-q', '-f', 'qcow2', '$DIR/c.qcow2', '8M'),
    img('create', '-q', '-f', 'qcow2', '-b', '$DIR/base.img', '-F', 'raw', '$DIR/with.qcow2'),
    file('bf', 'base.img'),
    image('raw', 'base', 'bf'),
    image('qcow2', 'a', onFile('a.qcow2'), { backing: null }),
    { note: 'arguments' },
    cmd('blockdev-snapshot'),
    cmd('blockdev-snapshot', { node: 'base' }),
    cmd('blockdev-snapshot', { overlay: 'a' }),
    snapshot(5, 'a'),
    snapshot('base', null),
    cmd('blockdev-snapshot', { node: 'base', overlay: 'a', mode: 'existing' }),
    snapshot('nobody', 'a'),
    snapshot('base', 'nobody'),
    snapshot('', 'a'),
    snapshot('base', ''),
    snapshot('nobody', 'nobody'),
    { note: 'overlays that will not do' },
    snapshot('a', 'base'),
    snapshot('base', 'bf'),
    snapshot('base', 'base'),
    snapshot('a', 'a'),
    image('qcow2', 'with', onFile('with.qcow2')),
    snapshot('base', 'with'),
    del('with'),
    image('qcow2', 'with', onFile('with.qcow2'), { backing: 'base' }),
    snapshot('base', 'with'),
    snapshot('base', 'a'),
    del('with'),
    image('qcow2', 'ro', onFile('c.qcow2'), { 'read-only': true }),
    snapshot('base', 'ro'),
    graph,
    del('a'),
    del('ro'),
    nodes,
    { note: 'overlays in use' },
    image('qcow2', 'c', onFile('c.qcow2')),
    serve,
    exported('e', 'c'),
    snapshot('base', 'c'),
    disconnected,
    unexport('e'),
    exported('e', 'c', { writable: true }),
    snapshot('base', 'c'),
    disconnected,
    unexport('e'),
    image('raw', 'over', 'c'),
    snapshot('base', 'c'),
    del('over'),
    { note: 'taken, under an export' },
    // The last one was taken, and made its base read-only.
    del('c'),
    del('base'),
    image('raw', 'base', 'bf'),
    image('qcow2', 'c', onFile('c.qcow2')),
    image('qcow2', 'b', onFile('b.qcow2')),
    exported('w', 'base', { writable: true }),
    io('w', 'write -P 1 0 64k'),
    snapshot('base', 'b'),
    graph,
    nodes,
    io('w', 'write -P 2 64k 64k', 'read -P 1 0 64k'),
    snapshot('base', 'c'),
    snapshot('b', 'base'),
    snapshot('bf', 'c'),
    snapshot('b', 'c'),
    io('w', 'write -P 3 128k 64k', 'read -P 1 0 64k', 'read -P 2 64k 64k', 'read 3M 2M'),
    graph,
    del('b'),
    del('base'),
    disconnected,
    unexport('w'),
    del('b'),
    del('c'),
    nodes,
    del('b'),
    del('base'),
    nodes,
    img('map', '--output=json', '$DIR/base.img'),
    img('map', '--output=json', '-U', '$DIR/b.qcow2'),
    img('info', '$DIR/b.qcow2'),
  ],
};

/** Nodes without a write-only overlay, protocols, filters, read-only nodes. */
const kinds: Transcript = {
  name: 'snapshots.nodes',
  needs: ['qemu-img'],
  files: { 'base.img': 4 * MiB, 'other.img': 4 * MiB },
  steps: [
    img('create', '-q', '-f', 'qcow2', '$DIR/a.qcow2', '4M'),
    img('create', '-q', '-f', 'qcow2', '$DIR/b.qcow2', '4M'),
    img('create', '-q', '-f', 'qcow2', '$DIR/data.qcow2', '4M'),
    file('f', 'base.img'),
    image('qcow2', 'a', onFile('a.qcow2')),
    { note: 'a protocol node' },
    snapshot('f', 'a'),
    graph,
    snapshot('f', 'a'),
    del('a'),
    graph,
    image('raw', 'r', 'f'),
    del('r'),
    { note: 'a node that is read-only, a node that is written below' },
    image('raw', 'ro', 'f', { 'read-only': true }),
    image('qcow2', 'a', onFile('a.qcow2')),
    snapshot('ro', 'a'),
    del('a'),
    del('ro'),
    image('qcow2', 'on', 'f'),
    image('raw', 'w1', 'f', { offset: 0, size: MiB }),
    image('qcow2', 'a', onFile('a.qcow2')),
    snapshot('w1', 'a'),
    snapshot('f', 'a'),
    graph,
    nodes,
    del('w1'),
    del('a'),
    { note: 'overlay on the same file' },
    file('qf', 'b.qcow2'),
    image('qcow2', 'b', 'qf'),
    snapshot('qf', 'b'),
    image('raw', 'rq', 'qf'),
    graph,
    snapshot('rq', 'b'),
    graph,
    { note: 'null as the base' },
    cmd('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: MiB, 'read-zeroes': true }),
    image('qcow2', 'a', onFile('a.qcow2')),
    snapshot('n', 'a'),
    serve,
    exported('e', 'a', { writable: true }),
    io('e', 'read -P 0 0 4M', 'write -P 7 512k 1M'),
    snapshot('n', 'b'),
    disconnected,
    unexport('e'),
    nodes,
    del('a'),
    del('n'),
  ],
};

const made: Transcript = {
  name: 'snapshots.blockdev-snapshot-sync',
  needs: ['qemu-img'],
  files: { 'base.img': 4 * MiB, 'garbage.qcow2': 'this is no image', folder: 'dir/' },
  steps: [
    img('create', '-q', '-f', 'qcow2', '$DIR/ready.qcow2', '4M'),
    img('create', '-q', '-f', 'qcow2', '-b', '$DIR/base.img', '-F', 'raw', '$DIR/with.qcow2'),
    img('create', '-q', '-f', 'qcow2', '-b', '$DIR/nothing', '-F', 'raw', '-u', '$DIR/lost.qcow2', '4M'),
    file('f', 'base.img'),
    image('raw', 'base', 'f'),
    serve,
    exported('w', 'base', { writable: true }),
    io('w', 'write -P 1 0 64k'),
    { note: 'arguments' },
    sync({}),
    sync({ device: 'base' }),
    sync({ 'snapshot-file': '$DIR/1.qcow2' }),
    sync({ device: 'base', 'snapshot-file': '$DIR/1.qcow2' }),
    sync({ device: '', 'snapshot-file': '$DIR/1.qcow2' }),
    sync({ device: 'nobody', 'snapshot-file': '$DIR/1.qcow2' }),
    sync({ 'node-name': 'nobody', 'snapshot-file': '$DIR/1.qcow2' }),
    sync({ device: 'one', 'node-name': 'two', 'snapshot-file': '$DIR/1.qcow2' }),
    sync({ device: 'base', 'node-name': 'base', 'snapshot-file': '$DIR/1.qcow2' }),
    sync({ 'node-name': 'base', 'snapshot-file': '$DIR/1.qcow2' }),
    sync({ 'node-name': 'base', 'snapshot-file': '$DIR/1.qcow2', mode: 'no-backing-file' }),
    sync({ 'node-name': 'base', 'snapshot-file': 5 }),
    ...['f', 'base', '', 'under_score', '1two', 'with space', 'x'.repeat(32), 'x'.repeat(31)].map((name) =>
      sync({ 'node-name': 'base', 'snapshot-file': '$DIR/no/file', 'snapshot-node-name': name }),
    ),
    ...['nonsense', '', 'raw', 'file', 'nbd'].flatMap((format) => [
      sync({ 'node-name': 'base', 'snapshot-file': '$DIR/1.img', 'snapshot-node-name': 'x', format }),
      sync({
        'node-name': 'base',
        'snapshot-file': '$DIR/ready.qcow2',
        'snapshot-node-name': 'x',
        format,
        mode: 'existing',
      }),
    ]),
    ...[
      ...['$DIR/no/file', '$DIR/folder', '', 'nonsense:x', 'nbd://localhost:1/x', '$DIR/base.img'],
      ...['nbd:unix:/none:exportname=x'],
    ].flatMap((filename) => [
      sync({ 'node-name': 'base', 'snapshot-file': filename, 'snapshot-node-name': 'x' }),
      sync({ 'node-name': 'base', 'snapshot-file': filename, 'snapshot-node-name': 'x', mode: 'existing' }),
    ]),
    ...['garbage.qcow2', 'with.qcow2', 'lost.qcow2', 'none.qcow2'].map((name) =>
      sync({
        'node-name': 'base',
        'snapshot-file': `$DIR/${name}`,
        'snapshot-node-name': `x-${name}`,
        mode: 'existing',
      }),
    ),
    graph,
    nodes,
    { note: 'taken' },
    io('w', 'read -P 1 0 64k', 'write -P 5 1M 64k'),
    sync({ 'node-name': 'base', 'snapshot-file': '$DIR/1.qcow2', 'snapshot-node-name': 's1' }),
    nodes,
    sync({
      'node-name': 's1',
      'snapshot-file': '$DIR/ready.qcow2',
      'snapshot-node-name': 's2',
      mode: 'existing',
    }),
    sync({ 'node-name': 's1', 'snapshot-file': '$DIR/2.qcow2', 'snapshot-node-name': 's3' }),
    sync({ 'node-name': 'base', 'snapshot-file': '$DIR/2.qcow2', 'snapshot-node-name': 's3' }),
    sync({ 'node-name': 's2', 'snapshot-file': '$DIR/3.qcow2', 'snapshot-node-name': 's2' }),
    sync({
      'node-name': 's2',
      'snapshot-file': '$DIR/1.qcow2',
      'snapshot-node-name': 's3',
      mode: 'existing',
    }),
    sync({ 'node-name': 's2', 'snapshot-file': '$DIR/1.qcow2', 'snapshot-node-name': 's3' }),
    sync({ 'node-name': 's2', 'snapshot-file': '$DIR/4.qcow2', 'snapshot-node-name': 's4', format: 'qcow2' }),
    graph,
    nodes,
    io('w', 'write -P 9 2M 64k', 'read -P 1 0 64k', 'read -P 9 2M 64k'),
    del('s4'),
    disconnected,
    unexport('w'),
    nodes,
    graph,
    img('info', '-U', '$DIR/4.qcow2'),
    img('map', '--output=json', '-U', '$DIR/4.qcow2'),
  ],
};

/** The node's own options that an overlay takes over. */
const inherited: Transcript = {
  name: 'snapshots.options',
  needs: ['qemu-img'],
  files: { 'base.img': 4 * MiB },
  steps: [
    file('f', 'base.img', { cache: { 'no-flush': true }, discard: 'unmap' }),
    image('raw', 'base', 'f', { cache: { 'no-flush': true }, discard: 'unmap', 'detect-zeroes': 'unmap' }),
    sync({ 'node-name': 'base', 'snapshot-file': '$DIR/1.qcow2', 'snapshot-node-name': 's1' }),
    nodes,
    image('raw', 'ro', 'f', { 'read-only': true }),
    sync({ 'node-name': 'ro', 'snapshot-file': '$DIR/2.qcow2', 'snapshot-node-name': 's2' }),
    nodes,
    file('g', '1.qcow2', { 'read-only': true }),
    file('auto', 'base.img', { 'auto-read-only': true, 'read-only': true }),
    sync({ 'node-name': 'auto', 'snapshot-file': '$DIR/3.qcow2', 'snapshot-node-name': 's3' }),
    nodes,
    img('info', '-U', '$DIR/2.qcow2'),
    img('info', '-U', '$DIR/3.qcow2'),
  ],
};

/** Filters as what is below an overlay, and as overlays. */
const filters: Transcript = {
  name: 'snapshots.filters',
  needs: ['qemu-img'],
  files: { 'base.img': 4 * MiB },
  steps: [
    img('create', '-q', '-f', 'qcow2', '$DIR/a.qcow2', '4M'),
    img('create', '-q', '-f', 'qcow2', '$DIR/b.qcow2', '4M'),
    file('f', 'base.img'),
    image('raw', 'r', 'f'),
    cmd('object-add', { 'qom-type': 'throttle-group', id: 'g' }),
    image('throttle', 't', 'r', { 'throttle-group': 'g' }),
    image('copy-on-read', 'cor', 't'),
    image('qcow2', 'a', onFile('a.qcow2')),
    snapshot('t', 'a'),
    graph,
    image('qcow2', 'b', onFile('b.qcow2')),
    snapshot('a', 'b'),
    graph,
    snapshot('b', 't'),
    snapshot('b', 'cor'),
    snapshot('t', 'b'),
    nodes,
  ],
};

/** Bitmaps stay with the image that a snapshot keeps, and cannot be changed there. */
const withBitmaps: Transcript = {
  name: 'snapshots.bitmaps',
  needs: ['qemu-img'],
  steps: [
    img('create', '-q', '-f', 'qcow2', '$DIR/a.qcow2', '4M'),
    image('qcow2', 'a', onFile('a.qcow2')),
    serve,
    exported('w', 'a', { writable: true }),
    cmd('block-dirty-bitmap-add', { node: 'a', name: 'kept', persistent: true }),
    cmd('block-dirty-bitmap-add', { node: 'a', name: 'lost' }),
    io('w', 'write -P 1 0 64k'),
    sync({ 'node-name': 'a', 'snapshot-file': '$DIR/b.qcow2', 'snapshot-node-name': 'b' }),
    io('w', 'write -P 2 1M 64k'),
    nodes,
    ...['kept', 'lost'].flatMap((name) => [
      cmd('x-debug-block-dirty-bitmap-sha256', { node: 'a', name }),
      cmd('block-dirty-bitmap-clear', { node: 'a', name }),
      cmd('block-dirty-bitmap-disable', { node: 'a', name }),
    ]),
    cmd('block-dirty-bitmap-add', { node: 'b', name: 'all' }),
    cmd('block-dirty-bitmap-merge', { node: 'b', target: 'all', bitmaps: [{ node: 'a', name: 'kept' }] }),
    nodes,
    disconnected,
    unexport('w'),
    del('b'),
    del('a'),
    img('check', '-q', '$DIR/a.qcow2'),
  ],
};

export const snapshotTranscripts: readonly Transcript[] = [
  ...[onto, kinds, made, inherited],
  ...[filters, withBitmaps],
];
