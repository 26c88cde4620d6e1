/**
 * Random graph changes under load on four exports: no wrong byte, no lost request, no deadlock, sound images.
 *
 * GRAPH_CHANGES and GRAPH_SEED choose how many changes and which; `npm run test:graph` runs 10,000. With fio installed
 * it adds its own load with verification.
 */

import { execFileSync, spawn } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { expect, test } from 'vitest';
import { limitMs } from '../patience.ts';
import { makeScratchDir, reportOf, startDaemon } from './daemons.ts';
import { CheckedLoad, DISK_BYTES, DISKS, GraphChanger, MODEL_BLOCKS } from './graph-load.ts';
import { requirePeer } from './requires.ts';

const CHANGES = Number(process.env.GRAPH_CHANGES ?? 120);
const SEED = Number(process.env.GRAPH_SEED ?? 1);
/** A full run takes a while; the one of `npm test` some seconds. */
const TIMEOUT_MS = limitMs(900_000 + CHANGES * 500);

/** fio on all exports, reading back what it wrote; ends when it is told to. */
function startFio(socket: string) {
  const jobs = DISKS.flatMap((index) => [
    `--name=disk${index}`,
    `--uri=nbd+unix:///disk${index}?socket=${socket}`,
  ]);
  const child = spawn(
    'fio',
    [
      ...[
        '--ioengine=nbd',
        '--rw=randrw',
        '--bs=4k',
        '--iodepth=8',
        '--thinktime=1ms',
        '--thinktime_blocks=8',
      ],
      ...[`--size=${DISK_BYTES - MODEL_BLOCKS * 4096}`, '--verify=crc32c', '--verify_backlog=64'],
      ...[
        '--verify_fatal=1',
        '--verify_state_save=0',
        '--time_based',
        '--runtime=86400',
        '--output-format=json',
      ],
      ...jobs,
    ],
    { stdio: ['ignore', 'pipe', 'pipe'] },
  );
  return { child, report: reportOf(child) };
}

test(
  `${CHANGES} random changes`,
  async (context) => {
    requirePeer(context, 'qemu-img', 'fio');
    const dir = makeScratchDir();
    const daemon = await startDaemon('qblockd', { dir });
    try {
      const qmp = await daemon.connect();
      await qmp.negotiate();
      const changer = new GraphChanger(daemon, qmp, SEED);
      await changer.setUp();
      const socket = path.join(dir, 'nbd.sock');
      const loads = DISKS.map((index) => new CheckedLoad(SEED * 10 + index));
      for (const [index, load] of loads.entries()) await load.start(socket, `disk${index}`);
      const fio = startFio(socket);
      for (let i = 0; i < CHANGES; i++) await changer.change();
      for (const load of loads) await load.stop();
      fio.child.kill('SIGINT');
      const { stdout, stderr, signal } = await fio.report;
      expect(signal).toBeNull();
      expect(stderr).not.toMatch(/verify|error/i);
      const { jobs } = JSON.parse(stdout.slice(stdout.indexOf('{'))) as {
        jobs: { jobname: string; error: number; read: { total_ios: number } }[];
      };
      for (const job of jobs) expect(job).toMatchObject({ error: 0 });
      qmp.close();
      daemon.process.kill('SIGTERM');
      expect((await daemon.exited).status).toBe(0);
      for (const [index, image] of changer.images().entries()) {
        execFileSync('qemu-img', ['check', '-q', image]);
        const copy = path.join(dir, 'copy');
        execFileSync('qemu-img', ['convert', '-O', 'raw', image, copy]);
        expect(
          readFileSync(copy)
            .subarray(-MODEL_BLOCKS * 4096)
            .equals(loads[index]!.content()),
        ).toBe(true);
      }
      const requests = loads.reduce((sum, load) => sum + load.requests, 0);
      const slowestMs = Math.max(...loads.map((load) => load.slowestMs));
      process.stdout.write(
        `graph load: ${JSON.stringify(changer.counts)}, ${requests} checked requests, ` +
          `fio ${jobs.reduce((sum, job) => sum + job.read.total_ios, 0)} reads, longest stall ${slowestMs.toFixed(0)} ms\n`,
      );
    } finally {
      await daemon.stop();
      rmSync(dir, { recursive: true, force: true });
    }
  },
  TIMEOUT_MS,
);
