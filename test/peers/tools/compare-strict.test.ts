/** `compare -s`: images that read alike and differ in what is told of their extents, each with each, beside the original. */

import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { repositoryRoot } from '../daemons.ts';
import { missingPeer, requirePeer } from '../requires.ts';

let dir = '';
const images: string[] = [];
const inDir = (name: string): string => path.join(dir, name);

function create(
  name: string,
  size: string,
  clusterBytes: number,
  backing: string[] = [],
  commands: string[] = [],
): void {
  const options = ['-q', '-f', 'qcow2', '-o', `cluster_size=${clusterBytes}`, ...backing, name, size];
  execFileSync('qemu-img', ['create', ...options], { cwd: dir });
  if (commands.length > 0)
    execFileSync('qemu-io', ['-f', 'qcow2', ...commands.flatMap((command) => ['-c', command]), name], {
      cwd: dir,
    });
}

beforeAll(() => {
  if (missingPeer(['qemu-img', 'qemu-io']) !== null) return;
  dir = mkdtempSync(path.join(tmpdir(), 'qb-'));
  for (const [name, bytes] of [
    ['r60', 61440],
    ['r61', 61000],
    ['r1M', 1 << 20],
  ] as const) {
    writeFileSync(inDir(name), '');
    truncateSync(inDir(name), bytes);
  }
  writeFileSync(inDir('data'), Buffer.alloc(61440, 7));
  for (const size of ['0', '60k', '128k', '1M']) create(`b${size}`, size, 65536);
  const make = (
    name: string,
    ...rest: [clusterBytes: number, backing?: string[], commands?: string[]]
  ): void => {
    create(name, '1M', ...rest);
    images.push(name);
  };
  make('plain', 65536);
  make('small', 512);
  make('4k', 4096);
  for (const size of ['0', '60k', '128k', '1M'])
    make(`over-${size}`, 65536, ['-b', `b${size}`, '-F', 'qcow2']);
  for (const name of ['r60', 'r61', 'r1M', 'data']) make(`over-${name}`, 65536, ['-b', name, '-F', 'raw']);
  make('zeroes', 65536, [], ['write -z 0 1M']);
  make('zeroed', 65536, [], ['write 0 1M', 'write -z 0 1M']);
  make('full', 65536, [], ['write 0 1M']);
});
afterAll(() => dir !== '' && rmSync(dir, { recursive: true }));

function compare(program: string, one: string, two: string): string {
  const { status, stdout, stderr } = spawnSync(
    program,
    ['compare', '-s', '-f', 'qcow2', '-F', 'qcow2', one, two],
    {
      cwd: dir,
      encoding: 'utf8',
    },
  );
  return `${one} ${two}: ${status} ${stdout}${stderr}`;
}

test('each image with each', (context) => {
  requirePeer(context, 'qemu-img');
  requirePeer(context, 'qemu-io');
  const ours = path.join(repositoryRoot, 'daemon/bin/qblock-img');
  const pairs = images.flatMap((one, at) => images.slice(at + 1).map((two) => [one, two] as const));
  expect(pairs.map((pair) => compare(ours, ...pair))).toEqual(
    pairs.map((pair) => compare('qemu-img', ...pair)),
  );
});
