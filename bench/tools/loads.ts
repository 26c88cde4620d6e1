/** What `npm run bench:tools` measures: command lines, the images they work on, and what the kernel's part of each is. */

import { spawnSync } from 'node:child_process';
import {
  constants,
  copyFileSync,
  existsSync,
  openSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import path from 'node:path';
import { syncFile } from '../fio.ts';

/** The tools under test. */
export const BIN = path.resolve(import.meta.dirname, '../../../daemon/bin');

export interface ToolLoad {
  readonly name: string;
  /** Arguments of the tool; `at` is the place of a file of that name. */
  readonly args: (at: (name: string) => string) => readonly string[];
  /** Runs of it that are one measurement: short ones are repeated. */
  readonly times: number;
  /** Makes what it changes, before each run and out of the measured time. */
  readonly prepare?: (at: (name: string) => string) => void;
  /** What floor.c is told, to do the kernel's part of the same work. */
  readonly floor?: readonly [mode: string, ...files: readonly string[]];
}

const MIB = 1024 * 1024;

/** Runs a program that prepares something; throws what it says when it fails. */
export function original(program: string, args: readonly string[], input = ''): void {
  const { status, stderr } = spawnSync(program, args, {
    encoding: 'utf8',
    input,
    stdio: ['pipe', 'ignore', 'pipe'],
  });
  if (status !== 0) throw new Error(`${program} ${args.join(' ').slice(0, 100)}: ${stderr}`);
}

type At = (name: string) => string;

/** An empty `over` on `below`, a copy of `qcow2` that is like it again. */
function makeEmptyOver(at: At): void {
  copyFileSync(at('qcow2'), at('below'), constants.COPYFILE_FICLONE);
  rmSync(at('over'), { force: true });
  original('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', at('below'), '-F', 'qcow2', at('over')]);
  for (const name of ['below', 'over']) syncFile(at(name));
}

/** `over` on a copy of `qcow2`, in which the first so many MiB of each four are other data. */
function makeOver(at: At, mibOfFour: number): void {
  makeEmptyOver(at);
  const mib = statSync(at('raw')).size / MIB;
  const writes = Array.from({ length: Math.floor(mib / 4) }, (_, index) => [
    '-c',
    `write -q -P 7 ${index * 4}M ${mibOfFour}M`,
  ]);
  original('qemu-io', ['-t', 'unsafe', ...writes.flat(), at('over')]);
  syncFile(at('over'));
}

const makeQuarter = (at: At): void => makeOver(at, 1);
const makeWhole = (at: At): void => makeOver(at, 4);

/** A sparse image of 1 TiB with 100,000 allocated clusters; made once, by our tool, which leaves clusters sparse. */
function makeHuge(at: At): void {
  const file = at('huge');
  if (existsSync(file)) return;
  original('qemu-img', ['create', '-q', '-f', 'qcow2', file, '1T']);
  const step = Math.floor(1024 ** 4 / 100_000 / 65536) * 65536;
  const lines = Array.from({ length: 100_000 }, (_, index) => `write -q ${index * step} 512\n`);
  original(path.join(BIN, 'qblock-io'), ['-t', 'unsafe', file], lines.join(''));
  syncFile(file);
}

/** Two bitmaps, in which `writes` places of `step` each are marked. */
function makeMarked(file: string, size: string, granularity: string, writes: number, step: string): void {
  if (existsSync(file)) return;
  original('qemu-img', ['create', '-q', '-f', 'qcow2', file, size]);
  for (const name of ['b0', 'b1']) original('qemu-img', ['bitmap', '--add', '-g', granularity, file, name]);
  const [, number = '', unit = ''] = /^(\d+)(\w)$/.exec(step) ?? [];
  const lines = Array.from(
    { length: writes },
    (_, index) => `write -q -z ${index * Number(number)}${unit} 640k\n`,
  );
  original('qemu-io', ['-t', 'unsafe', file], lines.join(''));
  syncFile(file);
}

const convert = (
  name: string,
  from: string,
  options: readonly string[],
  floor?: ToolLoad['floor'],
): ToolLoad => ({
  name,
  args: (at) => ['convert', '-f', from === 'raw' ? 'raw' : 'qcow2', ...options, at(from), at('target')],
  times: 1,
  ...(floor !== undefined && { floor }),
});

export const START = 'start alone (info of a small raw file)';

