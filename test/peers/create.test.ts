/**
 * Creation of images by the tools' way, against `qemu-img create` with the same options: the same bytes, or the same
 * error and the same files left behind.
 */

import { execFileSync, spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createEngine } from '../../src/aio/create-engine.ts';
import type { AioEngine } from '../../src/aio/engine.ts';
import { BlockLayer } from '../../src/block/layer.ts';
import { drivers } from '../../src/drivers/table.ts';
import { E } from '../../src/errors/errno.ts';
import { BlockError } from '../../src/errors/error.ts';
import { requirePeer } from './requires.ts';

const MiB = 1024 * 1024;
const root = mkdtempSync(path.join(tmpdir(), 'qb-create-'));
const home = process.cwd();
let engine: AioEngine;

beforeAll(() => {
  ({ engine } = createEngine('auto'));
});

afterAll(() => {
  process.chdir(home);
  engine.close();
  rmSync(root, { recursive: true, force: true });
});

interface Outcome {
  readonly error: string | null;
  readonly files: Readonly<Record<string, Buffer>>;
}

type Values = Readonly<Record<string, string>>;

/** Both are run in a folder of their own with the same content, since names inside images are relative. */
function prepare(name: string, setUp: (dir: string) => void): string {
  const dir = path.join(root, name);
  rmSync(dir, { recursive: true, force: true });
  mkdirSync(dir);
  setUp(dir);
  return dir;
}

function filesOf(dir: string): Readonly<Record<string, Buffer>> {
  const names = readdirSync(dir).sort();
  return Object.fromEntries(names.map((name) => [name, readFileSync(path.join(dir, name))]));
}

/** What the tool makes of an error. */
function toolMessage(error: BlockError, format: string): string {
  if (error.errno !== E.EFBIG) return error.message;
  const hint = format === 'qcow2' ? ' (try using a larger cluster size)' : '';
  return `The image size is too large for file format '${format}'${hint}`;
}

async function byUs(dir: string, format: string, filename: string, values: Values): Promise<Outcome> {
  process.chdir(dir);
  const layer = new BlockLayer({
    engine,
    events: { emit: () => undefined },
    drivers,
    secret: () => Buffer.from('abc'),
  });
  let error: string | null = null;
  try {
    const creation = (await layer.driver(format))?.creation;
    await creation?.createFile(layer, filename, values, { update: () => undefined });
  } catch (thrown) {
    if (!(thrown instanceof BlockError)) throw thrown;
    error = toolMessage(thrown, format);
  }
  expect(layer.nodes.map((node) => node.name)).toEqual([]);
  process.chdir(home);
  return { error, files: filesOf(dir) };
}

function byThem(dir: string, format: string, filename: string, values: Values): Outcome {
  const options = Object.entries(values).flatMap(([name, value]) => ['-o', `${name}=${value}`]);
  const secret = ['--object', 'secret,id=s,data=abc'];
  const args = ['create', '-q', '-u', ...secret, '-f', format, ...options, filename];
  const { status, stderr } = spawnSync('qemu-img', args, { cwd: dir, encoding: 'utf8' });
  const prefix = `qemu-img: ${filename}: `;
  const line = stderr.split('\n').find((each) => each.startsWith(prefix));
  return { error: status === 0 ? null : (line ?? stderr).slice(prefix.length), files: filesOf(dir) };
}

async function compare(
  format: string,
  filename: string,
  values: Values,
  setUp: (dir: string) => void = () => undefined,
): Promise<{ ours: Outcome; dir: string }> {
  const theirs = byThem(prepare('theirs', setUp), format, filename, values);
  const dir = prepare('ours', setUp);
  const ours = await byUs(dir, format, filename, values);
  expect(ours.error).toBe(theirs.error);
  expect(Object.keys(ours.files)).toEqual(Object.keys(theirs.files));
  for (const [name, content] of Object.entries(theirs.files)) {
    const mine = ours.files[name] ?? Buffer.alloc(0);
    // A qcow2 image ends with its last table, of which bytes, sectors or whole clusters may be written.
    const slack = name === filename && format === 'qcow2' ? 65536 : 0;
    expect(Math.abs(mine.length - content.length), `${name}: length`).toBeLessThanOrEqual(slack);
    expect(firstDifference(mine, content), `${name}: first difference`).toBe(null);
  }
  return { ours, dir };
}

/** Bytes that are missing at the end count as zeroes. */
function firstDifference(a: Buffer, b: Buffer): string | null {
  const length = Math.max(a.length, b.length);
  const [x, y] = [a, b].map((each) => Buffer.concat([each, Buffer.alloc(length - each.length)]));
  if (x === undefined || y === undefined || x.equals(y)) return null;
  const at = x.findIndex((byte, index) => byte !== y[index]);
  const hex = (buf: Buffer): string => buf.subarray(at, at + 16).toString('hex');
  return `0x${at.toString(16)}: ${hex(x)} instead of ${hex(y)}`;
}

