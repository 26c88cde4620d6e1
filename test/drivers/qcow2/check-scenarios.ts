/** Damaged images for the tests of the image check: how each is made, and what is then done to it. */

import { execFileSync } from 'node:child_process';
import { limitMs } from '../../patience.ts';
import { COMPRESSED, COPIED, type ImageEditor, OFFSET_MASK } from './damage.ts';

export interface Recipe {
  readonly create?: string;
  readonly size?: string;
  /** Commands of qemu-io, then command lines of other tools; `a.qcow2` is the image. */
  readonly io?: readonly string[];
  readonly after?: readonly (readonly string[])[];
}

export interface Scenario {
  readonly recipe: RecipeName;
  readonly damage: (image: ImageEditor) => void;
  /** The original fails to open the image for writing: only the check is compared. */
  readonly readOnly?: boolean;
}

const snapshot = (name: string): readonly string[] => ['qemu-img', 'snapshot', '-c', name, 'a.qcow2'];
const io = (command: string): readonly string[] => ['qemu-io', '-f', 'qcow2', '-c', command, 'a.qcow2'];
const bitmap = (name: string): readonly string[] => ['qemu-img', 'bitmap', '--add', 'a.qcow2', name];
const FILL = ['write -P 1 0 256k', 'write -P 2 1M 128k'];
const MIXED = [
  'write -P 1 0 256k',
  'write -z 64k 64k',
  'write -z 1M 64k',
  'write -c -P 3 2M 64k',
  'write -c -P 4 3M 64k',
];

export const RECIPES = {
  plain: { io: FILL },
  empty: {},
  'no size': { size: '0' },
  'odd size': { size: '1000000' },
  mixed: { io: MIXED },
  'mixed 4k': { create: 'cluster_size=4k', io: MIXED },
  'version 2': { create: 'compat=0.10', io: FILL },
  '512': { create: 'cluster_size=512', size: '1M', io: ['write -P 1 0 300k'] },
  '512, 1 bit': { create: 'cluster_size=512,refcount_bits=1', size: '4M', io: ['write -P 1 0 3M'] },
  '512, 64 bit': { create: 'cluster_size=512,refcount_bits=64', size: '4M', io: ['write -P 1 0 3M'] },
  '512, gap': {
    create: 'cluster_size=512',
    size: '8M',
    io: ['write 0 64k'],
    after: [['truncate', '-s', '4M', 'a.qcow2'], io('write 1M 64k')],
  },
  '512, preallocated': { create: 'cluster_size=512,preallocation=metadata', size: '8M' },
  '2M': { create: 'cluster_size=2M', io: FILL },
  '1 bit': { create: 'refcount_bits=1', io: FILL },
  '2 bit': { create: 'refcount_bits=2', io: FILL },
  '32 bit': { create: 'refcount_bits=32', io: FILL },
  '64 bit': { create: 'refcount_bits=64', io: FILL },
  extended: {
    create: 'extended_l2=on',
    io: [
      'write -P 1 0 256k',
      'write -P 1 1M 2k',
      'write -z 64k 64k',
      'write -z 2M 64k',
      'write -c -P 2 3M 64k',
    ],
  },
  snapshots: { io: ['write -P 1 0 128k'], after: [snapshot('s1'), io('write -P 3 0 64k'), snapshot('s2')] },
  bitmaps: { io: FILL, after: [bitmap('b0'), io('write -P 9 1M 128k'), bitmap('b1')] },
  'data file': {
    create: 'data_file=d.raw',
    io: ['write -P 1 0 256k', 'write -z 64k 64k', 'write -z 1M 64k'],
  },
  'raw data file': { create: 'data_file=d.raw,data_file_raw=on', io: ['write -P 1 0 256k'] },
} as const satisfies Readonly<Record<string, Recipe>>;
export type RecipeName = keyof typeof RECIPES;

