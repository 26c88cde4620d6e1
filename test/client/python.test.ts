/** The generated Python client against the daemon. */

import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { type RunningDaemon, repositoryRoot, startDaemon } from '../peers/daemons.ts';
import { requirePeer } from '../peers/requires.ts';

let running: RunningDaemon | null = null;
afterEach(async () => {
  await running?.stop();
  running = null;
});

const SCRIPT = `
import asyncio, sys, typing
import qblockd_client
from qblockd_client import connect, QmpError, JobError, ConnectionLost

async def main(directory):
    async with await connect('unix:' + directory + '/client.sock') as client:
        assert client.greeting['version']['qemu']['major'] >= 7
        await client.blockdev_add(driver='null-co', node_name='n', size=1048576)
        assert [n['node-name'] for n in await client.query_named_block_nodes(flat=True)] == ['n']
        try:
            await client.block_job_cancel(device='none')
        except QmpError as error:
            assert error.error_class == 'DeviceNotActive', error.error_class
        else:
            raise AssertionError('no error')
        events = client.events('JOB_STATUS_CHANGE')
        await client.blockdev_create(job_id='good', options={'driver': 'file', 'filename': directory + '/x', 'size': 512})
        await client.job('good').finished()
        assert await client.job('good').info() is None
        seen = []
        async for event in events:
            seen.append(event['data']['status'])
            if seen[-1] == 'null':
                break
        assert seen == ['created', 'running', 'waiting', 'pending', 'concluded', 'null'], seen
        await client.blockdev_create(job_id='bad', options={'driver': 'file', 'filename': '/nonexistent/x', 'size': 512})
        try:
            await client.job('bad').finished()
        except JobError as error:
            assert 'nonexistent' in str(error), error
        else:
            raise AssertionError('no error')
        await client.block_dirty_bitmap_add(node='n', name='b')
        ended = client.events()
        await client.quit()
        try:
            async for event in ended:
                pass
        except ConnectionLost:
            pass
        try:
            await client.query_jobs()
        except ConnectionLost:
            print('good')

asyncio.run(main(sys.argv[1]))
`;

test('commands, events and jobs from Python', async (context) => {
  requirePeer(context, 'python3');
  running = await startDaemon('qblockd', { args: ['--qmp', 'unix:$DIR/client.sock'] });
  const { status, stdout, stderr } = spawnSync('python3', ['-W', 'error', '-c', SCRIPT, running.dir], {
    encoding: 'utf8',
    env: { ...process.env, PYTHONPATH: path.join(repositoryRoot, 'dist/client') },
  });
  expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: 'good\n', stderr: '' });
});

test('the client has a method for every command', async () => {
  const { COMMAND_OF_METHOD } = await import('../../schema/generated/client.ts');
  const { readFileSync } = await import('node:fs');
  const text = readFileSync(path.join(repositoryRoot, 'dist/client/qblockd_client.py'), 'utf8');
  for (const command of Object.values(COMMAND_OF_METHOD)) {
    expect(text).toContain(`async def ${command.replaceAll('-', '_')}(`);
  }
});
