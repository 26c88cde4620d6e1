/** Part `convert` of bench:network: images from and to servers by qblock-img and qemu-img. */

import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { SERVER_CPU } from '../fio.ts';
import { markdownTable, median, pinned } from '../measure.ts';
import { type Side, sideBySide } from './rows.ts';
import type { Way } from './servers.ts';
import { ways } from './ways.ts';

const qblockImg = path.resolve(import.meta.dirname, '../../../daemon/bin/qblock-img');
const TOOLS = [
  { name: 'qblock-img', program: qblockImg },
  { name: 'qemu-img', program: 'qemu-img' },
] as const;

export interface ConvertLoad {
  readonly name: string;
  readonly way: Way;
  /** Arguments behind `convert`, for a server on this port. */
  arguments(port: number): readonly string[];
  /** Files that are to be equal afterwards. */
  readonly equal: readonly [string, string] | null;
}

interface Cost {
  readonly wall: number;
  readonly cpu: number;
}

/** Runs a tool on its CPU and tells wall and CPU seconds. */
function measure(program: string, args: readonly string[], env: NodeJS.ProcessEnv): Cost {
  const began = performance.now();
  const argv = pinned(SERVER_CPU, [program, 'convert', ...args]);
  const { status, stdout, stderr } = spawnSync('bash', ['-c', '"$@" || exit 1; times', 'sh', ...argv], {
    encoding: 'utf8',
    env,
  });
  const wall = (performance.now() - began) / 1000;
  if (status !== 0) throw new Error(`${argv.join(' ')}: ${stderr}`);
  // The second line is the children's: user and system time as MmS.s.
  const times = [...(stdout.trim().split('\n').at(-1) ?? '').matchAll(/(\d+)m([\d.]+)s/g)];
  return {
    wall,
    cpu: times.reduce((sum, [, minutes, seconds]) => sum + Number(minutes) * 60 + Number(seconds), 0),
  };
}

/** A table of all loads; throws when a copy differs from what was copied. */
export async function convertTable(
  loads: readonly ConvertLoad[],
  rounds: number,
  sizeMib: number,
  env: NodeJS.ProcessEnv,
): Promise<string> {
  const rows: string[][] = [];
  for (const one of loads)
    for (const [delay, port] of ways(one.way)) {
      await one.way.use?.(port);
      const results = new Map<string, Cost[]>(TOOLS.map(({ name }) => [name, []]));
      for (let round = 0; round < rounds; round++)
        for (let i = 0; i < TOOLS.length; i++) {
          const { name, program } = TOOLS[(i + round) % TOOLS.length]!;
          results.get(name)!.push(measure(program, one.arguments(port), env));
          if (name !== 'qblock-img' || one.equal === null) continue;
          if (spawnSync('cmp', ['-s', ...one.equal]).status !== 0)
            throw new Error(`${one.name}: the copy differs from the image`);
        }
      const middle = (name: string, key: 'wall' | 'cpu'): number =>
        median(results.get(name)!.map((result) => result[key]));
      const side = (name: string): Side => ({
        speed: sizeMib / middle(name, 'wall'),
        cpu: ((middle(name, 'cpu') * 1024) / sizeMib).toFixed(2),
      });
      rows.push(sideBySide(`${one.name}, ${delay}`, side('qblock-img'), side('qemu-img')));
    }
  return markdownTable(
    ['MiB a second (median)', 'qblock-img', 'qemu-img', 'ratio', 'CPU s a GiB', "qemu-img's"],
    rows,
  );
}
