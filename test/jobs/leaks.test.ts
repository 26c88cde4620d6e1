/**
 * A thousand jobs of all kinds in one daemon, most to their end, some cancelled: afterwards it has no object, no file and
 * no node more than before. Objects are counted, not bytes: one that every job leaves behind shows by its number.
 */

import { existsSync, readdirSync, rmSync } from 'node:fs';
import path from 'node:path';
import { expect, test } from 'vitest';
import { waitUntil } from '../patience.ts';
import { type RunningDaemon, startDaemon } from '../peers/daemons.ts';
import type { QmpClient } from '../peers/qmp-client.ts';
import { growth, heapCensus } from './heap-census.ts';

const JOBS = 1002;
/** Until all code has been compiled and all pools are as large as they get. */
const WARM_UP_JOBS = 300;
/** Fewer objects of a kind than this are noise. Each of the six kinds of job runs more often. */
const LEAST_LEAK = 100;
const BYTES = 256 * 1024;

/** What to tell a job that has come to a status: a command. */
type Steer = (status: string) => string | null;

/** Runs a job from its command to its dismissal. */
async function runJob(
  qmp: QmpClient,
  command: string,
  args: object,
  steer: Steer = () => null,
): Promise<void> {
  let repliesLeft = 0;
  const send = (execute: string, given: object): void => {
    qmp.send(`${JSON.stringify({ execute, arguments: given })}\n`);
    repliesLeft++;
  };
  send(command, { 'job-id': 'j', ...args });
  for (let isGone = false; !isGone || repliesLeft > 0; ) {
    const message = await qmp.next();
    if (message === null) throw new Error(`${command}: no answer`);
    if (message.error !== undefined) throw new Error(`${command}: ${JSON.stringify(message.error)}`);
    if (message.event === undefined) repliesLeft--;
    if (message.event !== 'JOB_STATUS_CHANGE') continue;
    const { status } = message.data as { status: string };
    isGone = status === 'null';
    const next = status === 'concluded' ? 'job-dismiss' : steer(status);
    if (next !== null) send(next, { id: 'j' });
  }
}

const fileNode = (name: string): object => ({
  driver: 'file',
  'node-name': `${name}-file`,
  filename: `${name}.img`,
});

function at(status: string, command: string): Steer {
  return (now) => (now === status ? command : null);
}

/** Runs one job of each kind; rounds differ in how the jobs come to their end. */
async function runOneOfEach(qmp: QmpClient, round: number): Promise<void> {
  const isOdd = round % 2 === 1;
  const kept = { 'auto-dismiss': false, 'auto-finalize': isOdd };
  const finalized = isOdd ? () => null : at('pending', 'job-finalize');
  const both: (first: Steer) => Steer = (first) => (status) => first(status) ?? finalized(status);
  const copy = { ...kept, device: 'source', target: 'target', sync: 'full' };
  const overlay = { driver: 'qcow2', 'node-name': 'overlay', file: 'overlay-file', backing: 'source' };
  await runJob(qmp, 'blockdev-create', { options: { driver: 'qcow2', file: 'new-file', size: BYTES } });
  const end = round % 3 === 0 ? 'job-cancel' : 'job-complete';
  await runJob(qmp, 'blockdev-mirror', copy, both(at('ready', end)));
  await runJob(qmp, 'blockdev-backup', copy, finalized);
  await qmp.execute('blockdev-add', overlay);
  const streamed = isOdd ? finalized : at('pending', 'job-cancel');
  await runJob(qmp, 'block-stream', { ...kept, device: 'overlay' }, streamed);
  await qmp.execute('blockdev-del', { 'node-name': 'overlay' });
  await qmp.execute('blockdev-add', overlay);
  await runJob(qmp, 'block-commit', { ...kept, device: 'overlay' }, both(at('ready', 'job-complete')));
  await qmp.execute('blockdev-del', { 'node-name': 'overlay' });
  await runJob(qmp, 'x-blockdev-amend', { 'node-name': 'target', options: { driver: 'qcow2' } });
}

async function prepare(qmp: QmpClient): Promise<void> {
  for (const name of ['source', 'target', 'overlay', 'new']) {
    await runJob(qmp, 'blockdev-create', { options: { driver: 'file', filename: `${name}.img`, size: 0 } });
    await qmp.execute('blockdev-add', fileNode(name));
    await runJob(qmp, 'blockdev-create', { options: { driver: 'qcow2', file: `${name}-file`, size: BYTES } });
  }
  for (const name of ['source', 'target'])
    await qmp.execute('blockdev-add', { driver: 'qcow2', 'node-name': name, file: `${name}-file` });
}

async function census(daemon: RunningDaemon, snapshot: string): Promise<Map<string, number>> {
  daemon.process.kill('SIGUSR2');
  await waitUntil('the heap snapshot', () => existsSync(snapshot), 60_000);
  const objects = heapCensus(snapshot);
  rmSync(snapshot);
  return objects;
}

const openFiles = (daemon: RunningDaemon): number => readdirSync(`/proc/${daemon.process.pid}/fd`).length;

test(`${JOBS} jobs leave nothing behind`, async () => {
  const probe = path.join(import.meta.dirname, 'heap-probe.mjs');
  const daemon = await startDaemon('qblockd', {
    env: { NODE_OPTIONS: `--import ${probe}`, HEAP_SNAPSHOT: 'heap.json' },
  });
  try {
    const snapshot = path.join(daemon.dir, 'heap.json');
    const qmp = await daemon.connect();
    await qmp.negotiate();
    await prepare(qmp);
    for (let round = 0; round < WARM_UP_JOBS / 6; round++) await runOneOfEach(qmp, round);
    const nodes = await qmp.execute('query-named-block-nodes', { flat: true });
    const [files, objects] = [openFiles(daemon), await census(daemon, snapshot)];
    for (let round = 0; round < JOBS / 6; round++) await runOneOfEach(qmp, round);
    expect(growth(objects, await census(daemon, snapshot), LEAST_LEAK)).toEqual([]);
    expect(openFiles(daemon)).toBe(files);
    expect(await qmp.execute('query-jobs')).toEqual([]);
    expect(((await qmp.execute('query-named-block-nodes', { flat: true })) as object[]).length).toBe(
      (nodes as object[]).length,
    );
    qmp.close();
  } finally {
    await daemon.stop();
  }
});
