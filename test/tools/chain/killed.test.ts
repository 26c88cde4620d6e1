/** kill -9 in the middle of rebase and commit: the chain can be read and shows what it showed; a second run succeeds. */

import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { repositoryRoot } from '../../peers/daemons.ts';

const IMG = path.join(repositoryRoot, 'daemon/bin/qblock-img');
const IO = path.join(repositoryRoot, 'daemon/bin/qblock-io');
const KILLS = 2;
/** Bytes a second of a commit: it lasts long enough to be killed in. */
const RATE = '24M';

const root = mkdtempSync(path.join(tmpdir(), 'qb-killed-'));
const fixture = path.join(root, 'fixture');
afterAll(() => rmSync(root, { recursive: true, force: true }));

function img(dir: string, ...words: string[]): string {
  return execFileSync(IMG, words, { cwd: dir, encoding: 'utf8' });
}

beforeAll(() => {
  mkdirSync(fixture);
  const write = (file: string, ...lines: string[]) =>
    execFileSync(IO, ['-t', 'writeback', ...lines.flatMap((line) => ['-c', line]), file], {
      cwd: fixture,
      stdio: 'pipe',
    });
  img(fixture, 'create', '-q', '-f', 'qcow2', 'base', '32M');
  write('base', 'write -P 1 0 20M', 'write -P 2 24M 4M');
  img(fixture, 'create', '-q', '-f', 'qcow2', 'other', '32M');
  write('other', 'write -P 1 0 4M', 'write -P 9 26M 6M');
  img(fixture, 'create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2', 'top');
  write('top', 'write -P 5 2M 12M', 'write -z 22M 3M');
  img(fixture, 'convert', '-f', 'qcow2', '-O', 'raw', 'top', 'content');
});

const same = (dir: string): { status: number | null; stdout: string } =>
  spawnSync(IMG, ['compare', '-f', 'qcow2', '-F', 'raw', 'top', 'content'], { cwd: dir, encoding: 'utf8' });

test.each([
  ['commit', ['commit', '-q', '-r', RATE, 'top']],
  ['rebase', ['rebase', '-b', 'other', '-F', 'qcow2', 'top']],
  ['rebase to nothing', ['rebase', '-b', '', 'top']],
])('%s', async (_name, words) => {
  let killed = 0;
  for (let number = 0; number < KILLS; number++) {
    const dir = path.join(root, 'run');
    rmSync(dir, { recursive: true, force: true });
    cpSync(fixture, dir, { recursive: true });
    // From what it prints, so that a slow machine is hit in the middle too: progress tells how far it is.
    const child = spawn(IMG, [...words.filter((word) => word !== '-q'), '-p'], {
      cwd: dir,
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    const exited = once(child, 'exit');
    let text = '';
    child.stdout.on('data', (more) => {
      text += String(more);
      const percent = Number(/\((\d+)\.\d+\/100%\)\r?$/.exec(text.trimEnd())?.[1] ?? 0);
      if (percent >= 20 + number * 40) child.kill('SIGKILL');
    });
    const [, signal] = (await exited) as [number | null, string | null];
    if (signal === 'SIGKILL') killed++;
    expect(same(dir), `killed at ${text.slice(-12)}`).toMatchObject({ status: 0 });
    const { status } = spawnSync(IMG, ['check', '-q', 'top'], { cwd: dir });
    expect([0, 3]).toContain(status);
    img(dir, ...words.filter((word) => word !== '-r' && word !== RATE));
    expect(same(dir)).toMatchObject({ status: 0 });
  }
  expect(killed).toBeGreaterThan(0);
});
