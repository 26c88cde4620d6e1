/**
 * `npm run bench:jobs`: block jobs side by side. Mirror, backup, stream and commit between raw and qcow2 images in the
 * page cache, by qblockd and qemu-storage-daemon (aio=io_uring) in turn; MiB a second from the command to the job's
 * end (or its being ready). Then how a mirror disturbs a guest: the 99th percentile of 4 KiB reads at depth 1 with
 * and without one.
 *
 * Each measurement has a daemon and images of its own, made anew; the order of the servers rotates. A small job of the same
 * kind comes first and does not count. Everything is synced before the job begins, and as much memory as it fills has just been in use,
 * so that nobody pays for the pages of the one before, or for those that the host of a virtual machine has taken back.
 *
 * All jobs but backups flush their target in the end, in both servers, so that the disk has a part in the time; in the CPU
 * time it has none.
 *
 * Options: --realtime (for the percentiles server and client go before whatever else the machine does; takes
 * privileges), --size MIB of data (1024), --rounds N (3), --only PART of a server's name, --load PART of a job's name (or p99),
 * --dir FOLDER for the images, --json FILE for every result.
 */

import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { CLIENT_CPU, ratio } from './fio.ts';
import {
  COMMIT_LOAD,
  cleanFolder,
  closeImages,
  copyLoad,
  type Format,
  JOB_SERVERS,
  type JobLoad,
  type JobServer,
  jobsFooter,
  makeImages,
  openImages,
  type RunningJobServer,
  STREAM_LOAD,
  startJobServer,
} from './job-loads.ts';
import {
  type CpuTime,
  cpuOf,
  hasProgram,
  markdownTable,
  median,
  parseOptions,
  pinned,
  prefer,
  touchMemory,
} from './measure.ts';
import type { BenchQmp } from './qmp.ts';

interface TimedLoad extends JobLoad {
  readonly end: 'BLOCK_JOB_READY' | 'BLOCK_JOB_COMPLETED';
}

function timedCopy(kind: 'mirror' | 'backup', from: Format, to: Format): TimedLoad {
  return {
    ...copyLoad(kind, from, to),
    name: `${kind}, ${from} to ${to}`,
    end: kind === 'mirror' ? 'BLOCK_JOB_READY' : 'BLOCK_JOB_COMPLETED',
  };
}

const LOADS: readonly TimedLoad[] = [
  timedCopy('mirror', 'raw', 'qcow2'),
  timedCopy('mirror', 'qcow2', 'raw'),
  timedCopy('backup', 'raw', 'qcow2'),
  timedCopy('backup', 'qcow2', 'raw'),
  { ...STREAM_LOAD, name: 'stream, raw to qcow2', end: 'BLOCK_JOB_COMPLETED' },
  { ...COMMIT_LOAD, name: 'commit, qcow2 to raw', end: 'BLOCK_JOB_COMPLETED' },
];

/** Data of the job that comes first, in MiB: enough for a compiler to have seen it all. */
const WARM_UP_MIB = 256;

interface JobTime extends CpuTime {
  readonly seconds: number;
}

/** Runs the job to its end. */
async function runJob({ qmp, pid }: RunningJobServer, load: TimedLoad): Promise<JobTime> {
  const end = qmp.waitFor(({ event }) => event === load.end || event === 'BLOCK_JOB_COMPLETED');
  const before = cpuOf(pid);
  const start = performance.now();
  await qmp.execute(load.command, load.arguments);
  const { event, data } = await end;
  const seconds = (performance.now() - start) / 1000;
  const after = cpuOf(pid);
  if (data.error !== undefined) throw new Error(`${load.name}: ${String(data.error)}`);
  if (event === 'BLOCK_JOB_READY') await endMirror(qmp);
  return {
    seconds,
    userSeconds: after.userSeconds - before.userSeconds,
    kernelSeconds: after.kernelSeconds - before.kernelSeconds,
  };
}

async function endMirror(qmp: BenchQmp): Promise<void> {
  const ended = qmp.waitFor(
    ({ event }) => event === 'BLOCK_JOB_COMPLETED' || event === 'BLOCK_JOB_CANCELLED',
  );
  await qmp.execute('block-job-cancel', { device: 'job', force: true });
  await ended;
}

