/**
 * What the benchmarks of NBD servers share: loads, running fio against a socket, printing figures.
 * The server is pinned to one CPU, the client to another.
 */

import { spawnSync } from 'node:child_process';
import { closeSync, fsyncSync, openSync } from 'node:fs';
import path from 'node:path';
import { cpuOf, pinned } from './measure.ts';

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

/** What one run of fio against a server found. */
export interface Figures {
  readonly requestsPerSecond: number;
  /** CPU time of the server, in microseconds a request. */
  readonly userUs: number;
  readonly kernelUs: number;
  /** The client's share of its processor, 0..1: near 1 it is the client that is measured. */
  readonly clientShare: number;
  /** 99th percentile of the time of a request, microseconds. */
  readonly p99Us: number;
}

interface FioDirection {
  readonly iops: number;
  readonly total_ios: number;
  readonly clat_ns: { readonly percentile?: Readonly<Record<string, number>> };
}

interface FioReport {
  readonly jobs: readonly {
    readonly read: FioDirection;
    readonly write: FioDirection;
    readonly usr_cpu: number;
    readonly sys_cpu: number;
    readonly error: number;
  }[];
}

/** What else fio is told. */
export interface FioSettings {
  /** Processes at a time, each with its own connection and depth. */
  readonly connections?: number;
  readonly extra?: readonly string[];
  /** See measure.ts; the server is the caller's. */
  readonly isRealtime?: boolean;
}

/** The server has stopped to answer. */
export class NoAnswerError extends Error {}

/** What fio takes beside its running time, at most. */
const GRACE_SECONDS = 10;

/** Seconds in which requests are made before those that count: a server that has just started has its code to read or compile. */
const WARM_UP_SECONDS = 1;

function fio(
  socket: string,
  { rw, blockSize, depth }: Load,
  runtimeSeconds: number,
  sizeMib: number,
  { connections = 1, extra = [], isRealtime = false }: FioSettings,
): FioReport['jobs'][number] {
  const [program, ...args] = pinned(
    CLIENT_CPU,
    [
      ...(['fio', '--name=bench', '--ioengine=nbd', `--uri=nbd+unix:///?socket=${socket}`] as const),
      ...[`--rw=${rw}`, `--bs=${blockSize}`, `--iodepth=${depth}`, `--size=${sizeMib}m`],
      ...[`--numjobs=${connections}`, '--group_reporting'],
      ...[`--runtime=${runtimeSeconds}`, '--time_based', '--randseed=1', '--output-format=json'],
      ...extra,
    ],
    isRealtime,
  );
  // A server that answers no more would hold it for ever.
  const timeout = (runtimeSeconds + GRACE_SECONDS) * 1000;
  const result = spawnSync(program, args, {
    ...{ encoding: 'utf8', maxBuffer: 64 << 20 },
    ...{ timeout, killSignal: 'SIGKILL' },
  });
  if (result.signal === 'SIGKILL') throw new NoAnswerError(`no answer to ${rw} of ${blockSize}`);
  // fio puts warnings before the JSON text.
  const start = result.stdout.search(/^\{/m);
  if (result.status !== 0 || start < 0) throw new Error(`fio failed: ${result.stderr || result.stdout}`);
  const job = (JSON.parse(result.stdout.slice(start)) as FioReport).jobs[0];
  if (job === undefined || job.error !== 0) throw new Error(`fio: error ${job?.error}`);
  return job;
}

/** Has the server do the same for a second that does not count; throws NoAnswerError. */
export function warmUp(socket: string, load: Load, sizeMib: number, settings: FioSettings = {}): void {
  fio(socket, load, WARM_UP_SECONDS, sizeMib, settings);
}

/** Runs fio against the socket of the server with process id `serverPid`; throws NoAnswerError. */
export function runFio(
  socket: string,
  serverPid: number,
  load: Load,
  runtimeSeconds: number,
  sizeMib: number,
  settings: FioSettings = {},
): Figures {
  const before = cpuOf(serverPid);
  const job = fio(socket, load, runtimeSeconds, sizeMib, settings);
  const after = cpuOf(serverPid);
  const direction = job.read.total_ios > 0 ? job.read : job.write;
  return {
    requestsPerSecond: direction.iops,
    userUs: ((after.userSeconds - before.userSeconds) * 1e6) / direction.total_ios,
    kernelUs: ((after.kernelSeconds - before.kernelSeconds) * 1e6) / direction.total_ios,
    // The processes of a group share one processor, and fio gives the mean of their shares.
    clientShare: ((job.usr_cpu + job.sys_cpu) / 100) * (settings.connections ?? 1),
    p99Us: (direction.clat_ns.percentile?.['99.000000'] ?? Number.NaN) / 1000,
  };
}

/** Keeps `depth` reads of libnbd under way over TLS for so long; prints requests, seconds and CPU seconds. */
const TLS_READER = `
import nbd, sys, time, resource
socket, keys, size, depth, runtime, span = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:7])
h = nbd.NBD()
h.set_tls(nbd.TLS_REQUIRE); h.set_tls_username('qemu'); h.set_tls_psk_file(keys + '/keys.psk')
h.connect_unix(socket)
buffers = [nbd.Buffer(size) for _ in range(depth)]
start = time.monotonic(); done = at = 0; free = list(range(depth)); count = span // size
def begin(slot):
    global at
    at = (at * 5 + 1) % count if size < 65536 else (at + 1) % count
    def ended(error):
        global done
        done += 1; free.append(slot); return 1
    h.aio_pread(buffers[slot], at * size, ended)
while time.monotonic() - start < runtime:
    while free: begin(free.pop())
    h.poll(-1)
usage = resource.getrusage(resource.RUSAGE_SELF)
print(done, time.monotonic() - start, usage.ru_utime + usage.ru_stime)
`;

/** Reads over TLS, which fio's engine cannot be told to speak. No times of single requests. `keys`: folder of keys.psk. */
export function runTlsClient(
  socket: string,
  keys: string,
  serverPid: number,
  { blockSize, depth }: Load,
  runtimeSeconds: number,
  sizeMib: number,
  isRealtime = false,
): Figures {
  const numbers = [Number.parseInt(blockSize, 10) * 1024, depth, runtimeSeconds, sizeMib * 1048576];
  const argv = ['/usr/bin/python3', '-c', TLS_READER, socket, keys, ...numbers.map(String)] as const;
  const [program, ...args] = pinned(CLIENT_CPU, argv, isRealtime);
  const before = cpuOf(serverPid);
  const result = spawnSync(program, args, { encoding: 'utf8' });
  const after = cpuOf(serverPid);
  if (result.status !== 0) throw new Error(`python3 with libnbd: ${result.stderr}`);
  const [requests = 0, seconds = 0, clientSeconds = 0] = result.stdout.trim().split(' ').map(Number);
  return {
    requestsPerSecond: requests / seconds,
    userUs: ((after.userSeconds - before.userSeconds) * 1e6) / requests,
    kernelUs: ((after.kernelSeconds - before.kernelSeconds) * 1e6) / requests,
    clientShare: clientSeconds / seconds,
    p99Us: Number.NaN,
  };
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
