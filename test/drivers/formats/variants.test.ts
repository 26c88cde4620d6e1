/**
 * Images that are valid by the specifications and that nothing installed here makes (variants/make.py): each reads as it
 * should. The original reads most of them too; what it cannot do is in the lists.
 */

import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { hasPeer, requirePeer } from '../../peers/requires.ts';
import { runTool, TOOLS } from '../../peers/tool-diff.ts';
import { scratch } from '../qcow2/open-layer.ts';

const folder = scratch();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** What the original refuses; everything else it must read as we do, or the image is wrong and not we. */
const ORIGINAL_REFUSES: Readonly<Record<string, string>> = {
  'vmdk of several kinds of extents, and parents under names of other systems':
    '(chain-.*|parts|spaces|extents.*)\\.vmdk',
  'vdi with other blocks than 1 MiB': '(blocks-4k|blocks-32m|extra)\\.vdi',
  'vhdx with sectors of 4 KiB': 'sectors-4096\\.vhdx',
  'dmg with chunks that are not zlib, or whose tables are not in order':
    '(kind-(adc|bzip2|lzfse|lzma)|slack|all-kinds|(tables|chunks)-out-of-order)\\.dmg',
  'dmg with lists in odd white space (it ends by a signal), forks without tables or among others, trailers elsewhere':
    '(list-odd|fork-without|fork-others|trailer-in-front|padded-file)\\.dmg',
};
const refused = new RegExp(`^(?:${Object.values(ORIGINAL_REFUSES).join('|')})$`);

beforeAll(() => {
  if (hasPeer('python3'))
    for (const script of ['make.py', 'make-dmg.py'])
      execFileSync('python3', [path.join(import.meta.dirname, 'variants', script), folder], {
        stdio: 'pipe',
      });
});

async function contentOf(tool: 'ours' | 'theirs', name: string): Promise<Buffer | string> {
  const format = path.extname(name).slice(1);
  const out = `out-${tool}.raw`;
  rmSync(path.join(folder, out), { force: true });
  const { status, stderr } = await runTool(
    TOOLS.img[tool],
    ['convert', '-f', format, '-O', 'raw', name, out],
    folder,
  );
  return status === 0 ? readFileSync(path.join(folder, out)) : stderr;
}

for (const format of ['vmdk', 'vpc', 'vdi', 'vhdx', 'parallels', 'qcow', 'bochs', 'cloop', 'dmg']) {
  test(`variants of ${format}`, { timeout: 240_000 }, async (context) => {
    requirePeer(context, 'python3', 'qemu-img');
    const names = readdirSync(folder).filter(
      (name) => name.endsWith(`.${format}`) && existsSync(path.join(folder, `${name}.raw`)),
    );
    expect(names.length).toBeGreaterThan(2);
    for (const name of names) {
      const expected = readFileSync(path.join(folder, `${name}.raw`));
      const ours = await contentOf('ours', name);
      expect(typeof ours === 'string' ? ours : ours.equals(expected), name).toBe(true);
      const theirs = await contentOf('theirs', name);
      expect(typeof theirs === 'string' ? 'refused' : theirs.equals(expected), name).toBe(
        refused.test(name) ? 'refused' : true,
      );
    }
  });
}
