/**
 * amend of version 2 images whose snapshot entries have no extra data, or too little for version 3; and what version 2
 * cannot hold on the way down.
 */

import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { makeScratchDir, repositoryRoot } from './daemons.ts';
import { requirePeer } from './requires.ts';

const dir = makeScratchDir();
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const file = path.join(dir, 'x');
const run = (tool: string, ...words: string[]): string =>
  execFileSync(tool, words, { cwd: dir, encoding: 'utf8', stdio: 'pipe' });
const ours = (...words: string[]) =>
  spawnSync(path.join(repositoryRoot, 'daemon/bin/qblock-img'), words, { cwd: dir, encoding: 'utf8' });

/** Cuts the extra data of all entries of the snapshot table down to `bytes`. */
function shorten(bytes: number): void {
  const image = readFileSync(file);
  let at = Number(image.readBigUInt64BE(64));
  const start = at;
  const entries: Buffer[] = [];
  for (let left = image.readUInt32BE(60); left > 0; left--) {
    const [idBytes, nameBytes, extra] = [12, 14]
      .map((o) => image.readUInt16BE(at + o))
      .concat(image.readUInt32BE(at + 36));
    const text = image.subarray(at + 40 + extra!, at + 40 + extra! + idBytes! + nameBytes!);
    const fixed = Buffer.from(image.subarray(at, at + 40));
    fixed.writeUInt32BE(bytes, 36);
    const entry = Buffer.concat([fixed, image.subarray(at + 40, at + 40 + bytes), text]);
    entries.push(Buffer.concat([entry], Math.ceil(entry.length / 8) * 8));
    at += Math.ceil((40 + extra! + idBytes! + nameBytes!) / 8) * 8;
  }
  image.fill(0, start, Math.min(at, image.length));
  Buffer.concat(entries).copy(image, start);
  writeFileSync(file, image);
  // The list may need fewer clusters now.
  spawnSync('qemu-img', ['check', '-q', '-r', 'leaks', 'x'], { cwd: dir });
}

function make(): Buffer {
  run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'compat=0.10,cluster_size=512', 'x', '1M');
  // Enough for a list that is longer with whole entries, in clusters.
  for (let i = 0; i < 9; i++) {
    run('qemu-io', '-c', `write -P ${i + 1} ${i * 64}k 64k`, 'x');
    run('qemu-img', 'snapshot', '-c', `s${i}`, 'x');
  }
  run('qemu-img', 'convert', '-O', 'raw', 'x', 'content');
  return readFileSync(path.join(dir, 'content'));
}

test.for([0, 8])('entries with %i bytes of extra data', (bytes, context) => {
  requirePeer(context, 'qemu-img', 'qemu-io');
  const content = make();
  shorten(bytes);
  run('qemu-img', 'check', 'x');
  expect(ours('amend', '-o', 'compat=1.1', 'x')).toMatchObject({ status: 0, stderr: '' });
  expect(run('qemu-img', 'check', 'x')).toMatch(/^No errors were found on the image/);
  const info = JSON.parse(run('qemu-img', 'info', '--output=json', 'x')) as {
    snapshots: { name: string }[];
    'format-specific': { data: { compat: string } };
  };
  expect(info['format-specific'].data.compat).toBe('1.1');
  expect(info.snapshots.map(({ name }) => name)).toEqual(Array.from({ length: 9 }, (_, i) => `s${i}`));
  run('qemu-img', 'convert', '-O', 'raw', 'x', 'content');
  expect(readFileSync(path.join(dir, 'content')).equals(content)).toBe(true);
  run('qemu-img', 'snapshot', '-a', 's2', 'x');
  expect(run('qemu-io', '-r', '-c', 'read -P 3 128k 64k', '-c', 'read -P 0 192k 64k', 'x')).not.toContain(
    'fail',
  );
});

test.for(['create', 'delete', 'apply'] as const)(
  'a list of short entries, and then: %s',
  (operation, context) => {
    requirePeer(context, 'qemu-img', 'qemu-io');
    make();
    shorten(0);
    const letter = { create: '-c', delete: '-d', apply: '-a' }[operation];
    const name = operation === 'create' ? 'new' : 's3';
    expect(ours('snapshot', letter, name, 'x')).toMatchObject({ status: 0, stderr: '' });
    expect(run('qemu-img', 'check', 'x')).toMatch(/^No errors were found on the image/);
  },
);

test('bits that version 2 does not look at would make zeroes of data', (context) => {
  requirePeer(context, 'qemu-img', 'qemu-io');
  run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'compat=0.10', 'x', '1M');
  run('qemu-io', '-c', 'write -P 1 0 64k', 'x');
  const image = readFileSync(file);
  const l2 = Number(image.readBigUInt64BE(Number(image.readBigUInt64BE(40))) & 0x00fffffffffffe00n);
  image[l2 + 7]! |= 1;
  writeFileSync(file, image);
  const { status, stderr } = ours('amend', '-o', 'compat=1.1', 'x');
  expect(status).toBe(1);
  expect(stderr).toContain('reserved bits');
  expect(readFileSync(file).equals(image)).toBe(true);
});

test('what version 2 cannot hold', (context) => {
  requirePeer(context, 'qemu-img', 'qemu-io');
  const both = (...setUp: string[][]): void => {
    for (const words of setUp) run(words[0]!, ...words.slice(1));
    run('cp', 'x', 'y');
    const theirs = spawnSync('qemu-img', ['amend', '-o', 'compat=0.10', 'y'], { cwd: dir, encoding: 'utf8' });
    const { status, stderr } = ours('amend', '-o', 'compat=0.10', 'x');
    expect({ status, stderr }).toEqual({
      status: theirs.status,
      stderr: theirs.stderr.replace(/^qemu-img/, 'qblock-img'),
    });
    const before = readFileSync(path.join(dir, 'x'));
    expect(run('qemu-img', 'check', 'x')).toMatch(/^No errors were found on the image/);
    expect(before.length).toBeGreaterThan(0);
  };
  const create = ['qemu-img', 'create', '-q', '-f', 'qcow2', 'x', '1M'];
  // Sizes of snapshots; and bitmaps, whose clusters the original leaks.
  both(create, ['qemu-img', 'snapshot', '-c', 's', 'x'], ['qemu-img', 'resize', '-q', 'x', '2M']);
  both(create, ['qemu-img', 'bitmap', '--add', 'x', 'b'], ['qemu-io', '-c', 'write 0 64k', 'x']);
});
