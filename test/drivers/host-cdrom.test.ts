/** host_cdrom: a plain file, and a loop device where the host lets one be made; read by an export, never written. */

import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { allocateIoMemory, vectorOf } from '../../src/aio/memory.ts';
import { wrapped } from '../../src/block/io/callbacks.ts';
import { openFromOptions } from '../../src/block/open/open.ts';
import { runTool, TOOLS } from '../peers/tool-diff.ts';
import { scratch, testLayer } from './qcow2/open-layer.ts';

const folder = scratch();
const loops: string[] = [];
afterAll(() => {
  for (const loop of loops) spawnSync('losetup', ['-d', loop]);
  rmSync(folder, { recursive: true, force: true });
});

const BYTES = 3 * 2048 * 100;
const CONTENT = randomBytes(BYTES);

function imageFile(): string {
  const file = path.join(folder, 'disc.iso');
  writeFileSync(file, CONTENT);
  return file;
}

/** Opens `filename`, reads all of it, asks about its medium, and tries to write. */
async function lookAt(filename: string): Promise<void> {
  const { layer, close } = testLayer();
  try {
    const node = await openFromOptions(layer, { driver: 'host_cdrom', filename, 'read-only': true });
    expect(node.totalBytes).toBe(BYTES);
    const memory = allocateIoMemory(BYTES);
    await wrapped.preadv(node, 0, BYTES, vectorOf(memory), 0);
    expect(memory.buf.equals(CONTENT)).toBe(true);
    expect(await wrapped.isInserted(node)).toBe(true);
    // Windows of raw lie over it as over a file.
    const above = await openFromOptions(layer, {
      ...{ driver: 'raw', offset: 2048, size: 4096, 'read-only': true },
      file: { driver: 'host_cdrom', filename, 'read-only': true },
    });
    const part = allocateIoMemory(4096);
    await wrapped.preadv(above, 0, 4096, vectorOf(part), 0);
    expect(part.buf.equals(CONTENT.subarray(2048, 6144))).toBe(true);
  } finally {
    await close();
  }
  const convert = [
    'convert',
    '--image-opts',
    `driver=host_cdrom,filename=${filename}`,
    '-O',
    'raw',
    'copy.raw',
  ];
  const { status, stderr } = await runTool(TOOLS.img.ours, convert, folder);
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  expect(readFileSync(path.join(folder, 'copy.raw')).equals(CONTENT)).toBe(true);
}

test('a plain file is a disc that stays', async () => {
  const file = imageFile();
  await lookAt(file);
  expect(readFileSync(file).equals(CONTENT)).toBe(true);
});

test('a loop device', async (context) => {
  const { status, stdout, stderr } = spawnSync('losetup', ['-r', '-f', '--show', imageFile()], {
    encoding: 'utf8',
  });
  if (status !== 0) {
    // A container has no such devices: nothing that an installed program would change.
    context.skip(`no loop device can be made here: ${stderr?.trim() ?? 'no losetup'}`);
    return;
  }
  loops.push(stdout.trim());
  await lookAt(stdout.trim());
});

test('what is no disc says so', async () => {
  const missing = path.join(folder, 'missing.iso');
  const outcome = await runTool(
    TOOLS.img.ours,
    ['info', '--image-opts', `driver=host_cdrom,filename=${missing}`],
    folder,
  );
  expect(outcome.status).toBe(1);
  expect(outcome.stderr).toContain('No such file or directory');
});
