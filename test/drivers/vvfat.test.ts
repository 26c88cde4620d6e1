/**
 * vvfat: disks that fsck.fat and mtools take for sound, of every kind; what mtools change on such a disk is in the folder
 * after a flush; a disk that is no file system leaves the folder alone.
 */

import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { allocateIoMemory, vectorOf } from '../../src/aio/memory.ts';
import type { BlockNode } from '../../src/block/graph/node.ts';
import { wrapped } from '../../src/block/io/callbacks.ts';
import { openFromOptions } from '../../src/block/open/open.ts';
import { requirePeer } from '../peers/requires.ts';
import { testLayer } from './qcow2/open-layer.ts';
import { createRandom } from './qcow2/random.ts';

const root = mkdtempSync(path.join(tmpdir(), 'qb-vvfat-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** Checksums by path. */
type Files = Map<string, string>;

function checksum(file: string): string {
  return createHash('sha256').update(readFileSync(file)).digest('hex');
}

/** Everything below a folder, by path. */
function filesOf(folder: string): Files {
  const files: Files = new Map();
  const visit = (relative: string): void => {
    for (const name of readdirSync(path.join(folder, relative))) {
      const own = path.join(relative, name);
      const isFolder = statSync(path.join(folder, own)).isDirectory();
      files.set(own, isFolder ? 'folder' : checksum(path.join(folder, own)));
      if (isFolder) visit(own);
    }
  };
  visit('');
  return files;
}

function sample(name: string): string {
  const folder = path.join(root, name);
  mkdirSync(path.join(folder, 'sub/deeper'), { recursive: true });
  writeFileSync(path.join(folder, 'hello.txt'), 'hello\n');
  writeFileSync(path.join(folder, 'empty'), '');
  writeFileSync(path.join(folder, 'A long file name with spaces.bin'), randomBytes(100_000));
  writeFileSync(path.join(folder, 'sub/lower.TXT'), 'x');
  writeFileSync(path.join(folder, 'sub/deeper/ünïcödé – name.text'), randomBytes(20_000));
  for (let i = 0; i < 30; i++) writeFileSync(path.join(folder, `sub/number ${i}.txt`), `${i}`);
  return folder;
}

const PIECE = 1 << 20;

async function readWhole(node: BlockNode): Promise<Buffer> {
  const memory = allocateIoMemory(node.totalBytes);
  for (let at = 0; at < node.totalBytes; at += PIECE) {
    const bytes = Math.min(PIECE, node.totalBytes - at);
    await wrapped.preadv(node, at, bytes, vectorOf(memory, at, bytes), 0);
  }
  return memory.buf;
}

/** mtools on the file system in `image`. */
function mtools(program: string, image: string, ...args: readonly string[]): string {
  const env = { ...process.env, MTOOLS_SKIP_CHECK: '1', LC_ALL: 'C.UTF-8' };
  return execFileSync(program, ['-i', image, ...args], {
    encoding: 'utf8',
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
}

function contentByMtools(image: string): Files {
  const copy = mkdtempSync(path.join(root, 'copy-'));
  mtools('mcopy', image, '-s', '-n', '::*', copy);
  const files = filesOf(copy);
  rmSync(copy, { recursive: true });
  return files;
}

const KINDS: readonly (readonly [string, object, number])[] = [
  ['a hard disk', {}, 63],
  ['FAT12', { 'fat-type': 12 }, 63],
  ['FAT32', { 'fat-type': 32, label: 'A LABEL' }, 63],
  ['a floppy', { floppy: true }, 0],
  ['a small floppy', { floppy: true, 'fat-type': 12 }, 0],
];

describe('a folder as a disk', () => {
  for (const [name, options, start] of KINDS) {
    test(name, async (context) => {
      requirePeer(context, 'mtools', 'fsck.fat');
      const dir = sample(name.replaceAll(' ', '-'));
      symlinkSync('/etc/passwd', path.join(dir, 'link'));
      const { layer, close } = testLayer();
      const image = path.join(root, 'image');
      try {
        const node = await openFromOptions(layer, { driver: 'vvfat', dir, 'read-only': true, ...options });
        writeFileSync(image, (await readWhole(node)).subarray(start * 512));
      } finally {
        await close();
      }
      rmSync(path.join(dir, 'link'));
      execFileSync('fsck.fat', ['-n', image], { stdio: 'pipe' });
      expect(contentByMtools(image)).toEqual(filesOf(dir));
      rmSync(image);
    });
  }

  test('what does not fit', async () => {
    const dir = path.join(root, 'large');
    mkdirSync(dir);
    writeFileSync(path.join(dir, 'file'), Buffer.alloc(2 << 20));
    const { layer, close } = testLayer();
    const options = { driver: 'vvfat', dir, floppy: true, 'fat-type': 12, 'read-only': true };
    await expect(openFromOptions(layer, options)).rejects.toThrow(
      'Directory does not fit in FAT12 (capacity 1.41 MB)',
    );
    await close();
  });
});

/** Writes to the node the sectors in which two disks differ, the last ones first. */
async function writeChanges(
  node: BlockNode,
  before: Buffer,
  after: Buffer,
  offset: number,
  share = 1,
): Promise<void> {
  const changed: number[] = [];
  for (let at = 0; at < after.length; at += 512)
    if (!after.subarray(at, at + 512).equals(before.subarray(at, at + 512))) changed.push(at);
  for (const at of changed.reverse().slice(0, Math.floor(changed.length * share))) {
    const memory = allocateIoMemory(512);
    after.copy(memory.buf, 0, at, at + 512);
    await wrapped.pwritev(node, offset + at, 512, vectorOf(memory), 0);
  }
}

describe('changes of the guest', () => {
  const START = 63 * 512;

  test('new, changed, renamed and deleted files and folders, again and again', async (context) => {
    requirePeer(context, 'mtools', 'fsck.fat');
    const dir = sample('written');
    const { layer, close } = testLayer();
    const image = path.join(root, 'written.img');
    const random = createRandom(Number(process.env.MODEL_SEED ?? 1));
    const node = await openFromOptions(layer, { driver: 'vvfat', dir, rw: true, 'fat-type': 12 });
    let disk = (await readWhole(node)).subarray(START);
    for (let round = 0; round < 12; round++) {
      writeFileSync(image, disk);
      const files = filesOf(dir);
      const names = [...files].filter(([, content]) => content !== 'folder').map(([file]) => file);
      for (let i = 1 + random.below(4); i > 0; i--) {
        const source = path.join(root, `source ${round} ${i}.dat`);
        writeFileSync(source, randomBytes(random.below(60_000)));
        const victim = random.pick(names);
        switch (random.below(6)) {
          case 0:
            mtools('mcopy', image, '-o', source, '::sub/');
            break;
          case 1:
            mtools('mcopy', image, '-o', source, `::${victim}`);
            break;
          case 2:
            if (names.length > 10) {
              mtools('mdel', image, `::${victim}`);
              names.splice(names.indexOf(victim), 1);
            }
            break;
          case 3:
            mtools(
              'mren',
              image,
              `::${victim}`,
              `::${path.join(path.dirname(victim), `renamed ${round} ${i}`)}`,
            );
            names.splice(names.indexOf(victim), 1);
            break;
          case 4:
            mtools('mmd', image, `::new folder ${round} ${i}`);
            mtools('mcopy', image, source, `::new folder ${round} ${i}/inside.dat`);
            break;
          default:
            mtools('mren', image, '::sub', '::sub2');
            mtools('mren', image, '::sub2', '::sub');
        }
      }
      const after = readFileSync(image);
      await writeChanges(node, disk, after, START);
      await wrapped.flush(node);
      disk = after;
      expect(filesOf(dir)).toEqual(contentByMtools(image));
      expect((await readWhole(node)).subarray(START).equals(disk)).toBe(true);
    }
    await close();
    expect(filesOf(dir)).toEqual(contentByMtools(image));
  }, 60_000);

  test('half of a change, and none that is a file system: the folder stays as it was', async (context) => {
    requirePeer(context, 'mtools', 'fsck.fat');
    const dir = sample('half');
    const before = filesOf(dir);
    const image = path.join(root, 'half.img');
    const { layer, close } = testLayer();
    const node = await openFromOptions(layer, { driver: 'vvfat', dir, rw: true, 'fat-type': 12 });
    const disk = (await readWhole(node)).subarray(START);
    writeFileSync(image, disk);
    const source = path.join(root, 'half.dat');
    writeFileSync(source, randomBytes(50_000));
    mtools('mcopy', image, '-o', source, '::hello.txt');
    mtools('mdel', image, '::empty');
    // Data and folders are there, the tables are not.
    await writeChanges(node, disk, readFileSync(image), START, 0.97);
    await wrapped.flush(node);
    expect(filesOf(dir)).toEqual(before);
    const zeroes = allocateIoMemory(64 * 512);
    zeroes.buf.fill(0);
    await wrapped.pwritev(node, START, zeroes.buf.length, vectorOf(zeroes), 0);
    await wrapped.flush(node);
    await close();
    expect(filesOf(dir)).toEqual(before);
  });

  test('random damage never leads out of the folder', async () => {
    const dir = sample('damage');
    const outside = filesOf(root);
    outside.forEach((_, name) => void (name.startsWith('damage') && outside.delete(name)));
    const random = createRandom(Number(process.env.FUZZ_SEED ?? 1));
    for (let run = 0; run < Number(process.env.FUZZ_RUNS ?? 10); run++) {
      const { layer, close } = testLayer();
      const node = await openFromOptions(layer, { driver: 'vvfat', dir, rw: true, 'fat-type': 12 });
      for (let i = 0; i < 20; i++) {
        // Tables, the root folder, and the first clusters, where the folders are.
        const memory = allocateIoMemory(1 + random.below(8));
        memory.buf.set(
          random.below(2) === 0
            ? Buffer.from('../../..').subarray(0, memory.buf.length)
            : randomBytes(memory.buf.length),
        );
        const at = START + 512 + random.below(160 * 512);
        await wrapped.pwritev(node, at, memory.buf.length, vectorOf(memory), 0);
      }
      await wrapped.flush(node).catch(() => undefined);
      await close().catch(() => undefined);
    }
    const now = filesOf(root);
    for (const [name, content] of outside) expect(now.get(name), name).toEqual(content);
    expect(readdirSync(dir).filter((name) => name.startsWith('.qblock'))).toEqual([]);
  });
});
