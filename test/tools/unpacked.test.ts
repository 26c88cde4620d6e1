/** Raw images compressed as a whole, as sources of `convert`. */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { runTool, TOOLS } from '../peers/tool-diff.ts';

const folder = mkdtempSync(path.join(tmpdir(), 'qb-unpacked-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const content = Buffer.alloc(5 * 1024 * 1024 + 512);
for (let at = 0; at < content.length; at++)
  content[at] = at % 70000 < 9000 ? 0 : (at * 31 + (at >> 12)) % 251;
writeFileSync(path.join(folder, 'disk.raw'), content);

const PROGRAMS = { gz: ['gzip', '-k'], xz: ['xz', '-k', '-1'], zst: ['zstd', '-q', '-k'] } as const;

const convert = (source: string) =>
  runTool(TOOLS.img.ours, ['convert', '-O', 'raw', source, 'out.raw'], folder);

for (const [extension, [program, ...options]] of Object.entries(PROGRAMS)) {
  const isThere = (() => {
    try {
      execFileSync(program, [...options, 'disk.raw'], { cwd: folder, stdio: 'ignore' });
      return true;
    } catch {
      return false;
    }
  })();

  test.skipIf(!isThere)(`${program}: the content is read`, async () => {
    expect(await convert(`disk.raw.${extension}`)).toMatchObject({ status: 0, stderr: '' });
    expect(readFileSync(path.join(folder, 'out.raw')).equals(content)).toBe(true);
  });

  test.skipIf(!isThere)(`${program}: damage ends in an error`, async () => {
    const packed = readFileSync(path.join(folder, `disk.raw.${extension}`));
    writeFileSync(path.join(folder, `cut.${extension}`), packed.subarray(0, Math.floor(packed.length / 2)));
    expect((await convert(`cut.${extension}`)).stderr).toContain('cannot be unpacked');
    const bad = Buffer.from(packed);
    bad[Math.floor(bad.length / 2)]! ^= 0x10;
    writeFileSync(path.join(folder, `bad.${extension}`), bad);
    expect((await convert(`bad.${extension}`)).status).toBe(1);
  });
}

test('only raw images are read, and only where no format is given', async () => {
  await runTool(TOOLS.img.ours, ['create', '-f', 'qcow2', 'x.qcow2', '1M'], folder);
  execFileSync('gzip', ['-k', 'x.qcow2'], { cwd: folder });
  expect((await convert('x.qcow2.gz')).stderr).toContain('only raw images can be read compressed');
  const plain = await runTool(
    TOOLS.img.ours,
    ['convert', '-f', 'raw', '-O', 'raw', 'disk.raw.gz', 'out.raw'],
    folder,
  );
  expect(plain.status).toBe(0);
  const packed = readFileSync(path.join(folder, 'disk.raw.gz'));
  expect(readFileSync(path.join(folder, 'out.raw')).subarray(0, packed.length).equals(packed)).toBe(true);
});
