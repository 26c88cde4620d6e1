/**
 * `npm run bench`: NBD servers side by side. One disk, exported over a UNIX socket by qblockd, qemu-storage-daemon (its
 * engines) and nbdkit in turn, read and written with fio's nbd engine (with TLS by libnbd's Python), in the settings of nbd-settings.ts: a raw file in
 * the page cache, four connections at once, null-co (the protocol alone), tmpfs, cache.direct=on, TLS. The server is
 * pinned to CPU 0, the client to CPU 1.
 *
 * Machines drift: only figures from one run may be compared. All servers of a setting run all the time and have the same
 * file; for each load they are measured one right after the other, the order rotates from round to round, and the tables
 * show medians. Before each measurement the file is synced, so that no server pays for the dirty pages of the one
 * before; reads find all of it in the page cache, and overwrites of dirty pages come without the sync. The first
 * measurement of a load comes after a second of it that does not count: a server compiles its code, and in a long life
 * does so once.
 *
 * Options: --runtime SECONDS (3), --rounds N (3), --quick (one round of a second of the rows that tell most: two minutes),
 * --only PART[,PART...] of server names, --setting PART of a setting's name, --load PART of a load's name, --size MIB
 * (1024), --realtime (servers and clients go before whatever else the machine does; takes privileges), --dir FOLDER for the file, --json FILE for every single result, --other PROGRAM: another build of the daemon
 * (its daemon/bin/qblockd) as one more server, to see what a change costs.
 */

