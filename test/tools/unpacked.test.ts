/** Raw images compressed as a whole, as sources of `convert`. */

import { execFileSync, spawnSync } from 'node:child_process';
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

const half = content.length / 2;
const pieces = [content.subarray(0, half), content.subarray(half)] as const;
const packedBy = (program: string, ...args: readonly string[]): readonly [Buffer, Buffer] =>
  pieces.map((input) => execFileSync(program, ['-c', ...args], { input })) as [Buffer, Buffer];
/** A frame of zstd that readers skip: what pzstd and others keep their own notes in. */
const SKIPPED = Buffer.concat([Buffer.from([0x5e, 0x2a, 0x4d, 0x18, 4, 0, 0, 0]), Buffer.from('note')]);

/** Files as other programs make them: each reads as the content. */
const VARIANTS: Readonly<Record<string, () => Buffer>> = {
  'members.gz': () => Buffer.concat(packedBy('gzip')),
  'padded.gz': () => Buffer.concat([...packedBy('gzip'), Buffer.alloc(10_000)]),
  'named.gz': () => {
    // Flags: extra field, name, comment.
    const [first, second] = packedBy('gzip', '-n');
    const head = Buffer.from(first.subarray(0, 10));
    head[3] = 4 | 8 | 16;
    const extra = Buffer.from('\x06\0BC\x02\0ab' + 'an image.raw\0' + 'a comment\0', 'latin1');
    return Buffer.concat([head, extra, first.subarray(10), second]);
  },
  'streams.xz': () => Buffer.concat(packedBy('xz', '-0')),
  'padded.xz': () => {
    const [first, second] = packedBy('xz', '-0', '--check=sha256');
    return Buffer.concat([first, Buffer.alloc(8), second, Buffer.alloc(4096)]);
  },
  'blocks.xz': () => execFileSync('xz', ['-c', '-0', '--block-size=65536'], { input: content }),
  'frames.zst': () => Buffer.concat(packedBy('zstd', '-q')),
  'skipped.zst': () => {
    const [first, second] = packedBy('zstd', '-q', '--no-check');
    return Buffer.concat([SKIPPED, first, SKIPPED, second, SKIPPED]);
  },
};

for (const [name, make] of Object.entries(VARIANTS)) {
  const program = { gz: 'gzip', xz: 'xz', zst: 'zstd' }[name.split('.')[1]!]!;
  const isThere = spawnSync(program, ['--version'], { stdio: 'ignore' }).status === 0;
  test.skipIf(!isThere)(`as other programs make them: ${name}`, async () => {
    writeFileSync(path.join(folder, name), make());
    expect(await convert(name)).toMatchObject({ status: 0, stderr: '' });
    expect(readFileSync(path.join(folder, 'out.raw')).equals(content)).toBe(true);
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
