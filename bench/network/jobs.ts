/** Part `jobs` of bench:network: imports by a block job in the daemon, from a node that is elsewhere into a new image. */

import { execFileSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import path from 'node:path';
import { cpuOf, markdownTable, median } from '../measure.ts';
import { BenchQmp } from '../qmp.ts';
import { DAEMONS, type RemoteNode, startDaemon } from './daemons.ts';
import { type Side, sideBySide } from './rows.ts';
import { ways } from './ways.ts';

interface JobKind {
  readonly name: string;
  readonly format: 'raw' | 'qcow2';
  readonly command: string;
  readonly arguments: object;
  readonly isOverlay: boolean;
  readonly end: 'BLOCK_JOB_READY' | 'BLOCK_JOB_COMPLETED';
}

const copy = { 'job-id': 'job', device: 'n', target: 't', sync: 'full' } as const;

const KINDS: readonly JobKind[] = [
  {
    ...{ name: 'mirror to raw', format: 'raw', command: 'blockdev-mirror', arguments: copy },
    ...{ isOverlay: false, end: 'BLOCK_JOB_READY' },
  },
  {
    ...{ name: 'backup to qcow2', format: 'qcow2', command: 'blockdev-backup', arguments: copy },
    ...{ isOverlay: false, end: 'BLOCK_JOB_COMPLETED' },
  },
  {
    ...{ name: 'stream into qcow2', format: 'qcow2', command: 'block-stream' },
    ...{ arguments: { 'job-id': 'job', device: 't' }, isOverlay: true, end: 'BLOCK_JOB_COMPLETED' },
  },
];

interface Cost {
  readonly wall: number;
  readonly cpu: number;
}

async function runJob(qmp: BenchQmp, pid: number, { command, arguments: args, end }: JobKind): Promise<Cost> {
  const over = qmp.waitFor(({ event }) => event === end || event === 'BLOCK_JOB_COMPLETED');
  const before = cpuOf(pid);
  const began = performance.now();
  await qmp.execute(command, args);
  const { data } = await over;
  const wall = (performance.now() - began) / 1000;
  if (data.error !== undefined) throw new Error(`${command}: ${String(data.error)}`);
  const after = cpuOf(pid);
  const cpu = after.userSeconds - before.userSeconds + after.kernelSeconds - before.kernelSeconds;
  return { wall, cpu };
}

/** A table of the jobs with each node as their source. */
export async function jobsTable(
  folder: string,
  nodes: readonly RemoteNode[],
  env: NodeJS.ProcessEnv,
  { rounds, size }: { readonly rounds: number; readonly size: number },
): Promise<string> {
  const rows: string[][] = [];
  const target = path.join(folder, 'job-target');
  for (const one of nodes)
    for (const [delay, port] of ways(one.way)) {
      await one.way.use?.(port);
      for (const kind of KINDS) {
        const costs = new Map<string, Cost[]>(DAEMONS.map(({ name }) => [name, []]));
        for (let round = 0; round < rounds; round++)
          for (let i = 0; i < DAEMONS.length; i++) {
            const daemon = DAEMONS[(i + round) % DAEMONS.length]!;
            rmSync(target, { force: true });
            execFileSync('qemu-img', ['create', '-q', '-f', kind.format, target, `${size}M`]);
            const server = await startDaemon(daemon, folder, one, port, env);
            const qmp = await BenchQmp.connect(server.qmp);
            try {
              await qmp.execute('blockdev-add', {
                ...{ driver: kind.format, 'node-name': 't', file: { driver: 'file', filename: target } },
                ...(kind.format === 'qcow2' && { backing: kind.isOverlay ? 'n' : null }),
              });
              costs.get(daemon.name)!.push(await runJob(qmp, server.child.pid!, kind));
            } finally {
              qmp.close();
              await server.stop();
            }
          }
        const middle = (name: string, of: keyof Cost): number =>
          median(costs.get(name)!.map((cost) => cost[of]));
        const side = (name: string): Side => ({
          speed: size / middle(name, 'wall'),
          cpu: ((middle(name, 'cpu') * 1024) / size).toFixed(2),
        });
        rows.push(sideBySide(`${one.name}, ${kind.name}, ${delay}`, side('qblockd'), side('original')));
      }
    }
  return markdownTable(
    ['MiB a second (median)', 'qblockd', 'qemu-storage-daemon', 'ratio', 'CPU s a GiB', "the original's"],
    rows,
  );
}
