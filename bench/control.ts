/**
 * `npm run bench:control`: how soon a job does what it is told. Mirror, backup, stream and commit at full speed on images
 * in the page cache, while fio reads and writes 4 KiB at depth 16 on the same disk through NBD, by qblockd and
 * qemu-storage-daemon (aio=io_uring) in turn. Milliseconds from the command to:
 *
 * - pause: the event that the job is paused (standby, for a mirror that is ready);
 * - last write after pause: the last change of the image that only the job writes to (its mtime, which the kernel keeps
 *   to 4 ms; 0 when there was none). Backup and stream write where the guest writes too: no figure;
 * - resume: the event that it runs again;
 * - slow down (set-speed from unlimited to 64 MiB a second): the first moment from which on the job's progress is what
 *   the new rate allows: to every later one, the rate times the time between them and two slices of 100 ms (one that may
 *   be used up at once, and one for what was under way);
 * - speed up (set-speed from 4 MiB a second to unlimited): progress of 2 MiB, which would take half a second;
 * - cancel: the end of the job, that is its event BLOCK_JOB_CANCELLED.
 *
 * The guest uses the first 64 MiB of the disk: what it writes makes no progress for a backup once that part is copied.
 * Each command is given at a random moment. When a job has come to its end by itself, images and daemon are made anew.
 *
 * Options: --size MIB of data (1024), --loops N jobs of each kind a round (16), --rounds N (3), --only PART of a server's name,
 * --load PART of a job's name, --dir FOLDER for the images, --json FILE for every result.
 */

import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import {
  COMMIT_LOAD,
  cleanFolder,
  copyLoad,
  JOB_SERVERS,
  type JobLoad,
  type JobServer,
  jobsFooter,
  makeImages,
  type RunningJobServer,
  STREAM_LOAD,
  startJobServer,
} from './job-loads.ts';
import { hasProgram, markdownTable, median, parseOptions, sleep } from './measure.ts';
import type { BenchQmp, QmpEvent } from './qmp.ts';

const MIB = 1 << 20;
const SLOW_BYTES_PER_SECOND = 64 * MIB;
/** Two slices. */
const ALLOWANCE_BYTES = SLOW_BYTES_PER_SECOND / 5;
const SLOW_WATCH_MS = 400;
const CRAWL_BYTES_PER_SECOND = 4 * MIB;
const CRAWL_MS = 150;
const FAST_BYTES = 2 * MIB;
const FAST_WATCH_MS = 1000;
const SAMPLE_MS = 5;
const PAUSES_A_JOB = 4;
const PAUSED_MS = 70;
/** Until the part the guest writes to has been copied. */
const GUEST_PART_MS = 150;

/** One of each kind. */
const LOADS: readonly JobLoad[] = [
  copyLoad('mirror', 'raw', 'qcow2'),
  copyLoad('backup', 'raw', 'qcow2'),
  STREAM_LOAD,
  COMMIT_LOAD,
];

const VERBS = ['pause', 'last write after pause', 'resume', 'slow down', 'speed up', 'cancel'] as const;
type Verb = (typeof VERBS)[number];
type Note = (verb: Verb, ms: number) => void;

/** The job has come to its end before it could be told anything. */
class JobEnded extends Error {}

/** Runs a command of the job; throws JobEnded when there is no such job any more. */
function tell(qmp: BenchQmp, command: string, args: object): Promise<unknown> {
  return qmp.execute(command, args).catch((error: Error) => {
    throw /not found|cannot accept|not active/i.test(error.message) ? new JobEnded() : error;
  });
}

/** Gives the command and resolves with the milliseconds until the event; throws JobEnded when there is none to come. */
async function timed(
  qmp: BenchQmp,
  command: string,
  args: object,
  isWanted: (event: QmpEvent) => boolean,
): Promise<number> {
  const seen = qmp.waitFor((event) => isWanted(event) || event.data.status === 'null');
  const start = performance.now();
  await tell(qmp, command, args);
  const event = await seen;
  if (!isWanted(event)) throw new JobEnded();
  return performance.now() - start;
}