const size = String(MiB);

describe('raw', () => {
  const good: readonly Values[] = [
    { size },
    { size: '0' },
    { size: '1000' },
    { size, preallocation: 'off' },
    { size, preallocation: 'falloc' },
    { size, preallocation: 'full' },
    { size, nocow: 'on', extent_size_hint: '65536' },
    { size, extent_size_hint: '0' },
  ];
  const bad: readonly Values[] = [
    { size, preallocation: 'metadata' },
    { size, preallocation: 'foo' },
    { size, extent_size_hint: String(2 ** 32) },
    { size: String(2 ** 52), preallocation: 'falloc' },
  ];
  test.for([...good, ...bad])('%o', async (values) => {
    await compare('raw', 'x.img', values);
  });

  test('an old file is emptied, a missing folder is an error', async () => {
    await compare('raw', 'x.img', { size }, (dir) => writeFileSync(path.join(dir, 'x.img'), 'old'));
    await compare('raw', 'none/x.img', { size });
    await compare('raw', 'file:x.img', { size });
  });
});

describe('qcow2', () => {
  const backing = { backing_file: 'base', backing_fmt: 'raw' };
  const good: readonly Values[] = [
    {},
    { size: '0' },
    { size: '1000' },
    { compat: 'v2' },
    { compat: '0.10' },
    { compat: '1.1' },
    ...['512', '1024', '4096', '8192', '2097152'].map((cluster_size) => ({ cluster_size })),
    ...['1', '2', '4', '8', '32', '64'].map((refcount_bits) => ({ refcount_bits })),
    { cluster_size: '512', refcount_bits: '1' },
    { compression_type: 'zstd', lazy_refcounts: 'on' },
    { compression_type: 'zlib', compat: 'v2' },
    { extended_l2: 'on' },
    { extended_l2: 'on', cluster_size: '16384' },
    backing,
    { ...backing, compat: 'v2' },
    { ...backing, cluster_size: '512' },
    { backing_file: 'a'.repeat(1023), backing_fmt: 'qcow2' },
    { data_file: 'd.raw' },
    { data_file: 'd.raw', data_file_raw: 'on' },
    { size: String(2 ** 40) },
  ];
  const preallocated: readonly Values[] = [
    { preallocation: 'metadata' },
    { preallocation: 'falloc' },
    { preallocation: 'full' },
    { preallocation: 'metadata', cluster_size: '512' },
    { preallocation: 'metadata', extended_l2: 'on' },
    { preallocation: 'metadata', extended_l2: 'on', ...backing },
    { preallocation: 'full', data_file: 'd.raw', data_file_raw: 'on' },
    { preallocation: 'falloc', data_file: 'd.raw' },
  ];
  const bad: readonly Values[] = [
    ...['1000', '256', '0', '4194304'].map((cluster_size) => ({ cluster_size })),
    ...['3', '0', '128', '-1'].map((refcount_bits) => ({ refcount_bits })),
    { compat: 'v2', refcount_bits: '8' },
    { compat: 'v4' },
    { compat: '' },
    { compat: 'v2', lazy_refcounts: 'on' },
    { compat: 'v2', extended_l2: 'on' },
    { compat: 'v2', compression_type: 'zstd' },
    { compat: 'v2', data_file: 'd.raw' },
    { extended_l2: 'on', cluster_size: '8192' },
    { data_file_raw: 'on' },
    { data_file: 'd.raw', data_file_raw: 'on', ...backing },
    { data_file: 'none/d.raw' },
    { data_file: '' },
    { backing_fmt: 'raw' },
    { ...backing, preallocation: 'metadata' },
    { backing_file: 'base', backing_fmt: 'foo' },
    { backing_file: 'a'.repeat(1024), backing_fmt: 'raw' },
    { backing_file: 'a'.repeat(500), backing_fmt: 'raw', cluster_size: '512' },
    { preallocation: 'foo' },
    { compression_type: 'foo' },
    { size: String(2 ** 62) },
    { extent_size_hint: String(2 ** 33) },
    { 'encrypt.format': 'foo' },
    { 'encrypt.format': 'luks' },
    { 'encrypt.format': 'aes' },
    { encryption: 'on' },
    { 'encrypt.key-secret': 's' },
    { 'encrypt.format': 'aes', encryption: 'on' },
    { 'encrypt.format': 'luks', encryption: 'off' },
    { 'encrypt.format': 'aes', 'encrypt.key-secret': 's', 'encrypt.iter-time': '3' },
    { 'encrypt.format': 'luks', 'encrypt.cipher-alg': 'foo', 'encrypt.hash-alg': 'bar' },
    { 'encrypt.format': 'luks', 'encrypt.key-secret': 's', 'encrypt.cipher-alg': 'des' },
    { compat: 'v4', 'encrypt.format': 'foo', preallocation: 'foo' },
    { compat: 'v4', data_file: 'none/d.raw' },
  ];

  test.for([...good, ...bad])('%o', async (values, context) => {
    requirePeer(context, 'qemu-img');
    const { ours, dir } = await compare('qcow2', 'x.img', { size, ...values }, (folder) =>
      writeFileSync(path.join(folder, 'base'), Buffer.alloc(MiB)),
    );
    if (ours.error === null && (values.backing_file ?? 'base') === 'base') {
      execFileSync('qemu-img', ['check', '-q', 'x.img'], { cwd: dir });
    }
  });

  // Where tables lie among the clusters is the allocator's choice: the same facts, the same content, no errors.
  test.for(preallocated)('%o', async (values, context) => {
    requirePeer(context, 'qemu-img');
    const all = { size: String(3 * MiB), ...values };
    const setUp = (dir: string): void => writeFileSync(path.join(dir, 'base'), Buffer.alloc(MiB));
    const dirs = { theirs: prepare('theirs', setUp), ours: prepare('ours', setUp) };
    const theirs = byThem(dirs.theirs, 'qcow2', 'x.img', all);
    const ours = await byUs(dirs.ours, 'qcow2', 'x.img', all);
    expect(ours.error).toBe(theirs.error);
    const facts = (dir: string, ...args: string[]): unknown =>
      JSON.parse(
        execFileSync('qemu-img', [...args, '--output=json', 'x.img'], { cwd: dir, encoding: 'utf8' }),
      );
    // How the data clusters lie is the allocator's choice.
    const strip = ({ 'actual-size': _a, 'fragmented-clusters': _b, ...rest }: Record<string, unknown>) =>
      rest;
    expect(strip(facts(dirs.ours, 'info') as never)).toEqual(strip(facts(dirs.theirs, 'info') as never));
    expect(strip(facts(dirs.ours, 'check') as never)).toEqual(strip(facts(dirs.theirs, 'check') as never));
    const shape = (dir: string) =>
      (facts(dir, 'map') as { data: boolean; zero: boolean; length: number }[]).reduce(
        (sum, { data, length }) => sum + (data ? length : 0),
        0,
      );
    expect(shape(dirs.ours)).toBe(shape(dirs.theirs));
    expect(Object.keys(ours.files)).toEqual(Object.keys(theirs.files));
  });

  test('a failed creation removes what was there before, as the original does', async (context) => {
    requirePeer(context, 'qemu-img');
    const old = (dir: string): void => writeFileSync(path.join(dir, 'x.img'), 'old');
    const { dir } = await compare('qcow2', 'x.img', { size, cluster_size: '1000' }, old);
    expect(existsSync(path.join(dir, 'x.img'))).toBe(false);
    await compare('qcow2', 'none/x.img', { size }, old);
    await compare('qcow2', 'x.img', { size, encryption: 'on', 'encrypt.format': 'luks' }, old);
  });

  test.for(['aes', 'luks'])('encrypted: %s', async (format, context) => {
    requirePeer(context, 'qemu-img');
    const dir = prepare('ours', () => undefined);
    const values = {
      size,
      'encrypt.format': format,
      'encrypt.key-secret': 's',
      ...(format === 'luks' && { 'encrypt.iter-time': '50' }),
    };
    const { error } = await byUs(dir, 'qcow2', 'x.img', values);
    expect(error).toBe(null);
    const image = `driver=qcow2,file.filename=x.img,encrypt.format=${format},encrypt.key-secret=s`;
    const run = (...args: readonly string[]): string =>
      execFileSync('qemu-img', args, { cwd: dir, encoding: 'utf8' });
    const secret = ['--object', 'secret,id=s,data=abc'];
    expect(run('check', ...secret, '--image-opts', image)).toMatch(/^No errors were found on the image/);
    const info = JSON.parse(run('info', '--output=json', 'x.img')) as Record<string, never>;
    expect(info).toMatchObject({ encrypted: true, 'format-specific': { data: { encrypt: { format } } } });
  });
});

test('the options are those of the original, with its texts', (context) => {
  requirePeer(context, 'qemu-img');
  const suffix = { size: '<size>', bool: '<bool (on/off)>', string: '<str>', number: '<num>' } as const;
  for (const format of ['qcow2', 'raw', 'file']) {
    const options = drivers[format as 'qcow2'].creation?.options ?? [];
    const ours = options
      .map(({ name, type, help }) => `${name}=${suffix[type]} - ${help}`)
      .sort()
      .map((line) => line.replace(/ +/g, ' '));
    const help = execFileSync('qemu-img', ['create', '-f', format, '-o', 'help'], { encoding: 'utf8' });
    const theirs = help.split('\n').filter((line) => line.startsWith('  '));
    expect(ours).toEqual(theirs.map((line) => line.trim().replace(/ +/g, ' ')).sort());
  }
});
