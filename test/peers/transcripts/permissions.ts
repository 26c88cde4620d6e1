/** Transcripts of what keeps users of a node or file apart: permissions, image locks, blockdev-del of nodes in use. */

import { cmd, type Step, type Transcript } from '../transcript.ts';

const MiB = 1024 * 1024;

function add(options: object): Step {
  return cmd('blockdev-add', options);
}

function del(nodeName: string): Step {
  return cmd('blockdev-del', { 'node-name': nodeName });
}

const disk = { driver: 'file', filename: '$DIR/disk.img' };
const exportNbd = (id: string, nodeName: string, rest: object = {}): Step =>
  cmd('block-export-add', { type: 'nbd', id, 'node-name': nodeName, ...rest });

/** Every way to open the file and use it, undone again; some fail, depending on who else has it open. */
const openInEveryWay: readonly Step[] = [
  cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd.sock' } } }),
  ...[
    {},
    { 'read-only': true },
    { 'auto-read-only': true },
    { 'read-only': true, 'force-share': true },
    { locking: 'off' },
  ].flatMap((options) => [
    add({ ...disk, ...options, 'node-name': 'f' }),
    add({
      driver: 'raw',
      'node-name': 'r',
      file: 'f',
      ...('read-only' in options ? { 'read-only': true } : {}),
    }),
    cmd('block_resize', { 'node-name': 'r', size: MiB }),
    exportNbd('reader', 'r', {}),
    exportNbd('writer', 'r', { writable: true, name: 'w' }),
    cmd('block-export-del', { id: 'reader' }),
    exportNbd('writer', 'r', { writable: true, name: 'w' }),
    cmd('block-export-del', { id: 'writer' }),
    add({
      driver: 'raw',
      'node-name': 'r2',
      file: { ...disk, ...options },
      ...('read-only' in options ? { 'read-only': true } : {}),
    }),
    del('r2'),
    del('r'),
    del('f'),
  ]),
  cmd('nbd-server-stop'),
];

const locking: Transcript = {
  name: 'blockdev-add.locking',
  files: { 'disk.img': MiB },
  steps: [
    { note: 'two nodes on one file, one daemon' },
    add({ ...disk, 'node-name': 'f1' }),
    add({ ...disk, 'node-name': 'f2' }),
    add({ driver: 'raw', 'node-name': 'r1', file: 'f1' }),
    add({ driver: 'raw', 'node-name': 'r2', file: 'f2' }),
    cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd.sock' } } }),
    exportNbd('e1', 'r1', { writable: true }),
    exportNbd('e2', 'r2', { writable: true }),
    exportNbd('e2', 'r2'),
    cmd('query-block-exports'),
    cmd('block-export-del', { id: 'e1' }),
    exportNbd('e3', 'r2', { writable: true }),
    cmd('nbd-server-stop'),
    del('r1'),
    del('r2'),
    del('f1'),
    del('f2'),
    { note: 'a reader elsewhere' },
    {
      hold: [
        '--blockdev',
        'file,node-name=f,filename=$DIR/disk.img,read-only=on',
        '--blockdev',
        'raw,node-name=r,file=f,read-only=on',
      ],
    },
    add({ ...disk, 'node-name': 'f' }),
    add({ driver: 'raw', 'node-name': 'r', file: 'f' }),
    del('r'),
    del('f'),
    { release: true },
    { note: 'a writer elsewhere which shares the file' },
    {
      hold: [
        ...['--blockdev', 'file,node-name=f,filename=$DIR/disk.img', '--blockdev', 'raw,node-name=r,file=f'],
        ...['--nbd-server', 'addr.type=unix,addr.path=$DIR/holder/nbd.sock'],
        ...['--export', 'nbd,id=e,node-name=r,writable=on'],
      ],
    },
    ...openInEveryWay,
    { release: true },
    { note: 'a writer elsewhere which does not' },
    { run: ['qemu-img', 'create', '-q', '-f', 'qcow2', '$DIR/disk.img', '1M'] },
    {
      hold: [
        '--blockdev',
        'file,node-name=f,filename=$DIR/disk.img',
        '--blockdev',
        'qcow2,node-name=q,file=f',
      ],
    },
    ...openInEveryWay,
    { release: true },
    { note: 'a reader elsewhere which does not share writing' },
    {
      hold: [
        ...['--blockdev', 'file,node-name=f,filename=$DIR/disk.img,read-only=on'],
        ...['--blockdev', 'qcow2,node-name=q,file=f,read-only=on'],
      ],
    },
    ...openInEveryWay,
    { release: true },
    { note: 'nobody: all of it works' },
    ...openInEveryWay,
    add({ ...disk, 'node-name': 'after' }),
    cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd.sock' } } }),
    { note: 'our locks keep the original out' },
    add({ driver: 'raw', 'node-name': 'ours', file: 'after' }),
    exportNbd('e4', 'ours', { writable: true }),
    { run: ['qemu-io', '-f', 'raw', '-c', 'read 0 512', '$DIR/disk.img'] },
    { run: ['qemu-io', '-f', 'raw', '-c', 'write 0 512', '$DIR/disk.img'] },
    { run: ['qemu-img', 'info', '-f', 'raw', '$DIR/disk.img'] },
    { run: ['qemu-img', 'resize', '-f', 'raw', '$DIR/disk.img', '2M'] },
    cmd('nbd-server-stop'),
  ],
};