/** One job in a daemon of its own that has done such a job before. */
async function measure(
  server: JobServer,
  load: TimedLoad,
  folder: string,
  master: string,
  sizeMib: number,
): Promise<JobTime> {
  const warmUpMib = Math.min(WARM_UP_MIB, sizeMib);
  makeImages(load, folder, `${master}.small`, warmUpMib);
  const running = await startJobServer(server, load, folder, false);
  try {
    await runJob(running, load);
    await closeImages(running.qmp, load);
    cleanFolder(folder);
    makeImages(load, folder, master, sizeMib);
    touchMemory(sizeMib * 1.25);
    await openImages(running.qmp, server, load, folder);
    return await runJob(running, load);
  } finally {
    await running.stop();
    cleanFolder(folder);
  }
}

/** Seconds of reads that count, after as many for everything to get warm. */
const LATENCY_SECONDS = 4;

/** 99th percentile, in microseconds, of 4 KiB reads of the source, now and then for a while. */
async function latency(folder: string, isRealtime: boolean): Promise<number> {
  const [program, ...args] = pinned(
    CLIENT_CPU,
    [
      ...([
        'fio',
        '--name=guest',
        '--ioengine=nbd',
        `--uri=nbd+unix:///source?socket=${path.join(folder, 'nbd')}`,
      ] as const),
      ...['--rw=randread', '--bs=4k', '--iodepth=1', '--thinktime=200us', '--time_based'],
      ...[`--ramp_time=${LATENCY_SECONDS}`, `--runtime=${LATENCY_SECONDS}`, '--output-format=json'],
    ],
    isRealtime,
  );
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let text = '';
  child.stdout.setEncoding('utf8').on('data', (part: string) => {
    text += part;
  });
  await new Promise((resolve) => child.once('close', resolve));
  const report = JSON.parse(text.slice(text.search(/^\{/m))) as {
    jobs: { read: { clat_ns: { percentile: Record<string, number> } } }[];
  };
  return (report.jobs[0]?.read.clat_ns.percentile['99.000000'] ?? Number.NaN) / 1000;
}

interface Disturbance {
  readonly alone: number;
  /** During a mirror that is limited to a speed at which it lasts as long as the reads. */
  readonly limited: number;
  /** During mirrors at full speed, one after another. */
  readonly full: number;
}

/** How a mirror disturbs reads of its source: 99th percentiles, microseconds. */
async function disturbance(
  server: JobServer,
  folder: string,
  master: string,
  sizeMib: number,
  isRealtime: boolean,
): Promise<Disturbance> {
  const load = copyLoad('mirror', 'raw', 'qcow2');
  makeImages(load, folder, master, sizeMib);
  const running = await startJobServer(server, load, folder, true);
  const { qmp } = running;
  try {
    await qmp.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'source', name: 'source' });
    if (isRealtime) prefer(running.pid);
    const alone = await latency(folder, isRealtime);
    const speed = Math.floor((sizeMib << 20) / (2 * LATENCY_SECONDS + 1));
    await qmp.execute(load.command, { ...load.arguments, speed });
    const limited = await latency(folder, isRealtime);
    await endMirror(qmp);
    let isOver = false;
    const mirrors = async (): Promise<void> => {
      while (!isOver) {
        const ready = qmp.waitFor(
          ({ event }) => event === 'BLOCK_JOB_READY' || event === 'BLOCK_JOB_COMPLETED',
        );
        await qmp.execute(load.command, load.arguments);
        await ready;
        await endMirror(qmp);
      }
    };
    const ended = mirrors();
    const full = await latency(folder, isRealtime);
    isOver = true;
    await ended;
    return { alone, limited, full };
  } finally {
    await running.stop();
    cleanFolder(folder);
  }
}

