/**
 * What the benchmarks of NBD servers share: loads, running fio against a socket, printing figures.
 * The server is pinned to one CPU, the client to another.
 */

import { spawnSync } from 'node:child_process';
import { closeSync, fsyncSync, openSync } from 'node:fs';
import path from 'node:path';
import { pinned } from './measure.ts';

export interface Load {
  readonly name: string;
  readonly rw: 'randread' | 'randwrite' | 'read' | 'write';
  readonly blockSize: string;
  readonly depth: number;
}

export function load(rw: Load['rw'], blockSize: string, depth: number): Load {
  return { name: `${blockSize} ${rw}, depth ${depth}`, rw, blockSize, depth };
}

export const SERVER_CPU = 0;
export const CLIENT_CPU = 1;

/** The launcher under test. */
export const qblockd = path.resolve(import.meta.dirname, '../../daemon/bin/qblockd');

/** Everything written to the file is on the disk afterwards. */
export function syncFile(file: string): void {
  const fd = openSync(file, 'r');
  fsyncSync(fd);
  closeSync(fd);
}

/** Runs fio against the socket and returns requests a second. */
export function runFio(
  socket: string,
  { rw, blockSize, depth }: Load,
  runtimeSeconds: number,
  sizeMib: number,
  extra: readonly string[] = [],
): number {
  const argv = pinned(CLIENT_CPU, [
    ...(['fio', '--name=bench', '--ioengine=nbd', `--uri=nbd+unix:///?socket=${socket}`] as const),
    ...[`--rw=${rw}`, `--bs=${blockSize}`, `--iodepth=${depth}`, `--size=${sizeMib}m`],
    ...[`--runtime=${runtimeSeconds}`, '--time_based', '--randseed=1', '--output-format=json'],
    ...extra,
  ]);
  const [program, ...args] = argv;
  const result = spawnSync(program, args, { encoding: 'utf8', maxBuffer: 64 << 20 });
  // fio puts warnings before the JSON text.
  const start = result.stdout.search(/^\{/m);
  if (result.status !== 0 || start < 0) throw new Error(`fio failed: ${result.stderr || result.stdout}`);
  const report = JSON.parse(result.stdout.slice(start)) as {
    jobs: { read: { iops: number }; write: { iops: number }; error: number }[];
  };
  const job = report.jobs[0];
  if (job === undefined || job.error !== 0) throw new Error(`fio: error ${job?.error}`);
  return job.read.iops + job.write.iops;
}

/** Where the file lives, for the caption: the type of the file system. */
export function fileSystemOf(folder: string): string {
  const result = spawnSync('df', ['--output=fstype', folder], { encoding: 'utf8' });
  return result.stdout?.trim().split('\n').pop() ?? 'unknown';
}

/** "1.23x". */
export function ratio(value: number, other: number): string {
  return Number.isFinite(value / other) ? `${(value / other).toFixed(2)}x` : '-';
}

/** Requests a second, short. */
export function thousands(iops: number): string {
  if (!Number.isFinite(iops)) return '-';
  return iops >= 100_000 ? `${Math.round(iops / 1000)}k` : `${(iops / 1000).toFixed(1)}k`;
}