const permissions: Transcript = {
  name: 'permissions',
  files: { 'disk.img': MiB },
  steps: [
    cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd.sock' } } }),
    add({ driver: 'null-co', 'node-name': 'n', size: MiB }),
    exportNbd('w1', 'n', { writable: true }),
    exportNbd('w2', 'n', { writable: true, name: 'n2' }),
    exportNbd('r1', 'n', { name: 'n3' }),
    add({ driver: 'raw', 'node-name': 'rn', file: 'n' }),
    add({ driver: 'raw', 'node-name': 'rn2', file: 'n', 'read-only': true }),
    exportNbd('w3', 'rn', { writable: true }),
    cmd('block_resize', { 'node-name': 'n', size: 2 * MiB }),
    cmd('query-block-exports'),
    add({ driver: 'null-co', 'node-name': 'ro', size: MiB, 'read-only': true }),
    exportNbd('w4', 'ro', { writable: true }),
    exportNbd('r4', 'ro', {}),
    add({ driver: 'raw', 'node-name': 'rro', file: 'ro' }),
    add({ driver: 'raw', 'node-name': 'raro', file: 'ro', 'auto-read-only': true }),
    exportNbd('w5', 'raro', { writable: true }),
    cmd('query-named-block-nodes', { flat: true }),
    add({ ...disk, 'node-name': 'aro', 'auto-read-only': true }),
    cmd('query-named-block-nodes', { flat: true }),
    exportNbd('w6', 'aro', { writable: true }),
    cmd('query-named-block-nodes', { flat: true }),
    cmd('block-export-del', { id: 'w6' }),
    cmd('query-named-block-nodes', { flat: true }),
    { note: 'offset raw over a node written by another' },
    add({ ...disk, 'node-name': 'f' }),
    add({ driver: 'raw', 'node-name': 'lo', file: 'f', size: 524288 }),
    add({ driver: 'raw', 'node-name': 'hi', file: 'f', offset: 524288 }),
    exportNbd('lo', 'lo', { writable: true }),
    exportNbd('hi', 'hi', { writable: true }),
    exportNbd('f', 'f', { writable: true }),
    exportNbd('f', 'f', { writable: false }),
    cmd('query-block-exports'),
    cmd('nbd-server-stop'),
    cmd('query-block-exports'),
  ],
};

const del_: Transcript = {
  name: 'blockdev-del',
  files: { 'disk.img': MiB },
  steps: [
    cmd('blockdev-del'),
    cmd('blockdev-del', {}),
    cmd('blockdev-del', { 'node-name': 5 }),
    cmd('blockdev-del', { 'node-name': null }),
    cmd('blockdev-del', { id: 'a' }),
    cmd('blockdev-del', { device: 'a' }),
    cmd('blockdev-del', { 'node-name': 'a', extra: 1 }),
    del(''),
    del('nobody'),
    del('x'.repeat(100)),
    add({ driver: 'null-co', 'node-name': 'n' }),
    add({ driver: 'raw', 'node-name': 'r', file: 'n' }),
    del('n'),
    del('r'),
    del('r'),
    { note: 'the implicit node of an inline child goes with its parent, a named one too' },
    add({ driver: 'raw', 'node-name': 'r', file: { ...disk, 'node-name': 'f' } }),
    del('f'),
    del('r'),
    del('f'),
    { note: 'a child added on its own stays' },
    add({ driver: 'raw', 'node-name': 'r', file: 'n' }),
    del('r'),
    cmd('query-named-block-nodes', { flat: true }),
    { note: 'in use by an export' },
    cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd.sock' } } }),
    exportNbd('e', 'n'),
    del('n'),
    cmd('block-export-del', { id: 'e' }),
    del('n'),
    cmd('query-named-block-nodes'),
    { note: 'deleted by its generated name' },
    add({ driver: 'raw', 'node-name': 'r', file: { driver: 'null-co' } }),
    cmd('query-named-block-nodes', { flat: true }),
  ],
};

export const permissionTranscripts: readonly Transcript[] = [locking, permissions, del_];