import {
  closeSync,
  fsyncSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import path from 'node:path';
import { FiguresTable } from './figures.ts';
import {
  type Figures,
  fileSystemOf,
  runFio,
  runTlsClient,
  SERVER_CPU,
  syncFile,
  thousands,
  warmUp,
} from './fio.ts';
import { hasProgram, parseOptions, pinned, prefer, sleep, startUntil } from './measure.ts';
import {
  KEY_LINE,
  type Place,
  type Server,
  type Setting,
  type SettingLoad,
  settingsOf,
} from './nbd-settings.ts';

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

/** A server that listens; all of a setting run for the whole time, since an idle one takes no CPU time. */
interface RunningServer {
  readonly name: string;
  readonly place: Place;
  readonly pid: number;
  readonly stop: () => Promise<void>;
}

async function startServer(server: Server, place: Place): Promise<RunningServer> {
  rmSync(place.socket, { force: true });
  const { child, stop } = await startUntil(pinned(SERVER_CPU, server.argv(place)), place.socket);
  return { name: server.name, place, pid: child.pid!, stop };
}

interface Run {
  readonly rounds: number;
  readonly runtimeSeconds: number;
  readonly sizeMib: number;
  readonly table: FiguresTable;
  /** Servers and clients go before whatever else the machine does. */
  readonly isRealtime: boolean;
}

/** One measurement; with `isFirst`, or where the pages have to be dirty, after a second of the same that does not count. */
function measure(
  { folder, tls }: Setting,
  each: SettingLoad,
  { place, pid }: RunningServer,
  { runtimeSeconds, sizeMib: allMib, isRealtime }: Run,
  isFirst: boolean,
): Figures {
  const sizeMib = Math.min(allMib, each.spanMib ?? allMib);
  const settings = { connections: each.connections, isRealtime };
  const readTls = (seconds: number): Figures =>
    runTlsClient(place.socket, place.keys, pid, each, seconds, sizeMib, isRealtime);
  if (isFirst && tls) readTls(1);
  else if (isFirst || each.isDirty === true) warmUp(place.socket, each, sizeMib, settings);
  if (folder !== null && each.isDirty !== true) syncFile(place.file);
  return tls ? readTls(runtimeSeconds) : runFio(place.socket, pid, each, runtimeSeconds, sizeMib, settings);
}

/** Measures all loads of a setting. */
async function measureSetting(setting: Setting, places: readonly Place[], run: Run): Promise<void> {
  const { rounds, table, isRealtime } = run;
  const running: RunningServer[] = [];
  try {
    for (const [index, server] of setting.servers.entries())
      running.push(await startServer(server, places[index] as Place));
    await sleep(500);
    if (isRealtime) for (const { pid } of running) prefer(pid);
    for (let round = 0; round < rounds; round++) {
      for (const each of setting.loads) {
        for (const [index] of running.entries()) {
          const server = running[(index + round) % running.length] as RunningServer;
          const figures = measure(setting, each, server, run, round === 0);
          table.add(`${setting.name}, ${each.name}`, server.name, figures);
          process.stderr.write(
            `round ${round + 1}/${rounds}, ${setting.name}, ${each.name}, ${server.name}: ` +
              `${thousands(figures.requestsPerSecond)}, ${(figures.userUs + figures.kernelUs).toFixed(1)} us\n`,
          );
        }
      }
    }
  } finally {
    for (const server of running) await server.stop();
  }
}

/** The settings with what the options leave of their servers and loads; those without either are left out. */
function chosen(options: Readonly<Record<string, string>>, isQuick: boolean): Setting[] {
  const { only = '', load = '', setting = '', other = '' } = options;
  return settingsOf(other)
    .map((each) => ({
      ...each,
      servers: each.servers
        .filter(({ name }) => only.split(',').some((part) => name.includes(part)))
        .filter(({ name, program }) => {
          const there = hasProgram(program);
          if (!there) process.stderr.write(`${name} is left out: not installed\n`);
          return there;
        }),
      loads: each.loads.filter(({ name, quick }) => name.includes(load) && (quick || !isQuick)),
    }))
    .filter(({ name, servers, loads }) => name.includes(setting) && servers.length > 0 && loads.length > 0);
}

async function main(): Promise<void> {
  const argv = process.argv.slice(2);
  const isQuick = argv.includes('--quick');
  const isRealtime = argv.includes('--realtime');
  const options = parseOptions(
    argv.filter((each) => each !== '--quick' && each !== '--realtime'),
    {
      ...{ runtime: isQuick ? '1' : '3', rounds: isQuick ? '1' : '3', only: '', setting: '', load: '' },
      ...{ size: '1024', dir: tmpdir(), json: '', other: '' },
    },
  );
  for (const tool of ['fio', 'taskset']) if (!hasProgram(tool)) throw new Error(`${tool} is needed`);
  if (cpus().length < 2) throw new Error('two CPUs are needed: one for the server, one for the client');
  const table = new FiguresTable();
  const run: Run = {
    rounds: Number(options.rounds),
    runtimeSeconds: Number(options.runtime),
    sizeMib: Number(options.size),
    table,
    isRealtime,
  };
  if (!(run.rounds >= 1 && run.runtimeSeconds >= 1 && run.sizeMib >= 1))
    throw new Error('numbers must be at least 1');
  process.on('SIGINT', () => undefined); // fio gets it too and fails, and the folder is removed on the way out
  const folders = {
    disk: mkdtempSync(path.join(options.dir, 'qb-bench-')),
    tmpfs: mkdtempSync('/dev/shm/qb-bench-'),
  };
  const keys = path.join(folders.disk, 'keys');
  mkdirSync(keys);
  writeFileSync(path.join(keys, 'keys.psk'), KEY_LINE, { mode: 0o600 });
  const files = new Set<string>();
  try {
    for (const setting of chosen(options, isQuick)) {
      const file = path.join(folders[setting.folder ?? 'disk'], 'disk.raw');
      if (setting.folder !== null && !files.has(file)) makeFile(file, run.sizeMib);
      files.add(file);
      const places = setting.servers.map((_, i) => ({
        file,
        keys,
        socket: path.join(folders.disk, `s${i}`),
      }));
      await measureSetting(setting, places, run);
    }
    const others = ['nbdkit', ...(options.other === '' ? [] : ['other'])];
    process.stdout.write(`${table.format('qblockd', others)}\n`);
    process.stdout.write(
      `${new Date().toISOString().slice(0, 10)}, ${cpus()[0]?.model.trim() ?? 'unknown CPU'}, server and client on one CPU ` +
        `each; ${run.sizeMib} MiB on ${fileSystemOf(folders.disk)} in the page cache (direct: past it), UNIX socket; ` +
        `${run.rounds} rounds of ${run.runtimeSeconds} s, interleaved.\n`,
    );
    if (options.json !== '') writeFileSync(options.json, JSON.stringify(table, null, 1));
  } finally {
    for (const folder of Object.values(folders)) rmSync(folder, { recursive: true, force: true });
  }
}

main().catch((error: Error) => {
  process.stderr.write(`bench: ${error.message}\n`);
  process.exitCode = 1;
});
