/**
 * `npm run bench:formats`: image formats, qblockd beside qemu-storage-daemon and qblock-img beside qemu-img.
 *
 * Over NBD with fio's engine: for each format an image full of data and an empty one, made by qemu-img; every measurement
 * starts a server of its own, since writes change what they are measured on, and a run of the same kind before it that
 * does not count: servers run for long. Medians of interleaved rounds; CPU a request is the figure that counts, also beside
 * our own qcow2. Then `convert` of the full image to raw and back by both tools, beside their bare start, and the opening
 * of a large image by a running daemon.
 *
 * Options: --runtime SECONDS (1), --rounds N (3), --format NAME[,NAME...], --load PART of a load's name, --size MIB (256)
 * of data over NBD, --convert-size MIB (1024), --parts nbd,convert,open, --realtime (servers, clients and tools go before
 * whatever else the machine does; takes privileges), --dir FOLDER for the images.
 */

import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import path from 'node:path';
import { FiguresTable } from './figures.ts';
import {
  fileSystemOf,
  type Load,
  load,
  qblockd,
  ratio,
  runFio,
  SERVER_CPU,
  syncFile,
  thousands,
  warmUp,
} from './fio.ts';
import {
  type Argv,
  type Cost,
  costOf,
  hasProgram,
  markdownTable,
  median,
  parseOptions,
  pinned,
  prefer,
  sleep,
  startUntil,
  touchMemory,
} from './measure.ts';
import { BenchQmp } from './qmp.ts';

interface Format {
  readonly driver: string;
  /** What qemu-img needs to make it. */
  readonly options?: string;
  /** The original cannot write into it. */
  readonly readOnly?: boolean;
  /** Size of the large image: what the format holds. */
  readonly large?: string;
}

const KEY = ['--object', 'secret,id=key,data=secret'] as const;

const FORMATS: Readonly<Record<string, Format>> = {
  qcow2: { driver: 'qcow2' },
  raw: { driver: 'raw' },
  luks: { driver: 'luks', options: 'key-secret=key,iter-time=10' },
  vmdk: { driver: 'vmdk' },
  'vmdk flat': { driver: 'vmdk', options: 'subformat=monolithicFlat' },
  'vmdk split': { driver: 'vmdk', options: 'subformat=twoGbMaxExtentSparse' },
  'vmdk split flat': { driver: 'vmdk', options: 'subformat=twoGbMaxExtentFlat' },
  'vmdk stream': { driver: 'vmdk', options: 'subformat=streamOptimized', readOnly: true },
  vdi: { driver: 'vdi' },
  'vdi static': { driver: 'vdi', options: 'preallocation=metadata' },
  vhdx: { driver: 'vhdx' },
  'vhdx fixed': { driver: 'vhdx', options: 'subformat=fixed' },
  vpc: { driver: 'vpc', options: 'force_size=on', large: '2040G' },
  'vpc fixed': { driver: 'vpc', options: 'force_size=on,subformat=fixed', large: '2040G' },
  qed: { driver: 'qed' },
  qcow: { driver: 'qcow' },
  parallels: { driver: 'parallels' },
};

const LARGE = '2T';
const EMPTY_MIB = 16 * 1024;
/**
 * Allocating writes go to where nothing is, so much before what counts, and so much that does: behind more than that the
 * kernel lets writers wait, and then the disk is measured.
 */
const ALLOCATING_MIB = { warmUp: 256, measured: 1024 } as const;
const TOUCHED_MIB = 2 * 1024;
/** What writing them takes at most. */
const MAX_SECONDS = 10;
/** A fixed image takes its whole size at once: one that can be made anew for each measurement. */
const EMPTY_FIXED_MIB = 4 * 1024;

const LOADS: readonly (Load & { readonly empty: boolean })[] = [
  { ...load('randread', '4k', 16), empty: false },
  { ...load('read', '256k', 8), empty: false },
  { ...load('randwrite', '4k', 16), name: '4k randwrite in place', empty: false },
  { ...load('write', '64k', 16), name: '64k write, allocating', empty: true },
];

const QEMU = 'qemu-storage-daemon';
const SERVERS = [
  { name: 'qblockd', program: qblockd, aio: '' },
  { name: 'qemu io_uring', program: QEMU, aio: ',aio=io_uring' },
] as const;
type Server = (typeof SERVERS)[number];

const TOOLS = [
  { name: 'qblock-img', program: path.join(path.dirname(qblockd), 'qblock-img') },
  { name: 'qemu-img', program: 'qemu-img' },
] as const;

