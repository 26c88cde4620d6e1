/** Resizing qcow2 images beside the original: what they show afterwards, and what they take on the host. */

import { execFileSync, spawnSync } from 'node:child_process';
import { rmSync, statSync } from 'node:fs';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { makeScratchDir, repositoryRoot } from './daemons.ts';
import { requirePeer } from './requires.ts';

const dir = makeScratchDir();
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const run = (tool: string, ...words: string[]): string =>
  execFileSync(tool, words, { cwd: dir, encoding: 'utf8', stdio: 'pipe' });
const OURS = path.join(repositoryRoot, 'daemon/bin/qblock-img');

/** Makes an image, resizes it, and tells what came of it. */
function outcome(tool: string, create: readonly string[][], resizes: readonly string[][], reads: string[]) {
  for (const name of ['x', 'base', 'd.raw']) rmSync(path.join(dir, name), { force: true });
  for (const words of create) run(words[0]!, ...words.slice(1));
  for (const words of resizes) {
    const { status, stderr } = spawnSync(tool, ['resize', '-q', ...words], { cwd: dir, encoding: 'utf8' });
    if (status !== 0) return stderr.replace(/^[^:]*: /, '');
  }
  const shown = run('qemu-io', '-r', ...reads.flatMap((read) => ['-c', `read ${read}`]), 'x');
  return shown.replace(/^.*ops; .*$/gm, '') + run('qemu-img', 'check', 'x').split('\n')[0];
}

const BASE = [
  ['qemu-img', 'create', '-q', '-f', 'raw', 'base', '1M'],
  ['qemu-io', '-f', 'raw', '-c', 'write -P 5 0 1M', 'base'],
  ['qemu-img', 'create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'raw', 'x', '1M'],
];
const dataFile = (raw: string, bytes: string): string[][] => [
  ['qemu-img', 'create', '-q', '-f', 'qcow2', '-o', `data_file=d.raw,data_file_raw=${raw}`, 'x', '1M'],
  ['qemu-io', '-f', 'raw', '-c', `truncate ${bytes}`, '-c', `write -P 9 0 ${bytes}`, 'd.raw'],
];
const CASES: Readonly<Record<string, readonly [string[][], string[][], string[]]>> = {
  'an overlay, shrunk and grown within a cluster': [
    BASE,
    [
      ['--shrink', 'x', '520k'],
      ['x', '567k'],
      ['x', '700k'],
      ['x', '2M'],
    ],
    ['-P 5 0 520k', '-P 0 520k 1528k'],
  ],
  'a raw data file with data behind the end': [
    dataFile('on', '4M'),
    [['x', '2M']],
    ['-P 9 0 1M', '-P 9 1M 1M'],
  ],
  'a raw data file, to no whole cluster': [dataFile('on', '4M'), [['x', '2050k']], ['-P 9 0 2050k']],
  'a raw data file that is shorter': [
    dataFile('on', '512k'),
    [['x', '2M']],
    ['-P 9 0 512k', '-P 0 512k 1536k'],
  ],
  'a data file': [dataFile('off', '4M'), [['x', '2M']], ['-P 0 0 2M']],
};
test.for(Object.entries(CASES))('%s', ([, [create, resizes, reads]], context) => {
  requirePeer(context, 'qemu-img', 'qemu-io');
  const theirs = outcome('qemu-img', create, resizes, reads);
  expect(theirs).not.toContain('failed');
  expect(outcome(OURS, create, resizes, reads)).toBe(theirs);
});

test.for(['4k', '64k', '1M', '2M'])('shrinking with clusters of %s gives space back', (clusters, context) => {
  requirePeer(context, 'qemu-img', 'qemu-io');
  const sizes = ['qemu-img', OURS].map((tool) => {
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', `cluster_size=${clusters}`, 'x', '32M');
    run('qemu-io', '-c', 'write -P 1 0 32M', 'x');
    run(tool, 'resize', '-q', '--shrink', 'x', '4M');
    expect(run('qemu-img', 'check', 'x')).toMatch(/^No errors were found on the image/);
    const { size, blocks } = statSync(path.join(dir, 'x'));
    return { size, bytes: blocks * 512 };
  });
  const [theirs, ours] = sizes;
  expect(ours!.size).toBeLessThanOrEqual(theirs!.size + 64 * 1024);
  expect(ours!.bytes).toBeLessThanOrEqual(theirs!.bytes + 64 * 1024);
});

test.for(['metadata', 'falloc', 'full'])(
  'preallocation=%s of a cluster that is partly old',
  (mode, context) => {
    requirePeer(context, 'qemu-img', 'qemu-io');
    run('qemu-img', 'create', '-q', '-f', 'qcow2', 'x', '520k');
    const before = statSync(path.join(dir, 'x')).blocks * 512;
    run(OURS, 'resize', '-q', `--preallocation=${mode}`, 'x', '567k');
    const map = JSON.parse(run('qemu-img', 'map', '--output=json', 'x')) as {
      start: number;
      present: boolean;
    }[];
    expect(map.filter(({ present }) => present).map(({ start }) => start)[0]).toBe(512 * 1024);
    if (mode !== 'metadata')
      expect(statSync(path.join(dir, 'x')).blocks * 512 - before).toBeGreaterThan(60_000);
    expect(run('qemu-img', 'check', 'x')).toMatch(/^No errors were found on the image/);
  },
);
