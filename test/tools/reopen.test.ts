/** qblock-io's reopen: the image stays open, so that nobody else can get at it in between. */

import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { repositoryRoot } from '../peers/daemons.ts';

const bin = (name: string): string => path.join(repositoryRoot, 'daemon/bin', name);
let dir = '';
beforeEach(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'qb-reopen-'));
  spawnSync(bin('qblock-img'), ['create', '-q', '-f', 'qcow2', 'disk', '1M'], { cwd: dir });
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

test('an image whose file has lost its name can be reopened, and still has its content', () => {
  const shell = `
    mkfifo in
    ${bin('qblock-io')} -f qcow2 disk < in > out 2>&1 & 
    exec 3> in
    echo "write -q -P 7 0 64k" >&3; echo "length" >&3
    until grep -q MiB out; do sleep 0.01; done
    rm disk
    printf '%s\\n' "reopen -o discard=ignore,l2-cache-size=1M" "read -q -P 7 0 64k" "info" >&3
    exec 3>&-; wait; cat out`;
  const { stdout } = spawnSync('bash', ['-c', shell], { cwd: dir, encoding: 'utf8' });
  expect(existsSync(path.join(dir, 'disk'))).toBe(false);
  const said = stdout
    .replaceAll('qblock-io> ', '')
    .split('\n')
    .filter((line) => line !== '');
  expect(said.slice(0, 2)).toEqual(['1 MiB', 'format name: qcow2']);
});

test('read-only and back, with other cache modes', () => {
  const words = ['reopen -r', 'read -q -P 7 0 64k', 'write 0 512', 'reopen -w', 'write -q -P 8 0 512'];
  const more = [
    'reopen -c none',
    'read -q -P 8 0 512',
    'reopen -r -c unsafe',
    'read -q -P 8 0 512',
    'length',
  ];
  const all = ['write -q -P 7 0 64k', ...words, ...more].flatMap((word) => ['-c', word]);
  const { stdout, stderr } = spawnSync(bin('qblock-io'), ['-f', 'qcow2', ...all, 'disk'], {
    cwd: dir,
    encoding: 'utf8',
  });
  expect([stdout, stderr]).toEqual(['1 MiB\n', 'qblock-io: Block node is read-only\n']);
});

test('what cannot be reopened stays as it was', () => {
  const { stdout, stderr } = spawnSync(
    bin('qblock-io'),
    [
      ...['-f', 'qcow2', '-c', 'reopen -r -o lazy-refcounts=x', '-c', 'write -q -P 5 0 512'],
      ...['-c', 'read -q -P 5 0 512', '-c', 'length', 'disk'],
    ],
    { cwd: dir, encoding: 'utf8' },
  );
  expect(stderr).toContain("Parameter 'lazy-refcounts' expects 'on' or 'off'");
  expect(stdout).toBe('1 MiB\n');
});
