/**
 * qblock-img beside qemu-img: equal output, status and images for the same command lines on the same files. The cases are in
 * img-cases.ts, and run from img-*.test.ts: two files, that they may run side by side.
 */

import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { missingPeer, requirePeer } from './requires.ts';
import { runBoth, type ToolCase, type ToolResult } from './tool-diff.ts';

/** The files that the cases know; see img-cases.ts. */
function makeFixture(dir: string): void {
  const img = (...words: string[]) => execFileSync('qemu-img', words, { cwd: dir, stdio: 'pipe' });
  const io = (file: string, format: string, ...commands: string[]) =>
    execFileSync('qemu-io', ['-f', format, ...commands.flatMap((command) => ['-c', command]), file], {
      cwd: dir,
      stdio: 'pipe',
    });
  const patch = (file: string, offset: number, bytes: number[]) =>
    io(file, 'raw', ...bytes.map((byte, index) => `write -P ${byte} ${offset + index} 1`));
  mkdirSync(path.join(dir, 'sub'), { recursive: true });
  img('create', '-f', 'raw', 'raw', '1M');
  io('raw', 'raw', 'write -P 1 64k 64k', 'write -P 2 512k 10000');
  img('create', '-f', 'raw', 'longer', '2M');
  execFileSync('dd', ['if=raw', 'of=longer', 'conv=notrunc', 'status=none'], { cwd: dir });
  const sparse = Buffer.alloc(3 * 1024 * 1024);
  for (const at of [1000, 70000, 131072, 200000, 300000, 2_100_000]) sparse[at] = 1;
  writeFileSync(path.join(dir, 'sparse'), sparse);
  writeFileSync(path.join(dir, 'odd'), Buffer.alloc(100_001, 7));
  writeFileSync(path.join(dir, 'full'), Buffer.alloc(2 * 1024 * 1024, 9));
  writeFileSync(path.join(dir, 'zeroes'), Buffer.alloc(1024 * 1024));
  img('create', '-f', 'raw', 'holes', '2M');
  img('resize', '-f', 'raw', '--shrink', 'holes', '1M');
  img('create', '-f', 'qcow2', 'base', '2M');
  io('base', 'qcow2', 'write -P 1 0 256k', 'write -P 4 1M 64k');
  img('create', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2', 'mid', '2M');
  io('mid', 'qcow2', 'write -P 2 128k 256k', 'write -z 1M 64k');
  img('create', '-f', 'qcow2', '-b', 'mid', '-F', 'qcow2', 'top', '3M');
  io('top', 'qcow2', 'write -P 3 512k 256k', 'write -z 0 64k', 'write -P 5 2M 128k');
  img('create', '-f', 'qcow2', 'snap', '1M');
  io('snap', 'qcow2', 'write -P 1 0 64k');
  img('snapshot', '-c', 's1', 'snap');
  io('snap', 'qcow2', 'write -P 2 0 128k');
  img('snapshot', '-c', 's2', 'snap');
  io('snap', 'qcow2', 'write -P 3 128k 128k');
  const secret = ['--object', 'secret,id=s,data=abc'];
  const luks = 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=100';
  // It measures its own speed, and fails now and then when the machine is busy.
  for (let attempt = 1; ; attempt++) {
    try {
      img('create', ...secret, '-f', 'qcow2', '-o', luks, 'luks', '1M');
      break;
    } catch (error) {
      if (attempt === 50) throw error;
    }
  }
  const encrypted = ['--image-opts', 'driver=qcow2,encrypt.key-secret=s,file.filename=luks'];
  execFileSync('qemu-io', [...secret, ...encrypted, '-c', 'write -P 1 64k 64k'], { cwd: dir, stdio: 'pipe' });
  for (const name of ['leaky', 'corrupt']) {
    img('create', '-f', 'qcow2', name, '1M');
    io(name, 'qcow2', 'write 0 256k');
  }
  // Refcounts of 16 bits in the cluster at 128 KiB: of a cluster nobody uses, and of the L2 table.
  patch('leaky', 0x20000 + 2 * 10, [0, 1]);
  patch('corrupt', 0x20000 + 2 * 4, [0, 0]);
  img('create', '-f', 'qcow2', '-u', '-b', 'nope', '-F', 'qcow2', 'lost', '1M');
  img('create', '-f', 'qcow2', 'sub/below', '1M');
  io('sub/below', 'qcow2', 'write 64k 64k');
  img('create', '-f', 'qcow2', '-b', 'below', '-F', 'qcow2', 'sub/in');
  img('create', '-f', 'qcow2', '-o', 'compat=0.10', 'v2', '1M');
  io('v2', 'qcow2', 'write 0 64k');
  img('convert', '-c', '-O', 'qcow2', 'raw', 'packed');
  img('create', '-f', 'qcow2', 'marked', '1M');
  img('bitmap', '--add', 'marked', 'b0');
  img('bitmap', '--add', '-g', '4k', 'marked', 'b1');
  io('marked', 'qcow2', 'write 64k 64k', 'write 500k 10k');
  img('bitmap', '--disable', 'marked', 'b1');
}

async function expectEqual(toolCase: ToolCase, fixtureDir: string, scratch: string): Promise<void> {
  try {
    const { theirs, ours, contents } = await runBoth('img', toolCase, fixtureDir, scratch);
    const withoutSpace = (result: ToolResult): unknown => ({
      ...result,
      images: result.images.map(({ diskBytes: _diskBytes, ...state }) => state),
    });
    expect(withoutSpace(ours)).toEqual(withoutSpace(theirs));
    // Tables are written in parts here, so files may be smaller; larger they must not be, but for one table.
    for (const [index, { name, diskBytes }] of ours.images.entries())
      expect(diskBytes, name).toBeLessThanOrEqual(theirs.images[index]!.diskBytes * 1.005 + 65536);
    for (const text of contents) expect(text).toContain('Images are identical.');
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

/** Makes a test of each case; they run a few at a time, on one set of files made before. */
export function compareTools(cases: Readonly<Record<string, ToolCase>>): void {
  let root = '';
  const fixtureDir = (): string => path.join(root, 'fixture');
  beforeAll(() => {
    root = mkdtempSync(path.join(tmpdir(), 'qb-img-'));
    // Without the peers every test is skipped.
    if (missingPeer(['qemu-img', 'qemu-io']) === null) makeFixture(fixtureDir());
  });
  afterAll(() => rmSync(root, { recursive: true, force: true }));

  for (const [index, [name, toolCase]] of Object.entries(cases).entries()) {
    test.concurrent(name, async (context) => {
      requirePeer(context, 'qemu-img', 'qemu-io');
      await expectEqual(toolCase, fixtureDir(), path.join(root, `run${index}`));
    });
  }
}
