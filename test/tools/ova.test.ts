/** Disks in OVA packages and beside OVF descriptors, through qblock-img. */

import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { sha256, unpackImages } from '../drivers/formats/found-images.ts';
import { runTool, TOOLS } from '../peers/tool-diff.ts';

const folder = unpackImages();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const FIRST = 'a3bcf05f07a1c06a3380eeca8571f0efb2b85afafa1e21662b8cad436d1f7727';
const SECOND = '9acca8e8c22201155389f65abbf6bc9723edc7384ead80503839f49dcc56d767';

function descriptor(...names: readonly string[]): string {
  const files = names.map((name, i) => `<File ovf:href="${name}" ovf:id="f${i}"/>`);
  const disks = names.map((_, i) => `<Disk ovf:capacity="1" ovf:diskId="d${i}" ovf:fileRef="f${i}"/>`);
  return `<Envelope xmlns:ovf="x"><References>${files.join('')}</References><DiskSection>${disks.join('')}</DiskSection></Envelope>`;
}

function pack(name: string, format: string, ...files: readonly string[]): void {
  execFileSync('tar', [`--format=${format}`, '-cf', name, ...files], { cwd: folder });
}

async function contentOf(name: string): Promise<string> {
  const outcome = await runTool(TOOLS.img.ours, ['convert', '-O', 'raw', name, 'out.raw'], folder);
  return outcome.status === 0 ? sha256(path.join(folder, 'out.raw')) : outcome.stderr;
}

test('disks are picked by number and by name', async () => {
  writeFileSync(path.join(folder, 'box.ovf'), descriptor('streamOptimized.vmdk', 'ovf-package.vmdk'));
  for (const format of ['ustar', 'gnu', 'pax']) {
    pack('box.ova', format, 'box.ovf', 'ovf-package.vmdk', 'streamOptimized.vmdk');
    expect(await contentOf('box.ova#1')).toBe(FIRST);
    expect(await contentOf('box.ova#ovf-package.vmdk')).toBe(SECOND);
  }
  expect(await contentOf('box.ova')).toContain('several disks; add #NAME or #NUMBER');
  expect(await contentOf('box.ova#3')).toContain("has no disk '3'");
  expect(await contentOf('box.ovf#2')).toBe(SECOND);
});

test('the only disk needs no picking, and may be beside its descriptor', async () => {
  writeFileSync(path.join(folder, 'one.ovf'), descriptor('streamOptimized.vmdk'));
  pack('one.ova', 'ustar', 'one.ovf', 'streamOptimized.vmdk');
  expect(await contentOf('one.ova')).toBe(FIRST);
  expect(await contentOf('one.ovf')).toBe(FIRST);
});

test('disks in chunks, in an archive in any order and beside their descriptor', async () => {
  const whole = readFileSync(path.join(folder, 'streamOptimized.vmdk'));
  const name = 'Größe 1 & more.vmdk';
  // No multiple of a sector.
  const chunk = 70_001;
  const chunks: string[] = [];
  for (let at = 0; at < whole.length; at += chunk) {
    chunks.push(`${name}.${String(at / chunk).padStart(9, '0')}`);
    writeFileSync(path.join(folder, chunks.at(-1)!), whole.subarray(at, at + chunk));
  }
  expect(chunks.length).toBeGreaterThan(1);
  const text = descriptor(encodeURIComponent(name)).replace(
    '<File ',
    `<File ovf:chunkSize="${chunk}" ovf:size="${whole.length}" ovf:compression="identity" `,
  );
  writeFileSync(path.join(folder, 'chunks.ovf'), text);
  for (const format of ['gnu', 'pax']) {
    pack('chunks.ova', format, 'chunks.ovf', ...chunks.toReversed());
    expect(await contentOf('chunks.ova')).toBe(FIRST);
  }
  expect(await contentOf('chunks.ovf')).toBe(FIRST);
  pack('chunks.ova', 'ustar', 'chunks.ovf', ...chunks.slice(0, -1));
  expect(await contentOf('chunks.ova')).toContain('are missing');
  pack('chunks.ova', 'ustar', 'chunks.ovf');
  expect(await contentOf('chunks.ova')).toContain('are missing');
});

