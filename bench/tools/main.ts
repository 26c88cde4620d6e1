/**
 * `npm run bench:tools`: the image tools side by side. info, create, convert of a raw file to qcow2 and back, compressed
 * with zlib and zstd, every other pair of formats, compare, check (of a huge image too), commit, rebase, dd and bitmap, by
 * qblock-img and qemu-img in turn; milliseconds from start to end, and CPU time of the process with its threads. Half of
 * the data compresses, half does not. The first row is what a tool costs before it does anything; the last table tells what
 * remains without it. Where there is a C compiler, "C alone" is the kernel's part of the same work (floor.c).
 *
 * Targets are made anew for each run and synced after it, out of the measured time; the order rotates from round to round.
 * Medians, and the least: what the host takes from a virtual machine, and memory that it has to give first, only add.
 *
 * Options: --size MIB of data (1024), --rounds N (5), --load PART of a row's name, --dir FOLDER, --json FILE, --realtime
 * (each run goes before whatever else the machine does, on one CPU; takes privileges).
 */

import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import path from 'node:path';
import { fileSystemOf, ratio, syncFile } from '../fio.ts';
import { type Argv, hasProgram, markdownTable, median, parseOptions, pinned } from '../measure.ts';
import { BIN, LOADS, makeSources, START, type ToolLoad } from './loads.ts';

const OURS = 'qblock-img';
const THEIRS = 'qemu-img';
const FLOOR = 'C alone';
const CLIENT_CPU = 1;

interface Cost {
  readonly ms: number;
  readonly cpuMs: number;
}

/** Certificates of a proxy, if the environment has any, are read at every start of node. */
const { NODE_OPTIONS: _options, NODE_EXTRA_CA_CERTS: _certificates, ...ENV } = process.env;

/** One run. bash tells CPU time to the millisecond, of the program alone. */
function measure(argv: readonly string[], isRealtime: boolean): Cost {
  const timed: Argv = ['bash', '-c', 'TIMEFORMAT="%R %U %S"; time "$@" >/dev/null', 'bash', ...argv];
  const [program, ...args] = isRealtime ? pinned(CLIENT_CPU, timed, true) : timed;
  const { status, stderr } = spawnSync(program, args, { encoding: 'utf8', env: { ...ENV, LC_ALL: 'C' } });
  if (status !== 0) throw new Error(`${argv.join(' ')}: ${stderr}`);
  const [real, user, system] = stderr.trim().split('\n').at(-1)!.split(' ').map(Number);
  return { ms: real! * 1000, cpuMs: (user! + system!) * 1000 };
}