const hasStatus =
  (...wanted: readonly string[]) =>
  ({ event, data }: QmpEvent): boolean =>
    event === 'JOB_STATUS_CHANGE' && wanted.includes(String(data.status));

/** A moment that falls anywhere in the job's course. */
function randomWhile(): Promise<void> {
  return sleep(10 + Math.random() * 30);
}

async function progressOf(qmp: BenchQmp): Promise<number> {
  const [job] = (await qmp.execute('query-jobs')) as { 'current-progress': number }[];
  if (job === undefined) throw new JobEnded();
  return job['current-progress'];
}

function setSpeed(qmp: BenchQmp, speed: number): Promise<unknown> {
  return tell(qmp, 'block-job-set-speed', { device: 'job', speed });
}

/** Milliseconds from the command to the moment from which on the job keeps to the new rate. */
async function slowDown(qmp: BenchQmp): Promise<number> {
  const start = performance.now();
  const samples: { readonly ms: number; readonly bytes: number }[] = [];
  const sample = async (): Promise<void> => {
    const ms = performance.now() - start;
    samples.push({ ms, bytes: await progressOf(qmp) });
  };
  const changed = setSpeed(qmp, SLOW_BYTES_PER_SECOND);
  await Promise.all([changed, sample()]);
  while (performance.now() - start < SLOW_WATCH_MS) {
    await sleep(SAMPLE_MS);
    await sample();
  }
  const allowed = (fromMs: number, toMs: number): number =>
    ((toMs - fromMs) / 1000) * SLOW_BYTES_PER_SECOND + ALLOWANCE_BYTES;
  const keepsToIt = samples.findIndex((from, index) =>
    samples.slice(index).every((to) => to.bytes - from.bytes <= allowed(from.ms, to.ms)),
  );
  return samples[keepsToIt]!.ms;
}

/** Milliseconds from the command to progress that the old rate would not have made for long; null when there is none. */
async function speedUp(qmp: BenchQmp): Promise<number | null> {
  await setSpeed(qmp, CRAWL_BYTES_PER_SECOND);
  await sleep(CRAWL_MS);
  const before = await progressOf(qmp);
  const start = performance.now();
  await setSpeed(qmp, 0);
  while (performance.now() - start < FAST_WATCH_MS) {
    const bytes = (await progressOf(qmp)) - before;
    if (bytes > FAST_BYTES) return performance.now() - start;
    await sleep(SAMPLE_MS);
  }
  return null;
}

async function pauseAndResume(qmp: BenchQmp, ownFile: string | null, note: Note): Promise<void> {
  const startWallMs = Date.now();
  note('pause', await timed(qmp, 'job-pause', { id: 'job' }, hasStatus('paused', 'standby')));
  await sleep(PAUSED_MS);
  if (ownFile !== null) note('last write after pause', Math.max(0, statSync(ownFile).mtimeMs - startWallMs));
  note('resume', await timed(qmp, 'job-resume', { id: 'job' }, hasStatus('running', 'ready')));
}

/** One job from its start to its cancellation; every other one is paused a few times, the others change their speed. */
async function controlJob(
  { qmp }: RunningJobServer,
  load: JobLoad,
  folder: string,
  number: number,
  note: Note,
): Promise<void> {
  await qmp.execute(load.command, load.arguments);
  if (number % 2 === 0) {
    const ownFile = load.ownImage === null ? null : path.join(folder, load.ownImage);
    for (let i = 0; i < PAUSES_A_JOB; i++) {
      await randomWhile();
      await pauseAndResume(qmp, ownFile, note);
    }
  } else {
    await sleep(GUEST_PART_MS);
    await randomWhile();
    note('slow down', await slowDown(qmp));
    // A mirror that has caught up has nothing to be fast with.
    const faster = await speedUp(qmp);
    if (faster !== null) note('speed up', faster);
  }
  await randomWhile();
  const isCancelled = ({ event }: QmpEvent): boolean => event === 'BLOCK_JOB_CANCELLED';
  note('cancel', await timed(qmp, 'block-job-cancel', { device: 'job', force: true }, isCancelled));
}

