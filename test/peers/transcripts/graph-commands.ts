/** The graph query, write thresholds, names of backing files, iothreads of nodes. */

import { cmd, type Step, type Transcript } from '../transcript.ts';
import { file, qcow2Image } from './reopen.ts';

const MIB = 2 ** 20;
const nodes = cmd('query-named-block-nodes', { flat: true });
const graph = cmd('x-debug-query-block-graph');
const server = ['--nbd-server', 'addr.type=unix,addr.path=$DIR/nbd.sock'];
const f = { ...file('a.raw'), 'node-name': 'f' };

function exported(id: string, node: string, writable: boolean): Step {
  return cmd('block-export-add', { type: 'nbd', id, name: id, 'node-name': node, writable });
}

const query: Transcript = {
  name: 'block-graph',
  needs: ['qemu-img'],
  files: {
    'a.raw': MIB,
    'base.raw': MIB,
    'df.raw': MIB,
    'ov.q': qcow2Image('-u', '-b', 'base.raw', '-F', 'raw', '1M'),
    'dq.q': qcow2Image('1M'),
  },
  args: server,
  steps: [
    graph,
    cmd('blockdev-add', f),
    cmd('blockdev-add', { driver: 'raw', 'node-name': 'r', file: 'f' }),
    graph,
    cmd('blockdev-add', { driver: 'qcow2', 'node-name': 'q', file: file('ov.q') }),
    exported('e0', 'r', true),
    exported('e1', 'r', false),
    exported('e2', 'q', true),
    graph,
    cmd('block-export-del', { id: 'e0' }),
    graph,
    cmd('blockdev-add', { driver: 'qcow2', 'node-name': 'p', 'read-only': true, file: file('dq.q') }),
    cmd('blockdev-add', {
      driver: 'blkdebug',
      'node-name': 'd',
      image: file('df.raw'),
      'take-child-perms': ['resize'],
    }),
    graph,
    nodes,
  ],
};

function threshold(node: string, bytes: unknown): Step {
  return cmd('block-set-write-threshold', { 'node-name': node, 'write-threshold': bytes });
}

function io(...commands: readonly string[]): Step {
  const flags = commands.flatMap((command) => ['-c', command]);
  return { run: ['qemu-io', '-f', 'raw', ...flags, 'nbd+unix:///e?socket=$DIR/nbd.sock'] };
}

const writeThreshold: Transcript = {
  name: 'write-threshold',
  files: { 'a.raw': MIB },
  args: server,
  steps: [
    cmd('blockdev-add', f),
    cmd('blockdev-add', { driver: 'raw', 'node-name': 'r', file: 'f' }),
    threshold('zz', 1),
    ...[0, -1, 1.5, '1', null, 65536].map((bytes) => threshold('f', bytes)),
    cmd('block-set-write-threshold'),
    cmd('block-set-write-threshold', { 'node-name': 'f' }),
    nodes,
    exported('e', 'r', true),
    { note: 'up to the threshold, beyond, and once only' },
    io('write 0 64k'),
    nodes,
    io('write 0 65537', 'write 0 128k'),
    nodes,
    { note: 'two nodes' },
    threshold('r', 4096),
    threshold('f', 4096),
    io('write 4k 512'),
    nodes,
    { note: 'zeroes count, discards and reads do not' },
    threshold('f', 65536),
    io('discard 64k 64k', 'read 64k 64k'),
    nodes,
    io('write -z 64k 64k'),
    nodes,
    { note: 'taken back' },
    threshold('f', 65536),
    threshold('f', 0),
    io('write 0 1M'),
    { note: 'kept by a reopening' },
    threshold('r', 512),
    cmd('blockdev-reopen', {
      options: [{ driver: 'raw', 'node-name': 'r', file: 'f', cache: { direct: true } }],
    }),
    nodes,
    cmd('block-export-del', { id: 'e' }),
    cmd('block_resize', { 'node-name': 'r', size: 2 * MIB }),
    nodes,
  ],
};

function backingFile(device: string, image: string, name: string): Step {
  return cmd('change-backing-file', { device, 'image-node-name': image, 'backing-file': name });
}

const info: Step = { run: ['qemu-img', 'info', '-U', '$DIR/top.q'] };

const backing: Transcript = {
  name: 'change-backing-file',
  needs: ['qemu-img'],
  files: {
    'a.raw': MIB,
    'base.raw': MIB,
    'mid.q': qcow2Image('-u', '-b', 'base.raw', '-F', 'raw', '1M'),
    'top.q': qcow2Image('-u', '-b', 'mid.q', '-F', 'qcow2', '1M'),
  },
  args: server,
  steps: [
    cmd('blockdev-add', f),
    cmd('blockdev-add', { driver: 'raw', 'node-name': 'r', file: 'f' }),
    cmd('blockdev-add', {
      driver: 'qcow2',
      'node-name': 't',
      file: file('top.q'),
      backing: { driver: 'qcow2', 'node-name': 'm', file: file('mid.q') },
    }),
    cmd('change-backing-file'),
    backingFile('zz', 't', 'x'),
    backingFile('', 't', 'x'),
    backingFile('t', 'zz', 'x'),
    backingFile('t', 'f', 'x'),
    backingFile('r', 'r', 'x'),
    backingFile('f', 'f', 'x'),
    backingFile('m', 'm', 'x'),
    backingFile('r', 't', 'x'),
    { note: 'any name will do, and none' },
    backingFile('t', 't', 'x'),
    info,
    nodes,
    backingFile('t', 't', ''),
    info,
    nodes,
    backingFile('t', 't', 'a'.repeat(1023)),
    backingFile('t', 't', 'a'.repeat(1024)),
    backingFile('t', 't', 'mid.q'),
    nodes,
    { note: 'of an image further down, which is read-only' },
    backingFile('t', 'm', 'new'),
    { run: ['qemu-img', 'info', '-U', '$DIR/mid.q'] },
    nodes,
    graph,
    { note: 'in use' },
    exported('e', 't', true),
    backingFile('t', 't', 'y'),
    backingFile('t', 'm', 'y'),
    nodes,
  ],
};

function ioThread(node: string, thread: unknown, more: object = {}): Step {
  return cmd('x-blockdev-set-iothread', { 'node-name': node, iothread: thread, ...more });
}

const ioThreads: Transcript = {
  name: 'set-iothread',
  files: { 'a.raw': MIB },
  args: server,
  steps: [
    cmd('blockdev-add', f),
    cmd('blockdev-add', { driver: 'raw', 'node-name': 'r', file: 'f' }),
    ioThread('zz', null),
    ioThread('f', 'io'),
    cmd('object-add', { 'qom-type': 'iothread', id: 'io' }),
    cmd('object-add', { 'qom-type': 'secret', id: 'sec', data: 'x' }),
    ioThread('f', 'io'),
    ioThread('f', 'sec'),
    ioThread('f', null),
    ioThread('f', 5),
    cmd('x-blockdev-set-iothread'),
    ioThread('r', 'io'),
    ioThread('r', null),
    exported('e', 'r', true),
    ioThread('r', 'io'),
    ioThread('r', null),
    ioThread('r', 'nope'),
    ioThread('r', null, { force: true }),
    ioThread('f', null),
  ],
};

export const graphCommandTranscripts: readonly Transcript[] = [query, writeThreshold, backing, ioThreads];
