/**
 * Mirror jobs that go wrong at every point: each request of the source or the target fails once, and a job is cancelled
 * in each turn of the event loop. Afterwards the graph is as before, the source is unharmed, and the job can be repeated.
 */

import { expect, test } from 'vitest';
import { allocateIoMemory, vectorOf } from '../../src/aio/memory.ts';
import type { BlockBackend } from '../../src/block/backend.ts';
import type { BlockDriver } from '../../src/block/contract/driver.ts';
import { drainedBegin } from '../../src/block/graph/drain.ts';
import type { BlockNode } from '../../src/block/graph/node.ts';
import { BlockLayer } from '../../src/block/layer.ts';
import { addNode } from '../../src/block/open/open.ts';
import { E } from '../../src/errors/errno.ts';
import { ioError } from '../../src/errors/error.ts';
import { type Job, JobTable, withJobLock } from '../../src/jobs/job-common.ts';
import { cancelJob, completeJob, userResume } from '../../src/jobs/job-monitor.ts';
import { type MirrorOptions, startMirror, type TargetBacking } from '../../src/jobs/mirror/job.ts';
import { type MemoryDisk, memoryDisk, memoryLayer } from '../block/memory-driver.ts';

const SIZE = 64 * 1024;

interface World {
  readonly a: MemoryDisk;
  readonly b: MemoryDisk;
  readonly layer: BlockLayer;
  readonly table: JobTable;
  readonly source: BlockNode;
  readonly target: BlockNode;
  readonly users: BlockBackend;
  readonly bugs: unknown[];
  readonly events: string[];
  /** Requests of either disk so far. */
  readonly counts: { source: number; target: number };
  /** Which request fails. */
  readonly fails: { source: number; target: number };
}

async function makeWorld(): Promise<World> {
  const counts = { source: 0, target: 0 };
  const fails = { source: 0, target: 0 };
  const onCall =
    (side: 'source' | 'target') =>
    (name: string): void => {
      if (!['preadv', 'pwritev', 'pwriteZeroes', 'flush'].includes(name)) return;
      counts[side]++;
      if (counts[side] === fails[side]) throw ioError(E.EIO);
    };
  const a = memoryDisk(SIZE, { onCall: onCall('source') });
  const b = memoryDisk(SIZE, { onCall: onCall('target') });
  a.data.forEach((_, i) => {
    a.data[i] = (i * 7 + (i >> 9)) & 255;
  });
  const first = memoryLayer(a);
  const { memory } = memoryLayer(b).drivers;
  const events: string[] = [];
  const sink = { emit: (name: string, data: unknown) => void events.push(`${name} ${JSON.stringify(data)}`) };
  const layer = new BlockLayer({
    engine: first.engine,
    events: sink,
    drivers: { ...first.drivers, other: { ...(memory as BlockDriver), name: 'other' } },
  });
  const source = await addNode(layer, { driver: 'memory', 'node-name': 's' });
  const target = await addNode(layer, { driver: 'other', 'node-name': 't' });
  const users = await layer.createBackend(
    source,
    { perm: 3, shared: 15 },
    { describe: () => 'users', drainedBegin: () => undefined, drainedEnd: () => undefined },
  );
  const bugs: unknown[] = [];
  const table = new JobTable(sink, (error) => bugs.push(error));
  return { a, b, layer, table, source, target, users, bugs, events, counts, fails };
}

function shape({ layer }: World): string {
  return layer.nodes
    .map(
      ({ name, parents, children, dirtyBitmaps, opBlockers, refs, quiesced }) =>
        `${name} ${parents.length} ${children.length} ${dirtyBitmaps.all.size} ${opBlockers.length} ${refs} ${quiesced}`,
    )
    .join('; ');
}

