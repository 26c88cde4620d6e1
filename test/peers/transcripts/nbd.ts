/** Transcripts of blockdev-add with driver nbd: addresses, exports, options, names, resizing, a server that goes. */

import { cmd, type Step, type Transcript } from '../transcript.ts';

const MiB = 1024 * 1024;

function add(nodeName: string, server: object, rest: object = {}): Step {
  return cmd('blockdev-add', { driver: 'nbd', 'node-name': nodeName, server, ...rest });
}

function del(nodeName: string): Step {
  return cmd('blockdev-del', { 'node-name': nodeName });
}

/** Starts qemu-nbd in the background; it is ended by `cleanup`. */
function serve(socket: string, ...args: readonly string[]): Step {
  const fork = ['--fork', `--pid-file=$DIR/${socket}.pid`, '-k', `$DIR/${socket}`];
  return { run: ['qemu-nbd', '-f', 'raw', '-t', '-e', '8', ...fork, ...args, '$DIR/disk.img'] };
}

function kill(socket: string): Step {
  return {
    run: ['sh', '-c', `kill $(cat $DIR/${socket}.pid) && while [ -e $DIR/${socket} ]; do sleep 0.05; done`],
  };
}

const cleanup = ['sh', '-c', 'kill $(cat $DIR/*.pid) 2>/dev/null'] as const;
const unix = { type: 'unix', path: '$DIR/n.sock' } as const;
const nodes = cmd('query-named-block-nodes', { flat: true });

const options: Transcript = {
  name: 'nbd.options',
  needs: ['qemu-nbd'],
  files: { 'disk.img': 8 * MiB },
  cleanup,
  steps: [
    { note: 'addresses' },
    cmd('blockdev-add', { driver: 'nbd', 'node-name': 'n' }),
    add('n', { type: 'unix' }),
    add('n', { type: 'inet', host: 'localhost' }),
    add('n', { type: 'foo' }),
    add('n', { ...unix, more: 1 }),
    add('n', { type: 'unix', path: '$DIR/missing.sock' }),
    add('n', { type: 'unix', path: '$DIR/disk.img' }),
    add('n', { type: 'unix', path: 'p'.repeat(200) }),
    add('n', { type: 'inet', host: '127.0.0.1', port: '1' }),
    add('n', { type: 'inet', host: '127.0.0.1', port: 'zork' }),
    add('n', { type: 'inet', host: '127.0.0.1', port: '1', ipv4: false, ipv6: false }),
    add('n', { type: 'inet', host: 'nosuch', port: '1', numeric: true }),
    add('n', { type: 'fd', str: '77' }),
    add('n', { type: 'fd', str: 'abc' }),
    { note: 'exports' },
    serve('n.sock', '-x', 'exp', '-D', 'what it is'),
    add('n', unix),
    add('n', unix, { export: 'other' }),
    add('n', unix, { export: 'x'.repeat(4097) }),
    add('n', unix, { export: 'exp', 'x-dirty-bitmap': 'x'.repeat(4097) }),
    add('n', unix, { export: 'exp' }),
    add('n', unix, { export: 'exp' }),
    { note: 'options' },
    add('o', unix, { export: 'exp', 'reconnect-delay': -1 }),
    add('o', unix, { export: 'exp', 'reconnect-delay': 2 ** 32 }),
    add('o', unix, { export: 'exp', 'open-timeout': '1' }),
    add('o', unix, { export: 'exp', 'reconnect-delay': 5, 'open-timeout': 5 }),
    add('h', unix, { export: 'exp', 'tls-hostname': 'x' }),
    add('b1', unix, { export: 'exp', 'x-dirty-bitmap': 'nothing' }),
    add('b2', unix, { export: 'exp', 'x-dirty-bitmap': 'qemu:dirty-bitmap:none' }),
    add('b3', unix, { export: 'exp', 'x-dirty-bitmap': 'base:allocation', 'read-only': true }),
    add('t', unix, { export: 'exp', 'tls-creds': 'none' }),
    cmd('object-add', { 'qom-type': 'secret', id: 's', data: 'abc' }),
    add('t', unix, { export: 'exp', 'tls-creds': 's' }),
    add('t', { type: 'unix', path: '$DIR/missing.sock' }, { 'open-timeout': 1 }),
    { note: 'names' },
    nodes,
    cmd('query-blockstats', { 'query-nodes': true }),
    { note: 'size' },
    cmd('block_resize', { 'node-name': 'n', size: MiB }),
    cmd('block_resize', { 'node-name': 'n', size: 9 * MiB }),
    cmd('block_resize', { 'node-name': 'n', size: 8 * MiB }),
    nodes,
    ...['b3', 'h', 'o', 'n'].map(del),
  ],
};