/** Jobs one after the other under a guest's load, until `loops` are done or one ends by itself; how many were done. */
async function controlJobs(
  server: JobServer,
  load: JobLoad,
  folder: string,
  loops: number,
  note: Note,
): Promise<number> {
  const running = await startJobServer(server, load, folder, false);
  await running.qmp.execute('block-export-add', {
    ...{ type: 'nbd', id: 'e', name: 'guest', writable: true },
    'node-name': load.guestNode,
  });
  const fio = spawn(
    'fio',
    [
      ...['--name=guest', '--ioengine=nbd', `--uri=nbd+unix:///guest?socket=${running.nbdSocket}`],
      ...['--rw=randrw', '--bs=4k', '--iodepth=16', '--size=64m', '--time_based', '--runtime=600'],
    ],
    { stdio: 'ignore' },
  );
  const ended = new Promise((resolve) => fio.once('close', resolve));
  let done = 0;
  try {
    await sleep(700);
    if (fio.exitCode !== null) throw new Error(`fio ended with status ${fio.exitCode}`);
    for (; done < loops; done++) {
      await controlJob(running, load, folder, loops - done, note);
      await sleep(20);
    }
  } catch (error) {
    if (!(error instanceof JobEnded)) throw error;
    // What it was told before counts.
    done++;
  } finally {
    fio.kill('SIGKILL');
    await ended;
    await running.stop();
  }
  return done;
}

function percentile(values: readonly number[], part: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(sorted.length * part) - 1)] ?? Number.NaN;
}

function summary(values: readonly number[] | undefined): string[] {
  if (values === undefined || values.length === 0) return ['-', '-', '-', '0'];
  const figures = [median(values), percentile(values, 0.99), Math.max(...values)];
  return [...figures.map((ms) => ms.toFixed(1)), String(values.length)];
}

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2), {
    ...{ size: '1024', loops: '16', rounds: '3', only: '', load: '', dir: tmpdir(), json: '' },
  });
  for (const tool of ['fio', 'qemu-img']) if (!hasProgram(tool)) throw new Error(`${tool} is needed`);
  const sizeMib = Number(options.size);
  const servers = JOB_SERVERS.filter(
    ({ name, program }) => name.includes(options.only) && hasProgram(program),
  );
  const loads = LOADS.filter(({ name }) => name.includes(options.load));
  const folder = mkdtempSync(path.join(options.dir, 'qb-bench-'));
  const work = mkdtempSync(path.join(folder, 'w'));
  const master = path.join(folder, 'master');
  const results = new Map<string, number[]>();
  try {
    execFileSync('dd', ['if=/dev/urandom', `of=${master}`, 'bs=1M', `count=${sizeMib}`, 'status=none']);
    for (let round = 0; round < Number(options.rounds); round++) {
      for (const load of loads) {
        for (const [index] of servers.entries()) {
          const server = servers[(index + round) % servers.length] as JobServer;
          const note: Note = (verb, ms) => {
            const key = `${load.name}, ${verb}, ${server.name}`;
            results.set(key, [...(results.get(key) ?? []), ms]);
          };
          for (let left = Number(options.loops); left > 0; ) {
            makeImages(load, work, master, sizeMib);
            left -= await controlJobs(server, load, work, left, note);
            cleanFolder(work);
          }
          process.stderr.write(`round ${round + 1}, ${load.name}, ${server.name}\n`);
        }
      }
    }
    const header = servers.flatMap(({ name }) => [`${name}: median`, 'p99', 'max', 'samples']);
    const rows = loads.flatMap((load) =>
      VERBS.map((verb) => [
        `${load.name}: ${verb}`,
        ...servers.flatMap((server) => summary(results.get(`${load.name}, ${verb}, ${server.name}`))),
      ]),
    );
    process.stdout.write(`${markdownTable(['milliseconds', ...header], rows)}\n\n`);
    process.stdout.write(jobsFooter(sizeMib, folder, options.rounds));
    if (options.json !== '') writeFileSync(options.json, JSON.stringify([...results], null, 1));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

main().catch((error: Error) => {
  process.stderr.write(`bench: ${error.message}\n`);
  process.exitCode = 1;
});
