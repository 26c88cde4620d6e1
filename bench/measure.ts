/**
 * What the measurements share: running programs, waiting, medians, tables. Nothing here knows what is measured.
 */

import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';

/** A command line. */
export type Argv = readonly [string, ...string[]];

/** Whether a program can be found on the PATH. */
export function hasProgram(name: string): boolean {
  return spawnSync('sh', ['-c', 'command -v "$0"', name], { stdio: 'ignore' }).status === 0;
}

/**
 * The scheduling that goes before whatever else the machine does, which takes privileges. Round-robin, so that the threads
 * of a server have their turns: with SCHED_FIFO the main thread starves its own workers.
 */
const REALTIME = ['chrt', '--rr'] as const;
const REALTIME_PRIORITY = '2';

/** The same command pinned to one CPU; with `isRealtime` it goes before whatever else the machine does. */
export function pinned(cpu: number, argv: Argv, isRealtime = false): Argv {
  const command: Argv = ['taskset', '-c', String(cpu), ...argv];
  return isRealtime ? [...REALTIME, REALTIME_PRIORITY, ...command] : command;
}

/** Lets all threads of a process go before whatever else the machine does. */
export function prefer(pid: number): void {
  const [program, ...args] = [...REALTIME, '--all-tasks', '--pid', REALTIME_PRIORITY, String(pid)];
  const { status, stderr } = spawnSync(program, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`--realtime: ${stderr.trim()}`);
}

/** A program in the background; its standard error is kept to be shown when it ends too early. */
export interface Background {
  readonly child: ChildProcess;
  /** Ends it and waits until it has gone. */
  stop(): Promise<void>;
}

/** Starts a program and waits until the file (a socket, a pid file) exists; throws when it ends first. */
export async function startUntil(argv: Argv, file: string): Promise<Background> {
  const [program, ...args] = argv;
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  let errors = '';
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    errors = (errors + text).slice(-4096);
  });
  const ended = new Promise<void>((resolve) => {
    child.once('error', (error) => {
      errors += error.message;
      resolve();
    });
    child.once('close', () => resolve());
  });
  for (let waitedMs = 0; !existsSync(file); waitedMs += 5) {
    if (child.exitCode !== null || child.signalCode !== null || waitedMs > 20_000) {
      child.kill('SIGKILL');
      throw new Error(`${argv.join(' ')}: ${errors.trim() || 'did not start'}`);
    }
    await sleep(5);
  }
  return {
    child,
    stop: async () => {
      child.kill('SIGTERM');
      const killer = setTimeout(() => child.kill('SIGKILL'), 5_000);
      await ended;
      clearTimeout(killer);
    },
  };
}

/** Kernel clock ticks a second in /proc: USER_HZ, 100 on every Linux in use. */
const TICKS_PER_SECOND = 100;

export interface CpuTime {
  readonly userSeconds: number;
  readonly kernelSeconds: number;
}

/** CPU time that a process has used so far, all its threads together (proc(5), /proc/PID/stat). */
export function cpuOf(pid: number): CpuTime {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  // The name, in parentheses, may hold anything; utime and stime are fields 14 and 15.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return {
    userSeconds: Number(fields[11]) / TICKS_PER_SECOND,
    kernelSeconds: Number(fields[12]) / TICKS_PER_SECOND,
  };
}

/** What one command cost from its start to its end; CPU time of the process with its threads. */
export interface Cost {
  readonly ms: number;
  readonly cpuMs: number;
}

/** Runs the command to its end; throws when it fails. */
export function costOf(
  program: string,
  args: readonly string[],
  { isRealtime = false }: { readonly isRealtime?: boolean } = {},
): Cost {
  const timed: Argv = ['/usr/bin/time', '-f', '%e %U %S', program, ...args];
  const [command, ...rest] = isRealtime ? ([...REALTIME, REALTIME_PRIORITY, ...timed] as const) : timed;
  const startMs = performance.now();
  const result = spawnSync(command, rest, { encoding: 'utf8' });
  const ms = performance.now() - startMs;
  if (result.status !== 0) throw new Error(`${program} ${args.join(' ')}: ${result.stderr}`);
  const words = result.stderr.trim().split('\n').at(-1)!.split(' ');
  const [, user = Number.NaN, system = Number.NaN] = words.map(Number);
  return { ms, cpuMs: (user + system) * 1000 };
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** The middle value; the mean of the two middle ones; NaN for none. */
export function median(values: readonly number[]): number {
  if (values.length === 0) return Number.NaN;
  const sorted = [...values].sort((a, b) => a - b);
  const upper = sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
  const lower = sorted[Math.floor((sorted.length - 1) / 2)] ?? Number.NaN;
  return (upper + lower) / 2;
}

/** A markdown table; columns but the first are aligned right. */
export function markdownTable(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = header.map((title, column) =>
    Math.max(title.length, ...rows.map((row) => row[column]?.length ?? 0)),
  );
  const line = (cells: readonly string[]): string =>
    `| ${cells.map((cell, column) => (column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0))).join(' | ')} |`;
  const rule = `|${widths.map((width, column) => (column === 0 ? '-'.repeat(width + 2) : `${'-'.repeat(width + 1)}:`)).join('|')}|`;
  return [line(header), rule, ...rows.map(line)].join('\n');
}

/** Values of command line options `--name value` or `--name=value`; throws for a name that is not in `defaults`. */
export function parseOptions<T extends Record<string, string>>(argv: readonly string[], defaults: T): T {
  const options: Record<string, string> = { ...defaults };
  for (let i = 0; i < argv.length; i++) {
    const [flag = '', inline] = (argv[i] ?? '').split(/=(.*)/s);
    const name = flag.replace(/^--/, '');
    if (!flag.startsWith('--') || !(name in defaults)) {
      throw new Error(
        `unknown option '${argv[i]}'; there are: ${Object.keys(defaults)
          .map((each) => `--${each}`)
          .join(' ')}`,
      );
    }
    options[name] = inline ?? argv[++i] ?? '';
  }
  return options as T;
}

/**
 * Takes and gives back as much memory as what is measured fills with pages. In a virtual machine the first touch of memory that
 * the host has taken back costs as much as several copies, and would fall to whoever comes first.
 */
export function touchMemory(mib: number): void {
  execFileSync(process.execPath, ['-e', `Buffer.allocUnsafeSlow(${mib} * 2 ** 20).fill(1)`]);
}
