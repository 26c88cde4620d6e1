/**
 * An image inside an image of another format, which is shorter than what the inner one takes: behind its end it reads as
 * zeroes, and what is written there is there when both are opened again, or was refused.
 */

import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { runTool, TOOLS } from '../../peers/tool-diff.ts';

const folder = mkdtempSync(path.join(tmpdir(), 'qb-within-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const MIB = 1024 * 1024;
const img = (...words: string[]) => runTool(TOOLS.img.ours, words, folder);
const io = (image: string, ...commands: string[]) =>
  runTool(TOOLS.io.ours, [...commands.flatMap((command) => ['-c', command]), image], folder);

const inner = (format: string, outer: string): string =>
  `json:${JSON.stringify({ driver: 'qcow2', file: { driver: format, file: { driver: 'file', filename: outer } } })}`;

/** The first MiB of a qcow2 image as the content of one of `format`. */
async function wrap(format: string, name: string, ...commands: string[]): Promise<string> {
  expect((await img('create', '-q', '-f', 'qcow2', 'inner', '4M')).status).toBe(0);
  if (commands.length > 0) expect((await io('inner', ...commands)).status).toBe(0);
  const fd = openSync(path.join(folder, 'inner'), 'r+');
  ftruncateSync(fd, MIB);
  closeSync(fd);
  expect((await img('convert', '-f', 'raw', '-O', format, 'inner', name)).status).toBe(0);
  return inner(format, name);
}

/** Those that are made longer by what is written behind their end. */
const GROWING: ReadonlySet<string> = new Set(['qcow2', 'qed']);

test.each(['qcow2', 'qed', 'qcow', 'vdi', 'vmdk', 'vhdx', 'vpc', 'parallels'])('in %s', async (format) => {
  const cut = await wrap(format, `cut.${format}`, 'write -P 7 0 2M');
  // Of the data a part is there; nothing but zeroes can be behind it.
  expect((await io(cut, 'read -P 7 0 512k', 'read -P 0 1M 1M')).stdout).not.toContain('failed');

  const image = await wrap(format, `short.${format}`);
  const wrote = (await io(image, 'write -P 9 0 256k', 'write -P 8 1M 3M')).stdout;
  expect(wrote).toContain('wrote 262144/262144');
  if (GROWING.has(format)) expect(wrote).toContain('wrote 3145728/3145728');
  const check = await img('check', image);
  expect([check.status, check.stdout]).toEqual([0, expect.stringContaining('No errors were found')]);
  const again = (await io(image, 'read -P 9 0 256k', `read -P ${GROWING.has(format) ? 8 : 0} 3M 1M`)).stdout;
  expect(again).not.toContain('failed');
});