export const LOADS: readonly ToolLoad[] = [
  { name: START, args: (at) => ['info', '-f', 'raw', at('small')], times: 5 },
  { name: 'info', args: (at) => ['info', at('qcow2')], times: 5 },
  {
    name: 'create qcow2',
    args: (at) => ['create', '-q', '-f', 'qcow2', at('target'), '10G'],
    times: 5,
  },
  convert('convert raw to raw', 'raw', ['-O', 'raw'], ['copy', 'raw', 'target']),
  convert('convert raw to qcow2', 'raw', ['-O', 'qcow2'], ['copy', 'raw', 'target']),
  convert('convert qcow2 to raw', 'qcow2', ['-O', 'raw'], ['copy', 'qcow2', 'target']),
  convert('convert raw to qcow2, zlib', 'raw', ['-O', 'qcow2', '-c']),
  convert('convert raw to qcow2, zstd', 'raw', ['-O', 'qcow2', '-c', '-o', 'compression_type=zstd']),
  convert('convert qcow2 to qcow2', 'qcow2', ['-O', 'qcow2'], ['copy', 'qcow2', 'target']),
  convert('convert qcow2 to qcow2, zlib', 'qcow2', ['-O', 'qcow2', '-c']),
  convert('convert zlib qcow2 to qcow2', 'zlib', ['-O', 'qcow2']),
  convert('convert zlib qcow2 to zlib', 'zlib', ['-O', 'qcow2', '-c']),
  convert('convert zlib qcow2 to raw', 'zlib', ['-O', 'raw']),
  convert('convert zstd qcow2 to raw', 'zstd', ['-O', 'raw']),
  {
    name: 'compare raw and qcow2',
    args: (at) => ['compare', at('raw'), at('qcow2')],
    times: 1,
    floor: ['compare', 'raw', 'raw'],
  },
  { name: 'check qcow2', args: (at) => ['check', at('qcow2')], times: 3 },
  {
    name: 'check 1 TiB, 100,000 clusters',
    args: (at) => ['check', at('huge')],
    times: 1,
    prepare: makeHuge,
  },
  {
    name: 'commit of a quarter',
    args: (at) => ['commit', '-q', '-d', at('over')],
    times: 1,
    prepare: makeQuarter,
  },
  {
    name: 'commit of all',
    args: (at) => ['commit', '-q', '-d', at('over')],
    times: 1,
    prepare: makeWhole,
    floor: ['onto', 'over', 'below'],
  },
  {
    name: 'rebase of a quarter onto an equal image',
    args: (at) => ['rebase', '-b', at('qcow2'), '-F', 'qcow2', at('over')],
    times: 1,
    prepare: makeQuarter,
  },
  {
    name: 'rebase of an empty one onto an equal image',
    args: (at) => ['rebase', '-b', at('qcow2'), '-F', 'qcow2', at('over')],
    times: 1,
    prepare: makeEmptyOver,
    floor: ['compare', 'qcow2', 'below'],
  },
  {
    name: 'rebase of a quarter onto nothing',
    args: (at) => ['rebase', '-b', '', at('over')],
    times: 1,
    prepare: makeQuarter,
  },
  {
    name: 'rebase of an empty one onto nothing',
    args: (at) => ['rebase', '-b', '', at('over')],
    times: 1,
    prepare: makeEmptyOver,
    floor: ['fresh', 'qcow2', 'target'],
  },
  {
    name: 'dd',
    args: (at) => ['dd', '-f', 'raw', '-O', 'raw', 'bs=1M', `if=${at('raw')}`, `of=${at('target')}`],
    times: 1,
    floor: ['fresh', 'raw', 'target'],
  },
  {
    name: 'bitmap merge, 10 GiB',
    args: (at) => ['bitmap', '--merge', 'b1', at('marked'), 'b0'],
    times: 3,
    prepare: (at) => makeMarked(at('marked'), '10G', '4k', 1000, '10M'),
  },
  {
    name: 'bitmap merge, 16 TiB, 2 x 32 MiB',
    args: (at) => ['bitmap', '--merge', 'b1', at('marked-huge'), 'b0'],
    times: 1,
    // Every cluster of the bitmaps' tables, which stands for 32 GiB, has some bits.
    prepare: (at) => makeMarked(at('marked-huge'), '16T', '64k', 2048, '8G'),
  },
];

/** Every other MiB is text-like data that compresses, the rest does not. */
function makeRaw(file: string, sizeMib: number): void {
  const fd = openSync(file, 'w');
  const words = Buffer.from('the quick brown fox jumps over the lazy dog and counts: ');
  const noise = Buffer.alloc(1 << 20);
  let seed = 1;
  for (let i = 0; i < sizeMib; i++) {
    if (i % 2 === 0) {
      for (let at = 0; at < noise.length; at += 4) {
        seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
        noise.writeUInt32LE((seed ^ (seed >>> 15)) >>> 0, at);
      }
      writeSync(fd, noise);
    } else {
      const text = Buffer.alloc(1 << 20, words);
      for (let at = 0; at < text.length; at += 64) text.writeUInt32LE((i * 131 + at * 7) >>> 0, at);
      writeSync(fd, text);
    }
  }
}

/** The images that are read: `small`, `raw`, and as many bytes as qcow2, made by the original so that both read the same. */
export function makeSources(at: At, sizeMib: number): void {
  writeFileSync(at('small'), Buffer.alloc(65536, 1));
  makeRaw(at('raw'), sizeMib);
  for (const [name, ...args] of [
    ['qcow2'],
    ['zlib', '-c'],
    ['zstd', '-c', '-o', 'compression_type=zstd'],
  ] as const) {
    original('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', ...args, at('raw'), at(name)]);
    syncFile(at(name));
  }
  syncFile(at('raw'));
}
