/** Transcripts of vhost-user-blk exports: the command's errors, what others may do meanwhile, the end. */

import { cmd, type Step, type Transcript } from '../transcript.ts';

const MiB = 1024 * 1024;

const add = (options: object): Step =>
  cmd('block-export-add', {
    type: 'vhost-user-blk',
    id: 'v',
    'node-name': 'f',
    addr: { type: 'unix', path: '$DIR/v.sock' },
    ...options,
  });
const del = (id: string, mode?: string): Step =>
  cmd('block-export-del', { id, ...(mode !== undefined && { mode }) });
const list = cmd('query-block-exports');
const disk: Step = cmd('blockdev-add', { driver: 'file', 'node-name': 'f', filename: '$DIR/disk' });

const errors: Transcript = {
  name: 'vhost-user-blk.errors',
  files: { disk: 16 * MiB, folder: 'dir/' },
  steps: [
    disk,
    cmd('blockdev-add', { driver: 'raw', 'node-name': 'ro', file: 'f', 'read-only': true }),
    cmd('block-export-add', { type: 'vhost-user-blk' }),
    cmd('block-export-add', { type: 'vhost-user-blk', id: 'v', 'node-name': 'f' }),
    add({ id: '1' }),
    add({ 'node-name': 'nobody' }),
    add({ addr: 'x' }),
    add({ addr: {} }),
    add({ addr: { type: 'unix' } }),
    add({ addr: { type: 'inet', host: '127.0.0.1', port: '0' } }),
    add({ addr: { type: 'unix', path: '$DIR/missing/v.sock' } }),
    add({ addr: { type: 'unix', path: '$DIR/folder' } }),
    add({ addr: { type: 'fd', str: '99' } }),
    add({ 'node-name': 'ro', writable: true }),
    add({ iothread: 'nobody' }),
    add({ name: 'x' }),
    ...[1, 256, 513, 768, 4194304, 4294967296, -1, 'x'].map((size) => add({ 'logical-block-size': size })),
    ...[0, -1, 65536, 'x'].map((queues) => add({ 'num-queues': queues })),
    list,
    ...[0, 512, 4096, 2097152].flatMap((size, i) => [
      add({ id: `b${i}`, 'logical-block-size': size }),
      del(`b${i}`),
    ]),
    add({ 'num-queues': 65535 }),
    del('v'),
    { run: ['ls', '$DIR'] },
  ],
};

const life: Transcript = {
  name: 'vhost-user-blk.life',
  files: { disk: 16 * MiB },
  needs: ['python3'],
  steps: [
    disk,
    add({ writable: true, writethrough: true }),
    add({ id: 'v2', addr: { type: 'unix', path: '$DIR/v2.sock' }, writable: true }),
    add({}),
    list,
    { note: 'others may change the length' },
    cmd('block_resize', { 'node-name': 'f', size: 32 * MiB }),
    cmd('blockdev-del', { 'node-name': 'f' }),
    { note: 'a client does not keep it' },
    {
      run: [
        'python3',
        '-c',
        'import socket,sys,os,time\ns=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); os.fork() and os._exit(0)\nfor fd in (0, 1, 2): os.close(fd)\ntime.sleep(1)',
        '$DIR/v.sock',
      ],
    },
    del('v', 'safe'),
    list,
    del('v2', 'hard'),
    del('v2'),
    { run: ['ls', '$DIR'] },
    cmd('blockdev-del', { 'node-name': 'f' }),
  ],
};

export const vhostUserBlkTranscripts: readonly Transcript[] = [errors, life];
