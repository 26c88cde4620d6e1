/**
 * `npm run bench:jobs`: block jobs side by side. Mirror, backup, stream and commit between raw and qcow2 images in the
 * page cache, by qblockd and qemu-storage-daemon (aio=io_uring) in turn; MiB a second from the command to the job's
 * end (or its being ready). Then how a mirror disturbs a guest: the 99th percentile of 4 KiB reads at depth 1 with
 * and without one.
 *
 * Each measurement has a daemon and images of its own, made anew; the order of the servers rotates. The target is synced
 * before the next one begins, so that nobody pays for the pages of the one before.
 *
 * Options: --size MIB of data (1024), --rounds N (3), --only PART of a server's name, --load PART of a job's name (or p99),
 * --dir FOLDER for the images, --json FILE for every result.
 */

import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import path from 'node:path';
import { CLIENT_CPU, fileSystemOf, qblockd, ratio, SERVER_CPU, syncFile } from './fio.ts';
import { hasProgram, markdownTable, median, parseOptions, pinned, sleep, startUntil } from './measure.ts';
import { BenchQmp } from './qmp.ts';

type Format = 'raw' | 'qcow2';

interface Server {
  readonly name: string;
  readonly program: string;
  readonly aio: string;
}

const SERVERS: readonly Server[] = [
  { name: 'qblockd', program: qblockd, aio: '' },
  { name: 'qemu-storage-daemon io_uring', program: 'qemu-storage-daemon', aio: 'io_uring' },
];

interface JobLoad {
  readonly name: string;
  /** Images that hold data, and empty ones, in the order they are opened: base before overlay. */
  readonly images: readonly {
    readonly name: string;
    readonly format: Format;
    readonly data: boolean;
    readonly backing?: string;
  }[];
  readonly command: string;
  readonly arguments: object;
  readonly end: 'BLOCK_JOB_READY' | 'BLOCK_JOB_COMPLETED';
}

function copyLoad(kind: 'mirror' | 'backup', from: Format, to: Format): JobLoad {
  return {
    name: `${kind}, ${from} to ${to}`,
    images: [
      { name: 'source', format: from, data: true },
      { name: 'target', format: to, data: false },
    ],
    command: `blockdev-${kind}`,
    arguments: { 'job-id': 'job', device: 'source', target: 'target', sync: 'full' },
    end: kind === 'mirror' ? 'BLOCK_JOB_READY' : 'BLOCK_JOB_COMPLETED',
  };
}

const chain = (dataIn: 'base' | 'mid'): JobLoad['images'] => [
  { name: 'base', format: 'raw', data: dataIn === 'base' },
  { name: 'mid', format: 'qcow2', data: dataIn === 'mid', backing: 'base' },
  { name: 'top', format: 'qcow2', data: false, backing: 'mid' },
];

const LOADS: readonly JobLoad[] = [
  copyLoad('mirror', 'raw', 'qcow2'),
  copyLoad('mirror', 'qcow2', 'raw'),
  copyLoad('backup', 'raw', 'qcow2'),
  copyLoad('backup', 'qcow2', 'raw'),
  {
    name: 'stream, raw to qcow2',
    images: chain('base').slice(0, 2),
    command: 'block-stream',
    arguments: { 'job-id': 'job', device: 'mid' },
    end: 'BLOCK_JOB_COMPLETED',
  },
  {
    name: 'commit, qcow2 to raw',
    images: chain('mid'),
    command: 'block-commit',
    arguments: { 'job-id': 'job', device: 'top', 'top-node': 'mid', 'base-node': 'base' },
    end: 'BLOCK_JOB_COMPLETED',
  },
];

/** Makes the images of a load in `folder`; the data come from `master`, a raw file. */
function makeImages(load: JobLoad, folder: string, master: string, sizeMib: number): void {
  for (const { name, format, data, backing } of load.images) {
    const file = path.join(folder, name);
    if (data && backing === undefined) {
      execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', format, master, file]);
    } else {
      const below = load.images.find((image) => image.name === backing);
      const args = below === undefined ? [] : ['-b', path.join(folder, below.name), '-F', below.format];
      execFileSync('qemu-img', ['create', '-q', '-f', format, ...args, file, `${sizeMib}M`]);
      if (data) execFileSync('qemu-img', ['convert', '-n', '-f', 'raw', '-O', format, master, file]);
    }
    syncFile(file);
  }
}

interface RunningServer {
  readonly qmp: BenchQmp;
  stop(): Promise<void>;
}

async function startServer(
  server: Server,
  load: JobLoad,
  folder: string,
  isPinned: boolean,
): Promise<RunningServer> {
  const socket = path.join(folder, 'qmp');
  const argv = [
    server.program,
    ...['--chardev', `socket,id=qmp,path=${socket},server=on,wait=off`, '--monitor', 'chardev=qmp'],
    ...['--nbd-server', `addr.type=unix,addr.path=${path.join(folder, 'nbd')}`],
  ] as const;
  const { stop } = await startUntil(isPinned ? pinned(SERVER_CPU, argv) : argv, socket);
  await sleep(300);
  const qmp = await BenchQmp.connect(socket);
  for (const { name, format, backing } of load.images) {
    await qmp.execute('blockdev-add', {
      driver: format,
      'node-name': name,
      file: {
        driver: 'file',
        filename: path.join(folder, name),
        ...(server.aio !== '' && { aio: server.aio }),
      },
      ...(format === 'qcow2' && { backing: backing ?? null }),
    });
  }
  return {
    qmp,
    stop: async () => {
      qmp.close();
      await stop();
    },
  };
}