async function main(): Promise<void> {
  const argv = process.argv.slice(2);
  const isRealtime = argv.includes('--realtime');
  const options = parseOptions(
    argv.filter((each) => each !== '--realtime'),
    {
      size: '1024',
      rounds: '3',
      only: '',
      load: '',
      dir: tmpdir(),
      json: '',
    },
  );
  for (const tool of ['fio', 'taskset', 'qemu-img'])
    if (!hasProgram(tool)) throw new Error(`${tool} is needed`);
  const sizeMib = Number(options.size);
  const servers = JOB_SERVERS.filter(
    ({ name, program }) => name.includes(options.only) && hasProgram(program),
  );
  const loads = LOADS.filter(({ name }) => name.includes(options.load));
  const folder = mkdtempSync(path.join(options.dir, 'qb-bench-'));
  const work = mkdtempSync(path.join(folder, 'w'));
  const master = path.join(folder, 'master');
  const results = new Map<string, number[]>();
  const note = (key: string, value: number, unit: string): void => {
    results.set(key, [...(results.get(key) ?? []), value]);
    process.stderr.write(`${key}: ${value.toFixed(0)} ${unit}\n`);
  };
  try {
    execFileSync('dd', ['if=/dev/urandom', `of=${master}`, 'bs=1M', `count=${sizeMib}`, 'status=none']);
    execFileSync('dd', [
      `if=${master}`,
      `of=${master}.small`,
      'bs=1M',
      `count=${Math.min(WARM_UP_MIB, sizeMib)}`,
      'status=none',
    ]);
    for (let round = 0; round < Number(options.rounds); round++) {
      const order = servers.map((_, index) => servers[(index + round) % servers.length] as JobServer);
      for (const load of loads) {
        for (const server of order) {
          const { seconds, userSeconds, kernelSeconds } = await measure(server, load, work, master, sizeMib);
          const perGib = 1024 / sizeMib;
          note(`${load.name}, ${server.name}`, sizeMib / seconds, 'MiB/s');
          note(`${load.name}, ${server.name}, user`, userSeconds * 1000 * perGib, 'ms of CPU a GiB');
          note(`${load.name}, ${server.name}, kernel`, kernelSeconds * 1000 * perGib, 'ms of CPU a GiB');
        }
      }
      if (options.load !== '' && options.load !== 'p99') continue;
      for (const server of order) {
        const { alone, limited, full } = await disturbance(server, work, master, sizeMib, isRealtime);
        note(`p99 alone, ${server.name}`, alone, 'us');
        note(`p99 during a mirror with a speed, ${server.name}`, limited, 'us');
        note(`p99 during mirrors at full speed, ${server.name}`, full, 'us');
      }
    }
    const of = (name: string, server: JobServer, part = ''): number =>
      median(results.get(`${name}, ${server.name}${part}`) ?? []);
    const cpuRow = (name: string): string[] => {
      const all = servers.map((each) => [of(name, each, ', user'), of(name, each, ', kernel')] as const);
      const cells = all.map(
        ([user, kernel]) => `${(user + kernel).toFixed(0)} (${user.toFixed(0)} + ${kernel.toFixed(0)})`,
      );
      const [a, b] = all.map(([user, kernel]) => user + kernel);
      return [name, ...cells, ...(a === undefined || b === undefined ? [] : [ratio(b, a)])];
    };
    const [us, them] = servers;
    const row = (name: string, isSpeed: boolean): string[] => {
      const cells = servers.map((server) => of(name, server).toFixed(0));
      if (us === undefined || them === undefined) return [name, ...cells];
      const [a, b] = [of(name, us), of(name, them)];
      return [name, ...cells, isSpeed ? ratio(a, b) : ratio(b, a)];
    };
    const header = (what: string): string[] => [
      what,
      ...servers.map(({ name }) => name),
      ...(servers.length > 1 ? ['better by'] : []),
    ];
    process.stdout.write(
      `${markdownTable(
        header('MiB a second (median)'),
        loads.map(({ name }) => row(name, true)),
      )}\n\n`,
    );
    process.stdout.write(
      `${markdownTable(
        header('server CPU ms a GiB: user + kernel'),
        loads.map(({ name }) => cpuRow(name)),
      )}\n\n`,
    );
    if (options.load === '' || options.load === 'p99') {
      const kinds = ['p99 alone', 'p99 during a mirror with a speed', 'p99 during mirrors at full speed'];
      const rows = kinds.map((name) => row(name, false));
      process.stdout.write(
        `${markdownTable(header('4k reads at depth 1, microseconds (median)'), rows)}\n\n`,
      );
    }
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
