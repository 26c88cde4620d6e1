/** rebase gives an image its first backing file: it shows what it showed, in formats with and without clusters of zeroes. */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { repositoryRoot } from '../../peers/daemons.ts';

const IMG = path.join(repositoryRoot, 'daemon/bin/qblock-img');
const IO = path.join(repositoryRoot, 'daemon/bin/qblock-io');
const root = mkdtempSync(path.join(tmpdir(), 'qb-first-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const run = (program: string, ...words: string[]): string =>
  execFileSync(program, words, { cwd: root, encoding: 'utf8' });

test.each([
  ['qcow2', 'cluster_size=4k', []],
  ['qcow2', 'extended_l2=on', []],
  ['qcow2', 'compat=0.10', []],
  ['qcow2', 'compat=1.1', ['-c']],
  ['qed', 'cluster_size=64k', []],
] as const)('%s, %s %s', (format, options, more) => {
  run(IMG, 'create', '-q', '-f', 'raw', 'below', '4M');
  run(IO, '-f', 'raw', '-c', 'write -q -P 9 0 3M', 'below');
  run(IMG, 'create', '-q', '-f', format, '-o', options, 'image', '4M');
  run(IO, '-f', format, '-c', 'write -q -P 7 100k 200k', '-c', 'write -q -z 1M 64k', 'image');
  run(IMG, 'convert', '-f', format, '-O', 'raw', 'image', 'before');
  run(IMG, 'rebase', ...more, '-f', format, '-b', 'below', '-F', 'raw', 'image');
  run(IMG, 'convert', '-f', format, '-O', 'raw', 'image', 'after');
  expect(readFileSync(path.join(root, 'after')).equals(readFileSync(path.join(root, 'before')))).toBe(true);
  expect(run(IMG, 'info', '-f', format, 'image')).toContain('backing file: below');
});
