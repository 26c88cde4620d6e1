/**
 * kill -9 in the middle of convert, amend and resize: sources are untouched, an image that was being changed can be read and
 * shows what it showed (a shrinking one: what stays), and a second run succeeds.
 */

import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { repositoryRoot } from '../../peers/daemons.ts';

const IMG = path.join(repositoryRoot, 'daemon/bin/qblock-img');
const IO = path.join(repositoryRoot, 'daemon/bin/qblock-io');
const MIB = 1024 * 1024;
/** Runs that are killed in the middle, and runs that are begun at most to get them. */
const KILLS = Number(process.env.KILLS ?? '2');
const MAX_RUNS = KILLS * 10;

const root = mkdtempSync(path.join(tmpdir(), 'qb-killed-'));
const fixture = path.join(root, 'fixture');
const dir = path.join(root, 'run');
afterAll(() => rmSync(root, { recursive: true, force: true }));

const img = (at: string, ...words: string[]): string =>
  execFileSync(IMG, words, { cwd: at, encoding: 'utf8' });

beforeAll(() => {
  mkdirSync(fixture);
  const write = (file: string, ...lines: string[]) =>
    execFileSync(IO, ['-t', 'writeback', ...lines.flatMap((line) => ['-c', line]), file], {
      cwd: fixture,
      stdio: 'pipe',
    });
  img(fixture, 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', 'base', '48M');
  write('base', 'write -P 1 0 20M', 'write -P 2 24M 4M');
  img(fixture, 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', '-b', 'base', '-F', 'qcow2', 'top');
  write('top', 'write -P 5 2M 12M', 'write -z 18M 9M', 'write -P 6 40M 7M');
  img(fixture, 'convert', '-f', 'qcow2', '-O', 'raw', 'top', 'content');
});

/** Begins the command on a fresh copy of the images, and kills it some time after it has changed `file`. */
async function isKilled(words: readonly string[], file: string, delayMs: number): Promise<boolean> {
  rmSync(dir, { recursive: true, force: true });
  cpSync(fixture, dir, { recursive: true });
  const changed = (): bigint =>
    statSync(path.join(dir, file), { bigint: true, throwIfNoEntry: false })?.mtimeNs ?? 0n;
  const before = changed();
  const child = spawn(IMG, words, { cwd: dir, stdio: 'ignore' });
  const exited = once(child, 'exit');
  while (child.exitCode === null && changed() === before) await sleep(1);
  await sleep(delayMs);
  child.kill('SIGKILL');
  const [, signal] = (await exited) as [number | null, string | null];
  return signal === 'SIGKILL';
}

/** Does so until it has hit the middle often enough, sooner or later after the first change; `look` looks each time. */
async function killSeveral(
  words: readonly string[],
  file: string,
  look: (at: string) => void,
): Promise<void> {
  let kills = 0;
  for (let run = 0; run < MAX_RUNS && kills < KILLS; run++) {
    const delayMs = ((run * 37) % 80) / (1 + Math.floor(run / 4));
    if (await isKilled(words, file, delayMs)) kills++;
    look(`run ${run}, killed ${delayMs} ms after the first change`);
  }
  expect(kills).toBe(KILLS);
}

/** What `top` shows. */
function shown(): Buffer {
  img(dir, 'convert', '-f', 'qcow2', '-O', 'raw', 'top', 'shown');
  return readFileSync(path.join(dir, 'shown'));
}

function expectClean(file: string, at: string): void {
  const { status, stdout } = spawnSync(IMG, ['check', file], { cwd: dir, encoding: 'utf8' });
  expect([0, 3], `${at}: ${stdout}`).toContain(status);
}

const content = (): Buffer => readFileSync(path.join(fixture, 'content'));

test.each(['qcow2', 'raw'])('convert to %s', async (format) => {
  const words = ['convert', '-f', 'qcow2', '-O', format, '-r', '64M', 'top', 'copy'];
  await killSeveral(words, 'copy', (at) => {
    for (const name of readdirSync(fixture))
      expect(readFileSync(path.join(dir, name)).equals(readFileSync(path.join(fixture, name))), at).toBe(
        true,
      );
    // Killed before it has a header, it is no image yet.
    if (img(dir, 'info', '--output=json', 'copy').includes('"qcow2"')) expectClean('copy', at);
    img(dir, ...words.filter((word) => word !== '-r' && word !== '64M'));
    expect(img(dir, 'compare', '-f', 'qcow2', '-F', format, 'top', 'copy')).toBe('Images are identical.\n');
  });
});

describe('what changes an image in place', () => {
  test.each([
    ['compat=0.10', '"compat": "0.10"'],
    ['refcount_bits=64', '"refcount-bits": 64'],
  ])('amend %s', async (option, member) => {
    const words = ['amend', '-f', 'qcow2', '-o', option, 'top'];
    await killSeveral(words, 'top', (at) => {
      expect(shown().equals(content()), at).toBe(true);
      expectClean('top', at);
      img(dir, ...words);
      expect(shown().equals(content()), at).toBe(true);
      expect(img(dir, 'info', '--output=json', 'top')).toContain(member);
    });
  });

  test('resize to less', async () => {
    const words = ['resize', '-q', '-f', 'qcow2', '--shrink', 'top', '10M'];
    await killSeveral(words, 'top', (at) => {
      expect(
        shown()
          .subarray(0, 10 * MIB)
          .equals(content().subarray(0, 10 * MIB)),
        at,
      ).toBe(true);
      expectClean('top', at);
      img(dir, ...words);
      expect(shown().equals(content().subarray(0, 10 * MIB)), at).toBe(true);
    });
  });

  test('resize to more, with its clusters', async () => {
    const words = ['resize', '-q', '-f', 'qcow2', '--preallocation=full', 'top', '80M'];
    await killSeveral(words, 'top', (at) => {
      const now = shown();
      expect(now.subarray(0, 48 * MIB).equals(content()), at).toBe(true);
      expect(
        now.subarray(48 * MIB).every((byte) => byte === 0),
        at,
      ).toBe(true);
      expectClean('top', at);
      img(dir, ...words);
      expect(
        shown()
          .subarray(0, 48 * MIB)
          .equals(content()),
        at,
      ).toBe(true);
    });
  });
});
