/**
 * Damaged qcow2 images: which base image, and what is wrong with its header or tables. Data for the tests that compare
 * what both daemons say of them.
 */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

const MiB = 2 ** 20;

/** Steps of qemu-img and qemu-io that make each base image. `$F`: the image. */
const BASES = {
  plain: [
    ['qemu-img', 'create', '-q', '-f', 'qcow2', '$F', '8M'],
    ['qemu-io', '-f', 'qcow2', '-c', 'write -P 1 0 128k', '-c', 'write -z 256k 64k', '$F'],
  ],
  v2: [
    ['qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'compat=0.10', '$F', '8M'],
    ['qemu-io', '-f', 'qcow2', '-c', 'write -P 1 0 128k', '$F'],
  ],
  small: [['qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=512', '$F', '1M']],
  extended: [
    ['qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'extended_l2=on', '$F', '8M'],
    ['qemu-io', '-f', 'qcow2', '-c', 'write -P 1 0 8k', '$F'],
  ],
  backing: [['qemu-img', 'create', '-q', '-f', 'qcow2', '-u', '-b', 'null-co://', '-F', 'raw', '$F', '8M']],
  snapshot: [
    ['qemu-img', 'create', '-q', '-f', 'qcow2', '$F', '8M'],
    ['qemu-io', '-f', 'qcow2', '-c', 'write -P 1 0 128k', '$F'],
    ['qemu-img', 'snapshot', '-c', 'one', '$F'],
    ['qemu-img', 'snapshot', '-c', 'two', '$F'],
  ],
  'written snapshot': [
    ['qemu-img', 'create', '-q', '-f', 'qcow2', '$F', '8M'],
    ['qemu-io', '-f', 'qcow2', '-c', 'write -P 1 0 64k', '$F'],
    ['qemu-img', 'snapshot', '-c', 'one', '$F'],
    ['qemu-io', '-f', 'qcow2', '-c', 'write -P 2 0 64k', '$F'],
  ],
  bitmap: [
    ['qemu-img', 'create', '-q', '-f', 'qcow2', '$F', '8M'],
    ['qemu-img', 'bitmap', '--add', '-f', 'qcow2', '$F', 'b0'],
  ],
  data: [
    ['qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'data_file=$F.data', '$F', '8M'],
    ['qemu-io', '-f', 'qcow2', '-c', 'write -P 1 0 128k', '$F'],
  ],
  luks: [
    [
      ...['qemu-img', 'create', '-q', '-f', 'qcow2', '--object', 'secret,id=s,data=x'],
      ...['-o', 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10', '$F', '1M'],
    ],
  ],
} as const satisfies Record<string, readonly (readonly string[])[]>;
export type BaseName = keyof typeof BASES;

/** Runs a step; the original's measuring of the key derivation fails now and then on a busy machine. */
function run(tool: string, args: readonly string[], cwd: string): void {
  for (let left = 20; ; left--) {
    try {
      execFileSync(tool, args, { cwd, stdio: 'pipe' });
      return;
    } catch (error) {
      if (left === 0 || !String(error).includes('CPU usage')) throw error;
    }
  }
}

/** The bytes of the base images that are asked for. */
export function makeBases(names: ReadonlySet<BaseName>): ReadonlyMap<BaseName, Buffer> {
  const dir = mkdtempSync(path.join(tmpdir(), 'qb-base-'));
  try {
    const made = new Map<BaseName, Buffer>();
    for (const name of names) {
      for (const [tool, ...args] of BASES[name]) {
        run(
          tool,
          args.map((arg) => arg.replaceAll('$F', name)),
          dir,
        );
      }
      made.set(name, readFileSync(path.join(dir, name)));
    }
    return made;
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

/** One change: bytes at an offset, or the length of the file. */
export type Change =
  | { readonly at: number; readonly u8: number }
  | { readonly at: number; readonly u32: number }
  | { readonly at: number; readonly u64: bigint | number }
  | { readonly at: number; readonly text: string }
  | { readonly cut: number };

export interface Damage {
  readonly name: string;
  readonly base: BaseName;
  readonly changes: readonly Change[];
  /** Options of blockdev-add besides driver and file. */
  readonly options?: object;
}

export function damaged(base: Buffer, changes: readonly Change[]): Buffer {
  let buf = Buffer.from(base);
  for (const change of changes) {
    if ('cut' in change) {
      buf = buf.subarray(0, change.cut);
      continue;
    }
    const end = change.at + 8;
    if (end > buf.length && end > base.length) buf = Buffer.concat([buf, Buffer.alloc(end - buf.length)]);
    if ('u8' in change) buf.writeUInt8(change.u8, change.at);
    else if ('u32' in change) buf.writeUInt32BE(change.u32, change.at);
    else if ('u64' in change) buf.writeBigUInt64BE(BigInt.asUintN(64, BigInt(change.u64)), change.at);
    else buf.write(change.text, change.at, 'latin1');
  }
  return buf;
}

const u32 = (at: number, value: number): Change => ({ at, u32: value });
const u64 = (at: number, value: bigint | number): Change => ({ at, u64: value });

function plain(name: string, ...changes: readonly Change[]): Damage {
  return { name, base: 'plain', changes };
}

function on(base: BaseName, name: string, ...changes: readonly Change[]): Damage {
  return { name: `${base}: ${name}`, base, changes };
}

function option(base: BaseName, name: string, options: object, ...changes: readonly Change[]): Damage {
  return { name: `${base}, option ${name}`, base, changes, options };
}

/** Offset of the first header extension in version 3 images. */
const EXTENSIONS = 112;
const BACKING_FORMAT = 0xe2792aca;

export const headerDamages: readonly Damage[] = [
  plain('magic', u32(0, 0x514649fa)),
  plain('version 0', u32(4, 0)),
  plain('version 1', u32(4, 1)),
  plain('version 4', u32(4, 4)),
  plain('version 2 of a version 3 image', u32(4, 2)),
  plain('version huge', u32(4, 0xffffffff)),
  plain('empty file', { cut: 0 }),
  plain('4 bytes', { cut: 4 }),
  plain('72 bytes', { cut: 72 }),
  plain('100 bytes', { cut: 100 }),
  plain('104 bytes', { cut: 104 }),
  plain('512 bytes', { cut: 512 }),
  plain('half a cluster', { cut: 0x8000 }),
  plain('one cluster', { cut: 0x10000 }),
  plain('without L1 table', { cut: 0x30000 }),
  plain('within L1 table', { cut: 0x30004 }),
  plain('cluster bits 8', u32(20, 8)),
  plain('cluster bits 22', u32(20, 22)),
  plain('cluster bits 0', u32(20, 0)),
  plain('cluster bits huge', u32(20, 0xffffffff)),
  plain('cluster bits 9', u32(20, 9)),
  plain('cluster bits 21', u32(20, 21)),
  plain('header length 0', u32(100, 0)),
  plain('header length 103', u32(100, 103)),
  plain('header length 104', u32(100, 104)),
  plain('header length 108', u32(100, 108)),
  plain('header length not a multiple of 8', u32(100, 113)),
  plain('header length the cluster', u32(100, 0x10000)),
  plain('header length over the cluster', u32(100, 0x10001)),
  plain('header length huge', u32(100, 0xffffffff)),
  plain('backing offset over the cluster', u64(8, 0x10001), u32(16, 4)),
  plain('backing offset huge', u64(8, -1n), u32(16, 4)),
  plain('backing offset the cluster size', u64(8, 0x10000), u32(16, 0)),
  plain('backing length over the cluster', u64(8, 0xfff8), u32(16, 16)),
  plain('backing length 1024', u64(8, 0x400), u32(16, 1024)),
  plain('backing length huge', u64(8, 0x400), u32(16, 0xffffffff)),
  plain('backing name empty', u64(8, 0x400), u32(16, 0)),
  plain('backing name in the fields', u64(8, 4), u32(16, 4)),
  plain('backing name nowhere', u64(8, 0x400), u32(16, 8), { at: 0x400, text: 'nowhere1' }),
  plain('backing name with NUL', u64(8, 0x400), u32(16, 8), { at: 0x400, text: 'no\0where' }),
  on('backing', 'format unknown', { at: EXTENSIONS + 8, text: 'rax' }),
  on('backing', 'format too long', u32(EXTENSIONS + 4, 16)),
  on('backing', 'format huge', u32(EXTENSIONS + 4, 0xffffffff)),
  on('backing', 'format 15 bytes', u32(EXTENSIONS + 4, 15)),
  on('backing', 'format empty', u32(EXTENSIONS + 4, 0)),
  plain('extension too large', u32(EXTENSIONS, 0x12345678), u32(EXTENSIONS + 4, 0x10000)),
  plain('extension at the very end', u32(EXTENSIONS, 0x12345678), u32(EXTENSIONS + 4, 0x10000 - 120)),
  plain('extension length near overflow', u32(EXTENSIONS, 0x12345678), u32(EXTENSIONS + 4, 0xfffffff9)),
  plain(
    'backing format in an image without backing',
    u32(EXTENSIONS, BACKING_FORMAT),
    u32(EXTENSIONS + 4, 3),
  ),
  plain('encryption extension without encryption', u32(EXTENSIONS, 0x0537be77), u32(EXTENSIONS + 4, 16)),
  plain('bitmaps extension short', u32(EXTENSIONS, 0x23852875), u32(EXTENSIONS + 4, 16), u64(88, 1)),
  plain('bitmaps extension short, no autoclear', u32(EXTENSIONS, 0x23852875), u32(EXTENSIONS + 4, 16)),
  plain('size 0', u64(24, 0)),
  plain('size 1', u64(24, 1)),
  plain('size not a multiple of 512', u64(24, 8 * MiB - 100)),
  plain('size over the L1 table', u64(24, 2 ** 30)),
  plain('size one cluster over the L1 table', u64(24, 2 ** 29 + 1)),
  plain('size 2^53', u64(24, 2n ** 53n)),
  plain('size 2^62', u64(24, 2n ** 62n)),
  plain('size 2^63', u64(24, 2n ** 63n)),
  plain('encryption method 3', u32(32, 3)),
  plain('encryption method huge', u32(32, 0xffffffff)),
  plain('encryption method aes', u32(32, 1)),
  plain('encryption method luks without header', u32(32, 2)),
  plain('L1 entries 0', u32(36, 0)),
  plain('L1 entries too many', u32(36, 4 * MiB + 1)),
  plain('L1 entries huge', u32(36, 0xffffffff)),
  plain('L1 entries beyond the file', u32(36, 0x100000)),
  plain('L1 offset 0', u64(40, 0)),
  plain('L1 offset unaligned', u64(40, 0x30001)),
  plain('L1 offset unaligned by 512', u64(40, 0x30200)),
  plain('L1 offset behind the file', u64(40, 0x7f0000)),
  plain('L1 offset 2^63', u64(40, 2n ** 63n)),
  plain('refcount table offset 0', u64(48, 0)),
  plain('refcount table offset unaligned', u64(48, 0x10001)),
  plain('refcount table offset behind the file', u64(48, 0x7f0000)),
  plain('refcount table offset nearly 2^63', u64(48, 2n ** 63n - 0x10000n)),
  plain('refcount table offset all ones', u64(48, -1n)),
  plain('refcount table clusters 0', u32(56, 0)),
  plain('refcount table clusters 129', u32(56, 129)),
  plain('refcount table clusters 128', u32(56, 128)),
  plain('refcount table clusters huge', u32(56, 0xffffffff)),
  plain('snapshot count 1 at offset 0', u32(60, 1)),
  plain('snapshot count 5000', u32(60, 5000), u64(64, 0x70000)),
  plain('snapshot count 65537', u32(60, 65537), u64(64, 0x70000)),
  plain('snapshot count huge', u32(60, 0xffffffff)),
  plain('snapshot offset unaligned, no snapshots', u64(64, 1)),
  plain('snapshot offset unaligned', u32(60, 1), u64(64, 0x70001)),
  plain('snapshot offset behind the file', u32(60, 1), u64(64, 0x7f0000)),
  plain('incompatible: dirty', u64(72, 1)),
  plain('incompatible: corrupt', u64(72, 2)),
  plain('incompatible: corrupt and dirty', u64(72, 3)),
  plain('incompatible: compression type set for zlib', u64(72, 8)),
  plain('incompatible: extended entries', u64(72, 16)),
  plain('incompatible: bit 5', u64(72, 32)),
  plain('incompatible: bit 63', u64(72, 2n ** 63n)),
  plain('incompatible: bits 5 and 40', u64(72, 2n ** 40n + 32n)),
  plain('incompatible: all', u64(72, -1n)),
  plain('incompatible: bit 0 named otherwise', { at: EXTENSIONS + 9, u8: 7 }, u64(72, 128)),
  plain('compatible: all', u64(80, -1n)),
  plain('autoclear: all', u64(88, -1n)),
  plain('autoclear: bitmaps', u64(88, 1)),
  plain('autoclear: raw data', u64(88, 2)),
  plain('incompatible: data file without a name', u64(72, 4)),
  plain('compression type 1 without bit', { at: 104, u8: 1 }),
  plain('compression type 1', { at: 104, u8: 1 }, u64(72, 8)),
  plain('compression type 2', { at: 104, u8: 2 }, u64(72, 8)),
  plain('compression type 255', { at: 104, u8: 255 }),
  plain('header length 104 with compression bit', u32(100, 104), u64(72, 8)),
  plain('refcount order 7', u32(96, 7)),
  plain('refcount order 6', u32(96, 6)),
  plain('refcount order 0', u32(96, 0)),
  plain('refcount order huge', u32(96, 0xffffffff)),
  on('small', 'extended entries', u64(72, 16)),
  on('v2', 'size over the L1 table', u64(24, 2 ** 40)),
  on('v2', 'extension too large', u32(72, 0x12345678), u32(76, 0x10000)),
  on('v2', 'cut behind the fields', { cut: 72 }),
  on('snapshot', 'L1 entries too many', u32(0x80008, 4 * MiB + 1)),
  on('snapshot', 'extra data too long', u32(0x80024, 1025)),
  on('snapshot', 'extra data huge', u32(0x80024, 0xffffffff)),
  on('snapshot', 'extra data none', u32(0x80024, 0)),
  on('snapshot', 'table behind the file', u64(64, 2n ** 40n)),
  on('bitmap', 'count 0', u32(EXTENSIONS + 8, 0)),
  on('bitmap', 'count 65536', u32(EXTENSIONS + 8, 65536)),
  on('bitmap', 'reserved', u32(EXTENSIONS + 12, 1)),
  on('bitmap', 'directory bytes 0', u64(EXTENSIONS + 16, 0)),
  on('bitmap', 'directory bytes huge', u64(EXTENSIONS + 16, 2n ** 60n)),
  on('bitmap', 'directory offset unaligned', u64(EXTENSIONS + 24, 0x80001)),
  on('bitmap', 'directory offset behind the file', u64(EXTENSIONS + 24, 2n ** 40n)),
  on('bitmap', 'directory offset huge', u64(EXTENSIONS + 24, -65536n)),
  on('bitmap', 'length 16', u32(EXTENSIONS + 4, 16)),
  on('luks', 'method none', u32(32, 0)),
  on('luks', 'method aes', u32(32, 1)),
  on('luks', 'extension 8 bytes', u32(EXTENSIONS + 4, 8)),
  on('luks', 'header offset unaligned', u64(EXTENSIONS + 8, 0x10001)),
  on('luks', 'header offset behind the file', u64(EXTENSIONS + 8, 2 ** 40)),
  on('luks', 'header length 0', u64(EXTENSIONS + 16, 0)),
  on('luks', 'header length huge', u64(EXTENSIONS + 16, 2n ** 63n)),
];

export const optionDamages: readonly Damage[] = [
  option('plain', 'all cache sizes', {
    'cache-size': 1 * MiB,
    'l2-cache-size': 65536,
    'refcount-cache-size': 65536,
  }),
  option('plain', 'all cache sizes, consistent', {
    'cache-size': 2 * MiB,
    'l2-cache-size': MiB,
    'refcount-cache-size': MiB,
  }),
  option('plain', 'l2 over total', { 'cache-size': MiB, 'l2-cache-size': 2 * MiB }),
  option('plain', 'refcounts over total', { 'cache-size': MiB, 'refcount-cache-size': 2 * MiB }),
  option('plain', 'l2 cache 0', { 'l2-cache-size': 0 }),
  option('plain', 'all caches 0', { 'cache-size': 0 }),
  option('plain', 'refcount cache 0', { 'refcount-cache-size': 0 }),
  option('plain', 'entry size 0', { 'l2-cache-entry-size': 0 }),
  option('plain', 'entry size 256', { 'l2-cache-entry-size': 256 }),
  option('plain', 'entry size 513', { 'l2-cache-entry-size': 513 }),
  option('plain', 'entry size 512', { 'l2-cache-entry-size': 512 }),
  option('plain', 'entry size 128k', { 'l2-cache-entry-size': 131072 }),
  option('plain', 'entry size 4097', { 'l2-cache-entry-size': 4097 }),
  option('plain', 'entry size negative', { 'l2-cache-entry-size': -1 }),
  option('plain', 'l2 cache negative', { 'l2-cache-size': -1 }),
  option('plain', 'l2 cache huge', { 'l2-cache-size': 2 ** 52 }),
  option('plain', 'refcount cache huge', { 'refcount-cache-size': 2 ** 52 }),
  option('plain', 'cache huge', { 'cache-size': 2 ** 52 }),
  option('plain', 'clean interval 0', { 'cache-clean-interval': 0 }),
  option('plain', 'clean interval negative', { 'cache-clean-interval': -1 }),
  option('plain', 'clean interval huge', { 'cache-clean-interval': 2 ** 32 }),
  option('plain', 'clean interval at the limit', { 'cache-clean-interval': 2 ** 32 - 1 }),
  option('v2', 'lazy refcounts', { 'lazy-refcounts': true }),
  option('v2', 'lazy refcounts off', { 'lazy-refcounts': false }),
  option('plain', 'lazy refcounts', { 'lazy-refcounts': true }),
  option('plain', 'data file', { 'data-file': { driver: 'null-co', size: MiB } }),
  option('plain', 'data file by unknown name', { 'data-file': 'nobody' }),
  option('data', 'data file null device', { 'data-file': { driver: 'null-co', size: 8 * MiB } }),
  option('data', 'data file missing node', { 'data-file': 'nobody' }),
  option('data', 'none, and the file is gone', {}),
  option('data', 'none, name cleared', {}, u32(EXTENSIONS, 0x44415442)),
  option('data', 'none, and no bit', {}, u64(72, 0)),
  option('plain', 'encrypt luks', { encrypt: { format: 'luks', 'key-secret': 's' } }),
  option('plain', 'encrypt aes', { encrypt: { format: 'aes', 'key-secret': 's' } }),
  option('luks', 'encrypt none', {}),
  option('luks', 'encrypt none, header length 0', {}, u64(EXTENSIONS + 16, 0)),
  option(
    'luks',
    'header length 0',
    { encrypt: { format: 'luks', 'key-secret': 's' } },
    u64(EXTENSIONS + 16, 0),
  ),
  option(
    'luks',
    'header length 0, secret unknown',
    { encrypt: { format: 'luks', 'key-secret': 'unknown' } },
    u64(EXTENSIONS + 16, 0),
  ),
  option(
    'luks',
    'magic, secret unknown',
    { encrypt: { format: 'luks', 'key-secret': 'unknown' } },
    u64(EXTENSIONS + 8, 0x10000),
  ),
  option('luks', 'magic', { encrypt: { format: 'luks', 'key-secret': 's' } }, u64(EXTENSIONS + 8, 0x10000)),
  option(
    'luks',
    'behind the file',
    { encrypt: { format: 'luks', 'key-secret': 's' } },
    u64(EXTENSIONS + 8, 2 ** 40),
  ),
  option('luks', 'encrypt aes', { encrypt: { format: 'aes', 'key-secret': 's' } }),
  option('luks', 'no secret', { encrypt: { format: 'luks' } }),
  option('luks', 'unknown secret', { encrypt: { format: 'luks', 'key-secret': 'unknown' } }),
  option('luks', 'wrong secret', { encrypt: { format: 'luks', 'key-secret': 'wrong' } }),
  option('luks', 'right secret', { encrypt: { format: 'luks', 'key-secret': 's' } }),
  option('plain', 'overlap none', { 'overlap-check': 'none' }),
  option('plain', 'overlap unknown', { 'overlap-check': 'many' }),
  option('plain', 'overlap object', { 'overlap-check': { template: 'all', 'inactive-l2': false } }),
  option('plain', 'overlap object without template', { 'overlap-check': { 'inactive-l2': false } }),
  option('plain', 'overlap unknown kind', { 'overlap-check': { 'inactive-l3': false } }),
  option('plain', 'backing null', { backing: null }),
  option('plain', 'backing node unknown', { backing: 'nobody' }),
  option('plain', 'backing inline', { backing: { driver: 'null-co', size: MiB } }),
  option('backing', 'none', {}),
  option('backing', 'null', { backing: null }),
  option('backing', 'backing inline', { backing: { driver: 'null-co', size: MiB } }),
];

/**
 * Every two of these together: which is reported says in which order the checks are made.
 */
const ordered: readonly Damage[] = [
  plain('version', u32(4, 7)),
  plain('cluster bits', u32(20, 8)),
  plain('header length short', u32(100, 103)),
  plain('header length long', u32(100, 0x10001)),
  plain('backing offset', u64(8, 0x10001)),
  plain('backing length', u64(8, 0x400), u32(16, 1024)),
  plain('backing nowhere', u64(8, 0x400), u32(16, 8), { at: 0x400, text: 'nowhere1' }),
  plain('extension too large', u32(EXTENSIONS, 0x12345678), u32(EXTENSIONS + 4, 0x10000)),
  plain('bitmaps extension', u32(EXTENSIONS, 0x23852875), u32(EXTENSIONS + 4, 16), u64(88, 1)),
  plain('size over the L1 table', u64(24, 2 ** 30)),
  plain('size 2^63', u64(24, 2n ** 62n)),
  plain('encryption method 3', u32(32, 3)),
  plain('encryption luks', u32(32, 2)),
  plain('L1 entries too many', u32(36, 4 * MiB + 1)),
  plain('L1 offset', u64(40, 0x30200)),
  plain('refcount table offset', u64(48, 0x10001)),
  plain('refcount table 0', u32(56, 0)),
  plain('refcount table 129', u32(56, 129)),
  plain('snapshot count', u32(60, 65537)),
  plain('snapshot table', u32(60, 1), u64(64, 0x70001)),
  plain('snapshot entry', u32(60, 1), u64(64, 0x70000), u32(0x70024, 1025)),
  plain('corrupt', { at: 79, u8: 2 }),
  plain('feature', { at: 73, u8: 1 }),
  plain('data file', { at: 79, u8: 4 }),
  plain('raw data file', u64(88, 2)),
  plain('compression type 2', { at: 104, u8: 2 }),
  plain('refcount order', u32(96, 7)),
  option('plain', 'caches', { 'cache-size': MiB, 'l2-cache-size': 2 * MiB }),
  option('plain', 'entry size', { 'l2-cache-entry-size': 513 }),
  option('plain', 'negative', { 'l2-cache-size': -1 }),
  option('plain', 'clean interval', { 'cache-clean-interval': 2 ** 32 }),
  option('plain', 'data file unknown', { 'data-file': 'nobody' }),
  option('plain', 'data file', { 'data-file': { driver: 'null-co' } }),
  option('plain', 'encrypt', { encrypt: { format: 'luks', 'key-secret': 's' } }),
  option('plain', 'backing unknown', { backing: 'nobody' }),
];

export const pairedDamages: readonly Damage[] = ordered.flatMap((first, index) =>
  ordered.slice(index + 1).map((second) => ({
    name: `${first.name} and ${second.name}`,
    base: first.base,
    changes: [...first.changes, ...second.changes],
    options: { ...first.options, ...second.options },
  })),
);
