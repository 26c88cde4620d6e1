/**
 * `npm run bench:floor`: what a buffered 4k write through the NBD server costs beside the least that it can: pwrite alone into
 * the same clean pages (the kernel's part of fio's psync engine), plus the socket (the same requests to null-co, which writes
 * nothing). One run, interleaved, medians; before each measurement the file is synced, so that pages are clean.
 *
 * Options: --runtime SECONDS (2), --rounds N (3), --size MIB (1024), --dir FOLDER, --realtime (goes before whatever else the
 * machine does; takes privileges).
 */

import { spawnSync } from 'node:child_process';
import { closeSync, fsyncSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { CLIENT_CPU, load, qblockd, ratio, runFio, SERVER_CPU, syncFile, warmUp } from './fio.ts';
import { type Background, median, parseOptions, pinned, prefer, sleep, startUntil } from './measure.ts';

const DEPTHS = [1, 16, 64];

interface Run {
  readonly runtimeSeconds: number;
  readonly sizeMib: number;
  readonly isRealtime: boolean;
}

/** Kernel time of a random 4k pwrite into the file, microseconds. */
function pwriteUs(file: string, { runtimeSeconds, sizeMib, isRealtime }: Run): number {
  const [program, ...args] = pinned(
    CLIENT_CPU,
    [
      ...(['fio', '--name=alone', '--ioengine=psync', `--filename=${file}`, '--rw=randwrite'] as const),
      ...['--bs=4k', `--size=${sizeMib}m`, `--runtime=${runtimeSeconds}`, '--time_based'],
      ...['--randseed=1', '--output-format=json', '--overwrite=1', '--invalidate=0'],
    ],
    isRealtime,
  );
  const { stdout, stderr, status } = spawnSync(program, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`fio failed: ${stderr}`);
  const { jobs } = JSON.parse(stdout.slice(stdout.search(/^\{/m))) as {
    jobs: readonly { sys_cpu: number; write: { total_ios: number; runtime: number } }[];
  };
  const job = jobs[0];
  if (job === undefined || job.write.total_ios === 0) throw new Error('fio wrote nothing');
  return ((job.sys_cpu / 100) * job.write.runtime * 1000) / job.write.total_ios;
}

async function startServer(socket: string, nodes: readonly string[], run: Run): Promise<Background> {
  const server = await startUntil(
    pinned(SERVER_CPU, [
      qblockd,
      ...nodes.flatMap((node) => ['--blockdev', node]),
      ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
      ...['--export', 'nbd,id=disk,node-name=disk,name=,writable=on'],
    ]),
    socket,
  );
  await sleep(300);
  if (run.isRealtime) prefer(server.child.pid!);
  return server;
}

async function measureAll(folder: string, rounds: number, run: Run): Promise<void> {
  const file = path.join(folder, 'disk.raw');
  // One descriptor and large writes, as in the other benches: the size of the page cache's folios decides what a write costs.
  const fd = openSync(file, 'w');
  const block = Buffer.alloc(1 << 20, 0x5a);
  for (let i = 0; i < run.sizeMib; i++) writeSync(fd, block);
  fsyncSync(fd);
  closeSync(fd);
  const places = ['file', 'null'].map((name) => path.join(folder, name)) as [string, string];
  const servers = [
    await startServer(
      places[0],
      [`file,node-name=file,filename=${file}`, 'raw,node-name=disk,file=file'],
      run,
    ),
    await startServer(places[1], [`null-co,node-name=disk,size=${run.sizeMib * 1048576}`], run),
  ];
  try {
    for (const depth of DEPTHS) {
      const each = load('randwrite', '4k', depth);
      const found: number[][] = [[], [], []];
      for (let round = 0; round < rounds; round++) {
        for (const [at, { child }] of servers.entries()) {
          if (round === 0) warmUp(places[at]!, each, run.sizeMib, run);
          syncFile(file);
          const { userUs, kernelUs } = runFio(
            places[at]!,
            child.pid!,
            each,
            run.runtimeSeconds,
            run.sizeMib,
            run,
          );
          found[at]!.push(userUs + kernelUs);
        }
        syncFile(file);
        found[2]!.push(pwriteUs(file, run));
      }
      const [through = 0, socket = 0, alone = 0] = found.map(median);
      process.stdout.write(
        `4k randwrite into clean pages, depth ${depth}: qblockd ${through.toFixed(1)} us of CPU; pwrite alone ` +
          `${alone.toFixed(1)} + socket ${socket.toFixed(1)} = ${(alone + socket).toFixed(1)} us: ` +
          `${ratio(through, alone + socket)} of the floor\n`,
      );
    }
  } finally {
    for (const server of servers) await server.stop();
  }
}

async function main(): Promise<void> {
  const argv = process.argv.slice(2);
  const options = parseOptions(
    argv.filter((each) => each !== '--realtime'),
    { runtime: '2', rounds: '3', size: '1024', dir: tmpdir() },
  );
  const run: Run = {
    runtimeSeconds: Number(options.runtime),
    sizeMib: Number(options.size),
    isRealtime: argv.includes('--realtime'),
  };
  const folder = mkdtempSync(path.join(options.dir, 'qb-floor-'));
  try {
    await measureAll(folder, Number(options.rounds), run);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

main().catch((error: Error) => {
  process.stderr.write(`bench:floor: ${error.message}\n`);
  process.exitCode = 1;
});
