/**
 * The formats of other virtual machines beside the original: what is refused, and what other readers make of our images.
 * Every option of creation is format-options.test.ts, every pair of formats format-conversions.test.ts.
 */

import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { requirePeer } from './requires.ts';
import { runTool, TOOLS } from './tool-diff.ts';

const folder = mkdtempSync(path.join(tmpdir(), 'qb-formats-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const MIB = 1024 * 1024;
const content = Buffer.alloc(6 * MIB + 512);
for (let at = 0; at < content.length; at++)
  content[at] = at % (2 * MIB) < 300_000 ? (at * 7 + (at >> 11)) % 255 : 0;
writeFileSync(path.join(folder, 'disk.raw'), content);

/** Content ids and times differ from image to image. */
function stable(text: string): string {
  return text.replace(/(cid"?: )\d+/g, '$1N').replace(/disk size: .*|"actual-size": \d+/g, 'SIZE');
}

/** Command lines with which both do the same, and say the same. */
const REFUSED: readonly string[] = [
  'create -f vdi -o static=maybe x 1M',
  'create -f vdi x 600T',
  'create -f vpc -o subformat=foo x 1M',
  'create -f vpc x 2050G',
  'create -f vhdx -o block_size=3M x 10M',
  'create -f vhdx x 65T',
  'create -f vmdk -o adapter_type=foo x 1M',
  'create -f vmdk -o subformat=foo x 1M',
  'create -f vmdk -o subformat=monolithicFlat,zeroed_grain=on x 1M',
  'create -f vmdk -o compat6=on,hwversion=7 x 1M',
  'create -f vdi -b disk.raw -F raw x',
  'info -f vdi disk.raw',
  'info -f vmdk disk.raw',
  'info -f vpc disk.raw',
  'measure -O vmdk --size 1M',
];

test('what is refused is refused in the same words', async (context) => {
  requirePeer(context, 'qemu-img');
  for (const line of REFUSED) {
    const words = line.split(' ');
    const ours = await runTool(TOOLS.img.ours, words, folder);
    const theirs = await runTool(TOOLS.img.theirs, words, folder);
    rmSync(path.join(folder, 'x'), { force: true });
    const { stderr } = ours;
    expect({ line, ...ours, stderr: stderr.replaceAll('qblock-img', 'qemu-img') }).toEqual({
      line,
      ...theirs,
    });
  }
});

/** Formats whose images both describe in the same words; vhdx has no block status there. */
const DESCRIBED = ['vmdk', 'vdi', 'vpc', 'qed', 'qcow', 'parallels'];

test('info, map, measure, check, resize and amend say the same', async (context) => {
  requirePeer(context, 'qemu-img', 'qemu-io');
  const theirDir = path.join(folder, 'theirs');
  const ourDir = path.join(folder, 'ours');
  for (const format of DESCRIBED) {
    for (const dir of [theirDir, ourDir]) mkdirSync(dir, { recursive: true });
    const name = `x.${format}`;
    execFileSync('qemu-img', ['create', '-q', '-f', format, name, '12M'], { cwd: theirDir });
    const writes = ['write -P 3 0 1M', 'write -P 4 5M 64k', 'write -z 3M 1M'].flatMap((each) => ['-c', each]);
    execFileSync('qemu-io', ['-f', format, ...writes, name], { cwd: theirDir, stdio: 'ignore' });
    copyFileSync(path.join(theirDir, name), path.join(ourDir, name));
    for (const line of [
      `info ${name}`,
      `map ${name}`,
      `map --output=json ${name}`,
      `check ${name}`,
      `check --output=json ${name}`,
      `measure -O ${format} ${name}`,
      `amend -f ${format} -o size=20M ${name}`,
      `resize -f ${format} ${name} +4M`,
      `resize -f ${format} --shrink ${name} 6M`,
      `info ${name}`,
      `rebase -f ${format} -u -b other ${name}`,
      `create -f ${format} -o preallocation=metadata y.${format} 1M`,
    ]) {
      const ours = await runTool(TOOLS.img.ours, line.split(' '), ourDir);
      const theirs = await runTool(TOOLS.img.theirs, line.split(' '), theirDir);
      const stderr = ours.stderr.replaceAll('qblock-img', 'qemu-img');
      expect({ ...ours, stdout: stable(ours.stdout), stderr }).toEqual({
        ...theirs,
        stdout: stable(theirs.stdout),
      });
    }
    for (const dir of [theirDir, ourDir]) rmSync(dir, { recursive: true });
  }
});

test('damaged vmdk images are found by check as by the original, and more', async (context) => {
  requirePeer(context, 'qemu-img', 'qemu-io');
  const file = path.join(folder, 'whole.vmdk');
  execFileSync('qemu-img', ['create', '-q', '-f', 'vmdk', file, '40M']);
  execFileSync('qemu-io', ['-f', 'vmdk', '-c', 'write 0 1M', '-c', 'write 35M 1M', file], {
    stdio: 'ignore',
  });
  const whole = readFileSync(file);
  const directory = Number(whole.readBigUInt64LE(56)) * 512;
  const table = whole.readUInt32LE(directory) * 512;
  const check = async (image: Buffer, ...more: readonly string[]): Promise<readonly object[]> => {
    writeFileSync(path.join(folder, 'damaged.vmdk'), image);
    const outcomes = [];
    for (const tool of [TOOLS.img.ours, TOOLS.img.theirs]) {
      const {
        command: _command,
        stderr,
        ...rest
      } = await runTool(tool, ['check', ...more, 'damaged.vmdk'], folder);
      outcomes.push({ ...rest, stderr: stderr.replaceAll('qblock-img', 'qemu-img') });
    }
    return outcomes;
  };
  const changed = (at: number, value: number): Buffer => {
    const image = Buffer.from(whole);
    image.writeUInt32LE(value, at);
    return image;
  };
  for (const [image, ...more] of [
    [whole],
    [whole, '--output=json'],
    [whole, '-r', 'all'],
    [changed(table + 8, 0x10000000)],
    [whole.subarray(0, 600_000)],
  ] as const) {
    const [ours, theirs] = await check(image, ...more);
    expect(ours).toEqual(theirs);
  }
  // The original finds nothing wrong with these.
  const [twice] = await check(changed(table + 8, whole.readUInt32LE(table)));
  expect(twice).toMatchObject({ status: 2 });
  const [noTable] = await check(changed(directory + 4, 0x10000000));
  expect(noTable).toMatchObject({ status: 1, stderr: expect.stringContaining('points after EOF') });
});

test('a count of blocks is put right in vdi only where no new block can hit an old one', async (context) => {
  requirePeer(context, 'qemu-img', 'qemu-io');
  const file = path.join(folder, 'count.vdi');
  const mapAt = 512;
  const countAt = 0x184;
  for (const [entries, count, fixed] of [
    [[0, 1, 2], 7, true],
    [[0, 1, 3], 4, false],
  ] as const) {
    execFileSync('qemu-img', ['create', '-q', '-f', 'vdi', file, '8M']);
    execFileSync('qemu-io', ['-f', 'vdi', '-c', 'write 0 3M', file], { stdio: 'ignore' });
    execFileSync('truncate', ['-s', '+1M', file]);
    const image = readFileSync(file);
    for (const [i, entry] of entries.entries()) image.writeUInt32LE(entry, mapAt + i * 4);
    image.writeUInt32LE(count, countAt);
    writeFileSync(file, image);
    const { status } = await runTool(TOOLS.img.ours, ['check', '-r', 'all', 'count.vdi'], folder);
    expect(status).toBe(fixed ? 0 : 2);
    expect(readFileSync(file).readUInt32LE(countAt)).toBe(fixed ? entries.length : count);
  }
});

test('other readers read what is made here', async (context) => {
  requirePeer(context, 'pyvmdk', 'pyvhdi');
  const script = `
import sys, pyvmdk, pyvhdi
kind, name, out = sys.argv[1:]
if kind == 'vmdk':
    h = pyvmdk.handle(); h.open(name); h.open_extent_data_files()
else:
    h = pyvhdi.file(); h.open(name)
left = h.get_media_size()
with open(out, 'wb') as f:
    while left:
        part = h.read_buffer(min(left, 1 << 20)); f.write(part); left -= len(part)
`;
  for (const [format, options] of [
    ['vmdk', 'subformat=monolithicSparse'],
    ['vmdk', 'subformat=streamOptimized'],
    ['vmdk', 'subformat=twoGbMaxExtentSparse'],
    ['vpc', 'force_size=on'],
    ['vhdx', 'block_size=1M'],
  ] as const) {
    const name = `reader.${format}`;
    const made = await runTool(
      TOOLS.img.ours,
      ['convert', '-O', format, '-o', options, 'disk.raw', name],
      folder,
    );
    expect(made).toMatchObject({ status: 0, stderr: '' });
    execFileSync('/usr/bin/python3', ['-c', script, format, name, 'out.raw'], { cwd: folder });
    expect(readFileSync(path.join(folder, 'out.raw')).equals(content)).toBe(true);
  }
});