const readOnly: Transcript = {
  name: 'nbd.read-only',
  needs: ['qemu-nbd'],
  files: { 'disk.img': 8 * MiB },
  cleanup,
  steps: [
    serve('n.sock', '-r'),
    add('n', unix),
    add('a', unix, { 'auto-read-only': true }),
    add('r', unix, { 'read-only': true }),
    cmd('blockdev-add', { driver: 'raw', 'node-name': 'raw', file: 'a' }),
    cmd('blockdev-add', { driver: 'raw', 'node-name': 'raw2', file: { driver: 'nbd', server: unix } }),
    cmd('blockdev-add', {
      driver: 'raw',
      'node-name': 'raw3',
      'read-only': true,
      file: { driver: 'nbd', server: unix },
    }),
    nodes,
    cmd('block_resize', { 'node-name': 'r', size: MiB }),
  ],
};

const lost: Transcript = {
  name: 'nbd.server-goes',
  needs: ['qemu-nbd'],
  files: { 'disk.img': 8 * MiB },
  cleanup,
  steps: [
    serve('n.sock'),
    add('n', unix),
    cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/o.sock' } } }),
    cmd('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'n', writable: true }),
    {
      run: [
        'qemu-io',
        '-f',
        'raw',
        '-c',
        'write -P 5 0 1M',
        '-c',
        'flush',
        'nbd+unix:///n?socket=$DIR/o.sock',
      ],
    },
    kill('n.sock'),
    { run: ['qemu-io', '-f', 'raw', '-c', 'read 0 4k', 'nbd+unix:///n?socket=$DIR/o.sock'] },
    { run: ['qemu-io', '-f', 'raw', '-c', 'write 0 4k', 'nbd+unix:///n?socket=$DIR/o.sock'] },
    nodes,
    serve('n.sock'),
    { run: ['sleep', '2'] },
    { run: ['qemu-io', '-f', 'raw', '-c', 'read -P 5 4k 64k', 'nbd+unix:///n?socket=$DIR/o.sock'] },
    cmd('block-export-del', { id: 'e' }),
    { run: ['sleep', '0.5'] },
    del('n'),
  ],
};

/** Reopens `nodeName` with these options; only read-only can change. */
function reopen(nodeName: string, rest: object, server: object = unix): Step {
  return cmd('blockdev-reopen', { options: [{ driver: 'nbd', 'node-name': nodeName, server, ...rest }] });
}

const reopening: Transcript = {
  name: 'nbd.reopen',
  needs: ['qemu-nbd'],
  files: { 'disk.img': 8 * MiB },
  cleanup,
  steps: [
    serve('n.sock', '-x', 'exp'),
    serve('r.sock', '-r'),
    add('n', unix, { export: 'exp' }),
    reopen('n', { export: 'exp' }),
    reopen('n', { export: 'exp', 'reconnect-delay': 5 }),
    reopen('n', { export: 'exp', 'open-timeout': 5 }),
    reopen('n', { export: 'exp', 'tls-hostname': 'a' }),
    reopen('n', { export: 'exp', 'read-only': true }),
    nodes,
    reopen('n', { export: 'exp' }),
    reopen('n', { export: 'other' }),
    reopen('n', {}),
    reopen('n', { export: 'exp' }, { type: 'unix', path: '/elsewhere' }),
    reopen('n', { export: 'exp' }, { type: 'inet', host: 'localhost', port: '1' }),
    add('r', { type: 'unix', path: '$DIR/r.sock' }, { 'read-only': true }),
    reopen('r', {}, { type: 'unix', path: '$DIR/r.sock' }),
    nodes,
  ],
};

export const nbdTranscripts: readonly Transcript[] = [options, readOnly, lost, reopening];
