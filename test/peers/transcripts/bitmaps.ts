/**
 * Transcripts of dirty bitmaps: the commands with their errors, NBD metadata contexts, persistent bitmaps in qcow2.
 *
 * `block-dirty-bitmap-merge` with an empty list is not here: it ends the original with a segmentation fault.
 */

import { cmd, type Step, type Transcript } from '../transcript.ts';

const MiB = 1024 * 1024;

function add(node: unknown, name: unknown, rest: object = {}): Step {
  return cmd('block-dirty-bitmap-add', { node, name, ...rest });
}

function on(command: string, node: string, name: string): Step {
  return cmd(`block-dirty-bitmap-${command}`, { node, name });
}

function merge(node: string, target: string, bitmaps: readonly unknown[]): Step {
  return cmd('block-dirty-bitmap-merge', { node, target, bitmaps });
}

function sha256(node: string, name: string): Step {
  return cmd('x-debug-block-dirty-bitmap-sha256', { node, name });
}

const inEveryWay = (node: string, name: string): Step[] =>
  ['clear', 'enable', 'disable', 'remove'].map((command) => on(command, node, name));

const disk = (name: string, bytes: number, rest: object = {}): Step =>
  cmd('blockdev-add', { driver: 'null-co', 'node-name': name, size: bytes, ...rest });

const nodes = cmd('query-named-block-nodes', { flat: true });

const serve = cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd.sock' } } });

const exported = (id: string, node: string, rest: object): Step =>
  cmd('block-export-add', { type: 'nbd', id, 'node-name': node, name: id, ...rest });

const unexport = (id: string): Step => cmd('block-export-del', { id });

/** Writes through an export; the figures of qemu-io are of no interest. */
const write = (exportName: string, ...commands: readonly string[]): Step => ({
  run: [
    ...['qemu-io', '-f', 'raw', ...commands.flatMap((command) => ['-c', command.replace(/^\w+/, '$& -q')])],
    `nbd+unix:///${exportName}?socket=$DIR/nbd.sock`,
  ],
});

const map = (exportName: string, context: string): Step => ({
  run: ['nbdinfo', `--map=${context}`, `nbd+unix:///${exportName}?socket=$DIR/nbd.sock`],
});

const commands: Transcript = {
  name: 'bitmaps.commands',
  steps: [
    disk('n', MiB),
    disk('m', MiB, { 'read-only': true }),
    disk('k', 2 * MiB),
    cmd('block-dirty-bitmap-add'),
    cmd('block-dirty-bitmap-add', { node: 'n' }),
    add('nobody', 'b'),
    add('', 'b'),
    add('n', ''),
    add('n', 5),
    ...[0, 256, 511, 3000, 2 ** 32 - 1, 2 ** 32, -1, '512'].map((granularity) =>
      add('n', 'b', { granularity }),
    ),
    add('n', 'b', { granularity: 512 }),
    add('n', 'b'),
    add('n', 'largest', { granularity: 2 ** 31 }),
    add('n', 'off', { disabled: true, granularity: 4096 }),
    add('n', 'p', { persistent: true }),
    add('n', 'b', { persistent: true }),
    add('n', 'd', { disabled: 'x' }),
    add('n', 'd', { autoload: true }),
    add('n', 'x'.repeat(1023)),
    add('n', 'x'.repeat(1024)),
    add('m', 'ro'),
    add('m', 'p', { persistent: true }),
    nodes,
    ...['clear', 'enable', 'disable', 'remove'].flatMap((command) => [
      cmd(`block-dirty-bitmap-${command}`),
      cmd(`block-dirty-bitmap-${command}`, { node: 'n' }),
      on(command, 'nobody', 'b'),
      on(command, 'n', 'nothing'),
      on(command, 'n', 'off'),
      on(command, 'm', 'ro'),
      nodes,
    ]),
    cmd('x-debug-block-dirty-bitmap-sha256'),
    sha256('n', 'b'),
    sha256('n', 'largest'),
    sha256('n', 'nothing'),
    sha256('nobody', 'b'),
    { note: 'merging' },
    add('n', 'c', { granularity: 4096 }),
    add('k', 'kb'),
    cmd('block-dirty-bitmap-merge'),
    cmd('block-dirty-bitmap-merge', { node: 'n', target: 'b' }),
    merge('n', 'b', ['b']),
    merge('n', 'b', ['nothing']),
    merge('n', 'nothing', ['b']),
    merge('nobody', 'b', ['b']),
    merge('n', 'b', ['c', { node: 'n', name: 'largest' }]),
    merge('n', 'b', [{ node: 'nobody', name: 'b' }]),
    merge('n', 'b', [{ node: 'n', name: 'nothing' }]),
    merge('n', 'b', [{ node: 'n' }]),
    merge('n', 'b', [5]),
    merge('n', 'b', ['c', { node: 'k', name: 'kb' }]),
    merge('k', 'kb', [{ node: 'n', name: 'b' }]),
    nodes,
    cmd('blockdev-del', { 'node-name': 'n' }),
  ],
};

