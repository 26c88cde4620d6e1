/**
 * `npm run bench:nbd-client`: the nbd driver as a client, side by side. nbdkit holds a disk in memory; qblockd and
 * qemu-storage-daemon open it with their nbd drivers and export it again, and fio reads and writes through each of
 * them. The daemons share CPU 0, of which only one is busy at a time; nbdkit and fio are on CPU 1.
 *
 * As in nbd.ts only figures from one run may be compared; the order rotates from round to round.
 *
 * Options: --runtime SECONDS (3), --rounds N (3), --load PART of a load's name, --size MIB (1024).
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import path from 'node:path';
import { FiguresTable } from './figures.ts';
import { CLIENT_CPU, load, qblockd, runFio, SERVER_CPU, thousands } from './fio.ts';
import { type Background, hasProgram, parseOptions, pinned, startUntil } from './measure.ts';

const LOADS = [
  ...[1, 16, 64].map((depth) => load('randread', '4k', depth)),
  ...[1, 16, 64].map((depth) => load('randwrite', '4k', depth)),
  load('read', '256k', 8),
  load('write', '256k', 8),
];

const DAEMONS = [
  { name: 'qblockd', program: qblockd },
  { name: 'qemu', program: 'qemu-storage-daemon' },
] as const;

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2), { runtime: '3', rounds: '3', load: '', size: '1024' });
  for (const tool of ['fio', 'taskset', 'nbdkit', 'qemu-storage-daemon'])
    if (!hasProgram(tool)) throw new Error(`${tool} is needed`);
  const rounds = Number(options.rounds);
  const loads = LOADS.filter(({ name }) => name.includes(options.load));
  const folder = mkdtempSync(path.join(tmpdir(), 'qb-bench-'));
  const running: Background[] = [];
  const pids = new Map<string, number>();
  const table = new FiguresTable();
  try {
    const disk = path.join(folder, 'disk');
    running.push(
      await startUntil(
        pinned(CLIENT_CPU, ['nbdkit', '--foreground', '--unix', disk, 'memory', `${options.size}M`]),
        disk,
      ),
    );
    for (const { name, program } of DAEMONS) {
      const socket = path.join(folder, name);
      const argv = pinned(SERVER_CPU, [
        ...([program, '--blockdev', `nbd,node-name=disk,server.type=unix,server.path=${disk}`] as const),
        ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
        ...['--export', 'nbd,id=disk,node-name=disk,name=,writable=on'],
        ...['--pidfile', `${socket}.pid`],
      ]);
      const daemon = await startUntil(argv, `${socket}.pid`);
      running.push(daemon);
      pids.set(name, daemon.child.pid!);
    }
    for (let round = 0; round < rounds; round++) {
      for (const each of loads) {
        for (const { name } of round % 2 === 0 ? DAEMONS : DAEMONS.toReversed()) {
          const figures = runFio(
            path.join(folder, name),
            pids.get(name)!,
            each,
            Number(options.runtime),
            Number(options.size),
          );
          table.add(each.name, name, figures);
          process.stderr.write(
            `round ${round + 1}/${rounds}, ${each.name}, ${name}: ${thousands(figures.requestsPerSecond)}\n`,
          );
        }
      }
    }
  } finally {
    for (const each of running.reverse()) await each.stop();
    rmSync(folder, { recursive: true, force: true });
  }
  process.stdout.write(`${table.format('qblockd', [])}\n`);
  process.stdout.write(
    `${new Date().toISOString().slice(0, 10)}, ${cpus()[0]?.model.trim() ?? 'unknown CPU'}; daemon on one CPU, nbdkit ` +
      `memory and fio on another; ${rounds} rounds of ${options.runtime} s, interleaved.\n`,
  );
}

main().catch((error: Error) => {
  process.stderr.write(`bench: ${error.message}\n`);
  process.exitCode = 1;
});