/** Compiles floor.c; null: there is no compiler. */
function compileFloor(file: string): string | null {
  if (!hasProgram('cc')) return null;
  const source = path.resolve(import.meta.dirname, '../../../bench/tools/floor.c');
  const { status, stderr } = spawnSync('cc', ['-O2', '-o', file, source], { encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
  return file;
}

type Results = Map<string, Cost[]>;

interface Bench {
  readonly at: (name: string) => string;
  readonly floor: string | null;
  readonly isRealtime: boolean;
  readonly results: Results;
}

function runLoad({ at, floor, isRealtime, results }: Bench, load: ToolLoad, round: number): void {
  const lines: (readonly [name: string, argv: readonly string[]])[] = [
    [OURS, [path.join(BIN, OURS), ...load.args(at)]],
    [THEIRS, [THEIRS, ...load.args(at)]],
  ];
  if (floor !== null && load.floor !== undefined) {
    const [mode, ...files] = load.floor;
    lines.push([FLOOR, [floor, mode, ...files.map(at)]]);
  }
  for (const [name, argv] of round % 2 === 0 ? lines : lines.toReversed()) {
    const costs: Cost[] = [];
    for (let i = 0; i < load.times; i++) {
      rmSync(at('target'), { force: true });
      load.prepare?.(at);
      costs.push(measure(argv, isRealtime));
      if (existsSync(at('target'))) syncFile(at('target'));
    }
    const mean = (figure: (cost: Cost) => number): number =>
      costs.reduce((sum, cost) => sum + figure(cost), 0) / costs.length;
    const cost = { ms: mean(({ ms }) => ms), cpuMs: mean(({ cpuMs }) => cpuMs) };
    const key = `${load.name}, ${name}`;
    results.set(key, [...(results.get(key) ?? []), cost]);
    process.stderr.write(`${key}: ${cost.ms.toFixed(0)} ms, CPU ${cost.cpuMs.toFixed(0)} ms\n`);
  }
}

const least = (values: readonly number[]): number => Math.min(...values);

function tableOf(results: Results, loads: readonly ToolLoad[]): string {
  type Figure = (cost: Cost) => number;
  const cpu: Figure = ({ cpuMs }) => cpuMs;
  const figures = (row: string, tool: string, figure: Figure): number[] =>
    (results.get(`${row}, ${tool}`) ?? []).map(figure);
  const pair = (row: string, figure: Figure, of: (values: readonly number[]) => number): string[] => {
    const [us, them] = [of(figures(row, OURS, figure)), of(figures(row, THEIRS, figure))];
    return [us.toFixed(0), them.toFixed(0), ratio(them, us)];
  };
  const floorOf = (row: string): string => {
    const values = figures(row, FLOOR, cpu);
    return values.length === 0 ? '' : least(values).toFixed(0);
  };
  const withoutStart = (row: string): string => {
    const beyond = (tool: string): number =>
      least(figures(row, tool, cpu)) - least(figures(START, tool, cpu));
    return row === START || !results.has(`${START}, ${OURS}`) ? '' : ratio(beyond(THEIRS), beyond(OURS));
  };
  const rows = loads.map(({ name }) => [
    name,
    ...pair(name, ({ ms }) => ms, median),
    ...pair(name, cpu, median),
    ...pair(name, cpu, least),
    floorOf(name),
    withoutStart(name),
  ]);
  const both = (what: string): string[] => [`${OURS}, ${what}`, THEIRS, 'better by'];
  const header = ['', ...both('ms'), ...both('CPU ms'), ...both('least CPU ms'), FLOOR, 'without the start'];
  return markdownTable(header, rows);
}

async function main(): Promise<void> {
  const argv = process.argv.slice(2);
  const isRealtime = argv.includes('--realtime');
  const options = parseOptions(
    argv.filter((each) => each !== '--realtime'),
    { size: '1024', rounds: '5', load: '', dir: tmpdir(), json: '' },
  );
  for (const tool of ['bash', THEIRS]) if (!hasProgram(tool)) throw new Error(`${tool} is needed`);
  const sizeMib = Number(options.size);
  const loads = LOADS.filter(({ name }) => name === START || name.includes(options.load));
  const folder = mkdtempSync(path.join(options.dir, 'qb-bench-'));
  const at = (name: string): string => path.join(folder, name);
  const results: Results = new Map();
  try {
    makeSources(at, sizeMib);
    const bench: Bench = { at, floor: compileFloor(at('floor')), isRealtime, results };
    for (let round = 0; round < Number(options.rounds); round++)
      for (const load of loads) runLoad(bench, load, round);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  process.stdout.write(
    `${tableOf(results, loads)}\n\n` +
      `${new Date().toISOString().slice(0, 10)}, ${cpus()[0]?.model.trim() ?? 'unknown CPU'}, ${cpus().length} CPUs; ` +
      `${sizeMib} MiB on ${fileSystemOf(options.dir)}; ${options.rounds} rounds, interleaved${isRealtime ? ', real-time' : ''}.\n`,
  );
  if (options.json !== '') writeFileSync(options.json, JSON.stringify([...results], null, 1));
}

main().catch((error: Error) => {
  process.stderr.write(`bench: ${error.message}\n`);
  process.exitCode = 1;
});
