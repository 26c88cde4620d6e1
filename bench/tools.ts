/**
 * `npm run bench:tools`: the image tools side by side. info, create, convert of a raw file to qcow2 and back, compressed
 * with zlib and zstd, every other pair of formats, compare, check (of a huge image too), commit, rebase, dd and bitmap, by
 * qblock-img and qemu-img in turn; milliseconds from start to end, and CPU time
 * of the process with its threads. Half of the data compresses, half does not.
 *
 * Both have all processors. Targets are made anew for each run and synced after it, out of the measured time; the order
 * rotates from round to round, and the tables show medians.
 *
 * Options: --size MIB of data (1024), --rounds N (3), --load PART of a row's name, --dir FOLDER, --json FILE.
 */

import { spawnSync } from 'node:child_process';
import {
  constants,
  copyFileSync,
  existsSync,
  mkdtempSync,
  openSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import path from 'node:path';
import { fileSystemOf, ratio, syncFile } from './fio.ts';
import { type Cost, costOf, hasProgram, markdownTable, median, parseOptions } from './measure.ts';

const TOOLS = [
  { name: 'qblock-img', program: path.resolve(import.meta.dirname, '../../daemon/bin/qblock-img') },
  { name: 'qemu-img', program: 'qemu-img' },
] as const;

interface ToolLoad {
  readonly name: string;
  readonly args: (folder: string) => readonly string[];
  /** Runs of it that are one measurement: short ones are repeated. */
  readonly times: number;
  /** Makes what it changes, before each measurement and out of the measured time. */
  readonly prepare?: (folder: string) => void;
}

const MIB = 1024 * 1024;

function original(program: string, args: readonly string[], input?: string): void {
  const { status, stderr } = spawnSync(program, args, {
    encoding: 'utf8',
    input: input ?? '',
    stdio: ['pipe', 'ignore', 'pipe'],
  });
  if (status !== 0) throw new Error(`${program} ${args.join(' ').slice(0, 100)}: ${stderr}`);
}

/** `over` on a copy of `qcow2`, in which the first MiB of each four is other data. */
function makeOver(folder: string): void {
  const at = (name: string): string => path.join(folder, name);
  copyFileSync(at('qcow2'), at('below'), constants.COPYFILE_FICLONE);
  original('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', at('below'), '-F', 'qcow2', at('over')]);
  const mib = statSync(at('raw')).size / MIB;
  const writes = Array.from({ length: Math.floor(mib / 4) }, (_, index) => [
    '-c',
    `write -q -P 7 ${index * 4}M 1M`,
  ]);
  original('qemu-io', ['-t', 'unsafe', ...writes.flat(), at('over')]);
  for (const name of ['below', 'over']) syncFile(at(name));
}

/** A sparse image of 1 TiB with 100,000 allocated clusters; made once, by our tool, which leaves clusters sparse. */
function makeHuge(folder: string): void {
  const file = path.join(folder, 'huge');
  if (existsSync(file)) return;
  original('qemu-img', ['create', '-q', '-f', 'qcow2', file, '1T']);
  const step = Math.floor(1024 ** 4 / 100_000 / 65536) * 65536;
  const lines = Array.from({ length: 100_000 }, (_, index) => `write -q ${index * step} 512\n`);
  original(TOOLS[0].program.replace('qblock-img', 'qblock-io'), ['-t', 'unsafe', file], lines.join(''));
  syncFile(file);
}

/** Two bitmaps, the second with every 16th of its bits. */
function makeMarked(folder: string): void {
  const file = path.join(folder, 'marked');
  if (existsSync(file)) return;
  original('qemu-img', ['create', '-q', '-f', 'qcow2', file, '10G']);
  for (const name of ['b0', 'b1']) original('qemu-img', ['bitmap', '--add', '-g', '4k', file, name]);
  const writes = Array.from({ length: 1000 }, (_, index) => `write -q -z ${index * 10}M 640k\n`);
  original('qemu-io', ['-t', 'unsafe', file], writes.join(''));
}

