/** Commands with two names of which both are wrong: which of them the error is about. */

import { expect, test } from 'vitest';
import { type Command, compareCommands } from './compare.ts';
import { requirePeer } from './requires.ts';

const WRONG = ['1bad', 'x'.repeat(40), 'nope', '#b', '', 'n0'];
const nodes: readonly Command[] = [
  ['blockdev-add', { driver: 'null-co', 'node-name': 'n0', 'read-zeroes': true }],
];

/** A node that is to be called `name`, over one that is called or refers to `other`. */
function additions(name: string, other: string): readonly object[] {
  const file = { driver: 'file', filename: '$DIR/nofile', 'node-name': other };
  return [
    { driver: 'raw', 'node-name': name, file: other },
    { driver: 'qcow2', 'node-name': name, file: other },
    { driver: 'throttle', 'node-name': name, file: other, 'throttle-group': 'none' },
    { driver: 'raw', 'node-name': name, file },
    { driver: 'raw', 'node-name': name, file: { driver: 'null-co', 'node-name': other } },
    { driver: 'qcow2', 'node-name': name, file: { driver: 'null-co', 'node-name': other } },
  ];
}

test('blockdev-add', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const commands = WRONG.flatMap((name) => WRONG.flatMap((other) => additions(name, other)))
    // What both daemons would do, once each.
    .filter((options) => !JSON.stringify(options).includes('"nope","file":"n0"'))
    .filter(
      (options) =>
        !/"node-name":"nope","file":\{"driver":"null-co","node-name":"nope"/.test(JSON.stringify(options)),
    )
    .filter(
      (options) => !/"raw","node-name":"nope","file":\{"driver":"null-co"/.test(JSON.stringify(options)),
    )
    .map((options): Command => ['blockdev-add', options]);
  const { theirs, ours } = await compareCommands([...nodes, ...commands]);
  expect(ours).toEqual(theirs);
});

test('commands', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const commands = WRONG.slice(0, -1).flatMap((one) =>
    WRONG.slice(0, -1).flatMap((two): Command[] => [
      ['blockdev-snapshot-sync', { 'node-name': one, 'snapshot-file': 'x', 'snapshot-node-name': two }],
      ['blockdev-snapshot-sync', { device: one, 'node-name': two, 'snapshot-file': 'x' }],
      [
        'blockdev-mirror',
        { 'job-id': 'j', device: one, target: 'n0', sync: 'full', 'filter-node-name': two },
      ],
      ['blockdev-mirror', { 'job-id': one, device: two, target: 'n9', sync: 'full' }],
      ['blockdev-backup', { 'job-id': 'j', device: one, target: two, sync: 'full' }],
      ['block-stream', { 'job-id': one, device: two }],
      ['block-commit', { 'job-id': one, device: two }],
      ['block_resize', { device: one, 'node-name': two, size: 1 }],
      ['change-backing-file', { device: one, 'image-node-name': two, 'backing-file': 'x' }],
      ['x-blockdev-change', { parent: one, child: two }],
      ['blockdev-snapshot', { node: one, overlay: two }],
      ['block-export-add', { type: 'nbd', id: one, 'node-name': two }],
      ['block-dirty-bitmap-merge', { node: one, target: two, bitmaps: ['x'] }],
      ['blockdev-reopen', { options: [{ driver: 'raw', 'node-name': one, file: two }] }],
    ]),
  );
  const { theirs, ours } = await compareCommands([...nodes, ...commands]);
  expect(ours).toEqual(theirs);
});
