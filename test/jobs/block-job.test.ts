/** Block jobs: their nodes, drained sections, speed, error policies and events. */

import { expect, test } from 'vitest';
import { Perm } from '../../src/block/contract/request.ts';
import { drainedBegin } from '../../src/block/graph/drain.ts';
import type { BlockLayer } from '../../src/block/layer.ts';
import { addNode } from '../../src/block/open/open.ts';
import { E } from '../../src/errors/errno.ts';
import { ioError } from '../../src/errors/error.ts';
import {
  type BlockJob,
  type BlockJobOptions,
  createBlockJob,
  findBlockJob,
  handleError,
  limitRate,
  queryBlockJobs,
  setBlockJobSpeed,
  startBlockJob,
} from '../../src/jobs/block-job.ts';
import { type JobDriver, JobTable, withJobLock } from '../../src/jobs/job-common.ts';
import { addProgress, pausePoint, setRemainingProgress } from '../../src/jobs/job-driver.ts';
import { userCancel, userResume } from '../../src/jobs/job-monitor.ts';
import { memoryDisk, memoryLayer } from '../block/memory-driver.ts';

const owner = { describe: () => 'other', drainedBegin: () => undefined, drainedEnd: () => undefined };

interface Bench {
  readonly layer: BlockLayer;
  readonly table: JobTable;
  readonly events: string[];
  create(driver: Partial<JobDriver>, options?: Partial<BlockJobOptions>): Promise<BlockJob>;
}

async function bench(): Promise<Bench> {
  const layer = memoryLayer(memoryDisk(4096));
  const node = await addNode(layer, { driver: 'memory', 'node-name': 'm' });
  const events: string[] = [];
  const table = new JobTable({
    emit: (name, data) => {
      const { id, device, status, ...rest } = data as unknown as Record<string, string>;
      events.push([name === 'JOB_STATUS_CHANGE' ? status : name, ...Object.values(rest)].join(' '));
      expect(id ?? device).toBe('j');
    },
  });
  return {
    layer,
    table,
    events,
    create: (driver, options = {}) =>
      createBlockJob(table, {
        id: 'j',
        driver: { type: 'stream', run: async () => undefined, ...driver },
        nodes: [{ name: 'main node', node, permissions: { perm: Perm.write, shared: Perm.consistentRead } }],
        ...options,
      }),
  };
}

const settle = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 5));

test('events of a job that succeeds; its nodes are free again', async () => {
  const { layer, events, create } = await bench();
  const block = await create({
    run: async (job) => {
      setRemainingProgress(job, 8);
      addProgress(job, 8);
    },
  });
  await expect(layer.deleteNode('m')).rejects.toThrow(
    "Node 'm' is busy: block device is in use by block job: stream",
  );
  startBlockJob(block);
  await settle();
  expect(events).toEqual([
    'created',
    'running',
    'waiting',
    'pending',
    'BLOCK_JOB_COMPLETED stream 8 8 0',
    'concluded',
    'null',
  ]);
  await layer.deleteNode('m');
});

test('a failed job says why, a cancelled one does not', async () => {
  const { events, create, table } = await bench();
  startBlockJob(await create({ run: () => Promise.reject(ioError(E.EIO)) }, { speed: 7 }));
  await settle();
  expect(events.slice(2)).toEqual([
    'aborting',
    'BLOCK_JOB_COMPLETED stream 0 0 7 Input/output error',
    'concluded',
    'null',
  ]);
  events.length = 0;
  const block = await create({ run: (job) => limitRate(job.block!, 1000) }, { speed: 1 });
  startBlockJob(block);
  await settle();
  withJobLock(table, (lock) => userCancel(block.job, true, lock));
  await settle();
  expect(events.slice(2)).toEqual(['aborting', 'BLOCK_JOB_CANCELLED stream 0 0 1', 'concluded', 'null']);
});

test('a job that cannot have its nodes is gone at once', async () => {
  const { layer, events, create, table } = await bench();
  const other = await layer.createBackend(
    layer.findNode('m')!,
    { perm: Perm.resize, shared: Perm.consistentRead },
    owner,
  );
  await expect(create({})).rejects.toThrow(
    "Permission conflict on node 'm': permissions 'resize' are both required by other (uses node 'm' as 'root' child) and unshared by stream job 'j' (uses node 'm' as 'main node' child).",
  );
  await other.close();
  await expect(create({}, { speed: -1 })).rejects.toThrow("Parameter 'speed' expects a non-negative value");
  expect(events).toEqual(['created', 'null', 'created', 'null']);
  expect(table.jobs).toEqual([]);
  expect(layer.findNode('m')!.parents).toEqual([]);
  expect(() => withJobLock(table, (lock) => findBlockJob(table, 'j', lock).ioStatus)).toThrow(
    "Block job 'j' not found",
  );
});

test('a drained section waits until the job rests, and holds it there', async () => {
  const { layer, events, create } = await bench();
  let proceed = (): void => undefined;
  const block = await create({
    run: async (job) => {
      await new Promise<void>((resolve) => {
        proceed = resolve;
      });
      await pausePoint(job);
    },
  });
  startBlockJob(block);
  let drained = false;
  const section = drainedBegin(layer.findNode('m')!).then((begun) => {
    drained = true;
    return begun;
  });
  await settle();
  expect(drained).toBe(false);
  proceed();
  const begun = await section;
  expect(events.at(-1)).toBe('paused');
  begun.end();
  await settle();
  expect(events.slice(3, 5)).toEqual(['running', 'waiting']);
});

test('the speed is a limit, and a new one counts at once', async () => {
  const { events, create, table } = await bench();
  const block = await create(
    {
      run: async (job) => {
        for (let i = 0; i < 4; i++) await limitRate(job.block!, 1_000_000);
      },
    },
    { speed: 1 },
  );
  startBlockJob(block);
  await settle();
  expect(events.at(-1)).toBe('running');
  const info = withJobLock(table, (lock) => queryBlockJobs(table, lock));
  expect(info).toMatchObject([{ device: 'j', speed: 1, busy: false, paused: false, 'io-status': 'ok' }]);
  withJobLock(table, (lock) => setBlockJobSpeed(block, 0, lock));
  await settle();
  expect(events.at(-1)).toBe('null');
});

test.each([
  ['report', E.EIO, 'report', 'ok'],
  ['ignore', E.EIO, 'ignore', 'ok'],
  ['stop', E.EIO, 'stop', 'failed'],
  ['enospc', E.EIO, 'report', 'ok'],
  ['enospc', E.ENOSPC, 'stop', 'nospace'],
  ['auto', E.ENOSPC, 'stop', 'nospace'],
] as const)('policy %s for errno %i', async (policy, errno, action, status) => {
  const { events, create, table } = await bench();
  const block = await create({
    run: async (job) => {
      expect(handleError(job.block!, policy, 'read', ioError(errno))).toBe(action);
      await pausePoint(job);
    },
  });
  startBlockJob(block);
  await settle();
  expect(events).toContain(`BLOCK_JOB_ERROR read ${action}`);
  expect(block.ioStatus).toBe(status);
  expect(events.includes('paused')).toBe(action === 'stop');
  if (action === 'stop') withJobLock(table, (lock) => userResume(block.job, lock));
  await settle();
  expect(block.ioStatus).toBe('ok');
  expect(events.at(-1)).toBe('null');
});