const convert = (name: string, from: string, ...options: readonly string[]): ToolLoad => ({
  name,
  args: (folder) => [
    ...['convert', '-f', from === 'raw' ? 'raw' : 'qcow2', ...options],
    ...[path.join(folder, from), path.join(folder, 'target')],
  ],
  times: 1,
});

const LOADS: readonly ToolLoad[] = [
  { name: 'info', args: (folder) => ['info', path.join(folder, 'qcow2')], times: 10 },
  {
    name: 'create qcow2',
    args: (folder) => ['create', '-q', '-f', 'qcow2', path.join(folder, 'target'), '10G'],
    times: 10,
  },
  convert('convert raw to raw', 'raw', '-O', 'raw'),
  convert('convert raw to qcow2', 'raw', '-O', 'qcow2'),
  convert('convert qcow2 to raw', 'qcow2', '-O', 'raw'),
  convert('convert raw to qcow2, zlib', 'raw', '-O', 'qcow2', '-c'),
  convert('convert raw to qcow2, zstd', 'raw', '-O', 'qcow2', '-c', '-o', 'compression_type=zstd'),
  convert('convert qcow2 to qcow2', 'qcow2', '-O', 'qcow2'),
  convert('convert qcow2 to qcow2, zlib', 'qcow2', '-O', 'qcow2', '-c'),
  convert('convert zlib qcow2 to qcow2', 'zlib', '-O', 'qcow2'),
  convert('convert zlib qcow2 to zlib', 'zlib', '-O', 'qcow2', '-c'),
  convert('convert zlib qcow2 to raw', 'zlib', '-O', 'raw'),
  convert('convert zstd qcow2 to raw', 'zstd', '-O', 'raw'),
  {
    name: 'compare raw and qcow2',
    args: (folder) => ['compare', path.join(folder, 'raw'), path.join(folder, 'qcow2')],
    times: 1,
  },
  { name: 'check qcow2', args: (folder) => ['check', path.join(folder, 'qcow2')], times: 3 },
  {
    name: 'check 1 TiB, 100,000 clusters',
    args: (folder) => ['check', path.join(folder, 'huge')],
    times: 1,
    prepare: makeHuge,
  },
  {
    name: 'commit of a quarter',
    args: (folder) => ['commit', '-q', '-d', path.join(folder, 'over')],
    times: 1,
    prepare: makeOver,
  },
  {
    name: 'rebase onto an equal image',
    args: (folder) => ['rebase', '-b', path.join(folder, 'qcow2'), '-F', 'qcow2', path.join(folder, 'over')],
    times: 1,
    prepare: makeOver,
  },
  {
    name: 'rebase onto nothing',
    args: (folder) => ['rebase', '-b', '', path.join(folder, 'over')],
    times: 1,
    prepare: makeOver,
  },
  {
    name: 'dd',
    args: (folder) => [
      ...['dd', '-f', 'raw', '-O', 'raw', 'bs=1M'],
      ...[`if=${path.join(folder, 'raw')}`, `of=${path.join(folder, 'target')}`],
    ],
    times: 1,
  },
  {
    name: 'bitmap merge, 10 GiB',
    args: (folder) => ['bitmap', '--merge', 'b1', path.join(folder, 'marked'), 'b0'],
    times: 3,
    prepare: makeMarked,
  },
];

/** Every other MiB is text-like data that compresses, the rest does not. */
function makeRaw(file: string, sizeMib: number): void {
  const fd = openSync(file, 'w');
  const words = Buffer.from('the quick brown fox jumps over the lazy dog and counts: ');
  const noise = Buffer.alloc(1 << 20);
  let seed = 1;
  for (let i = 0; i < sizeMib; i++) {
    if (i % 2 === 0) {
      for (let at = 0; at < noise.length; at += 4) {
        seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
        noise.writeUInt32LE((seed ^ (seed >>> 15)) >>> 0, at);
      }
      writeSync(fd, noise);
    } else {
      const text = Buffer.alloc(1 << 20, words);
      for (let at = 0; at < text.length; at += 64) text.writeUInt32LE((i * 131 + at * 7) >>> 0, at);
      writeSync(fd, text);
    }
  }
}