/** Makes the image of a recipe as `a.qcow2` in `folder`. */
export function makeImage(folder: string, recipe: Recipe): void {
  const run = (command: readonly string[]): void => {
    const [program, ...args] = command;
    execFileSync(program!, args, {
      cwd: folder,
      timeout: limitMs(60_000),
      stdio: ['ignore', 'pipe', 'pipe'],
    });
  };
  const options = recipe.create === undefined ? [] : ['-o', recipe.create];
  run(['qemu-img', 'create', '-q', '-f', 'qcow2', ...options, 'a.qcow2', recipe.size ?? '64M']);
  const commands = (recipe.io ?? []).flatMap((command) => ['-c', command]);
  if (commands.length > 0) run(['qemu-io', '-f', 'qcow2', ...commands, 'a.qcow2']);
  for (const command of recipe.after ?? []) run(command);
}

function scenario(recipe: RecipeName, damage: (image: ImageEditor) => void = () => undefined): Scenario {
  return { recipe, damage };
}

const l2 =
  (index: number, change: (old: bigint) => bigint) =>
  (image: ImageEditor): void =>
    image.edit(image.l2At(0, index), change);
const bitmapOf = (index: number, value: bigint) => (image: ImageEditor) =>
  image.setU64(image.l2At(0, index) + 8, value);
const copyL2 =
  (to: number, from: number) =>
  (image: ImageEditor): void =>
    image.setU64(image.l2At(0, to), image.u64(image.l2At(0, from)));
const l1 =
  (change: (old: bigint) => bigint) =>
  (image: ImageEditor): void =>
    image.edit(image.l1At(0), change);
const table =
  (index: number, change: (old: bigint) => bigint) =>
  (image: ImageEditor): void =>
    image.edit(image.refTableAt(index), change);
const refcount = (cluster: number, value: bigint | number) => (image: ImageEditor) =>
  image.setRefcount(cluster, value);
const both =
  (...damages: readonly ((image: ImageEditor) => void)[]) =>
  (image: ImageEditor): void => {
    for (const damage of damages) damage(image);
  };
const leak = (image: ImageEditor): void => {
  const cluster = image.grow(2);
  image.setRefcount(cluster, 1);
  image.setRefcount(cluster + 1, 1);
};
const header =
  (...args: Parameters<ImageEditor['set']>) =>
  (image: ImageEditor): void =>
    image.set(...args);

/** Place of entry `index` of the snapshot table. */
function snapshotAt(image: ImageEditor, index: number): number {
  let at = Number(image.get('snapshotsOffset'));
  for (let i = 0; i < index; i++) {
    const names = image.buf.readUInt16BE(at + 12) + image.buf.readUInt16BE(at + 14);
    at += Math.ceil((40 + image.buf.readUInt32BE(at + 36) + names) / 8) * 8;
  }
  return at;
}
const snapshotL1 =
  (change: (old: bigint) => bigint) =>
  (image: ImageEditor): void =>
    image.edit(Number(image.u64(snapshotAt(image, 0))), change);
const snapshotWord =
  (index: number, at: number, value: number) =>
  (image: ImageEditor): void =>
    void image.buf.writeUInt32BE(value, snapshotAt(image, index) + at);

const BITMAPS = 0x23852875;
const bitmapEntry = (image: ImageEditor): number => Number(image.u64(image.extensionAt(BITMAPS) + 16));
const bitmapTable =
  (value: bigint) =>
  (image: ImageEditor): void =>
    image.setU64(Number(image.u64(bitmapEntry(image))), value);

const BEYOND = 0x10000000n;

