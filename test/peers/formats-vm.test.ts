/**
 * The formats of other virtual machines beside the original: making images with every option, describing and checking
 * them, and images of each read by the other.
 */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
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

/** Options of creation, by format. */
const OPTIONS: Readonly<Record<string, readonly string[]>> = {
  vdi: ['static=off', 'static=on'],
  vpc: ['force_size=on', 'force_size=on,subformat=fixed'],
  vhdx: ['subformat=dynamic', 'subformat=fixed', 'block_size=1M,log_size=2M', 'block_state_zero=off'],
  vmdk: [
    ...[
      'monolithicSparse',
      'monolithicFlat',
      'twoGbMaxExtentSparse',
      'twoGbMaxExtentFlat',
      'streamOptimized',
    ].map((subformat) => `subformat=${subformat}`),
    ...['zeroed_grain=on', 'compat6=on', 'hwversion=11,adapter_type=lsilogic,toolsversion=5'],
  ],
};

/** Content ids and times differ from image to image. */
function stable(text: string): string {
  return text.replace(/(cid"?: )\d+/g, '$1N').replace(/disk size: .*|"actual-size": \d+/g, 'SIZE');
}

for (const [format, all] of Object.entries(OPTIONS)) {
  for (const options of all) {
    test(`${format} with ${options}: each reads what the other makes`, async (context) => {
      requirePeer(context, 'qemu-img');
      for (const [maker, reader] of [
        [TOOLS.img.ours, TOOLS.img.theirs],
        [TOOLS.img.theirs, TOOLS.img.ours],
      ] as const) {
        const made = await runTool(
          maker,
          ['convert', '-O', format, '-o', options, 'disk.raw', 'image'],
          folder,
        );
        expect(made).toMatchObject({ status: 0, stderr: '' });
        const read = await runTool(
          reader,
          ['convert', '-f', format, '-O', 'raw', 'image', 'out.raw'],
          folder,
        );
        expect(read).toMatchObject({ status: 0, stderr: '' });
        expect(readFileSync(path.join(folder, 'out.raw')).equals(content)).toBe(true);
        for (const argv of [
          ['info', '-f', format, 'image'],
          ['info', '--output=json', '-f', format, 'image'],
        ]) {
          const ours = await runTool(TOOLS.img.ours, argv, folder);
          const theirs = await runTool(TOOLS.img.theirs, argv, folder);
          expect(stable(ours.stdout)).toBe(stable(theirs.stdout));
        }
      }
    });
  }
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
