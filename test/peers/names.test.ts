/** Names beside the original: what a tool prints, and how it ends, for each of the cases in names-cases.ts. */

import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { BACKINGS, FILES, NAME_CASES, type NameCase } from './names-cases.ts';
import { missingPeer, requirePeer } from './requires.ts';
import { runTool, TOOLS } from './tool-diff.ts';

let dir = '';

beforeAll(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'qb-names-'));
  if (missingPeer(['qemu-img', 'qemu-io']) !== null) return;
  const create = (...words: string[]) =>
    execFileSync('qemu-img', ['create', '-q', ...words], { cwd: dir, stdio: 'pipe' });
  for (const folder of ['d:e', 'p', 'dir']) mkdirSync(path.join(dir, folder));
  symlinkSync('loop', path.join(dir, 'loop'));
  symlinkSync('nowhere', path.join(dir, 'dangling'));
  create('-f', 'raw', 'raw', '1M');
  for (const name of FILES) create('-f', 'qcow2', path.join(dir, name), '1M');
  for (const [index, backing] of BACKINGS.entries())
    for (const name of [`over${index}`, `i:over${index}`])
      create('-u', '-f', 'qcow2', '-b', backing, '-F', 'qcow2', path.join(dir, 'p', name), '1M');
});

afterAll(() => rmSync(dir, { recursive: true, force: true }));

/** Numbers that the host decides, and the name of the program. */
function plain(text: string): string {
  return text
    .replaceAll('qblock-', 'qemu-')
    .replace(/^disk size: .*$/gm, '')
    .replaceAll(dir, 'DIR');
}

/** Cases that run side by side. */
const LANES = 3;

async function expectEqual({ tool, words }: NameCase): Promise<void> {
  const outcomes = await Promise.all(
    (['theirs', 'ours'] as const).map(async (side) => {
      const { status, stdout, stderr } = await runTool(TOOLS[tool][side], words, dir);
      return { status, stdout: plain(stdout), stderr: plain(stderr) };
    }),
  );
  expect(outcomes[1], `${tool} ${words.join(' ')}`).toEqual(outcomes[0]);
}

for (const [title, cases] of Object.entries(NAME_CASES)) {
  test(title, { timeout: 300_000 }, async (context) => {
    requirePeer(context, 'qemu-img', 'qemu-io');
    const waiting = [...cases];
    const lane = async (): Promise<void> => {
      for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) await expectEqual(next);
    };
    await Promise.all(Array.from({ length: LANES }, lane));
  });
}

test('bytes that are not UTF-8 are kept', { timeout: 60_000 }, async (context) => {
  requirePeer(context, 'qemu-img');
  // A shell makes the names: Node passes text only.
  const script = `
    set -e
    name=$(printf 'caf\\351\\377')
    "$1" create -q -f qcow2 "$name" 1M
    "$1" create -q -f qcow2 -b "$name" -F qcow2 over
    "$1" snapshot -c "$name" over
    test -f "$name"
    "$2" snapshot -l over | grep -aq "$name"
    "$2" info over | grep -aq "backing file: $name"
    "$1" info over | grep -aq "backing file: $name"
    "$1" check over
    test "$("$1" info --output=json over)" = "$("$2" info --output=json over)"`;
  const scratch = path.join(dir, 'bytes');
  mkdirSync(scratch);
  const { status, stderr } = await runTool(
    'sh',
    ['-c', script, 'sh', TOOLS.img.ours, TOOLS.img.theirs],
    scratch,
  );
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
});
