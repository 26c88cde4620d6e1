/**
 * `npm run bench:formats`: image formats over NBD, qblockd beside qemu-storage-daemon, with fio's nbd engine.
 *
 * For each format an image full of data and an empty one, made by qemu-img; every measurement starts a server of its
 * own, since writes change what they are measured on, and a run of the same kind before it that does not count: servers
 * run for long. Medians of interleaved rounds; CPU a request is the figure that counts. Then `convert` of the full image to raw and back, by both tools, and the opening of a large image.
 *
 * Options: --runtime SECONDS (1), --rounds N (3), --format NAME[,NAME...], --load PART of a load's name, --size MIB (256)
 * of data, --dir FOLDER for the images.
 */

import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import path from 'node:path';
import { FiguresTable } from './figures.ts';
import { fileSystemOf, type Load, load, qblockd, runFio, SERVER_CPU, syncFile, thousands } from './fio.ts';
import { type Argv, hasProgram, median, parseOptions, pinned, sleep, startUntil } from './measure.ts';

/** Formats, with what qemu-img needs to make them. Read only: the original cannot write them. */
const FORMATS: Readonly<Record<string, { readonly options?: string; readonly readOnly?: boolean }>> = {
  raw: {},
  qcow2: {},
  vmdk: {},
  vdi: {},
  vhdx: {},
  vpc: { options: 'force_size=on' },
  qed: {},
  qcow: {},
  parallels: {},
};

const LARGE = '2T';
const WARM_UP_SECONDS = 1;
const EMPTY_MIB = 16 * 1024;

const LOADS: readonly (Load & { readonly empty: boolean })[] = [
  { ...load('randread', '4k', 16), empty: false },
  { ...load('read', '256k', 8), empty: false },
  { ...load('randwrite', '4k', 16), empty: false },
  { ...load('write', '64k', 16), name: '64k write, allocating', empty: true },
];

const QEMU = 'qemu-storage-daemon';
const SERVERS = [
  { name: 'qblockd', program: qblockd, aio: '' },
  { name: 'qemu io_uring', program: QEMU, aio: ',aio=io_uring' },
] as const;
type Server = (typeof SERVERS)[number];

const TOOLS = { qblockd: path.join(path.dirname(qblockd), 'qblock-img'), qemu: 'qemu-img' } as const;

function run(program: string, ...args: readonly string[]): void {
  const result = spawnSync(program, args, { encoding: 'utf8' });
  if (result.status !== 0) throw new Error(`${program} ${args.join(' ')}: ${result.stderr}`);
}

function milliseconds(program: string, ...args: readonly string[]): number {
  const start = performance.now();
  run(program, ...args);
  return performance.now() - start;
}

function serverArgv({ program, aio }: Server, format: string, image: string, socket: string): Argv {
  return [
    program,
    ...['--blockdev', `file,node-name=file,filename=${image}${aio}`],
    ...['--blockdev', `${format},node-name=disk,file=file`],
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
    ...['--export', 'nbd,id=disk,node-name=disk,name=,writable=on'],
  ];
}