const contexts: Transcript = {
  name: 'bitmaps.nbd',
  needs: ['nbdinfo'],
  files: { 'disk.img': 4 * MiB },
  steps: [
    disk('n', MiB),
    disk('k', 2 * MiB),
    disk('ro', MiB, { 'read-only': true }),
    cmd('blockdev-add', {
      driver: 'raw',
      'node-name': 'r',
      discard: 'unmap',
      file: { driver: 'file', filename: '$DIR/disk.img', 'node-name': 'f' },
    }),
    ...['a', 'b', 'c'].map((name) => add('n', name, { granularity: 512 })),
    add('k', 'kb'),
    add('ro', 'on'),
    serve,
    exported('e', 'n', { writable: true, bitmaps: ['nothing'] }),
    exported('e', 'n', { writable: true, bitmaps: [{ node: 'k', name: 'nothing' }] }),
    exported('e', 'n', { writable: true, bitmaps: [{ node: 'nobody', name: 'b' }] }),
    exported('e', 'n', { writable: true, bitmaps: [5] }),
    exported('e', 'n', { writable: true, bitmaps: ['a'] }),
    exported('f', 'n', { bitmaps: ['a'] }),
    exported('f', 'n', { writable: true, bitmaps: ['a'] }),
    exported('g', 'n', { bitmaps: [{ node: 'k', name: 'kb' }] }),
    exported('h', 'ro', { bitmaps: ['on'] }),
    on('disable', 'n', 'b'),
    exported('i', 'n', { bitmaps: ['b', 'b'] }),
    map('i', 'qemu:dirty-bitmap:b'),
    map('i', 'qemu:dirty-bitmap:c'),
    ...inEveryWay('n', 'b'),
    merge('n', 'b', ['c']),
    merge('n', 'c', ['b']),
    sha256('n', 'b'),
    nodes,
    ...['e', 'g', 'h', 'i'].map(unexport),
    nodes,
    { note: 'what is written is dirty' },
    add('r', 'small', { granularity: 512 }),
    add('r', 'large'),
    add('r', 'off', { disabled: true }),
    add('f', 'below', { granularity: 4096 }),
    exported('w', 'r', { writable: true, bitmaps: ['small', 'large', 'off'], 'allocation-depth': true }),
    write('w', 'write 0 64k', 'write 1M 100', 'discard 2M 100k', 'write -z 3M 1', 'write 4193000 1304'),
    ...['small', 'large', 'off'].map((name) => map('w', `qemu:dirty-bitmap:${name}`)),
    map('w', 'qemu:dirty-bitmap:below'),
    ...['small', 'large', 'off'].map((name) => sha256('r', name)),
    sha256('f', 'below'),
    unexport('w'),
    nodes,
    { note: 'resizing' },
    cmd('block_resize', { 'node-name': 'r', size: MiB + 1024 }),
    nodes,
    cmd('block_resize', { 'node-name': 'r', size: 3 * MiB }),
    nodes,
    sha256('r', 'small'),
    merge('r', 'large', ['small']),
    merge('r', 'off', ['large']),
    sha256('r', 'off'),
    cmd('nbd-server-add', { device: 'r', bitmap: 'nothing' }),
    cmd('nbd-server-add', { device: 'r', bitmap: 'off' }),
    cmd('nbd-server-add', { device: 'r', name: 'r2', bitmap: 'off' }),
    cmd('nbd-server-stop'),
  ],
};

const qcow2 = (name: string, file: string, rest: object = {}): Step =>
  cmd('blockdev-add', {
    driver: 'qcow2',
    'node-name': name,
    file: { driver: 'file', filename: `$DIR/${file}` },
    ...rest,
  });

/** Of node `q` by its bitmap `p`. */
const backup = (target: string, rest: object): Step =>
  cmd('blockdev-backup', { 'job-id': 'j', device: 'q', target, bitmap: 'p', ...rest });

const img = (...args: readonly string[]): Step => ({ run: ['qemu-img', ...args] });

