/** What `convert -c` and `rebase -c` write shows what it is to show, however extents and clusters lie to each other. */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { repositoryRoot } from '../peers/daemons.ts';

let dir = '';

function run(tool: 'qblock-img' | 'qblock-io', ...words: string[]): string {
  const program = path.join(repositoryRoot, 'daemon/bin', tool);
  return execFileSync(program, words, { cwd: dir, encoding: 'utf8', stdio: 'pipe' });
}

const img = (...words: string[]): string => run('qblock-img', ...words);
const io = (file: string, ...lines: string[]): string =>
  run('qblock-io', '-f', 'qcow2', ...lines.flatMap((line) => ['-c', line]), file);

function contentOf(file: string): Buffer {
  img('convert', '-f', 'qcow2', '-O', 'raw', file, 'content');
  return readFileSync(path.join(dir, 'content'));
}

beforeAll(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'qb-'));
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

test.each(['4k', '64k', '2M'])('little data between zeroes, into clusters of %s', (clusterSize) => {
  img('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=512', 'sparse', '9M');
  io('sparse', 'write -P 7 26k 51k', 'write -P 8 2418688 512', 'write -P 9 6572544 1536');
  for (const extra of [[], ['-p'], ['-m', '1'], ['-W']]) {
    img('convert', ...extra, '-c', '-O', 'qcow2', '-o', `cluster_size=${clusterSize}`, 'sparse', 'packed');
    const content = contentOf('packed');
    expect(content.equals(contentOf('sparse'))).toBe(true);
    expect([26 << 10, (77 << 10) - 1, 2418688, 6574079].map((at) => content[at])).toEqual([7, 7, 8, 9]);
    expect(img('check', '-f', 'qcow2', 'packed')).toContain('No errors');
  }
});

test('rebase -c over an image with smaller clusters', () => {
  img('create', '-q', '-f', 'qcow2', 'base', '1M');
  io('base', 'write -P 1 0 1M');
  img('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=512', '-b', 'base', '-F', 'qcow2', 'middle');
  io('middle', 'write -P 2 2048 512', 'write -P 3 70000 1000', 'write -P 4 300k 200k', 'write -P 5 1023k 1k');
  for (const options of ['cluster_size=4k', 'cluster_size=64k', 'cluster_size=64k,extended_l2=on']) {
    img('create', '-q', '-f', 'qcow2', '-o', options, '-b', 'middle', '-F', 'qcow2', 'top', '1200k');
    io('top', 'write -P 6 128k 5k', 'write -z 400k 2k');
    const before = contentOf('top');
    img('rebase', '-c', '-b', 'base', '-F', 'qcow2', 'top');
    expect(contentOf('top').equals(before)).toBe(true);
    expect(img('check', '-f', 'qcow2', 'top')).toMatch(/[1-9]\d*\.\d\d% compressed clusters/);
  }
});
