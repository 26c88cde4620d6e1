/** Transcripts of blkdebug nodes: options, limits, permissions, generated names. */

import { cmd, type Step, type Transcript } from '../transcript.ts';

const MiB = 1024 * 1024;

function add(options: object): Step {
  return cmd('blockdev-add', { driver: 'blkdebug', 'node-name': 'b', image: 'f', ...options });
}

const del = (name: string): Step => cmd('blockdev-del', { 'node-name': name });
const query = cmd('query-named-block-nodes');
const file = (name: string, rest: object = {}): Step =>
  cmd('blockdev-add', { driver: 'file', 'node-name': name, filename: '$DIR/disk', ...rest });

/** Each is added and, where that worked, deleted again. */
function tried(...options: readonly object[]): readonly Step[] {
  return options.flatMap((each) => [add(each), del('b')]);
}

const limits: Transcript = {
  name: 'blkdebug.limits',
  files: { disk: MiB },
  steps: [
    file('f'),
    ...tried(
      ...[3, 256, -1, 0, 512, 4096, 2 ** 30, 2 ** 31, 2 ** 40].map((align) => ({ align })),
      { align: 4096, 'max-transfer': 512 },
      { align: 512, 'max-transfer': 4097 },
      { align: 512, 'max-transfer': 1536 },
      ...['max-transfer', 'opt-write-zero', 'max-write-zero', 'opt-discard', 'max-discard'].flatMap(
        (name) => [
          { [name]: 3 },
          { [name]: 3, align: 512 },
          { [name]: -512 },
          { [name]: 2 ** 31 },
          { [name]: 65536, align: 512 },
        ],
      ),
      { 'opt-write-zero': 1536, 'max-write-zero': 2048 },
      { 'opt-write-zero': 1024, 'max-write-zero': 3072 },
      { 'opt-discard': 1536, 'max-discard': 2048 },
      { 'opt-discard': 1024, 'max-discard': 3072 },
    ),
  ],
};

const rules: Transcript = {
  name: 'blkdebug.rules',
  files: {
    disk: MiB,
    good: '[inject-error]\nevent = "none"\niotype = "read"\n',
    bad: '[inject-error]\nevent = "foo"\n',
  },
  steps: [
    file('f'),
    cmd('blockdev-add', { driver: 'blkdebug', 'node-name': 'b' }),
    cmd('blockdev-add', { driver: 'blkdebug', 'node-name': 'b', image: 'nowhere' }),
    cmd('blockdev-add', { driver: 'blkdebug', 'node-name': 'b', image: 'f', 'x-image': '$DIR/disk' }),
    ...tried(
      { config: '$DIR/nonexistent' },
      { config: '' },
      { config: '$DIR' },
      { config: '$DIR/bad' },
      { config: '$DIR/good' },
      { 'inject-error': [] },
      { 'set-state': [] },
      { 'take-child-perms': [] },
      { 'unshare-child-perms': [] },
      { cache: {} },
      { 'inject-error': [{}] },
      { 'inject-error': [{ event: 'foo' }] },
      { 'inject-error': [{ event: 'none', iotype: 'foo' }] },
      { 'inject-error': [{ event: 'none', errno: '5' }] },
      { 'inject-error': [{ event: 'none', once: 1 }] },
      { 'inject-error': [{ event: 'none', state: -1, errno: -5, sector: -5 }] },
      { 'set-state': [{ event: 'pwritev' }] },
      { 'set-state': [{ new_state: 2 }] },
      { 'set-state': [{ event: 'pwritev', new_state: -1 }] },
      { 'take-child-perms': ['foo'] },
      { 'unshare-child-perms': [1] },
    ),
  ],
};

const names: Transcript = {
  name: 'blkdebug.names',
  files: { disk: MiB, conf: '' },
  steps: [
    file('f'),
    add({}),
    query,
    del('b'),
    ...[
      { align: 0 },
      { config: '$DIR/conf' },
      { config: '$DIR/conf', 'unshare-child-perms': ['resize'] },
      ...['max-transfer', 'opt-write-zero', 'max-write-zero', 'opt-discard', 'max-discard'].map((name) => ({
        [name]: 65536,
      })),
      {
        config: '$DIR/conf',
        'inject-error': [
          { event: 'none', immediately: true, once: false, iotype: 'read', errno: 5, state: 2, sector: 7 },
          { event: 'l2_load' },
        ],
        'set-state': [{ event: 'pwritev', new_state: 3, state: 1 }],
        align: 1024,
      },
    ].flatMap((options) => [add(options), cmd('query-named-block-nodes', { flat: true }), del('b')]),
    { note: 'others above and below' },
    add({ config: '$DIR/conf' }),
    cmd('blockdev-add', { driver: 'raw', 'node-name': 'r', file: 'b' }),
    cmd('blockdev-add', { driver: 'blkdebug', 'node-name': 'b2', image: 'r' }),
    cmd('blockdev-add', { driver: 'qcow2', 'node-name': 'q', file: 'b2' }),
    query,
  ],
};

const permissions: Transcript = {
  name: 'blkdebug.permissions',
  files: { disk: MiB },
  steps: [
    file('f'),
    add({ 'take-child-perms': ['write', 'write'], 'unshare-child-perms': ['write'] }),
    cmd('blockdev-add', { driver: 'blkdebug', 'node-name': 'b2', image: 'f' }),
    cmd('blockdev-add', {
      ...{ driver: 'blkdebug', 'node-name': 'b3', image: 'f', 'take-child-perms': ['write'] },
    }),
    cmd('blockdev-add', { driver: 'blkdebug', 'node-name': 'b4', image: 'f', 'read-only': true }),
    cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd' } } }),
    cmd('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'b2', writable: true }),
    cmd('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'b', writable: true }),
    del('b'),
    cmd('block-export-del', { id: 'e' }),
    ...['b', 'b2', 'b4'].map(del),
    ...tried({ 'read-only': true, 'take-child-perms': ['write'] }),
    del('f'),
    { note: 'a file that cannot be written' },
    file('f', { 'read-only': true }),
    ...tried(
      { 'read-only': true, 'take-child-perms': ['write'] },
      { 'take-child-perms': ['resize'] },
      { 'take-child-perms': ['write-unchanged'] },
      {},
      { 'unshare-child-perms': ['consistent-read', 'write', 'write-unchanged', 'resize'] },
    ),
  ],
};

export const blkdebugTranscripts: readonly Transcript[] = [limits, rules, names, permissions];
