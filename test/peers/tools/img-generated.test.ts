/**
 * qblock-img beside qemu-img on generated command lines, valid and not; each option that the original's --help names is
 * in some of them. TOOL_LINES=N makes N lines of each command, TOOL_SEED=N others.
 */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { TABLES } from '../../../src/tools/img/tables/all.ts';
import { createRandom } from '../../drivers/qcow2/random.ts';
import { repositoryRoot } from '../daemons.ts';
import { withoutHolders } from '../newer-members.ts';
import { missingPeer, requirePeer } from '../requires.ts';
import { commandLine, knownOptions } from './generated.ts';
import { differences, linkAs } from './side-by-side.ts';

const LINES = Number(process.env.TOOL_LINES ?? '1');
const SEED = Number(process.env.TOOL_SEED ?? '1');

let root = '';
let ours = '';
const fixture = (): string => path.join(root, 'fixture');

function makeFixture(): void {
  const dir = fixture();
  const img = (...words: string[]) => execFileSync('qemu-img', words, { cwd: dir, stdio: 'pipe' });
  const io = (file: string, format: string, ...commands: string[]) =>
    execFileSync('qemu-io', ['-f', format, ...commands.flatMap((line) => ['-c', line]), file], {
      cwd: dir,
      stdio: 'pipe',
    });
  execFileSync('mkdir', ['-p', dir]);
  const raw = Buffer.alloc(256 * 1024);
  raw.fill(1, 8192, 20000).fill(2, 100_000, 164_000);
  writeFileSync(path.join(dir, 'raw'), raw);
  writeFileSync(path.join(dir, 'odd'), Buffer.alloc(100_001, 7));
  img('create', '-f', 'qcow2', 'base', '1M');
  io('base', 'qcow2', 'write -P 1 0 128k', 'write -P 4 512k 64k');
  execFileSync('cp', ['base', 'copy'], { cwd: dir });
  img('create', '-f', 'qcow2', 'other', '1M');
  io('other', 'qcow2', 'write -P 1 0 192k', 'write -z 512k 64k');
  img('create', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2', 'top', '1280k');
  io('top', 'qcow2', 'write -P 2 64k 64k', 'write -z 512k 64k', 'write -P 3 1152k 64k');
  img('create', '-f', 'qcow2', '-b', 'top', '-F', 'qcow2', 'high', '1280k');
  io('high', 'qcow2', 'write -P 5 256k 64k');
  img('create', '-f', 'qcow2', 'snap', '1M');
  io('snap', 'qcow2', 'write -P 1 0 64k');
  img('snapshot', '-c', 's1', 'snap');
  io('snap', 'qcow2', 'write -P 2 0 128k');
  img('snapshot', '-c', 's2', 'snap');
  for (const name of ['leaky', 'corrupt']) {
    img('create', '-f', 'qcow2', name, '1M');
    io(name, 'qcow2', 'write 0 128k');
  }
  // Refcounts of 16 bits in the cluster at 128 KiB: of a cluster nobody uses, and of the L2 table.
  io('leaky', 'raw', `write -P 0 ${0x20000 + 20} 1`, `write -P 1 ${0x20000 + 21} 1`);
  io('corrupt', 'raw', `write -P 0 ${0x20000 + 8} 2`);
  img('create', '-f', 'qcow2', '-o', 'compat=0.10', 'v2', '1M');
  io('v2', 'qcow2', 'write 0 64k');
  img('convert', '-c', '-O', 'qcow2', 'raw', 'packed');
  img('create', '-f', 'qcow2', 'marked', '1M');
  img('bitmap', '--add', 'marked', 'b0');
  img('bitmap', '--add', '-g', '4k', 'marked', 'b1');
  io('marked', 'qcow2', 'write 64k 64k');
  img('bitmap', '--disable', 'marked', 'b1');
}

beforeAll(() => {
  root = mkdtempSync(path.join(tmpdir(), 'qb-gen-'));
  if (missingPeer(['qemu-img', 'qemu-io']) !== null) return;
  makeFixture();
  ours = linkAs('qemu-img', path.join(repositoryRoot, 'daemon/bin/qblock-img'), root);
});
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** Steps of progress, times, and space on the disk are each tool's own. */
const normalise = (text: string): string =>
  withoutHolders(text)
    .replace(/( +\(\d+\.\d\d\/100%\)\r?)+/g, '(progress)')
    .replace(/completed in \d+\.\d+ s/g, 'completed in N s')
    .replace(/disk size: .*/g, 'disk size: SIZE')
    .replace(/"actual-size": .*/g, '"actual-size"')
    .replace(/"date-n?sec": \d+/g, '"date"')
    .replace(/#block\d+/g, '#block')
    .replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d/g, 'DATE')
    .replace(/mage.end.offset"?: \d+/g, 'mage end offset');

describe('each option of the original', () => {
  test('is in our tables by its letter or name', (context) => {
    requirePeer(context, 'qemu-img');
    const help = execFileSync('qemu-img', ['--help'], { encoding: 'utf8' });
    for (const table of TABLES) {
      const [syntax = ''] = new RegExp(`^  ${table.name} .*$`, 'm').exec(help) ?? [];
      expect(syntax, table.name).not.toBe('');
      const known = knownOptions(table).map(([, option]) => option);
      for (const [, dashes = '', name = ''] of syntax.matchAll(/[[ (](--?)([A-Za-z][a-z-]*)/g)) {
        const isThere = known.some(({ short, long, newer }) =>
          dashes === '--' ? long === name && newer !== true : short === name,
        );
        expect(isThere, `${table.name} ${dashes}${name}`).toBe(true);
      }
    }
  });
});

for (const table of TABLES) {
  test.concurrent(`${table.name}: lines`, async (context) => {
    requirePeer(context, 'qemu-img', 'qemu-io');
    const random = createRandom(SEED * 1000 + table.name.length * 31 + table.name.charCodeAt(0));
    const options = knownOptions(table).map(([, option]) => option);
    // Three at a time, each of them once, and lines of no more than chance.
    const pairs = options.flatMap((_one, index) =>
      index % 3 === 0 ? [options.slice(index, index + 3)] : [],
    );
    const lines = [...pairs, ...Array.from({ length: LINES }, () => [])].map((wanted) =>
      commandLine(random, table, wanted),
    );
    const found: string[] = [];
    for (const line of lines) {
      const scratch = path.join(root, `run-${table.name}`);
      found.push(...(await differences({ theirs: 'qemu-img', ours, normalise }, line, fixture(), scratch)));
    }
    expect(found.join('\n====\n')).toBe('');
  });
}
