/** x-query-block-graph: who uses what, what for, and what of it is an export or a job. */

import { expect, test } from 'vitest';
import { connect } from '../../../client/node.ts';
import type { XBlockGraph } from '../../../schema/generated/types.ts';
import { startDaemon } from '../../peers/daemons.ts';

/** "parent -name[roles] takes-> child", sorted; members by kind and name. */
function edgesOf({ members, edges }: XBlockGraph): string[] {
  const names = new Map(members.map(({ id, kind, name }) => [id, `${kind} ${name}`]));
  return edges
    .map(
      ({ parent, child, name, roles, perm }) =>
        `${names.get(parent)} -${name}[${roles}] ${[...perm].sort()}-> ${names.get(child)}`,
    )
    .sort();
}

test('roles, permissions, exports, jobs, and names that are used twice', async () => {
  const daemon = await startDaemon('qblockd');
  try {
    await using client = await connect(`unix:${daemon.socketPath}`);
    const chain = { driver: 'null-co', size: 1 << 28, 'read-zeroes': true } as const;
    await client.blockdevAdd({ driver: 'raw', 'node-name': 'a', file: { ...chain, 'node-name': 'a-file' } });
    await client.blockdevAdd({ ...chain, 'node-name': 'copy', 'read-only': false });
    await client.nbdServerStart({ addr: { type: 'unix', data: { path: `${daemon.dir}/nbd` } } });
    await client.blockExportAdd({ type: 'nbd', id: 'a', 'node-name': 'a', writable: true });
    await client.blockExportAdd({ type: 'nbd', id: 'b', 'node-name': 'a', name: 'b' });
    await client.blockdevBackup({ 'job-id': 'a', device: 'a', target: 'copy', sync: 'full', speed: 65_536 });
    const graph = await client.xQueryBlockGraph();
    expect(graph.members.filter(({ kind }) => kind === 'export').map(({ name }) => name)).toEqual(['a', 'b']);
    expect(graph.members.filter(({ kind }) => kind === 'job').map(({ name }) => name)).toEqual(['a']);
    expect(graph.members.find(({ kind, name }) => kind === 'node' && name === 'a')).toMatchObject({
      ...{ driver: 'raw', size: 1 << 28, 'read-only': false, drained: 0 },
    });
    const edges = edgesOf(graph);
    expect(edges).toContain('node a -file[data,primary] consistent-read,write-> node a-file');
    const filter = graph.members.find(({ driver }) => driver === 'copy-before-write')?.name;
    expect(edges).toContain(`export a -root[] consistent-read,write-> node ${filter}`);
    expect(edges).toContain(`export b -root[] consistent-read-> node ${filter}`);
    expect(edges.filter((edge) => edge.startsWith(`node ${filter} -file[filtered,primary]`))).toHaveLength(1);
    expect(edges.some((edge) => edge.startsWith('job a -'))).toBe(true);
    // The graph of the original's command has as many edges.
    expect((await client.xDebugQueryBlockGraph()).edges).toHaveLength(edges.length);
    await client.job('a').cancel();
    await expect.poll(async () => (await client.queryJobs()).length).toBe(0);
    await client.blockExportDel({ id: 'b' });
    await expect
      .poll(async () => edgesOf(await client.xQueryBlockGraph()))
      .toEqual([
        'export a -root[] consistent-read,write-> node a',
        'node a -file[data,primary] consistent-read,write-> node a-file',
      ]);
  } finally {
    await daemon.stop();
  }
});
