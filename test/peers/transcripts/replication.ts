/** Transcripts of replication, opened and used as far as a storage daemon can. */

import { cmd, type Step, type Transcript } from '../transcript.ts';

const add = (driver: string, name: string, more: object): Step =>
  cmd('blockdev-add', { driver, 'node-name': name, ...more });
const replicate = (more: object): Step => add('replication', 'p', more);
const io = (name: string, ...commands: readonly string[]): Step => ({
  run: [
    'qemu-io',
    ...commands.flatMap((command) => ['-c', command]),
    ...['-f', 'raw', `nbd+unix:///${name}?socket=$DIR/nbd`],
  ],
});
const REQUESTS = ['read -q 0 64k', 'write -q 0 64k', 'write -q -z 0 64k', 'discard -q 0 64k', 'flush', 'map'];

export const replicationTranscripts: readonly Transcript[] = [
  {
    name: 'replication',
    files: { 'a.raw': 1024 * 1024 },
    steps: [
      { run: ['qemu-img', 'create', '-q', '-f', 'qcow2', '$DIR/b.qcow2', '1M'], mustSucceed: true },
      add('raw', 'r', { file: { driver: 'file', filename: '$DIR/a.raw' } }),
      add('qcow2', 'q', { file: { driver: 'file', filename: '$DIR/b.qcow2' } }),
      { note: 'options' },
      replicate({ file: 'r' }),
      replicate({ mode: 'primary' }),
      replicate({ file: 'r', mode: 'both' }),
      replicate({ file: 'r', mode: 'primary', 'top-id': 'x' }),
      replicate({ file: 'r', mode: 'secondary' }),
      replicate({ file: 'none', mode: 'primary' }),
      { note: 'both sides' },
      replicate({ file: 'r', mode: 'primary' }),
      add('replication', 's', { file: 'q', mode: 'secondary', 'top-id': 'x' }),
      add('replication', 'ro', { file: 'r', mode: 'primary', 'read-only': true }),
      cmd('query-named-block-nodes', { flat: true }),
      { note: 'requests' },
      cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd' } } }),
      ...['p', 's'].flatMap((name) => [
        cmd('block-export-add', { type: 'nbd', id: name, 'node-name': name, writable: true }),
        io(name, ...REQUESTS),
      ]),
      cmd('block-export-add', { type: 'nbd', id: 'ro', 'node-name': 'ro', writable: true }),
      cmd('blockdev-reopen', {
        options: [{ driver: 'replication', 'node-name': 'p', mode: 'primary', file: 'r' }],
      }),
      cmd('blockdev-reopen', {
        options: [{ driver: 'replication', 'node-name': 'p', mode: 'secondary', 'top-id': 'y', file: 'r' }],
      }),
      cmd('blockdev-del', { 'node-name': 'p' }),
      ...['p', 's'].map((id) => cmd('block-export-del', { id, mode: 'hard' })),
      cmd('blockdev-del', { 'node-name': 'ro' }),
    ],
  },
];