/** Runs the job to its end; seconds. */
async function runJob({ qmp }: RunningServer, load: JobLoad): Promise<number> {
  const end = qmp.waitFor(({ event }) => event === load.end || event === 'BLOCK_JOB_COMPLETED');
  const start = performance.now();
  await qmp.execute(load.command, load.arguments);
  const { data } = await end;
  const seconds = (performance.now() - start) / 1000;
  if (data.error !== undefined) throw new Error(`${load.name}: ${String(data.error)}`);
  return seconds;
}

/** Seconds of reads that count, after as many for everything to get warm. */
const LATENCY_SECONDS = 4;

/** 99th percentile, in microseconds, of 4 KiB reads of the source, now and then for a while. */
async function latency(folder: string): Promise<number> {
  const [program, ...args] = pinned(CLIENT_CPU, [
    ...([
      'fio',
      '--name=guest',
      '--ioengine=nbd',
      `--uri=nbd+unix:///source?socket=${path.join(folder, 'nbd')}`,
    ] as const),
    ...['--rw=randread', '--bs=4k', '--iodepth=1', '--thinktime=200us', '--time_based'],
    ...[`--ramp_time=${LATENCY_SECONDS}`, `--runtime=${LATENCY_SECONDS}`, '--output-format=json'],
  ]);
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
  server: Server,
  folder: string,
  master: string,
  sizeMib: number,
): Promise<Disturbance> {
  const load = copyLoad('mirror', 'raw', 'qcow2');
  makeImages(load, folder, master, sizeMib);
  const running = await startServer(server, load, folder, true);
  const { qmp } = running;
  const endMirror = async (): Promise<void> => {
    const ended = qmp.waitFor(
      ({ event }) => event === 'BLOCK_JOB_COMPLETED' || event === 'BLOCK_JOB_CANCELLED',
    );
    await qmp.execute('block-job-cancel', { device: 'job', force: true });
    await ended;
  };
  try {
    await qmp.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'source', name: 'source' });
    const alone = await latency(folder);
    const speed = Math.floor((sizeMib << 20) / (2 * LATENCY_SECONDS + 1));
    await qmp.execute(load.command, { ...load.arguments, speed });
    const limited = await latency(folder);
    await endMirror();
    let isOver = false;
    const mirrors = async (): Promise<void> => {
      while (!isOver) {
        const ready = qmp.waitFor(
          ({ event }) => event === 'BLOCK_JOB_READY' || event === 'BLOCK_JOB_COMPLETED',
        );
        await qmp.execute(load.command, load.arguments);
        await ready;
        await endMirror();
      }
    };
    const ended = mirrors();
    const full = await latency(folder);
    isOver = true;
    await ended;
    return { alone, limited, full };
  } finally {
    await running.stop();
    emptyFolder(folder);
  }
}

function emptyFolder(folder: string): void {
  for (const name of readdirSync(folder)) rmSync(path.join(folder, name), { force: true });
}

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2), {
    size: '1024',
    rounds: '3',
    only: '',
    load: '',
    dir: tmpdir(),
    json: '',
  });
  for (const tool of ['fio', 'taskset', 'qemu-img'])
    if (!hasProgram(tool)) throw new Error(`${tool} is needed`);
  const sizeMib = Number(options.size);
  const servers = SERVERS.filter(({ name, program }) => name.includes(options.only) && hasProgram(program));
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
    for (let round = 0; round < Number(options.rounds); round++) {
      const order = servers.map((_, index) => servers[(index + round) % servers.length] as Server);
      for (const load of loads) {
        for (const server of order) {
          makeImages(load, work, master, sizeMib);
          const running = await startServer(server, load, work, false);
          try {
            note(`${load.name}, ${server.name}`, sizeMib / (await runJob(running, load)), 'MiB/s');
          } finally {
            await running.stop();
          }
          for (const { name } of load.images)
            if (statSync(path.join(work, name)).size > 0) syncFile(path.join(work, name));
          emptyFolder(work);
        }
      }
      if (options.load !== '' && options.load !== 'p99') continue;
      for (const server of order) {
        const { alone, limited, full } = await disturbance(server, work, master, sizeMib);
        note(`p99 alone, ${server.name}`, alone, 'us');
        note(`p99 during a mirror with a speed, ${server.name}`, limited, 'us');
        note(`p99 during mirrors at full speed, ${server.name}`, full, 'us');
      }
    }
    const of = (name: string, server: Server): number => median(results.get(`${name}, ${server.name}`) ?? []);
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
    if (options.load === '' || options.load === 'p99') {
      const kinds = ['p99 alone', 'p99 during a mirror with a speed', 'p99 during mirrors at full speed'];
      const rows = kinds.map((name) => row(name, false));
      process.stdout.write(
        `${markdownTable(header('4k reads at depth 1, microseconds (median)'), rows)}\n\n`,
      );
    }
    process.stdout.write(
      `${new Date().toISOString().slice(0, 10)}, ${cpus()[0]?.model.trim() ?? 'unknown CPU'}, ${cpus().length} CPUs; ` +
        `${sizeMib} MiB of data on ${fileSystemOf(folder)} in the page cache; ${options.rounds} rounds, interleaved.\n`,
    );
    if (options.json !== '') writeFileSync(options.json, JSON.stringify([...results], null, 1));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

main().catch((error: Error) => {
  process.stderr.write(`bench: ${error.message}\n`);
  process.exitCode = 1;
});