interface Setting {
  readonly folder: string;
  readonly rounds: number;
  readonly runtimeSeconds: number;
  readonly sizeMib: number;
  readonly part: string;
  readonly isRealtime: boolean;
}

/** What the original says now and then when it measures how many iterations a passphrase takes. */
const TRY_AGAIN = 'Unable to get accurate CPU usage';

function run(program: string, ...args: readonly string[]): void {
  let result = spawnSync(program, args, { encoding: 'utf8' });
  for (let i = 0; i < 20 && result.stderr.includes(TRY_AGAIN); i++)
    result = spawnSync(program, args, { encoding: 'utf8' });
  if (result.status !== 0) throw new Error(`${program} ${args.join(' ')}: ${result.stderr}`);
}

function isFixed({ options }: Format): boolean {
  return /fixed|flat/i.test(options ?? '');
}

function keyOf({ driver }: Format): readonly string[] {
  return driver === 'luks' ? KEY : [];
}

/** Arguments of `create` and `convert` for the format of the target. */
function targetArgs({ driver, options }: Format, letter: '-f' | '-O'): readonly string[] {
  return [letter, driver, ...(options === undefined ? [] : ['-o', options])];
}

/** What names an image to a tool. */
function imageOpts({ driver }: Format, file: string): readonly string[] {
  const secret = driver === 'luks' ? ',key-secret=key' : '';
  return ['--image-opts', `driver=${driver},file.driver=file,file.filename=${file}${secret}`];
}

function serverArgv({ program, aio }: Server, format: Format, image: string, socket: string): Argv {
  const secret = format.driver === 'luks' ? ',key-secret=key' : '';
  return [
    program,
    ...keyOf(format),
    ...['--blockdev', `file,node-name=file,filename=${image}${aio}`],
    ...['--blockdev', `${format.driver},node-name=disk,file=file${secret}`],
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
    ...['--export', 'nbd,id=disk,node-name=disk,name=,writable=on'],
  ];
}

function create(format: Format, file: string, size: string): void {
  run('qemu-img', 'create', '-q', ...keyOf(format), ...targetArgs(format, '-f'), file, size);
}

function convertTo(format: Format, raw: string, file: string): void {
  run('qemu-img', 'convert', ...keyOf(format), '-f', 'raw', ...targetArgs(format, '-O'), raw, file);
}

/** Everything in the folder of an image, which may be several files, is on the disk afterwards. */
function syncFolder(folder: string): void {
  for (const name of readdirSync(folder)) syncFile(path.join(folder, name));
}

/** An empty folder for the files of one image; the image in it is called `disk`. */
function freshFolder(folder: string): string {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder);
  return path.join(folder, 'disk');
}

// ---- over NBD ------------------------------------------------------------------------------------------------

async function measureNbd(name: string, raw: string, setting: Setting, table: FiguresTable): Promise<void> {
  const { folder, rounds, part } = setting;
  const format = FORMATS[name]!;
  const full = path.join(folder, 'full');
  convertTo(format, raw, freshFolder(full));
  for (let round = 0; round < rounds; round++) {
    for (const each of LOADS.filter((one) => one.name.includes(part))) {
      const writes = each.rw.includes('write');
      if (writes && format.readOnly === true) continue;
      for (const server of round % 2 === 0 ? SERVERS : SERVERS.toReversed()) {
        const own = path.join(folder, 'own');
        if (each.empty) create(format, freshFolder(own), `${isFixed(format) ? EMPTY_FIXED_MIB : EMPTY_MIB}M`);
        else if (writes) {
          rmSync(own, { recursive: true, force: true });
          cpSync(full, own, { recursive: true });
        }
        const image = each.empty || writes ? own : full;
        syncFolder(image);
        if (each.empty) touchMemory(TOUCHED_MIB);
        const figures = await measureServer(server, format, path.join(image, 'disk'), each, setting);
        table.add(`${name}: ${each.name}`, server.name, figures);
        process.stderr.write(
          `${name}: ${each.name}, ${server.name}: ${thousands(figures.requestsPerSecond)}, ` +
            `${(figures.userUs + figures.kernelUs).toFixed(1)} us\n`,
        );
        rmSync(own, { recursive: true, force: true });
      }
    }
  }
  rmSync(full, { recursive: true, force: true });
}