export const SCENARIOS: Readonly<Record<string, Scenario>> = {
  clean: scenario('plain'),
  empty: scenario('empty'),
  'size 0': scenario('no size'),
  'odd size': scenario('odd size'),
  'shorter than its tables': scenario('plain', header('size', 65536)),
  'longer L1 table': scenario('plain', header('l1Entries', 100)),
  leaks: scenario('plain', leak),
  'leak, 512': scenario('512', leak),
  'leak, version 2': scenario('version 2', leak),
  'leak, 2M': scenario('2M', leak),
  'refcount behind the end': scenario('plain', refcount(100, 1)),
  'refcount 0': scenario('plain', refcount(6, 0)),
  'refcount 2': scenario('plain', refcount(6, 2)),
  'refcount 2 of a table': scenario('plain', refcount(1, 2)),
  'refcount 2 of a block': scenario('plain', refcount(2, 2)),
  'refcount 0 of a block': scenario('plain', refcount(2, 0)),
  'refcount 0 of the header': scenario('plain', refcount(0, 0)),
  'refcount 2 of an L2 table': scenario('plain', refcount(4, 2)),
  'huge refcounts': scenario('64 bit', both(refcount(5, 0x8000000000000001n), refcount(6, -1n))),
  'refcount of 32 bits': scenario('32 bit', refcount(5, 0xfffffffen)),

  'data: COPIED missing': scenario(
    'plain',
    l2(1, (v) => v & ~COPIED),
  ),
  'data: unaligned': scenario(
    'plain',
    l2(1, (v) => v + 512n),
  ),
  'data: beyond the end': scenario(
    'plain',
    l2(1, () => COPIED | BEYOND),
  ),
  'data: unaligned and beyond': scenario(
    'plain',
    l2(1, () => COPIED | BEYOND | 512n),
  ),
  'data: far beyond': scenario(
    'plain',
    l2(1, () => COPIED | 0x00fffffffff00000n),
  ),
  'data: just behind the end': scenario(
    'plain',
    l2(1, () => COPIED | 0xb0000n),
  ),
  'data: in the last, partial cluster': scenario('plain', (image) => image.cut(0x90200)),
  'data: reserved bits': scenario(
    'plain',
    l2(1, (v) => v | 0x3f000000000000fen),
  ),
  'data: everything wrong': scenario(
    'plain',
    l2(1, () => 0x3f000000100003fen),
  ),
  'data: used twice': scenario('plain', copyL2(1, 2)),
  'data: in the refcount table': scenario(
    'plain',
    l2(1, () => COPIED | 0x10000n),
  ),
  'data: only the flag': scenario(
    'plain',
    l2(0, () => COPIED),
  ),
  'flag and corruption': scenario(
    'plain',
    both(
      l2(1, (v) => v & ~COPIED),
      copyL2(2, 3),
    ),
  ),
  'flag and leak': scenario(
    'plain',
    both(
      l2(1, (v) => v & ~COPIED),
      leak,
    ),
  ),
  'overflow of 1 bit': scenario('1 bit', copyL2(1, 2)),
  'overflow of 2 bits': scenario('2 bit', both(copyL2(0, 3), copyL2(1, 3), copyL2(2, 3))),

  'kinds of clusters': scenario('mixed'),
  'kinds of clusters, 4k': scenario('mixed 4k'),
  'zero: unaligned': scenario(
    'mixed',
    l2(1, (v) => v + 512n),
  ),
  'zero: COPIED missing': scenario(
    'mixed',
    l2(1, (v) => v & ~COPIED),
  ),
  'zero: COPIED without cluster': scenario(
    'mixed',
    l2(16, (v) => v | COPIED),
  ),
  'zero: in the header': scenario(
    'mixed',
    l2(16, () => 0x201n),
  ),
  'zero: beyond': scenario(
    'mixed',
    l2(1, () => COPIED | BEYOND | 1n),
  ),
  'zero: unaligned, and more': scenario(
    'mixed',
    both(
      l2(1, (v) => v + 512n),
      l2(2, (v) => v & ~COPIED),
      copyL2(3, 0),
    ),
  ),
  'zero: version 2': scenario(
    'version 2',
    both(
      l2(1, (v) => v | 1n),
      l2(9, () => 1n),
    ),
  ),
  'zero: unaligned, version 2': scenario(
    'version 2',
    l2(1, (v) => v | 0x201n),
  ),
  'zero: unaligned in a snapshot': scenario('snapshots', (image) => {
    const inactive = Number(image.u64(Number(image.u64(snapshotAt(image, 0)))) & OFFSET_MASK);
    image.edit(inactive + 8, (v) => v | 513n);
  }),
  'compressed: COPIED': scenario(
    'mixed',
    l2(32, (v) => v | COPIED),
  ),
  'compressed: beyond': scenario(
    'mixed',
    l2(32, (v) => v + BEYOND + 5n),
  ),
  'compressed: far beyond': scenario(
    'mixed',
    l2(32, (v) => v | 0x003ffffffffff123n),
  ),
  'compressed: longer': scenario(
    'mixed',
    l2(32, (v) => v + (0x7fn << 54n)),
  ),
  'compressed: used twice': scenario('mixed', copyL2(32, 48)),
  'compressed: in the header': scenario(
    'mixed',
    l2(32, () => COMPRESSED),
  ),
  'compressed: at the end': scenario(
    'mixed',
    l2(32, () => COMPRESSED | 0xb0100n),
  ),
  'compressed, 4k: beyond': scenario('mixed 4k', (image) => image.edit(image.l2At(1, 0), (v) => v + BEYOND)),

  'L1: COPIED missing': scenario(
    'plain',
    l1((v) => v & ~COPIED),
  ),
  'L1: beyond': scenario(
    'plain',
    l1(() => COPIED | BEYOND),
  ),
  'L1: unaligned and beyond': scenario(
    'plain',
    l1(() => COPIED | BEYOND | 512n),
  ),
  'L1: reserved bits': scenario(
    'plain',
    l1((v) => v | 0x7f000000000001ffn),
  ),
  'L1: only reserved bits': scenario(
    'plain',
    l1(() => 0x7f000000000001ffn),
  ),
  'L1: only COPIED': scenario(
    'plain',
    l1(() => COPIED),
  ),
  'L1: everything wrong': scenario(
    'plain',
    l1(() => 0x7f000000100003ffn),
  ),
  'L1: table beyond': scenario('plain', header('l1Offset', BEYOND)),
  'L1: table at the end': scenario('plain', header('l1Offset', 0xb0000)),
  'L1: table is the header': scenario('plain', header('l1Offset', 0)),
  'L1: table at the end, a block behind it': scenario(
    'plain',
    both(
      header('l1Offset', 0xb0000),
      table(1, () => 0xb0000n),
    ),
  ),
  'cut file': scenario('plain', (image) => image.cut(0x90000)),
  'cut in an L2 table': scenario('plain', (image) => image.cut(0x40008)),
  'cut in the L1 table': scenario('plain', (image) => image.cut(0x30008)),
  'cut in a refcount block': scenario('plain', (image) => image.cut(0x20010)),

  'refcounts: unaligned second block': scenario(
    'plain',
    table(1, () => 0x20200n),
  ),
  'refcounts: unaligned first block': scenario(
    'plain',
    table(0, (v) => v + 512n),
  ),
  'refcounts: one block twice': scenario(
    'plain',
    table(1, () => 0x20000n),
  ),
  'refcounts: block beyond': scenario(
    'plain',
    table(1, () => BEYOND),
  ),
  'refcounts: block just behind the end': scenario(
    'plain',
    table(1, () => 0xb0000n),
  ),
  'refcounts: block far beyond': scenario(
    'plain',
    table(1, () => 0xffffffffffff0000n),
  ),
  'refcounts: reserved bits': scenario(
    'plain',
    table(1, () => 1n),
  ),
  'refcounts: first block beyond': scenario(
    'plain',
    table(0, () => BEYOND),
  ),
  'refcounts: no block': scenario(
    'plain',
    table(0, () => 0n),
  ),
  'refcounts: block is the table': scenario(
    'plain',
    both(
      table(0, () => 0n),
      table(1, () => 0x10000n),
    ),
  ),
  'refcounts: table beyond': scenario('plain', header('refcountTableOffset', BEYOND)),
  'refcounts: no table': scenario('plain', header('refcountTableClusters', 0)),
  'refcounts: table is the L1 table': scenario('plain', header('refcountTableOffset', 0x30000)),

  'rebuild, holes': scenario('plain', (image) => {
    for (const index of [1, 2, 3]) {
      image.setRefcount(Number(image.u64(image.l2At(0, index)) & OFFSET_MASK) / image.clusterBytes, 0);
      image.setU64(image.l2At(0, index), 0);
    }
    image.setRefcount(5, 0);
  }),
  'rebuild, leaks': scenario('plain', both(refcount(5, 0), leak)),
  'rebuild, unaligned': scenario(
    'plain',
    both(
      refcount(5, 0),
      l2(1, (v) => v + 512n),
      l2(2, (v) => v & ~COPIED),
    ),
  ),
  'rebuild, reserved': scenario(
    'plain',
    both(
      refcount(5, 0),
      l2(1, (v) => v | 2n),
    ),
  ),
  'rebuild, overflow': scenario('1 bit', both(refcount(5, 0), copyL2(1, 2))),
  'rebuild, version 2': scenario('version 2', refcount(5, 0)),
  'rebuild, 512': scenario('512', refcount(5, 0)),
  'rebuild, 512, holes': scenario('512', (image) => {
    image.setRefcount(5, 0);
    for (const index of [1, 2, 5]) image.setU64(image.l1At(index), 0);
  }),
  'rebuild, 512, 1 bit': scenario('512, 1 bit', refcount(5, 0)),
  'rebuild, 512, 64 bit': scenario('512, 64 bit', refcount(5, 0)),
  'rebuild, 512, gap': scenario('512, gap', refcount(3, 0)),
  'rebuild, 512, preallocated': scenario('512, preallocated', refcount(3, 0)),
  'rebuild, 2M': scenario('2M', refcount(5, 0)),
  'rebuild, mixed': scenario('mixed', refcount(9, 0)),
  'rebuild, snapshots': scenario('snapshots', refcount(6, 0)),
  'rebuild, extended': scenario('extended', refcount(5, 0)),
  'rebuild, data file': scenario('data file', refcount(3, 0)),

  'corrupt bit': scenario('plain', header('incompatible', 2)),
  'dirty bit': scenario('plain', header('incompatible', 1)),
  'dirty bit and leaks': scenario('plain', both(header('incompatible', 1), leak)),
  'corrupt bit and leaks': scenario('plain', both(header('incompatible', 2), leak)),
  'both bits and a rebuild': scenario('plain', both(header('incompatible', 3), refcount(5, 0))),
  'both bits and an error that stays': scenario(
    'plain',
    both(
      header('incompatible', 3),
      l2(1, (v) => v | 2n),
    ),
  ),

  'extended: clean': scenario('extended'),
  'extended: both bits': scenario('extended', bitmapOf(0, -1n)),
  'extended: both bits, unaligned': scenario(
    'extended',
    both(
      bitmapOf(0, -1n),
      l2(0, (v) => v | 0x202n),
    ),
  ),
  'extended: no bits': scenario('extended', bitmapOf(0, 0n)),
  'extended: bits without cluster': scenario('extended', bitmapOf(5, 1n)),
  'extended: all bits without cluster': scenario('extended', bitmapOf(5, -1n)),
  'extended: zero bits without cluster': scenario('extended', bitmapOf(5, 1n << 32n)),
  'extended: bits of a compressed cluster': scenario('extended', bitmapOf(48, 1n)),
  'extended: zero flag': scenario(
    'extended',
    both(
      l2(0, (v) => v | 1n),
      l2(9, (v) => v | 1n),
    ),
  ),
  'extended: unaligned zero': scenario(
    'extended',
    l2(1, (v) => v + 512n),
  ),
  'extended: unaligned zero, some bits': scenario(
    'extended',
    both(
      l2(2, (v) => v + 512n),
      bitmapOf(2, 0xffff00000000n),
    ),
  ),
  'extended: unaligned data': scenario(
    'extended',
    both(
      l2(2, (v) => v + 512n),
      bitmapOf(2, 0xffff00010000n),
    ),
  ),
  'extended: reserved': scenario(
    'extended',
    l2(0, (v) => v | 0x3f000000000001ffn),
  ),

  'snapshots: clean': scenario('snapshots'),
  'snapshots: L1 unaligned': scenario('snapshots', (image) =>
    image.edit(snapshotAt(image, 0), (v) => v + 512n),
  ),
  'snapshots: L1 beyond': scenario('snapshots', (image) => image.setU64(snapshotAt(image, 0), BEYOND)),
  'snapshots: no L1 entries': scenario('snapshots', snapshotWord(0, 8, 0)),
  'snapshots: too many L1 entries': scenario('snapshots', snapshotWord(0, 8, 0x1000000)),
  'snapshots: extra data of 2000 bytes': scenario('snapshots', snapshotWord(0, 36, 2000)),
  'snapshots: extra data of 70000 bytes': scenario('snapshots', snapshotWord(1, 36, 70000)),
  'snapshots: extra data of 0 bytes': scenario('snapshots', snapshotWord(1, 36, 0)),
  'snapshots: extra data of 8 bytes': scenario('snapshots', snapshotWord(1, 36, 8)),
  'snapshots: table beyond': scenario('snapshots', header('snapshotsOffset', BEYOND)),
  'snapshots: three': scenario('snapshots', header('snapshotCount', 3)),
  'snapshots: three, a flag': scenario(
    'snapshots',
    both(
      header('snapshotCount', 3),
      l1((v) => v & ~COPIED),
    ),
  ),
  'snapshots: three, a leak': scenario('snapshots', both(header('snapshotCount', 3), leak)),
  'snapshots: three, a rebuild': scenario('snapshots', both(header('snapshotCount', 3), refcount(6, 0))),
  'snapshots: one': scenario('snapshots', header('snapshotCount', 1)),
  'snapshots: none': scenario('snapshots', header('snapshotCount', 0)),
  'snapshots: L1 entry with COPIED': scenario(
    'snapshots',
    snapshotL1((v) => v | COPIED),
  ),
  'snapshots: shared data with COPIED': scenario(
    'snapshots',
    l2(1, (v) => v | COPIED),
  ),
  'snapshots: shared L2 table with COPIED': scenario(
    'snapshots',
    l1((v) => v | COPIED),
  ),

  'data file: clean': scenario('data file'),
  'data file: unaligned': scenario(
    'data file',
    l2(0, (v) => v + 512n),
  ),
  'data file: beyond': scenario(
    'data file',
    l2(0, () => COPIED | BEYOND),
  ),
  'data file: COPIED missing': scenario(
    'data file',
    l2(2, (v) => v & ~COPIED),
  ),
  'data file: unaligned zero': scenario(
    'data file',
    l2(1, (v) => v + 512n),
  ),
  'data file: compressed': scenario(
    'data file',
    l2(2, () => COMPRESSED | 0x50000n),
  ),
  'data file: used twice': scenario('data file', copyL2(2, 3)),
  'data file: offset 0': scenario(
    'data file',
    l2(9, () => COPIED),
  ),
  'raw data file: clean': scenario('raw data file'),
  'raw data file: elsewhere': scenario(
    'raw data file',
    l2(2, () => COPIED | 0x90000n),
  ),

  'bitmaps: clean': scenario('bitmaps'),
  'bitmaps: outdated': scenario('bitmaps', header('autoclear', 0)),
  'bitmaps: table beyond': scenario('bitmaps', (image) => image.setU64(bitmapEntry(image), BEYOND)),
  'bitmaps: data beyond': scenario('bitmaps', bitmapTable(BEYOND)),
  'bitmaps: all ones': scenario('bitmaps', bitmapTable(1n)),
  'bitmaps: in the header': scenario('bitmaps', bitmapTable(0x10000n)),
  'bitmaps: everything beyond': {
    ...scenario(
      'bitmaps',
      both(
        bitmapTable(BEYOND),
        l1((v) => v),
        header('refcountTableClusters', 60),
        l2(1, () => BEYOND),
      ),
    ),
    readOnly: true,
  },
};
