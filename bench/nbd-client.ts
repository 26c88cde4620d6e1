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
import { CLIENT_CPU, load, qblockd, ratio, runFio, SERVER_CPU, thousands } from './fio.ts';
import {
  type Background,
  hasProgram,
  markdownTable,
  median,
  parseOptions,
  pinned,
  startUntil,
} from './measure.ts';

const LOADS = [
  ...[1, 16, 64].map((depth) => load('randread', '4k', depth)),
  ...[1, 16, 64].map((depth) => load('randwrite', '4k', depth)),
  load('read', '256k', 8),
  load('write', '256k', 8),
];

const DAEMONS = [
  { name: 'qblockd', program: qblockd },
  { name: 'qemu-storage-daemon', program: 'qemu-storage-daemon' },
] as const;

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2), { runtime: '3', rounds: '3', load: '', size: '1024' });
  for (const tool of ['fio', 'taskset', 'nbdkit', 'qemu-storage-daemon'])
    if (!hasProgram(tool)) throw new Error(`${tool} is needed`);
  const rounds = Number(options.rounds);
  const loads = LOADS.filter(({ name }) => name.includes(options.load));
  const folder = mkdtempSync(path.join(tmpdir(), 'qb-bench-'));
  const running: Background[] = [];
  const results = new Map<string, number[]>();
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
      running.push(await startUntil(argv, `${socket}.pid`));
    }
    for (let round = 0; round < rounds; round++) {
      for (const each of loads) {
        for (const { name } of round % 2 === 0 ? DAEMONS : DAEMONS.toReversed()) {
          const iops = runFio(path.join(folder, name), each, Number(options.runtime), Number(options.size));
          const key = `${name} ${each.name}`;
          results.set(key, [...(results.get(key) ?? []), iops]);
          process.stderr.write(`round ${round + 1}/${rounds}, ${each.name}, ${name}: ${thousands(iops)}\n`);
        }
      }
    }
  } finally {
    for (const each of running.reverse()) await each.stop();
    rmSync(folder, { recursive: true, force: true });
  }
  const rows = loads.map((each) => {
    const [ours = Number.NaN, theirs = Number.NaN] = DAEMONS.map(({ name }) =>
      median(results.get(`${name} ${each.name}`) ?? []),
    );
    return [each.name, thousands(ours), thousands(theirs), ratio(ours, theirs)];
  });
  const header = ['requests a second through the nbd driver', ...DAEMONS.map(({ name }) => name), 'ratio'];
  process.stdout.write(`${markdownTable(header, rows)}\n\n`);
  process.stdout.write(
    `${new Date().toISOString().slice(0, 10)}, ${cpus()[0]?.model.trim() ?? 'unknown CPU'}; daemon on one CPU, nbdkit ` +
      `memory and fio on another; ${rounds} rounds of ${options.runtime} s, interleaved.\n`,
  );
}

main().catch((error: Error) => {
  process.stderr.write(`bench: ${error.message}\n`);
  process.exitCode = 1;
});
