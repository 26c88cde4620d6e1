/** query-commands of both daemons: what the original has, and what ours has. */

import path from 'node:path';
import { expect, test } from 'vitest';
import { loadModel } from '../../schema/generator/model.ts';
import { startDaemon } from './daemons.ts';
import { requirePeer } from './requires.ts';

/** Every command of the first release, by the file of the QMP schema it is described in. */
const commands = {
  control: ['qmp_capabilities', 'query-version', 'query-commands', 'quit'],
  introspect: ['query-qmp-schema'],
  qom: [
    'object-add',
    'object-del',
    'qom-list',
    'qom-get',
    'qom-set',
    'qom-list-types',
    'qom-list-properties',
  ],
  char: [
    ...['query-chardev', 'query-chardev-backends', 'chardev-add', 'chardev-change', 'chardev-remove'],
    ...['chardev-send-break', 'ringbuf-read', 'ringbuf-write'],
  ],
  'block-core': [
    ...[
      'blockdev-add',
      'blockdev-del',
      'query-named-block-nodes',
      'query-block',
      'query-blockstats',
      'block_resize',
      'blockdev-create',
      'x-blockdev-amend',
      'block-dirty-bitmap-add',
      'block-dirty-bitmap-remove',
      'block-dirty-bitmap-clear',
      'block-dirty-bitmap-enable',
      'block-dirty-bitmap-disable',
      'block-dirty-bitmap-merge',
      'x-debug-block-dirty-bitmap-sha256',
    ],
  ],
  job: [
    ...['job-pause', 'job-resume', 'job-cancel', 'job-complete', 'job-dismiss', 'job-finalize', 'query-jobs'],
  ],
  'block-export': [
    ...['nbd-server-start', 'nbd-server-add', 'nbd-server-remove', 'nbd-server-stop'],
    ...['block-export-add', 'block-export-del', 'query-block-exports'],
  ],
};

test('query-commands names what there is, and nothing the original does not know but for ours', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const names: Record<string, string[]> = {};
  for (const kind of ['qemu-storage-daemon', 'qblockd'] as const) {
    const daemon = await startDaemon(kind);
    const client = await daemon.connect();
    await client.negotiate();
    const reply = (await client.execute('query-commands')) as { name: string }[];
    names[kind] = reply.map((command) => command.name);
    client.close();
    await daemon.stop();
  }
  const ours = names.qblockd ?? [];
  expect(ours).toEqual(expect.arrayContaining(Object.values(commands).flat()));
  // Of later releases, and of ours: the schema says which.
  const model = loadModel(path.resolve(import.meta.dirname, '../../schema'));
  const own = model.commands.filter(({ since }) => since !== null).map(({ name }) => name);
  const known = [...(names['qemu-storage-daemon'] ?? []), ...own];
  expect(known).toEqual(expect.arrayContaining(ours));
});
