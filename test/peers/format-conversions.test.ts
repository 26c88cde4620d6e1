/**
 * Conversions between every pair of formats that can be written: disks of 4 KiB, of an odd length, sparse and full, and
 * compressed where the format knows that. What comes out has the right content and length as the original reads it (the
 * same as what the original makes of it), and passes its check.
 *
 * CONVERSIONS=all makes every pair from every disk, by both; else each pair is made from one of them, by ours.
 */

import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { limitMs } from '../patience.ts';
import { requirePeer } from './requires.ts';
import { runTool, TOOLS } from './tool-diff.ts';

const folder = mkdtempSync(path.join(tmpdir(), 'qb-pairs-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const KIB = 1024;
const MIB = 1024 * KIB;
const ALL = process.env.CONVERSIONS === 'all';

interface Target {
  readonly format: string;
  readonly options?: string;
  readonly compressed?: boolean;
  /** Exit status 0 of the original's check is asked for. */
  readonly hasCheck?: boolean;
}

/** What is written; the first ones, without options, are what is read. */
const TARGETS: readonly Target[] = [
  { format: 'raw' },
  { format: 'qcow2', hasCheck: true },
  { format: 'vmdk', hasCheck: true },
  { format: 'vdi', hasCheck: true },
  { format: 'vhdx', hasCheck: true },
  { format: 'vpc', options: 'force_size=on' },
  { format: 'qed', hasCheck: true },
  { format: 'qcow' },
  { format: 'parallels' },
  { format: 'qcow2', compressed: true, hasCheck: true },
  { format: 'qcow2', options: 'compression_type=zstd', compressed: true, hasCheck: true },
  { format: 'qcow', compressed: true },
  { format: 'vmdk', options: 'subformat=streamOptimized', hasCheck: true },
  { format: 'vmdk', options: 'subformat=streamOptimized', compressed: true, hasCheck: true },
  { format: 'vmdk', options: 'subformat=twoGbMaxExtentFlat' },
  { format: 'vhdx', options: 'subformat=fixed' },
  { format: 'vdi', options: 'static=on', hasCheck: true },
];
const SOURCES = [...new Set(TARGETS.map(({ format }) => format))];

/** Bytes that do not compress to nothing, and differ from place to place. */
function filled(bytes: number): Buffer {
  const data = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; at++) data[at] = 1 + ((at * 7 + (at >> 9) + (at >> 13) * 5) % 251);
  return data;
}

function sparse(bytes: number): Buffer {
  const data = Buffer.alloc(bytes);
  filled(100 * KIB).copy(data, 3 * MIB - 50 * KIB);
  filled(512).copy(data, bytes - 512);
  return data;
}

const DISKS: Readonly<Record<string, Buffer>> = {
  'of 4 KiB': filled(4 * KIB),
  'of an odd length': filled(2 * MIB + 3 * 512),
  sparse: sparse(9 * MIB + 512),
  full: filled(3 * MIB),
};

/** The disk as an image of each format, made by the original. */
function makeSources(name: string): string {
  const dir = path.join(folder, name.replaceAll(' ', '-'));
  mkdirSync(dir, { recursive: true });
  writeFileSync(path.join(dir, 'disk.raw'), DISKS[name]!);
  for (const format of SOURCES.slice(1)) {
    const options = TARGETS.find((each) => each.format === format)!.options;
    execFileSync(
      'qemu-img',
      [
        ...['convert', '-f', 'raw', '-O', format],
        ...(options === undefined ? [] : ['-o', options]),
        ...['disk.raw', `disk.${format}`],
      ],
      { cwd: dir },
    );
  }
  return dir;
}

function convertArgs(source: string, { format, options, compressed }: Target, out: string): string[] {
  return [
    ...['convert', '-f', source, '-O', format],
    ...(compressed === true ? ['-c'] : []),
    ...(options === undefined ? [] : ['-o', options]),
    `disk.${source}`,
    out,
  ];
}

/** What is wrong with one conversion; empty: nothing. */
async function tryPair(dir: string, source: string, target: Target, number: number): Promise<string[]> {
  const [ours, theirs] = [path.join(dir, `ours-${number}`), path.join(dir, `theirs-${number}`)];
  mkdirSync(ours);
  mkdirSync(theirs);
  const complaints: string[] = [];
  const run = async (tool: string, args: readonly string[]): Promise<string> => {
    const { status, stdout, stderr } = await runTool(tool, args, dir);
    if (status !== 0 || stderr !== '') complaints.push(`${args.join(' ')}: ${status} ${stdout}${stderr}`);
    return stdout;
  };
  const { format, hasCheck = false } = target;
  const image = path.join(ours, 'image');
  await run(TOOLS.img.ours, convertArgs(source, target, image));
  // The original cannot compress into qcow: it fails at the end.
  const canCompare = ALL && !(format === 'qcow' && target.compressed === true);
  const other = path.join(theirs, 'image');
  if (canCompare) await run(TOOLS.img.theirs, convertArgs(source, target, other));
  await run(TOOLS.img.theirs, ['compare', '-f', format, '-F', 'raw', image, 'disk.raw']);
  if (canCompare) await run(TOOLS.img.theirs, ['compare', '-f', format, '-F', format, image, other]);
  if (hasCheck) await run(TOOLS.img.theirs, ['check', '-q', '-f', format, image]);
  rmSync(ours, { recursive: true });
  rmSync(theirs, { recursive: true });
  return complaints;
}

for (const [i, source] of SOURCES.entries()) {
  test(
    `from ${source} to every format`,
    async (context) => {
      requirePeer(context, 'qemu-img');
      const names = Object.keys(DISKS);
      const dirs = Object.fromEntries(names.map((name) => [name, makeSources(name)]));
      const jobs = TARGETS.flatMap((target, j) =>
        names
          .filter((_, k) => ALL || k === (i + j) % names.length)
          .map((name, k) => ({ name, target, number: j * names.length + k })),
      );
      const complaints: string[] = [];
      const next = async (): Promise<void> => {
        for (;;) {
          const job = jobs.pop();
          if (job === undefined) return;
          const { name, target, number } = job;
          const found = await tryPair(dirs[name]!, source, target, number);
          complaints.push(...found.map((each) => `disk ${name}, ${JSON.stringify(target)}: ${each}`));
        }
      };
      await Promise.all([next(), next()]);
      expect(complaints).toEqual([]);
    },
    limitMs(ALL ? 1_200_000 : 300_000),
  );
}
