/**
 * `npm run bench`: NBD servers side by side. A raw file in the page cache, exported over a UNIX socket by qblockd,
 * qemu-storage-daemon (threads and io_uring) and nbdkit's file plugin in turn, read and written with fio's nbd engine.
 * The server is pinned to CPU 0, the client to CPU 1.
 *
 * Machines drift: only figures from one run may be compared. All servers run all the time and have the same file;
 * for each load they are measured one right after the other, the order rotates from round to round, and the table
 * shows medians. Before each measurement the file is synced, so that no server pays for the dirty pages of the one
 * before; reads find all of it in the page cache.
 *
 * Options: --runtime SECONDS (3), --rounds N (3), --only PART[,PART...] of server names, --load PART of a load's name,
 * --size MIB (1024), --dir FOLDER for the file, --json FILE for every single result, --other PROGRAM: another build of
 * the daemon (its daemon/bin/qblockd) as one more server, to see what a change costs.
 */

import { closeSync, fsyncSync, mkdtempSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import path from 'node:path';
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
} from './fio.ts';
import {
  type Argv,
  hasProgram,
  markdownTable,
  median,
  parseOptions,
  pinned,
  sleep,
  startUntil,
} from './measure.ts';

interface Server {
  readonly name: string;
  /** The program that must be there. */
  readonly program: string;
  readonly argv: (file: string, socket: string) => Argv;
}

const LOADS: readonly Load[] = [
  ...[1, 16, 64].map((depth) => load('randread', '4k', depth)),
  ...[1, 16, 64].map((depth) => load('randwrite', '4k', depth)),
  load('read', '256k', 8),
  load('write', '256k', 8),
];

/** The arguments qblockd and qemu-storage-daemon share. */
function daemonArguments(file: string, socket: string, aio: string): string[] {
  return [
    ...['--blockdev', `file,node-name=file,filename=${file}${aio && `,aio=${aio}`}`],
    ...['--blockdev', 'raw,node-name=disk,file=file'],
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
    ...['--export', 'nbd,id=disk,node-name=disk,name=,writable=on'],
  ];
}

const SERVERS: readonly Server[] = [
  {
    name: 'qblockd',
    program: qblockd,
    argv: (file, socket) => [qblockd, ...daemonArguments(file, socket, '')],
  },
  ...['threads', 'io_uring'].map(
    (aio): Server => ({
      name: `qemu-storage-daemon ${aio}`,
      program: 'qemu-storage-daemon',
      argv: (file, socket) => ['qemu-storage-daemon', ...daemonArguments(file, socket, aio)],
    }),
  ),
  {
    name: 'nbdkit file',
    program: 'nbdkit',
    argv: (file, socket) => ['nbdkit', '--foreground', '--unix', socket, 'file', file],
  },
];

/** Makes the file, full of data that does not compress, all of it in the page cache and on the disk. */
function makeFile(file: string, sizeMib: number): void {
  const fd = openSync(file, 'w');
  const block = Buffer.alloc(1 << 20);
  for (let i = 0; i < block.length; i += 4) block.writeUInt32LE(Math.imul(i + 1, 2654435761) >>> 0, i);
  for (let i = 0; i < sizeMib; i++) {
    block.writeUInt32LE(i, 0);
    writeSync(fd, block);
  }
  fsyncSync(fd);
  closeSync(fd);
}

/** A server that listens; all of them run for the whole time, since an idle one takes no CPU time. */
interface RunningServer {
  readonly name: string;
  readonly socket: string;
  readonly stop: () => Promise<void>;
}

async function startServer(
  server: Server,
  file: string,
  folder: string,
  index: number,
): Promise<RunningServer> {
  const socket = path.join(folder, `s${index}`);
  const { stop } = await startUntil(pinned(SERVER_CPU, server.argv(file, socket)), socket);
  return { name: server.name, socket, stop };
}

/** Server name -> load name -> requests a second, one figure a round. */
type Results = ReadonlyMap<string, ReadonlyMap<string, number[]>>;