async function measureServer(
  server: Server,
  format: Format,
  image: string,
  each: (typeof LOADS)[number],
  { folder, sizeMib, runtimeSeconds, isRealtime }: Setting,
): Promise<ReturnType<typeof runFio>> {
  const socket = path.join(folder, 'socket');
  const { child, stop } = await startUntil(
    pinned(SERVER_CPU, serverArgv(server, format, image, socket)),
    socket,
  );
  try {
    await sleep(300);
    if (isRealtime) prefer(child.pid!);
    const toEnd = '--time_based=0';
    const { warmUp: before, measured } = ALLOCATING_MIB;
    if (each.empty) runFio(socket, child.pid!, each, 1, before, { extra: [toEnd], isRealtime });
    else warmUp(socket, each, sizeMib, { isRealtime });
    if (each.rw.includes('write')) syncFolder(path.dirname(image));
    if (!each.empty) return runFio(socket, child.pid!, each, runtimeSeconds, sizeMib, { isRealtime });
    const extra = [toEnd, `--offset=${before}m`];
    return runFio(socket, child.pid!, each, MAX_SECONDS, measured, { extra, isRealtime });
  } finally {
    await stop();
    rmSync(socket, { force: true });
  }
}

/** CPU a request of each format beside our own qcow2's. */
function besideQcow2(table: FiguresTable, names: readonly string[]): string {
  const cpu = (name: string, each: Load): number =>
    table.median(`${name}: ${each.name}`, 'qblockd', ({ userUs, kernelUs }) => userUs + kernelUs);
  const rows = names.map((name) => [
    name,
    ...LOADS.map((each) => ratio(cpu(name, each), cpu('qcow2', each))),
  ]);
  return markdownTable(['CPU a request, times qcow2', ...LOADS.map(({ name }) => name)], rows);
}

// ---- conversion ----------------------------------------------------------------------------------------------

/** Conversion from and to raw by both tools, and their bare start; a row of the table for each way. */
function measureConvert(name: string, raw: string, setting: Setting): string[][] {
  const { folder, rounds, isRealtime } = setting;
  const format = FORMATS[name]!;
  const full = path.join(folder, 'full');
  const out = path.join(folder, 'own');
  const source = freshFolder(full);
  convertTo(format, raw, source);
  syncFolder(full);
  const target = path.join(out, 'disk');
  const ways: Readonly<Record<string, readonly string[]>> = {
    'start alone': ['--version'],
    'to raw': ['convert', ...keyOf(format), ...imageOpts(format, source), '-O', 'raw', target],
    'from raw': ['convert', ...keyOf(format), '-f', 'raw', ...targetArgs(format, '-O'), raw, target],
  };
  const costs = new Map<string, Cost[]>();
  for (let round = 0; round < rounds; round++) {
    for (const [way, args] of Object.entries(ways)) {
      for (const { name: tool, program } of round % 2 === 0 ? TOOLS : TOOLS.toReversed()) {
        freshFolder(out);
        touchMemory(TOUCHED_MIB);
        const key = `${way} ${tool}`;
        costs.set(key, [...(costs.get(key) ?? []), costOf(program, args, { isRealtime })]);
        // What is on its way to the disk would be paid by the next.
        syncFolder(out);
      }
    }
  }
  for (const each of [full, out]) rmSync(each, { recursive: true, force: true });
  return Object.keys(ways).map((way) => {
    // Whatever else happens only makes it longer: the least is what it takes.
    const pair = (figure: (cost: Cost) => number): string[] => {
      const of = (tool: string): number[] => (costs.get(`${way} ${tool}`) ?? []).map(figure);
      const cell = (all: number[]): string => `${Math.min(...all).toFixed(0)} (${median(all).toFixed(0)})`;
      const [ours, theirs] = [of('qblock-img'), of('qemu-img')];
      return [cell(ours), cell(theirs), ratio(Math.min(...theirs), Math.min(...ours))];
    };
    return [`${name}: ${way}`, ...pair(({ ms }) => ms), ...pair(({ cpuMs }) => cpuMs)];
  });
}

// ---- opening -------------------------------------------------------------------------------------------------

/** Opens a time do not count: code that has never run is read and compiled. */
const OPENS = 20;