test('manifests, certificates, other files and units of capacity do not matter', async () => {
  const name = 'a disk.vmdk';
  writeFileSync(path.join(folder, name), readFileSync(path.join(folder, 'streamOptimized.vmdk')));
  const text = `<?xml version='1.0' encoding='UTF-8'?>
    <ovf:Envelope\txmlns:ovf='http://schemas.dmtf.org/ovf/envelope/1'>
    <ovf:References><!-- <ovf:File ovf:id='f' ovf:href='other'/> -->
    <ovf:File ovf:size='1'\n ovf:id = 'f'\r\n ovf:href = "a%20disk.vmdk" /><ovf:File ovf:href='x.iso' ovf:id='i'></ovf:File></ovf:References>
    <ovf:DiskSection><Info>a &lt;Disk&gt;</Info>
    <ovf:Disk ovf:capacity='10' ovf:capacityAllocationUnits='byte * 2^30' ovf:diskId='d' ovf:fileRef='f'></ovf:Disk>
    <ovf:Disk ovf:capacity='4' ovf:diskId='empty' ovf:capacityAllocationUnits="byte * 2^20"/></ovf:DiskSection></ovf:Envelope>`;
  writeFileSync(path.join(folder, 'odd.ovf'), text);
  writeFileSync(path.join(folder, 'odd.mf'), 'SHA1(odd.ovf)= 0000\nSHA256(a disk.vmdk)= ffff\n');
  writeFileSync(path.join(folder, 'x.iso'), 'no disk');
  for (const format of ['v7', 'oldgnu', 'posix']) {
    pack('odd.ova', format, 'x.iso', 'odd.mf', name, 'odd.ovf');
    expect(await contentOf('odd.ova')).toBe(FIRST);
  }
  expect(await contentOf('odd.ovf')).toBe(FIRST);
  // A length in binary, as GNU tar writes those of 8 GiB and more.
  const packed = readFileSync(path.join(folder, 'odd.ova'));
  for (let at = 0; at < packed.length; at += 512) {
    if (packed.toString('latin1', at, at + name.length) !== name) continue;
    const bytes = Number.parseInt(packed.toString('latin1', at + 124, at + 135), 8);
    packed.fill(0, at + 124, at + 136);
    packed[at + 124] = 0x80;
    packed.writeUInt32BE(bytes, at + 132);
    packed.write('        ', at + 148);
    const sum = packed.subarray(at, at + 512).reduce((total, byte) => total + byte, 0);
    packed.write(`${sum.toString(8).padStart(6, '0')}\0 `, at + 148);
  }
  writeFileSync(path.join(folder, 'binary.ova'), packed);
  expect(await contentOf('binary.ova')).toBe(FIRST);
});

test('nothing leads out of a package', async () => {
  writeFileSync(path.join(folder, 'up.ovf'), descriptor('../../etc/passwd'));
  expect(await contentOf('up.ovf')).toContain('outside its folder');
  const text =
    '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 1 FLAT "/etc/passwd" 0\n';
  writeFileSync(path.join(folder, 'flat.vmdk'), text.padEnd(4096, '\n'));
  writeFileSync(path.join(folder, 'flat.ovf'), descriptor('flat.vmdk'));
  pack('flat.ova', 'ustar', 'flat.ovf', 'flat.vmdk');
  expect(await contentOf('flat.ova')).toContain('may name files outside the package');
});

test('headers of images in packages lead nowhere either', async () => {
  // A sparse header of a disk without sectors makes the descriptor in it count.
  const image = Buffer.alloc(8192);
  image.write('KDMV', 0);
  image.writeUInt32LE(1, 4);
  image.writeUInt32LE(3, 8);
  image.writeBigUInt64LE(128n, 20);
  image.writeBigUInt64LE(1n, 28);
  image.writeBigUInt64LE(4n, 36);
  image.writeUInt32LE(512, 44);
  image.write('\n \r\n', 73);
  image.write('version=1\nCID=1\nparentCID=ffffffff\ncreateType="custom"\nRW 1 FLAT "secret" 0\n', 512);
  writeFileSync(path.join(folder, 'inner.vmdk'), image);
  writeFileSync(path.join(folder, 'secret'), Buffer.alloc(512, 7));
  expect(await contentOf('inner.vmdk')).toMatch(/^[0-9a-f]{64}$/);
  writeFileSync(path.join(folder, 'inner.ovf'), descriptor('inner.vmdk'));
  pack('inner.ova', 'ustar', 'inner.ovf', 'inner.vmdk');
  expect(await contentOf('inner.ovf')).toContain('which it may not open');
  expect(await contentOf('inner.ova')).not.toMatch(/^[0-9a-f]{64}$/);
});