function table(servers: readonly Server[], loads: readonly Load[], results: Results): string {
  const ours = servers.some((server) => server.name === 'qblockd');
  const other = servers.some((server) => server.name === 'other');
  const header = [
    'requests a second (median)',
    ...servers.map((server) => server.name),
    ...(ours && !other ? ['to best qemu', 'to nbdkit'] : []),
    ...(other ? ['to other'] : []),
  ];
  const rows = loads.map((each) => {
    const medians = new Map(
      servers.map(({ name }) => [name, median(results.get(name)?.get(each.name) ?? [])]),
    );
    const qemu = [...medians].filter(([name]) => name.startsWith('qemu')).map(([, value]) => value);
    const us = medians.get('qblockd') ?? Number.NaN;
    const ratios =
      ours && !other
        ? [ratio(us, Math.max(...qemu)), ratio(us, medians.get('nbdkit file') ?? Number.NaN)]
        : [];
    if (other) ratios.push(ratio(us, medians.get('other') ?? Number.NaN));
    return [each.name, ...[...medians.values()].map(thousands), ...ratios];
  });
  return markdownTable(header, rows);
}

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2), {
    runtime: '3',
    rounds: '3',
    only: '',
    load: '',
    size: '1024',
    dir: tmpdir(),
    json: '',
    other: '',
  });
  for (const tool of ['fio', 'taskset']) if (!hasProgram(tool)) throw new Error(`${tool} is needed`);
  if (cpus().length < 2) throw new Error('two CPUs are needed: one for the server, one for the client');
  const rounds = Number(options.rounds);
  const runtimeSeconds = Number(options.runtime);
  const sizeMib = Number(options.size);
  if (!(rounds >= 1 && runtimeSeconds >= 1 && sizeMib >= 1)) throw new Error('numbers must be at least 1');
  process.on('SIGINT', () => undefined); // fio gets it too and fails, and the folder is removed on the way out
  const loads = LOADS.filter((each) => each.name.includes(options.load));
  const other: Server = {
    name: 'other',
    program: options.other,
    argv: (file, socket) => [options.other, ...daemonArguments(file, socket, '')],
  };
  const all = options.other === '' ? SERVERS : [...SERVERS, other];
  const servers = all
    .filter(({ name }) => options.only.split(',').some((part) => name.includes(part)))
    .filter((server) => {
      const there = hasProgram(server.program);
      if (!there) process.stderr.write(`${server.name} is left out: not installed\n`);
      return there;
    });
  const folder = mkdtempSync(path.join(options.dir, 'qb-bench-'));
  const file = path.join(folder, 'disk.raw');
  const results: Results = new Map(
    servers.map((server) => [server.name, new Map(loads.map((each) => [each.name, []]))]),
  );
  const running: RunningServer[] = [];
  try {
    makeFile(file, sizeMib);
    for (const [index, server] of servers.entries())
      running.push(await startServer(server, file, folder, index));
    await sleep(500);
    for (let round = 0; round < rounds; round++) {
      for (const each of loads) {
        const order = running.map((_, index) => running[(index + round) % running.length] as RunningServer);
        for (const server of order) {
          syncFile(file);
          const iops = runFio(server.socket, each, runtimeSeconds, sizeMib);
          results.get(server.name)?.get(each.name)?.push(iops);
          process.stderr.write(
            `round ${round + 1}/${rounds}, ${each.name}, ${server.name}: ${thousands(iops)}\n`,
          );
        }
      }
    }
    const cpuModel = cpus()[0]?.model.trim() ?? 'unknown CPU';
    process.stdout.write(`${table(servers, loads, results)}\n\n`);
    process.stdout.write(
      `${new Date().toISOString().slice(0, 10)}, ${cpuModel}, server and client on one CPU each; ` +
        `raw file of ${sizeMib} MiB on ${fileSystemOf(folder)} in the page cache, UNIX socket; ` +
        `${rounds} rounds of ${runtimeSeconds} s, interleaved.\n`,
    );
    if (options.json !== '')
      writeFileSync(
        options.json,
        JSON.stringify(
          [...results].map(([name, figures]) => ({ name, ...Object.fromEntries(figures) })),
          null,
          1,
        ),
      );
  } finally {
    for (const server of running) await server.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}

main().catch((error: Error) => {
  process.stderr.write(`bench: ${error.message}\n`);
  process.exitCode = 1;
});
