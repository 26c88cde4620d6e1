/**
 * Changing options of images, against `qemu-img amend`: the same facts afterwards, or the same error; the content
 * unchanged, and nothing for `qemu-img check` to find.
 */

import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  copyFileSync,
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
import { Perm } from '../../src/block/contract/request.ts';
import { wrapped } from '../../src/block/io/callbacks.ts';
import { BlockLayer } from '../../src/block/layer.ts';
import { openFromOptions } from '../../src/block/open/open.ts';
import { drivers } from '../../src/drivers/table.ts';
import { BlockError } from '../../src/errors/error.ts';
import { requirePeer } from './requires.ts';

const MiB = 1024 * 1024;
const root = mkdtempSync(path.join(tmpdir(), 'qb-amend-'));
let engine: AioEngine;

beforeAll(() => {
  ({ engine } = createEngine('auto'));
});

afterAll(() => {
  engine.close();
  rmSync(root, { recursive: true, force: true });
});

type Values = Readonly<Record<string, string>>;

const SECRETS: Readonly<Record<string, string>> = { s0: 'abc', s1: 'def' };
const secretArgs = Object.entries(SECRETS).flatMap(([id, data]) => [
  '--object',
  `secret,id=${id},data=${data}`,
]);

function run(dir: string, program: string, ...args: readonly string[]): string {
  return execFileSync(program, args, { cwd: dir, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

/** An image with data, zero clusters of both kinds, and holes; plus whatever `more` does. */
function makeImage(dir: string, options: readonly string[], more: readonly (readonly string[])[]): void {
  writeFileSync(path.join(dir, 'base'), Buffer.alloc(MiB, 0x5a));
  run(dir, 'qemu-img', 'create', '-q', '-f', 'qcow2', ...options, 'x.img', '2M');
  const writes = ['write -q -P 1 0 128k', 'write -q -P 2 512k 200k', 'write -q -z 64k 64k'];
  writes.push('write -q -z -u 512k 64k', 'write -q -z 900k 300k');
  run(dir, 'qemu-io', ...writes.flatMap((command) => ['-c', command]), 'x.img');
  for (const [program = '', ...args] of more) run(dir, program, ...args);
}

function copyFolder(name: string, from: string): string {
  const dir = path.join(root, name);
  rmSync(dir, { recursive: true, force: true });
  mkdirSync(dir);
  for (const file of readdirSync(from)) copyFileSync(path.join(from, file), path.join(dir, file));
  return dir;
}

interface OpenWith {
  readonly encrypt?: { readonly format: 'luks'; readonly 'key-secret': string };
}

async function withLayer<T>(action: (layer: BlockLayer) => Promise<T>): Promise<T> {
  const layer = new BlockLayer({
    engine,
    events: { emit: () => undefined },
    drivers,
    secret: (id) => Buffer.from(SECRETS[id] ?? ''),
  });
  try {
    return await action(layer);
  } finally {
    expect(layer.nodes.map((node) => node.name)).toEqual([]);
  }
}

async function amendByUs(layer: BlockLayer, dir: string, values: Values, openWith: OpenWith): Promise<void> {
  // The original looks for a data file in the folder it runs in.
  const dataFile = existsSync(path.join(dir, 'd.raw'))
    ? { 'data-file': { driver: 'file', filename: path.join(dir, 'd.raw') } }
    : {};
  const file = { driver: 'file', filename: path.join(dir, 'x.img') };
  const node = await openFromOptions(layer, { driver: 'qcow2', file, ...dataFile, ...openWith });
  const owner = { describe: () => 'test', drainedBegin: () => undefined, drainedEnd: () => undefined };
  const backend = await layer.createBackend(
    node,
    { perm: Perm.write | Perm.resize, shared: Perm.all },
    owner,
  );
  try {
    await wrapped.amend(node, values, false, { update: () => undefined });
  } finally {
    await backend.close();
  }
}

async function byUs(dir: string, values: Values, openWith: OpenWith): Promise<string | null> {
  try {
    await withLayer((layer) => amendByUs(layer, dir, values, openWith));
    return null;
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    return error.message + (error.hint === undefined ? '' : `\n${error.hint}`);
  }
}

function byThem(dir: string, values: Values, openWith: OpenWith): string | null {
  const options = Object.entries(values).flatMap(([name, value]) => ['-o', `${name}=${value}`]);
  const image =
    openWith.encrypt === undefined
      ? ['x.img']
      : ['--image-opts', 'driver=qcow2,file.filename=x.img,encrypt.key-secret=s0,encrypt.format=luks'];
  const args = ['amend', ...secretArgs, ...options, ...image];
  const { status, stderr } = spawnSync('qemu-img', args, { cwd: dir, encoding: 'utf8' });
  return status === 0 ? null : stderr.trim().replace(/^qemu-img: /, '');
}

function facts(dir: string): unknown {
  const info = JSON.parse(run(dir, 'qemu-img', 'info', '--output=json', 'x.img')) as Record<string, unknown>;
  const { 'actual-size': _size, snapshots, ...rest } = info;
  return { ...rest, snapshots: (snapshots as unknown[] | undefined)?.length };
}

/** A hash of what a guest would read. */
function content(dir: string): string {
  run(dir, 'qemu-img', 'convert', '-O', 'raw', 'x.img', 'content.raw');
  const hash = createHash('sha256')
    .update(readFileSync(path.join(dir, 'content.raw')))
    .digest('hex');
  rmSync(path.join(dir, 'content.raw'));
  return hash;
}

async function compare(
  options: readonly string[],
  values: Values,
  more: readonly (readonly string[])[] = [],
): Promise<{ dir: string; error: string | null }> {
  const source = copyFolder('source', mkdtempSync(path.join(root, 'new-')));
  makeImage(source, options, more);
  const dirs = { theirs: copyFolder('theirs', source), ours: copyFolder('ours', source) };
  const theirs = byThem(dirs.theirs, values, {});
  const ours = await byUs(dirs.ours, values, {});
  expect(ours).toBe(theirs);
  // What is refused is refused before anything is written; the original may have done the first half.
  expect(facts(dirs.ours)).toEqual(facts(ours === null ? dirs.theirs : source));
  const check = spawnSync('qemu-img', ['check', 'x.img'], { cwd: dirs.ours, encoding: 'utf8' });
  expect(check.stdout + check.stderr).toMatch(/^No errors were found on the image/);
  expect(content(dirs.ours)).toBe(content(dirs.theirs));
  if (values.size === undefined) expect(content(dirs.ours)).toBe(content(source));
  return { dir: dirs.ours, error: ours };
}

const backing = ['-b', 'base', '-F', 'raw'];
const snapshot = [['qemu-img', 'snapshot', '-c', 's', 'x.img']];

describe('qcow2', () => {
  const cases: readonly (readonly [name: string, options: readonly string[], values: Values])[] = [
    ['nothing', [], { compat: 'v3' }],
    ['down', [], { compat: 'v2' }],
    ['down, old name', [], { compat: '0.10' }],
    ['down with a backing image', backing, { compat: 'v2' }],
    ['down with lazy refcounts', ['-o', 'lazy_refcounts=on'], { compat: 'v2' }],
    ['unknown version', [], { compat: 'foo' }],
    ['down with subclusters', ['-o', 'extended_l2=on'], { compat: 'v2' }],
    ['down with narrow refcounts', ['-o', 'refcount_bits=8'], { compat: 'v2' }],
    ['down, to normal refcounts', ['-o', 'refcount_bits=8'], { compat: 'v2', refcount_bits: '16' }],
    ['lazy refcounts', [], { lazy_refcounts: 'on' }],
    ['no lazy refcounts', ['-o', 'lazy_refcounts=on'], { lazy_refcounts: 'off' }],
    ['lazy refcounts and down', [], { compat: 'v2', lazy_refcounts: 'on' }],
    ['larger', [], { size: String(3 * MiB) }],
    ['smaller', [], { size: String(MiB / 2) }],
    ['odd size', [], { size: '1000' }],
    ['no size', [], { size: '0' }],
    ['odd size after new refcounts', [], { size: '1000', refcount_bits: '8' }],
    ['odd size before the downgrade', [], { size: '1000', compat: 'v2' }],
    ['backing file', [], { backing_file: 'base', backing_fmt: 'raw' }],
    ['no backing file', [], { backing_file: '' }],
    ['the same backing file', backing, { backing_file: 'base', backing_fmt: 'raw' }],
    ['half the same backing file', backing, { backing_file: 'base' }],
    ['1-bit refcounts', [], { refcount_bits: '1' }],
    ['2-bit refcounts', ['-o', 'cluster_size=4k'], { refcount_bits: '2' }],
    ['8-bit refcounts', ['-o', 'cluster_size=512'], { refcount_bits: '8' }],
    ['64-bit refcounts', ['-o', 'cluster_size=4k'], { refcount_bits: '64' }],
    ['3-bit refcounts', [], { refcount_bits: '3' }],
    ['128-bit refcounts', [], { refcount_bits: '128' }],
    ['refcounts and down', [], { refcount_bits: '8', compat: 'v2' }],
    ['a data file', [], { data_file: 'foo' }],
    ['a raw data file', [], { data_file_raw: 'on' }],
    ['no raw data file', [], { data_file_raw: 'off' }],
    ['encryption', [], { 'encrypt.state': 'active' }],
  ];
  test.for(cases)('%s', async ([, options, values], context) => {
    requirePeer(context, 'qemu-img', 'qemu-io');
    await compare(options, values);
  });

  const old: readonly (readonly [name: string, values: Values])[] = [
    ['up', { compat: 'v3' }],
    [
      'up with everything',
      { compat: '1.1', refcount_bits: '64', lazy_refcounts: 'on', size: String(4 * MiB) },
    ],
    ['refcounts need version 3', { refcount_bits: '8' }],
    ['lazy refcounts need version 3', { lazy_refcounts: 'on' }],
  ];
  test.for(old)('version 2: %s', async ([, values], context) => {
    requirePeer(context, 'qemu-img', 'qemu-io');
    await compare(['-o', 'compat=v2'], values);
  });

  const withSnapshot: readonly (readonly [name: string, options: readonly string[], values: Values])[] = [
    ['down', [], { compat: 'v2' }],
    ['down with a backing image', backing, { compat: 'v2' }],
    ['refcounts that are too narrow', [], { refcount_bits: '1' }],
    ['narrow refcounts', [], { refcount_bits: '2' }],
    ['up', ['-o', 'compat=v2'], { compat: 'v3' }],
    ['resizing version 2', ['-o', 'compat=v2'], { size: String(3 * MiB) }],
  ];
  test.for(withSnapshot)('with a snapshot: %s', async ([, options, values], context) => {
    requirePeer(context, 'qemu-img', 'qemu-io');
    const { dir, error } = await compare(options, values, snapshot);
    if (error !== null || values.size !== undefined) return;
    run(dir, 'qemu-img', 'snapshot', '-a', 's', 'x.img');
    expect(content(dir)).toBe(content(path.join(root, 'source')));
  });

  test('with an external data file', async (context) => {
    requirePeer(context, 'qemu-img', 'qemu-io');
    const plain = ['-o', 'data_file=d.raw'];
    const raw = ['-o', 'data_file=d.raw,data_file_raw=on'];
    for (const [options, values] of [
      [plain, { compat: 'v2' }],
      [plain, { data_file_raw: 'on' }],
      [plain, { data_file: 'd.raw' }],
      [raw, { data_file_raw: 'off' }],
      [raw, { data_file_raw: 'on' }],
    ] as const) {
      await compare(options, values);
    }
  });

  test('there and back through every width', async (context) => {
    requirePeer(context, 'qemu-img', 'qemu-io');
    const dir = copyFolder('ours', mkdtempSync(path.join(root, 'new-')));
    makeImage(dir, ['-o', 'cluster_size=512'], []);
    copyFileSync(path.join(dir, 'x.img'), path.join(dir, 'before.img'));
    for (const refcount_bits of ['1', '64', '2', '32', '4', '8', '16']) {
      expect(await byUs(dir, { refcount_bits }, {})).toBe(null);
      run(dir, 'qemu-img', 'check', '-q', 'x.img');
      run(dir, 'qemu-img', 'compare', '-q', 'x.img', 'before.img');
    }
  });

  test('passphrases', async (context) => {
    requirePeer(context, 'qemu-img', 'qemu-io');
    const dir = copyFolder('ours', mkdtempSync(path.join(root, 'new-')));
    const values = { size: String(MiB), 'encrypt.format': 'luks', 'encrypt.key-secret': 's0' };
    await withLayer((layer) =>
      drivers.qcow2.creation!.createFile(
        layer,
        path.join(dir, 'x.img'),
        { ...values, 'encrypt.iter-time': '50' },
        { update: () => undefined },
      ),
    );
    const openWith = { encrypt: { format: 'luks', 'key-secret': 's0' } } as const;
    const opens = (secret: string): boolean => {
      const image = `driver=qcow2,file.filename=x.img,encrypt.format=luks,encrypt.key-secret=${secret}`;
      const args = ['check', '-q', ...secretArgs, '--image-opts', image];
      return spawnSync('qemu-img', args, { cwd: dir }).status === 0;
    };
    const iter = { 'encrypt.iter-time': '50' };
    expect(opens('s1')).toBe(false);
    expect(
      await byUs(dir, { 'encrypt.state': 'active', 'encrypt.new-secret': 's1', ...iter }, openWith),
    ).toBe(null);
    expect([opens('s0'), opens('s1')]).toEqual([true, true]);
    expect(await byUs(dir, { 'encrypt.state': 'inactive', 'encrypt.old-secret': 's1' }, openWith)).toBe(null);
    expect([opens('s0'), opens('s1')]).toEqual([true, false]);
    for (const values of [
      { 'encrypt.state': 'inactive' },
      { 'encrypt.state': 'inactive', 'encrypt.old-secret': 's0' },
      { 'encrypt.state': 'foo' },
      { 'encrypt.keyslot': '3' },
    ]) {
      expect(await byUs(dir, values, openWith)).toBe(byThem(dir, values, openWith));
    }
  });
});

test('the options are those of the original, with its texts', (context) => {
  requirePeer(context, 'qemu-img');
  const suffix = { size: '<size>', bool: '<bool (on/off)>', string: '<str>', number: '<num>' } as const;
  const ours = (drivers.qcow2.creation?.amendOptions ?? [])
    .map(({ name, type, help }) => `${name}=${suffix[type]} - ${help}`)
    .sort();
  const help = run(root, 'qemu-img', 'amend', '-f', 'qcow2', '-o', 'help');
  const theirs = help.split('\n').filter((line) => line.startsWith('  '));
  expect(ours).toEqual(theirs.map((line) => line.trim().replace(/ +/g, ' ')).sort());
});