test('qcow2 images, as oVirt packs them, unless they need other files', async () => {
  const img = (...args: readonly string[]) => runTool(TOOLS.img.ours, args, folder);
  await img('convert', '-O', 'qcow2', 'streamOptimized.vmdk', 'plain.qcow2');
  await img('create', '-f', 'qcow2', '-o', 'data_file=secret', 'data.qcow2', '1M');
  await img('create', '-f', 'qcow2', '-b', 'secret', '-F', 'raw', 'child.qcow2');
  for (const [name, expected] of [
    ['plain', FIRST],
    ['data', 'secret'],
    ['child', 'needs another image: secret'],
  ] as const) {
    writeFileSync(path.join(folder, `${name}.ovf`), descriptor(`${name}.qcow2`));
    pack(`${name}.ova`, 'ustar', `${name}.ovf`, `${name}.qcow2`);
    for (const extension of ['ova', 'ovf']) {
      const found = await contentOf(`${name}.${extension}`);
      expect(found).toContain(expected);
      if (expected !== FIRST) expect(found).not.toMatch(/^[0-9a-f]{64}$/);
    }
  }
});

test('links and special files are no disks of a package', async () => {
  mkdirSync(path.join(folder, 'unpacked'));
  const inUnpacked = (name: string): string => path.join(folder, 'unpacked', name);
  symlinkSync('/etc/passwd', inUnpacked('link.vmdk'));
  writeFileSync(inUnpacked('link.ovf'), descriptor('link.vmdk'));
  expect(await contentOf('unpacked/link.ovf')).toContain('outside its folder');
  execFileSync('mkfifo', [inUnpacked('pipe.vmdk')]);
  writeFileSync(inUnpacked('pipe.ovf'), descriptor('pipe.vmdk'));
  expect(await contentOf('unpacked/pipe.ovf')).toContain('is no plain file');
  execFileSync('tar', ['-cf', '../link.ova', 'link.ovf', 'link.vmdk'], {
    cwd: path.join(folder, 'unpacked'),
  });
  expect(await contentOf('link.ova')).toContain("has no file 'link.vmdk'");
});

test('descriptors and headers made to take time or memory end in an error soon', async () => {
  const large = 4 * 1024 * 1024 - 1024;
  for (const [i, piece] of ['<!--', '<File ', '<a:', '<File id="x" ', ' '].entries()) {
    const text = `<Envelope>${piece.repeat(Math.floor(large / piece.length))}`;
    writeFileSync(path.join(folder, `slow${i}.ovf`), text);
    expect(await contentOf(`slow${i}.ovf`)).toContain('has no disk');
  }
  writeFileSync(path.join(folder, 'huge.ovf'), '<Envelope>');
  execFileSync('truncate', ['-s', '1T', 'huge.ovf'], { cwd: folder });
  expect(await contentOf('huge.ovf')).toContain('is too large');
  // A header of so many bytes that they cannot be there, in octal and in binary.
  pack('claim.ova', 'ustar', 'one.ovf');
  const file = path.join(folder, 'claim.ova');
  const whole = readFileSync(file);
  for (const size of [Buffer.from('77777777777\0'), Buffer.alloc(12, 255)]) {
    size.copy(whole, 124);
    whole.write('        ', 148);
    const sum = whole.subarray(0, 512).reduce((total, byte) => total + byte, 0);
    whole.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
    writeFileSync(file, whole);
    expect(await contentOf('claim.ova')).toContain('has been cut off');
  }
});

test('damaged packages end in an error', async () => {
  pack('whole.ova', 'ustar', 'one.ovf', 'streamOptimized.vmdk');
  execFileSync('truncate', ['-s', '100000', 'whole.ova'], { cwd: folder });
  expect(await contentOf('whole.ova')).toContain('has been cut off');
  writeFileSync(path.join(folder, 'text.ova'), 'no archive at all');
  expect(await contentOf('text.ova')).toMatch(/[0-9a-f]{64}|has no disk/);
});