function start({ table, source, target }: World, more: Partial<MirrorOptions> = {}): Promise<Job> {
  return startMirror(table, {
    id: 'j',
    source,
    target,
    round: { base: null, zeroTarget: true },
    replaces: null,
    granularityBytes: 4096,
    bufferBytes: 65536,
    speed: 0,
    unmap: true,
    copyMode: 'background',
    filterName: null,
    onSourceError: 'report',
    onTargetError: 'report',
    autoFinalize: true,
    autoDismiss: true,
    ...more,
  });
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Completes the job when it is ready and resumes it when it stops; resolves when it is gone. */
async function toTheEnd({ table }: World, job: Job): Promise<void> {
  while (table.jobs.includes(job)) {
    withJobLock(table, (lock) => {
      if (job.userPaused) userResume(job, lock);
      if (job.status === 'ready' && !job.cancelRequested) completeJob(job, lock);
    });
    await turn();
  }
}

async function write(users: BlockBackend, offset: number, value: number): Promise<void> {
  const memory = allocateIoMemory(512);
  memory.buf.fill(value);
  await users.pwritev(offset, 512, vectorOf(memory, 0, 512), 0);
}

async function close({ users, layer }: World): Promise<void> {
  await users.close();
  await layer.closeAll().catch(() => undefined);
  layer.engine.close();
}

for (const copyMode of ['background', 'write-blocking'] as const) {
  for (const side of ['source', 'target'] as const) {
    for (const policy of ['report', 'stop'] as const) {
      test(`${copyMode}, ${side}, ${policy}: each request fails once`, async () => {
        for (let failing = 1; ; failing++) {
          const world = await makeWorld();
          const before = shape(world);
          const original = Buffer.from(world.a.data);
          world.fails[side] = failing;
          const job = await start(world, { copyMode, onSourceError: policy, onTargetError: policy });
          await toTheEnd(world, job);
          const failed = world.counts[side] >= failing;
          expect(world.bugs).toEqual([]);
          expect(world.a.data.equals(original)).toBe(true);
          if (job.error !== null) {
            expect(failed).toBe(true);
            expect(world.users.nodeName).toBe('s');
            expect(shape(world)).toBe(before);
            // The fault is gone: a second job succeeds.
            await toTheEnd(world, await start(world, { copyMode }));
          } else if (policy === 'report') expect(failed).toBe(false);
          expect(world.users.nodeName).toBe('t');
          expect(world.b.data.equals(original)).toBe(true);
          await close(world);
          if (!failed) break;
          expect(failing).toBeLessThan(200);
        }
      });
    }
  }

  test(`${copyMode}: cancelled in each turn`, async () => {
    for (let turns = 0; turns < 40; turns++) {
      const world = await makeWorld();
      const before = shape(world);
      const job = await start(world, { copyMode });
      const writing = (async () => {
        for (let i = 0; i < 20; i++) await write(world.users, ((i * 13) % 128) * 512, i);
      })();
      for (let i = 0; i < turns; i++) await turn();
      withJobLock(world.table, (lock) => cancelJob(job, turns % 2 === 0, lock));
      while (world.table.jobs.includes(job)) await turn();
      await writing;
      expect(world.bugs).toEqual([]);
      expect(world.users.nodeName).toBe('s');
      expect(shape(world)).toBe(before);
      if (job.error === null) {
        // It was ready: what it left is a copy of one moment, and a job on top of it makes it one of now.
        expect(world.events.some((event) => event.startsWith('BLOCK_JOB_COMPLETED'))).toBe(true);
      }
      await toTheEnd(world, await start(world, { copyMode }));
      expect(world.b.data.equals(world.a.data)).toBe(true);
      await close(world);
    }
  });
}

test('write-blocking: nothing is written to a target that is drained, and it gets all of it afterwards', async () => {
  const world = await makeWorld();
  const job = await start(world, { copyMode: 'write-blocking' });
  while (job.status !== 'ready') await turn();
  const section = await drainedBegin(world.target);
  const before = world.counts.target;
  await Promise.all([1, 2, 3].map((value) => write(world.users, value * 1024, value)));
  expect(world.counts.target).toBe(before);
  section.end();
  await toTheEnd(world, job);
  expect(world.bugs).toEqual([]);
  expect(job.error).toBeNull();
  expect(world.b.data.equals(world.a.data)).toBe(true);
  await close(world);
});

test('a change of the copy mode does not wait for a job that fails before it copies', async () => {
  const world = await makeWorld();
  const job = await start(world, {
    begin: async () => {
      for (let i = 0; i < 5; i++) await turn();
      throw ioError(E.EIO);
    },
  });
  const change = { id: 'j', type: 'mirror', 'copy-mode': 'write-blocking' } as const;
  await expect(job.driver.change!(job, change)).rejects.toThrow("Job 'j' has ended");
  await toTheEnd(world, job);
  expect(job.error?.errno).toBe(E.EIO);
  await close(world);
});

test('cancelled in each turn of its completion: what is told is what has happened', async () => {
  for (let turns = 0, isOver = false; !isOver; turns++) {
    const world = await makeWorld();
    const takeTime = async (): Promise<TargetBacking> => {
      for (let i = 0; i < 4; i++) await turn();
      return { find: () => null, isNamed: true };
    };
    const job = await start(world, {
      autoDismiss: false,
      backing: takeTime,
      end: async () => void (await takeTime()),
    });
    const status = (): string => job.status;
    while (status() !== 'ready') await turn();
    withJobLock(world.table, (lock) => completeJob(job, lock));
    for (let i = 0; i < turns; i++) await turn();
    isOver = status() === 'concluded';
    withJobLock(world.table, (lock) => {
      if (!isOver) cancelJob(job, true, lock);
    });
    while (status() !== 'concluded') await turn();
    const isPivoted = world.users.nodeName === 't';
    const ends = world.events.filter((event) => /BLOCK_JOB_(COMPLETED|CANCELLED)/.test(event));
    expect(ends).toHaveLength(1);
    expect(`${turns} ${ends[0]}`).toContain(isPivoted ? 'COMPLETED' : 'CANCELLED');
    expect(job.error === null).toBe(isPivoted);
    expect(world.bugs).toEqual([]);
    await close(world);
    expect(turns).toBeLessThan(200);
  }
});