/** Milliseconds from blockdev-add of a large image to its reply, in running daemons: the first, and the median of more. */
async function measureOpen(name: string, { folder }: Setting): Promise<string[] | null> {
  const format = FORMATS[name]!;
  const image = path.join(folder, 'own');
  const filename = freshFolder(image);
  if (isFixed(format)) return null;
  try {
    create(format, filename, format.large ?? LARGE);
  } catch {
    // The format cannot hold so much.
    return null;
  }
  const row = [`${name}, ${format.large ?? LARGE}`];
  for (const { program } of SERVERS) {
    const socket = path.join(folder, 'qmp');
    const argv = pinned(SERVER_CPU, [
      ...([program, ...keyOf(format)] as const),
      ...['--chardev', `socket,id=qmp,path=${socket},server=on,wait=off`, '--monitor', 'chardev=qmp'],
    ]);
    const { stop } = await startUntil(argv, socket);
    try {
      await sleep(300);
      const qmp = await BenchQmp.connect(socket);
      const secret = format.driver === 'luks' ? { 'key-secret': 'key' } : {};
      const file = { driver: 'file', filename };
      const node = { driver: format.driver, 'node-name': 'disk', file, ...secret };
      const times: number[] = [];
      for (let i = 0; i <= OPENS; i++) {
        const startMs = performance.now();
        await qmp.execute('blockdev-add', node);
        times.push(performance.now() - startMs);
        await qmp.execute('blockdev-del', { 'node-name': 'disk' });
      }
      qmp.close();
      row.push(times[0]!.toFixed(2), median(times.slice(1)).toFixed(2));
    } finally {
      await stop();
      rmSync(socket, { force: true });
    }
  }
  rmSync(image, { recursive: true, force: true });
  return row;
}

// ---- all of it -----------------------------------------------------------------------------------------------

function makeRaw(file: string, sizeMib: number): string {
  run('sh', '-c', `head -c ${sizeMib}M /dev/urandom > ${file}`);
  syncFile(file);
  return file;
}

async function main(): Promise<void> {
  const argv = process.argv.slice(2);
  const isRealtime = argv.includes('--realtime');
  const options = parseOptions(
    argv.filter((each) => each !== '--realtime'),
    {
      ...{ runtime: '1', rounds: '3', format: Object.keys(FORMATS).join(','), load: '', size: '256' },
      ...{ 'convert-size': '1024', parts: 'nbd,convert,open', dir: tmpdir() },
    },
  );
  for (const tool of ['fio', 'taskset', 'qemu-img', QEMU, '/usr/bin/time'])
    if (!hasProgram(tool)) throw new Error(`${tool} is needed`);
  const numbers = [options.rounds, options.runtime, options.size, options['convert-size']].map(Number);
  const [rounds = 0, runtimeSeconds = 0, sizeMib = 0, convertMib = 0] = numbers;
  if (!numbers.every((each) => each >= 1)) throw new Error('numbers must be at least 1');
  const names = options.format.split(',');
  const unknown = names.find((name) => FORMATS[name] === undefined);
  if (unknown !== undefined) throw new Error(`no format ${unknown}`);
  process.on('SIGINT', () => undefined);
  const folder = mkdtempSync(path.join(options.dir, 'qb-bench-'));
  const setting = { folder, rounds, runtimeSeconds, sizeMib, part: options.load, isRealtime };
  try {
    const data = path.join(folder, 'data.raw');
    if (options.parts.includes('nbd')) {
      const table = new FiguresTable();
      const raw = makeRaw(data, sizeMib);
      for (const name of names) await measureNbd(name, raw, setting, table);
      process.stdout.write(`${table.format('qblockd', [])}\n`);
      if (names.includes('qcow2')) process.stdout.write(`${besideQcow2(table, names)}\n\n`);
    }
    if (options.parts.includes('convert')) {
      const raw = makeRaw(data, convertMib);
      const rows = names.flatMap((name) => measureConvert(name, raw, setting));
      const header = TOOLS.map(({ name }) => `${name}, ms`);
      const cpuHeader = TOOLS.map(({ name }) => `${name}, CPU ms`);
      const titles = [
        `convert of ${convertMib} MiB: least (median)`,
        ...header,
        'better by',
        ...cpuHeader,
        'better by',
      ];
      process.stdout.write(`${markdownTable(titles, rows)}\n\n`);
    }
    if (options.parts.includes('open')) {
      const rows: string[][] = [];
      for (const name of names)
        rows.push(...[await measureOpen(name, setting)].filter((row) => row !== null));
      const header = SERVERS.flatMap(({ name }) => [`${name}, first`, `${name}, median`]);
      process.stdout.write(`${markdownTable(['blockdev-add, ms', ...header], rows)}\n\n`);
    }
    process.stdout.write(
      `${new Date().toISOString().slice(0, 10)}, ${cpus()[0]?.model.trim() ?? 'unknown CPU'}, server and client on one ` +
        `CPU each; ${sizeMib} MiB of data on ${fileSystemOf(folder)} in the page cache, UNIX socket; ` +
        `${rounds} rounds of ${runtimeSeconds} s after one that does not count, interleaved.\n`,
    );
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

main().catch((error: Error) => {
  process.stderr.write(`bench: ${error.message}\n`);
  process.exitCode = 1;
});
