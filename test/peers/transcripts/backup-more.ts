/** Transcripts of backups to files (drive-backup), and of backups in transactions. */

import { cmd, type Step, type Transcript } from '../transcript.ts';

const MiB = 1024 * 1024;
const KiB = 1024;

const patterned = (bytes: number) => () => Buffer.alloc(bytes, 1);
const file = (name: string): Step =>
  cmd('blockdev-add', { driver: 'file', 'node-name': name, filename: `$DIR/${name}.img` });
const drive = (target: string, rest: object = {}): Step =>
  cmd('drive-backup', { 'job-id': 'j', device: 's', target: `$DIR/${target}`, sync: 'full', ...rest });
const completed: Step = { event: 'BLOCK_JOB_COMPLETED' };
const pending: Step = { event: 'BLOCK_JOB_PENDING' };
const jobs: readonly Step[] = [cmd('query-jobs'), cmd('query-block-jobs')];
const nodes = cmd('query-named-block-nodes', { flat: true });
const create = (name: string, ...options: string[]): Step => ({
  run: ['qemu-img', 'create', '-q', '-f', 'qcow2', ...options, `$DIR/${name}`, '1M'],
});
const compare = (name: string): Step => ({
  run: ['qemu-img', 'compare', '-U', '$DIR/s.qcow2', `$DIR/${name}`],
});

const drives: Transcript = {
  name: 'backup.drive',
  files: { 'small.img': 64 * KiB, 'raw.img': MiB },
  steps: [
    create('base.qcow2'),
    { run: ['qemu-io', '-c', 'write -q -P 1 0 1M', '$DIR/base.qcow2'] },
    create('s.qcow2', '-b', 'base.qcow2', '-F', 'qcow2'),
    { run: ['qemu-io', '-c', 'write -q -P 2 64k 64k', '$DIR/s.qcow2'] },
    create('ex.qcow2'),
    create('lost.qcow2', '-u', '-b', 'none.qcow2', '-F', 'qcow2'),
    cmd('blockdev-add', {
      driver: 'qcow2',
      'node-name': 's',
      file: { driver: 'file', filename: '$DIR/s.qcow2' },
    }),
    { note: 'what can be wrong' },
    drive('t.qcow2', { device: 'x' }),
    drive('t.qcow2', { format: 'bad' }),
    drive('t.qcow2', { format: 'bad', mode: 'existing' }),
    drive('none/t.qcow2', { format: 'qcow2' }),
    drive('none/t.qcow2', { mode: 'existing' }),
    drive('none/t.qcow2', { mode: 'existing', format: 'qcow2' }),
    drive('small.img', { mode: 'existing', format: 'raw' }),
    drive('s.qcow2', { mode: 'existing' }),
    drive('s.qcow2'),
    drive('lost.qcow2', { mode: 'existing' }),
    drive('t.img', { sync: 'top', format: 'raw' }),
    drive('t.img', { sync: 'none', format: 'raw' }),
    drive('t.qcow2', { sync: 'incremental' }),
    drive('t.qcow2', { 'job-id': undefined }),
    drive('t.qcow2', { speed: -1 }),
    nodes,
    { note: 'what is copied' },
    drive('full.qcow2'),
    completed,
    compare('full.qcow2'),
    drive('full.img', { format: 'raw' }),
    completed,
    compare('full.img'),
    drive('ex.qcow2', { mode: 'existing' }),
    completed,
    compare('ex.qcow2'),
    drive('raw.img', { mode: 'existing', format: 'raw' }),
    completed,
    compare('raw.img'),
    drive('top.qcow2', { sync: 'top', 'auto-finalize': false }),
    pending,
    cmd('query-named-block-nodes'),
    ...jobs,
    cmd('job-finalize', { id: 'j' }),
    compare('top.qcow2'),
    { run: ['qemu-img', 'map', '--output=json', '$DIR/top.qcow2'] },
    drive('compressed.qcow2', { compress: true }),
    completed,
    compare('compressed.qcow2'),
    { note: 'onto an overlay of the source' },
    drive('none.qcow2', { sync: 'none' }),
    cmd('query-named-block-nodes'),
    ...jobs,
    cmd('job-cancel', { id: 'j' }),
    drive('ex.qcow2', { sync: 'none', mode: 'existing' }),
    nodes,
    cmd('job-cancel', { id: 'j' }),
    nodes,
  ],
};

const action = (type: string, data: object): object => ({ type, data });
const backup = (job: string, device: string, target: string, rest: object = {}): object =>
  action('blockdev-backup', { 'job-id': job, device, target, sync: 'full', ...rest });
const transaction = (actions: readonly object[], properties?: object): Step =>
  cmd('transaction', { actions, ...(properties && { properties }) });
const grouped = { 'completion-mode': 'grouped' };

const transactions: Transcript = {
  name: 'backup.transactions',
  files: Object.fromEntries(['a', 'b', 'ta', 'tb'].map((name) => [`${name}.img`, patterned(MiB)])),
  steps: [
    ...['a', 'b', 'ta', 'tb'].map(file),
    { note: 'the second cannot be prepared: nothing of the first is left' },
    transaction([backup('j1', 'a', 'ta'), backup('j1', 'b', 'tb')]),
    transaction([backup('j1', 'a', 'ta'), backup('j2', 'b', 'none')]),
    transaction([backup('j1', 'a', 'ta'), action('abort', {})]),
    nodes,
    { note: 'a bitmap that begins with the backup' },
    transaction([
      action('block-dirty-bitmap-add', { node: 'a', name: 'b0' }),
      backup('j1', 'a', 'ta', { 'auto-finalize': false }),
    ]),
    pending,
    cmd('job-finalize', { id: 'j1' }),
    nodes,
    { note: 'each ends by itself' },
    transaction([
      backup('j1', 'a', 'ta', { 'auto-finalize': false }),
      backup('j2', 'b', 'tb', { sync: 'none' }),
    ]),
    pending,
    ...jobs,
    cmd('job-finalize', { id: 'j1' }),
    cmd('job-cancel', { id: 'j2' }),
    nodes,
    { note: 'together: one is cancelled' },
    transaction(
      [
        backup('j1', 'a', 'ta', { sync: 'bitmap', bitmap: 'b0', 'bitmap-mode': 'on-success' }),
        backup('j2', 'b', 'tb', { sync: 'none' }),
      ],
      grouped,
    ),
    ...jobs,
    cmd('job-cancel', { id: 'j2' }),
    ...jobs,
    nodes,
    { note: 'to files' },
    transaction([
      action('drive-backup', {
        'job-id': 'j1',
        device: 'a',
        target: '$DIR/none/x',
        sync: 'full',
        format: 'raw',
      }),
    ]),
    nodes,
  ],
};

export const moreBackupTranscripts: readonly Transcript[] = [drives, transactions];