const persistent: Transcript = {
  name: 'bitmaps.persistent',
  needs: ['qemu-img', 'nbdinfo'],
  steps: [
    img('create', '-q', '-f', 'qcow2', '-o', 'compat=0.10', '$DIR/v2.qcow2', '8M'),
    img('create', '-q', '-f', 'qcow2', '$DIR/a.qcow2', '8M'),
    img('create', '-q', '-f', 'qcow2', '-b', '$DIR/a.qcow2', '-F', 'qcow2', '$DIR/top.qcow2'),
    img('create', '-q', '-f', 'qcow2', '$DIR/big.qcow2', '16T'),
    qcow2('v2', 'v2.qcow2'),
    add('v2', 'p', { persistent: true }),
    { note: 'an empty image keeps none' },
    img('create', '-q', '-f', 'qcow2', '$DIR/empty.qcow2', '0'),
    qcow2('empty', 'empty.qcow2'),
    add('empty', 'p', { persistent: true }),
    add('empty', 'b'),
    sha256('empty', 'b'),
    merge('empty', 'b', ['p']),
    cmd('blockdev-del', { 'node-name': 'empty' }),
    img('check', '$DIR/empty.qcow2'),
    qcow2('big', 'big.qcow2'),
    ...[9, 11, 12, 16].map((bits) => add('big', `g${bits}`, { granularity: 2 ** bits, persistent: true })),
    qcow2('q', 'a.qcow2'),
    add('q', 'p', { persistent: true }),
    add('q', 'p', { persistent: true }),
    add('q', 'p'),
    add('q', 'd', { persistent: true, disabled: true }),
    add('q', 't'),
    add('q', 'fine', { persistent: true, granularity: 512 }),
    add('q', 'é'.repeat(512), { persistent: true }),
    add('q', 'y'.repeat(1023), { persistent: true }),
    on('remove', 'q', 'y'.repeat(1023)),
    serve,
    exported('w', 'q', { writable: true, bitmaps: ['p', 'd'] }),
    write('w', 'write 0 64k', 'write 1M 100', 'discard 3M 1M', 'write -z 5M 1'),
    map('w', 'qemu:dirty-bitmap:p'),
    unexport('w'),
    cmd('block_resize', { 'node-name': 'q', size: 4 * MiB }),
    cmd('block_resize', { 'node-name': 'q', size: 12 * MiB }),
    sha256('q', 'fine'),
    { note: 'stored and read again' },
    cmd('blockdev-del', { 'node-name': 'q' }),
    qcow2('q', 'a.qcow2'),
    ...['p', 'd', 'fine', 't'].map((name) => sha256('q', name)),
    on('remove', 'q', 'd'),
    on('enable', 'q', 'p'),
    { note: 'found below an overlay' },
    qcow2('top', 'top.qcow2', { backing: 'q' }),
    exported('o', 'top', { bitmaps: ['p'] }),
    exported('o', 'top', { writable: true, bitmaps: ['p'] }),
    map('o', 'qemu:dirty-bitmap:p'),
    on('remove', 'q', 'p'),
    unexport('o'),
    cmd('blockdev-del', { 'node-name': 'top' }),
    cmd('blockdev-del', { 'node-name': 'q' }),
    { note: 'read-only: nothing can be changed' },
    qcow2('q', 'a.qcow2', { 'read-only': true }),
    ...inEveryWay('q', 'p'),
    { note: 'which of its errors a backup tells' },
    disk('short', MiB),
    ...['q', 'short'].flatMap((target) => [
      backup(target, { sync: 'incremental' }),
      backup(target, { sync: 'none', 'bitmap-mode': 'always' }),
      backup(target, { sync: 'full', 'bitmap-mode': 'never' }),
      backup(target, { sync: 'full', 'bitmap-mode': 'always', compress: true }),
      backup(target, { sync: 'full', 'bitmap-mode': 'always', 'x-perf': { 'max-workers': 0 } }),
      backup(target, { sync: 'bitmap', 'bitmap-mode': 'never' }),
    ]),
    add('q', 'new'),
    add('q', 'lost', { persistent: true }),
    merge('q', 'new', ['p']),
    merge('q', 'p', ['new']),
    exported('r', 'q', { bitmaps: ['p'] }),
    unexport('r'),
    cmd('blockdev-del', { 'node-name': 'q' }),
    img('check', '-q', '$DIR/a.qcow2'),
    img('bitmap', '--remove', '$DIR/a.qcow2', 'fine'),
    img('bitmap', '--remove', '$DIR/a.qcow2', 'd'),
    img('check', '-q', '$DIR/a.qcow2'),
  ],
};