function create(format: string, file: string, size: string): void {
  const { options } = FORMATS[format]!;
  run(
    'qemu-img',
    'create',
    '-q',
    '-f',
    format,
    ...(options === undefined ? [] : ['-o', options]),
    file,
    size,
  );
}

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2), {
    runtime: '1',
    rounds: '3',
    format: Object.keys(FORMATS).join(','),
    load: '',
    size: '256',
    dir: tmpdir(),
  });
  for (const tool of ['fio', 'taskset', 'qemu-img', QEMU])
    if (!hasProgram(tool)) throw new Error(`${tool} is needed`);
  const rounds = Number(options.rounds);
  const runtimeSeconds = Number(options.runtime);
  const sizeMib = Number(options.size);
  if (!(rounds >= 1 && runtimeSeconds >= 1 && sizeMib >= 1)) throw new Error('numbers must be at least 1');
  process.on('SIGINT', () => undefined);
  const folder = mkdtempSync(path.join(options.dir, 'qb-bench-'));
  const table = new FiguresTable();
  const lines: string[] = [];
  try {
    const raw = path.join(folder, 'data.raw');
    run('sh', '-c', `head -c ${sizeMib}M /dev/urandom > ${raw}`);
    for (const format of options.format.split(',')) {
      if (FORMATS[format] === undefined) throw new Error(`no format ${format}`);
      await measureFormat(
        format,
        { folder, raw, rounds, runtimeSeconds, sizeMib, part: options.load },
        table,
      );
      lines.push(convertTimes(format, folder, raw, rounds));
    }
    process.stdout.write(`${table.format('qblockd', [])}\n${lines.join('\n')}\n`);
    process.stdout.write(
      `${new Date().toISOString().slice(0, 10)}, ${cpus()[0]?.model.trim() ?? 'unknown CPU'}, server and client on one ` +
        `CPU each; ${sizeMib} MiB of data on ${fileSystemOf(folder)} in the page cache, UNIX socket; ` +
        `${rounds} rounds of ${runtimeSeconds} s after ${WARM_UP_SECONDS} s that does not count, interleaved.\n`,
    );
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

interface Setting {
  readonly folder: string;
  readonly raw: string;
  readonly rounds: number;
  readonly runtimeSeconds: number;
  readonly sizeMib: number;
  readonly part: string;
}

async function measureFormat(format: string, setting: Setting, table: FiguresTable): Promise<void> {
  const { folder, raw, rounds, sizeMib, part } = setting;
  const full = path.join(folder, `full.${format}`);
  const own = path.join(folder, `own.${format}`);
  const { options, readOnly } = FORMATS[format]!;
  run(
    'qemu-img',
    'convert',
    '-f',
    'raw',
    '-O',
    format,
    ...(options === undefined ? [] : ['-o', options]),
    raw,
    full,
  );
  for (let round = 0; round < rounds; round++) {
    for (const each of LOADS.filter(({ name }) => name.includes(part))) {
      const writes = each.rw.includes('write');
      if (writes && readOnly === true) continue;
      for (const server of round % 2 === 0 ? SERVERS : SERVERS.toReversed()) {
        rmSync(own, { force: true });
        if (each.empty) create(format, own, `${EMPTY_MIB}M`);
        else if (writes) copyFileSync(full, own);
        const image = each.empty || writes ? own : full;
        syncFile(image);
        const socket = path.join(folder, 'socket');
        const argv = pinned(SERVER_CPU, serverArgv(server, format, image, socket));
        const { child, stop } = await startUntil(argv, socket);
        try {
          await sleep(300);
          // What allocates begins where nothing is: the first half is for the run that does not count.
          const span = each.empty ? EMPTY_MIB / 2 : sizeMib;
          runFio(socket, child.pid!, each, WARM_UP_SECONDS, span);
          const extra = each.empty ? [`--offset=${span}m`] : [];
          const figures = runFio(socket, child.pid!, each, setting.runtimeSeconds, span, { extra });
          table.add(`${format}: ${each.name}`, server.name, figures);
          process.stderr.write(
            `${format}: ${each.name}, ${server.name}: ${thousands(figures.requestsPerSecond)}, ` +
              `${(figures.userUs + figures.kernelUs).toFixed(1)} us\n`,
          );
        } finally {
          await stop();
          rmSync(socket, { force: true });
        }
      }
    }
  }
  rmSync(own, { force: true });
}

/** Conversion from and to raw by both tools, and what `info` of a large image takes. */
function convertTimes(format: string, folder: string, raw: string, rounds: number): string {
  const full = path.join(folder, `full.${format}`);
  const out = path.join(folder, 'out');
  const large = path.join(folder, 'large');
  const times = {
    from: { qblockd: [], qemu: [] },
    to: { qblockd: [], qemu: [] },
    open: { qblockd: [], qemu: [] },
  } as {
    readonly [what in 'from' | 'to' | 'open']: { readonly [tool in keyof typeof TOOLS]: number[] };
  };
  let hasLarge = true;
  try {
    create(format, large, format === 'vpc' ? '2040G' : LARGE);
  } catch {
    hasLarge = false;
  }
  for (let round = 0; round < rounds; round++) {
    for (const tool of ['qblockd', 'qemu'] as const) {
      const program = TOOLS[tool];
      rmSync(out, { force: true });
      times.from[tool].push(milliseconds(program, 'convert', '-f', format, '-O', 'raw', full, out));
      rmSync(out, { force: true });
      times.to[tool].push(milliseconds(program, 'convert', '-f', 'raw', '-O', format, raw, out));
      if (hasLarge) times.open[tool].push(milliseconds(program, 'info', '-f', format, large));
    }
  }
  for (const file of [out, large, full]) rmSync(file, { force: true });
  const pair = (what: keyof typeof times): string => {
    const [ours, theirs] = [median(times[what].qblockd), median(times[what].qemu)];
    return `${ours.toFixed(0)} ms, qemu-img ${theirs.toFixed(0)} ms (${(theirs / ours).toFixed(2)}x)`;
  };
  const opening = hasLarge ? `; info of a ${LARGE} image ${pair('open')}` : '';
  return `${format}: convert to raw ${pair('from')}; from raw ${pair('to')}${opening}`;
}

main().catch((error: Error) => {
  process.stderr.write(`bench: ${error.message}\n`);
  process.exitCode = 1;
});