/** One measurement: `times` runs of the command, the mean of them. */
function measure(program: string, args: readonly string[], times: number): Cost {
  const costs = Array.from({ length: times }, () => costOf(program, args));
  const mean = (figure: (cost: Cost) => number): number =>
    costs.reduce((sum, cost) => sum + figure(cost), 0) / times;
  return { ms: mean(({ ms }) => ms), cpuMs: mean(({ cpuMs }) => cpuMs) };
}

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2), {
    ...{ size: '1024', rounds: '3', load: '', dir: tmpdir(), json: '' },
  });
  for (const tool of ['/usr/bin/time', 'qemu-img'])
    if (!hasProgram(tool)) throw new Error(`${tool} is needed`);
  const sizeMib = Number(options.size);
  const loads = LOADS.filter(({ name }) => name.includes(options.load));
  const folder = mkdtempSync(path.join(options.dir, 'qb-bench-'));
  const target = path.join(folder, 'target');
  const results = new Map<string, Cost[]>();
  try {
    const raw = path.join(folder, 'raw');
    makeRaw(raw, sizeMib);
    // The images are the original's, so that both read the same.
    for (const [name, ...args] of [
      ['qcow2'],
      ['zlib', '-c'],
      ['zstd', '-c', '-o', 'compression_type=zstd'],
    ] as const) {
      const file = path.join(folder, name);
      const made = spawnSync('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', ...args, raw, file]);
      if (made.status !== 0) throw new Error(`qemu-img: ${made.stderr}`);
      syncFile(file);
    }
    syncFile(raw);
    for (let round = 0; round < Number(options.rounds); round++) {
      for (const load of loads) {
        for (const { name, program } of round % 2 === 0 ? TOOLS : TOOLS.toReversed()) {
          rmSync(target, { force: true });
          load.prepare?.(folder);
          const cost = measure(program, load.args(folder), load.times);
          if (existsSync(target)) syncFile(target);
          const key = `${load.name}, ${name}`;
          results.set(key, [...(results.get(key) ?? []), cost]);
          process.stderr.write(`${key}: ${cost.ms.toFixed(0)} ms, CPU ${cost.cpuMs.toFixed(0)} ms\n`);
        }
      }
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  const rows = loads.map(({ name }) => {
    const of = (tool: string, figure: (cost: Cost) => number): number =>
      median((results.get(`${name}, ${tool}`) ?? []).map(figure));
    const cells = (figure: (cost: Cost) => number): string[] => {
      const [us = Number.NaN, them = Number.NaN] = TOOLS.map((tool) => of(tool.name, figure));
      return [us.toFixed(0), them.toFixed(0), ratio(them, us)];
    };
    return [name, ...cells(({ ms }) => ms), ...cells(({ cpuMs }) => cpuMs)];
  });
  const header = TOOLS.map(({ name }) => `${name}, ms`);
  const cpuHeader = TOOLS.map(({ name }) => `${name}, CPU ms`);
  process.stdout.write(
    `${markdownTable(['median', ...header, 'better by', ...cpuHeader, 'better by'], rows)}\n\n` +
      `${new Date().toISOString().slice(0, 10)}, ${cpus()[0]?.model.trim() ?? 'unknown CPU'}, ${cpus().length} CPUs; ` +
      `${sizeMib} MiB on ${fileSystemOf(options.dir)}; ${options.rounds} rounds, interleaved.\n`,
  );
  if (options.json !== '') writeFileSync(options.json, JSON.stringify([...results], null, 1));
}

main().catch((error: Error) => {
  process.stderr.write(`bench: ${error.message}\n`);
  process.exitCode = 1;
});
