/** Names of nodes above the filter of a job that runs: filters without a name of their own do not show in json: names. */

import { execFileSync } from 'node:child_process';
import path from 'node:path';
import { expect, test } from 'vitest';
import { type Command, compareCommands } from './compare.ts';
import { requirePeer } from './requires.ts';

function makeChain(dir: string): void {
  const file = (name: string): string => path.join(dir, name);
  const create = (...args: string[]) =>
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', ...args], { cwd: dir });
  create('base.qcow2', '4M');
  create('-b', 'base.qcow2', '-F', 'qcow2', 'mid.qcow2');
  create('-b', 'mid.qcow2', '-F', 'qcow2', 'top.qcow2');
  for (const name of ['mid.qcow2', 'top.qcow2'])
    execFileSync('qemu-io', ['-c', 'write 0 2M', file(name)], { stdio: 'ignore' });
}

const image = (name: string) => ({
  driver: 'qcow2',
  'node-name': name,
  file: { driver: 'file', 'node-name': `${name}-file`, filename: `$DIR/${name}.qcow2` },
});

const nodes: readonly Command[] = [
  ['object-add', { 'qom-type': 'throttle-group', id: 'group' }],
  ['blockdev-add', { ...image('base'), backing: null }],
  ['blockdev-add', { ...image('mid'), backing: 'base' }],
  ['blockdev-add', { ...image('top'), backing: 'mid' }],
  ['blockdev-add', { driver: 'throttle', 'throttle-group': 'group', 'node-name': 'device', file: 'top' }],
  ['blockdev-add', { driver: 'blkdebug', 'node-name': 'above', image: 'device' }],
];

const job = { 'job-id': 'j', speed: 1, 'auto-finalize': false };
const jobs: Readonly<Record<string, Command>> = {
  commit: ['block-commit', { ...job, device: 'device', 'top-node': 'mid', 'base-node': 'base' }],
  'commit of the active image, named by its file': [
    'block-commit',
    { ...job, device: 'device', top: '$DIR/top.qcow2' },
  ],
  stream: ['block-stream', { ...job, device: 'device', 'base-node': 'base' }],
};

/** What names there are, sorted: the ids of filters and the order are each daemon's own. */
function namesIn(reply: unknown): string[] {
  const list = (reply as { return: { drv: string; file: string; image: Record<string, unknown> }[] }).return;
  return list
    .map(({ drv, file, image }) =>
      JSON.stringify([drv, file, image.filename, image['backing-filename'], image['full-backing-filename']]),
    )
    .sort();
}

const cases = Object.entries(jobs).flatMap(([name, [command, args]]) => [
  { name: `${name}, filter without a name`, command: [command, args] as Command, shown: false },
  {
    name: `${name}, named filter`,
    command: [command, { ...args, 'filter-node-name': 'filter' }] as Command,
    shown: true,
  },
]);

test.for(cases)('$name', async ({ name, command, shown }, context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const { theirs, ours } = await compareCommands(
    [...(name.startsWith('commit') ? nodes.slice(0, -1) : nodes), command, ['query-named-block-nodes']],
    makeChain,
  );
  expect(ours.slice(0, -1)).toEqual(theirs.slice(0, -1));
  expect(namesIn(ours.at(-1)?.reply)).toEqual(namesIn(theirs.at(-1)?.reply));
  if (name.startsWith('stream'))
    expect(namesIn(ours.at(-1)?.reply).some((line) => line.includes('\\"driver\\": \\"copy-on-read'))).toBe(
      shown,
    );
});
