/** Part `fio` of bench:network: requests over NBD to nodes that are elsewhere. */

import { type Figures, type Load, load, NoAnswerError, runFio, warmUp } from '../fio.ts';
import { markdownTable, median } from '../measure.ts';
import { DAEMONS, type RemoteNode, type RunningDaemon, startDaemon } from './daemons.ts';
import { type Side, sideBySide } from './rows.ts';
import { ways } from './ways.ts';

/** Of a daemon that stopped to answer. */
const NOTHING: Figures = {
  ...{ requestsPerSecond: 0, userUs: Number.NaN, kernelUs: Number.NaN },
  ...{ clientShare: 0, p99Us: Number.NaN },
};

const READS: readonly Load[] = [
  load('read', '256k', 1),
  load('randread', '4k', 16),
  load('randread', '64k', 16),
];
const SMALL_SEQUENTIAL: readonly Load[] = [load('read', '4k', 1), load('read', '64k', 1)];
const WRITES: readonly Load[] = [load('randwrite', '4k', 16), load('write', '256k', 16)];

/** Nodes with readahead are read in small steps too; those that can be written to are. */
function loadsOf({ writable }: RemoteNode): readonly Load[] {
  return writable ? [...READS, ...WRITES] : [...SMALL_SEQUENTIAL, ...READS];
}

interface Settings {
  readonly rounds: number;
  readonly size: number;
  readonly runtime: number;
}

async function figuresOf(
  folder: string,
  one: RemoteNode,
  port: number,
  what: Load,
  env: NodeJS.ProcessEnv,
  { rounds, size, runtime }: Settings,
): Promise<ReadonlyMap<string, readonly Figures[]>> {
  const found = new Map<string, Figures[]>(DAEMONS.map(({ name }) => [name, []]));
  const running = new Map<string, RunningDaemon>();
  try {
    for (const daemon of DAEMONS) {
      const server = await startDaemon(daemon, folder, one, port, env);
      running.set(daemon.name, server);
      try {
        warmUp(server.nbd, what, size);
      } catch (error) {
        if (!(error instanceof NoAnswerError)) throw error;
      }
    }
    for (let round = 0; round < rounds; round++)
      for (let i = 0; i < DAEMONS.length; i++) {
        const { name } = DAEMONS[(i + round) % DAEMONS.length]!;
        const server = running.get(name)!;
        try {
          found.get(name)!.push(runFio(server.nbd, server.child.pid!, what, runtime, size));
        } catch (error) {
          if (!(error instanceof NoAnswerError)) throw error;
          process.stderr.write(`${one.name}, ${what.name}: ${name} answers no more\n`);
          found.get(name)!.push(NOTHING);
        }
      }
  } finally {
    for (const server of running.values()) await server.stop();
  }
  return found;
}

/** A table of all loads of all nodes. */
export async function requestsTable(
  folder: string,
  nodes: readonly RemoteNode[],
  env: NodeJS.ProcessEnv,
  settings: Settings,
): Promise<string> {
  const rows: string[][] = [];
  for (const one of nodes)
    for (const [delay, port] of ways(one.way)) {
      await one.way.use?.(port);
      for (const what of loadsOf(one)) {
        const found = await figuresOf(folder, one, port, what, env, settings);
        const middle = (name: string, of: (figures: Figures) => number): number =>
          median(found.get(name)!.map(of));
        const side = (name: string): Side => ({
          speed: middle(name, ({ requestsPerSecond }) => requestsPerSecond),
          cpu: middle(name, ({ userUs, kernelUs }) => userUs + kernelUs).toFixed(0),
        });
        rows.push(sideBySide(`${one.name}, ${what.name}, ${delay}`, side('qblockd'), side('original')));
      }
    }
  return markdownTable(
    [
      'requests a second (median)',
      'qblockd',
      'qemu-storage-daemon',
      'ratio',
      'CPU us a request',
      "the original's",
    ],
    rows,
  );
}
