/** Backup jobs whose target does not answer: they are cancelled all the same, and the source's users are not harmed. */

import { expect, test } from 'vitest';
import type { MirrorSyncMode } from '../../schema/generated/types.ts';
import { allocateIoMemory, vectorOf } from '../../src/aio/memory.ts';
import type { BlockDriver } from '../../src/block/contract/driver.ts';
import { Perm } from '../../src/block/contract/request.ts';
import { drained } from '../../src/block/graph/drain.ts';
import { BlockLayer } from '../../src/block/layer.ts';
import { addNode } from '../../src/block/open/open.ts';
import { copyBeforeWrite } from '../../src/drivers/filters/copy-before-write.ts';
import { E } from '../../src/errors/errno.ts';
import { ioError } from '../../src/errors/error.ts';
import { type PreparedBackup, prepareBackup } from '../../src/jobs/backup.ts';
import { JobTable, withJobLock } from '../../src/jobs/job-common.ts';
import { cancelJob } from '../../src/jobs/job-monitor.ts';
import { memoryDisk, memoryDriver, memoryLayer } from '../block/memory-driver.ts';

const SIZE = 256 * 1024;
const OWNER = { describe: () => 'users', drainedBegin: () => undefined, drainedEnd: () => undefined };
const FULL = {
  id: 'j',
  sync: 'full',
  speed: 0,
  bitmap: null,
  compress: false,
  discardSource: false,
  onSourceError: 'report',
  onTargetError: 'report',
  autoFinalize: true,
  autoDismiss: true,
  filterName: null,
  useCopyRange: true,
  maxWorkers: 4,
  maxChunkBytes: 0,
  minClusterBytes: 0,
  onCbwError: 'break-guest-write',
} as const;
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Writes wait until they are given up. */
function silentDriver(): { readonly driver: BlockDriver; readonly waiting: () => number } {
  let waiting: ((error: unknown) => void)[] = [];
  const disk = memoryDisk(SIZE, {
    onCall: (name) =>
      name === 'pwritev' ? new Promise<void>((_resolve, reject) => waiting.push(reject)) : undefined,
  });
  const driver = {
    ...memoryDriver(disk),
    name: 'silent',
    cancelInFlight() {
      for (const reject of waiting) reject(ioError(E.EIO));
      waiting = [];
    },
  };
  return { driver, waiting: () => waiting.length };
}

test.for<MirrorSyncMode>(['full', 'none'])('sync=%s', async (sync) => {
  const from = memoryDisk(SIZE);
  from.data.fill(1);
  const first = memoryLayer(from);
  const silent = silentDriver();
  const layer = new BlockLayer({
    engine: first.engine,
    events: { emit: () => undefined },
    report: () => undefined,
    drivers: {
      ...first.drivers,
      'copy-before-write': copyBeforeWrite as unknown as BlockDriver,
      silent: silent.driver,
    },
  });
  const bugs: unknown[] = [];
  const table = new JobTable({ emit: () => undefined }, (error) => bugs.push(error));
  const source = await addNode(layer, { driver: 'memory', 'node-name': 's' });
  const target = await addNode(layer, { driver: 'silent', 'node-name': 't' });
  const users = await layer.createBackend(
    source,
    { perm: Perm.consistentRead | Perm.write, shared: 15 },
    OWNER,
  );
  let backup: PreparedBackup | null = null;
  await drained(source, async () => {
    backup = await prepareBackup(table, { ...FULL, source, target, sync });
    backup.start();
  });
  const { job, answered } = backup! as PreparedBackup;
  await answered();
  const memory = allocateIoMemory(512);
  memory.buf.fill(2);
  const writing = users.pwritev(SIZE - 512, 512, vectorOf(memory, 0, 512), 0);
  while (silent.waiting() === 0) await turn();
  withJobLock(table, (lock) => cancelJob(job, true, lock));
  while (table.jobs.includes(job)) await new Promise((resolve) => setTimeout(resolve, 10));
  await writing;
  expect(from.data[SIZE - 1]).toBe(2);
  expect(bugs).toEqual([]);
  expect(users.nodeName).toBe('s');
  expect([source.inFlight, target.inFlight, target.parents.length]).toEqual([0, 0, 0]);
  await users.close();
  await layer.closeAll();
  layer.engine.close();
});

test('a job that a drained section pauses at once keeps nobody busy', async () => {
  const first = memoryLayer(memoryDisk(SIZE));
  const { driver: plain } = silentDriver();
  const layer = new BlockLayer({
    engine: first.engine,
    events: { emit: () => undefined },
    drivers: {
      ...first.drivers,
      'copy-before-write': copyBeforeWrite as unknown as BlockDriver,
      target: { ...memoryDriver(memoryDisk(SIZE)), name: 'target', cancelInFlight: plain.cancelInFlight! },
    },
  });
  const table = new JobTable({ emit: () => undefined }, () => undefined);
  const source = await addNode(layer, { driver: 'memory', 'node-name': 's' });
  const target = await addNode(layer, { driver: 'target', 'node-name': 't' });
  let backup: PreparedBackup | null = null;
  let turns = 0;
  await drained(source, async () => {
    backup = await prepareBackup(table, { ...FULL, source, target });
    backup.start();
    await backup.answered();
    expect(backup.job.status).toBe('paused');
    // In turns of the loop, nobody else has something to do.
    const before = performance.eventLoopUtilization();
    await new Promise((resolve) => setTimeout(resolve, 300));
    turns = performance.eventLoopUtilization(before).utilization;
  });
  expect(turns).toBeLessThan(0.8);
  while (table.jobs.length > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  await layer.closeAll();
  layer.engine.close();
});
