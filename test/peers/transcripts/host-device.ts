/** Transcripts of the host_device driver: on a loop device where one can be had, and on what is no device. */

import { cmd, type Step, type Transcript } from '../transcript.ts';

function add(options: object): Step {
  return cmd('blockdev-add', options);
}

export const hostDeviceTranscript: Transcript = {
  name: 'blockdev-add.host_device',
  files: { 'disk.img': 1024 * 1024, dir: 'dir/' },
  steps: [
    add({ driver: 'host_device', 'node-name': 'h' }),
    add({ driver: 'host_device', 'node-name': 'h', filename: '' }),
    add({ driver: 'host_device', 'node-name': 'h', filename: '$DIR/missing' }),
    add({ driver: 'host_device', 'node-name': 'h', filename: '$DIR/disk.img' }),
    add({ driver: 'host_device', 'node-name': 'h', filename: '$DIR/dir' }),
    add({ driver: 'host_device', 'node-name': 'h', filename: '$DIR/dir', 'read-only': true }),
    add({ driver: 'host_device', 'node-name': 'null', filename: '/dev/null' }),
    add({ driver: 'host_device', 'node-name': 'null2', filename: '/dev/null', 'read-only': true }),
    add({ driver: 'host_device', 'node-name': 'h', filename: '$DIR/disk.img', size: 5 }),
    cmd('query-named-block-nodes'),
    cmd('query-blockstats', { 'query-nodes': true }),
  ],
};

/** The same on a block device; `loop` links to it. */
export const loopDeviceTranscript: Transcript = {
  name: 'blockdev-add.loop',
  loopDevice: true,
  needs: ['qemu-io'],
  cleanup: ['sh', '-c', 'losetup -d "$(readlink $DIR/loop)"'],
  files: { 'disk.img': 4 * 1024 * 1024 },
  steps: [
    { run: ['sh', '-c', 'ln -s "$(losetup --find --show $DIR/disk.img)" $DIR/loop'] },
    add({ driver: 'file', 'node-name': 'f', filename: '$DIR/loop' }),
    add({ driver: 'host_device', 'node-name': 'h', filename: '$DIR/loop', discard: 'unmap' }),
    cmd('query-named-block-nodes'),
    add({ driver: 'raw', 'node-name': 'r', file: 'h' }),
    cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd.sock' } } }),
    cmd('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'r', writable: true }),
    {
      run: [
        'qemu-io',
        '-f',
        'raw',
        ...[
          '-c',
          'write -P 5 0 1M',
          '-c',
          'discard 64k 64k',
          '-c',
          'write -z 256k 64k',
          '-c',
          'write -z -u 512k 64k',
        ],
        ...['-c', 'read -P 5 0 64k', '-c', 'read -P 0 256k 64k', '-c', 'read -P 0 512k 64k', '-c', 'flush'],
        'nbd+unix:///r?socket=$DIR/nbd.sock',
      ],
    },
    cmd('query-blockstats', { 'query-nodes': true }),
    cmd('block_resize', { 'node-name': 'h', size: 1024 * 1024 }),
    cmd('block_resize', { 'node-name': 'h', size: 8 * 1024 * 1024 }),
    cmd('nbd-server-stop'),
    cmd('block_resize', { 'node-name': 'h', size: 1024 * 1024 }),
    cmd('block_resize', { 'node-name': 'h', size: 4 * 1024 * 1024 }),
    cmd('block_resize', { 'node-name': 'h', size: 8 * 1024 * 1024 }),
    cmd('blockdev-del', { 'node-name': 'r' }),
    cmd('blockdev-del', { 'node-name': 'h' }),
    add({
      driver: 'host_device',
      'node-name': 'd',
      filename: '$DIR/loop',
      cache: { direct: true },
      'read-only': true,
    }),
    cmd('query-named-block-nodes'),
    cmd('blockdev-del', { 'node-name': 'd' }),
  ],
};