/** Bitmaps of an image that nobody has closed. */
const inconsistent: Transcript = {
  name: 'bitmaps.inconsistent',
  needs: ['qemu-img'],
  steps: [
    img('create', '-q', '-f', 'qcow2', '$DIR/a.qcow2', '8M'),
    img('bitmap', '--add', '$DIR/a.qcow2', 'p'),
    img('bitmap', '--add', '--disable', '$DIR/a.qcow2', 'd'),
    // Open for writing all the time; the copy is what a crash would leave.
    qcow2('open', 'a.qcow2'),
    { run: ['cp', '$DIR/a.qcow2', '$DIR/crashed.qcow2'] },
    qcow2('q', 'crashed.qcow2'),
    ...['clear', 'enable', 'disable'].map((command) => on(command, 'q', 'p')),
    sha256('q', 'p'),
    add('q', 'p', { persistent: true }),
    add('q', 'new'),
    merge('q', 'new', ['p']),
    merge('q', 'p', ['new']),
    serve,
    exported('e', 'q', { bitmaps: ['p'] }),
    exported('e', 'q', { writable: true, bitmaps: ['p'] }),
    cmd('block_resize', { 'node-name': 'q', size: 4 * MiB }),
    on('remove', 'q', 'd'),
    on('remove', 'q', 'p'),
    cmd('block_resize', { 'node-name': 'q', size: 4 * MiB }),
    cmd('blockdev-del', { 'node-name': 'q' }),
    img('check', '-q', '$DIR/crashed.qcow2'),
    { run: ['cp', '$DIR/a.qcow2', '$DIR/crashed.qcow2'] },
    qcow2('q', 'crashed.qcow2', { 'read-only': true }),
    ...inEveryWay('q', 'p'),
    cmd('blockdev-del', { 'node-name': 'q' }),
    cmd('blockdev-del', { 'node-name': 'open' }),
  ],
};

/** An image on a disk where the write number `write`, counted from 1, fails; with `forGood` everything from then on. */
function failing(name: string, file: string, write: number, forGood = false, rest: object = {}): Step {
  const counting = Array.from({ length: write - 1 }, (_, at) => ({
    event: 'pwritev',
    state: at + 1,
    new_state: at + 2,
  }));
  const fault = { event: 'pwritev', state: write, errno: 28, once: !forGood };
  return cmd('blockdev-add', {
    driver: 'qcow2',
    'node-name': name,
    file: {
      driver: 'blkdebug',
      'node-name': `${name}-file`,
      image: { driver: 'file', filename: `$DIR/${file}` },
      'inject-error': [forGood ? fault : { ...fault, iotype: 'write' }],
      ...(counting.length > 0 && { 'set-state': counting }),
    },
    ...rest,
  });
}

const toReadOnly = cmd('blockdev-reopen', {
  options: [{ driver: 'qcow2', 'node-name': 'q', file: 'q-file', 'read-only': true }],
});

/** Images that cannot be written to when a bitmap is to be stored, marked or removed. */
const unwritable: Transcript = {
  name: 'bitmaps.unwritable',
  needs: ['qemu-img'],
  steps: [
    img('create', '-q', '-f', 'qcow2', '$DIR/a.qcow2', '8M'),
    ...[1, 2].flatMap((write) => [
      failing('q', 'a.qcow2', write),
      add('q', 'p', { persistent: true }),
      toReadOnly,
      nodes,
      on('clear', 'q', 'p'),
      on('remove', 'q', 'p'),
      cmd('blockdev-del', { 'node-name': 'q' }),
    ]),
    img('bitmap', '--add', '$DIR/a.qcow2', 'p'),
    img('bitmap', '--add', '$DIR/a.qcow2', 'q'),
    { note: 'not marked in use: not opened for writing, and nothing is left of it' },
    failing('q', 'a.qcow2', 1),
    nodes,
    failing('q', 'a.qcow2', 1, true),
    nodes,
    img('create', '-q', '-f', 'qcow2', '-o', 'data_file=$DIR/data.raw', '$DIR/split.qcow2', '8M'),
    img('bitmap', '--add', '$DIR/split.qcow2', 'p'),
    failing('q', 'split.qcow2', 1, true, {
      'data-file': {
        driver: 'blkdebug',
        'node-name': 'q-data',
        image: { driver: 'file', filename: '$DIR/data.raw' },
        'inject-error': [{ event: 'none', iotype: 'flush', once: false }],
      },
    }),
    nodes,
    qcow2('q', 'a.qcow2', { 'read-only': true }),
    cmd('blockdev-del', { 'node-name': 'q' }),
    { note: 'not removed' },
    failing('q', 'a.qcow2', 5),
    on('remove', 'q', 'p'),
    on('clear', 'q', 'p'),
    on('remove', 'q', 'p'),
    on('clear', 'q', 'p'),
    cmd('blockdev-del', { 'node-name': 'q' }),
  ],
};

export const bitmapTranscripts: readonly Transcript[] = [
  commands,
  contexts,
  persistent,
  inconsistent,
  unwritable,
];
