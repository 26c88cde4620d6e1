/**
 * Damage that shows only when the image is used: what both daemons do, as transcripts. A client reads and writes over
 * NBD; events, the client's errors, and what the image is marked with afterwards must be equal.
 */

import { type BaseName, type Change, damaged, makeBases } from './qcow2-damages.ts';
import { cmd, type Step, type Transcript } from './transcript.ts';

const COPIED = 2n ** 63n;
const COMPRESSED = 2n ** 62n;
/** Where things are in the base images without snapshots: refcount table and block, L1 and L2 table, data. */
const REFTABLE = 0x10000;
const REFBLOCK = 0x20000;
const L1 = 0x30000;
const L2 = 0x40000;
const DATA = 0x50000n;

interface Corruption {
  readonly name: string;
  readonly base?: BaseName;
  readonly changes: readonly Change[];
  /** Commands of qemu-io, each on a connection of its own. */
  readonly io: readonly string[];
  readonly options?: object;
  /** Not opened read-only: the original looks at refcounts for the block status too. */
  readonly writableOnly?: boolean;
}

const u64 = (at: number, value: bigint): Change => ({ at, u64: value });

function steps({ io, options }: Corruption, readOnly: boolean): Step[] {
  const uri = 'nbd+unix:///node?socket=$DIR/nbd.sock';
  return [
    cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd.sock' } } }),
    cmd('blockdev-add', {
      driver: 'qcow2',
      'node-name': 'node',
      file: { driver: 'file', filename: '$DIR/image' },
      'read-only': readOnly,
      discard: 'unmap',
      ...options,
    }),
    cmd('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'node', writable: !readOnly }),
    ...io.flatMap((command): Step[] => [
      { run: ['qemu-io', '-f', 'raw', ...(readOnly ? ['-r'] : []), '-c', command, uri] },
      cmd('query-block-exports'),
    ]),
    cmd('nbd-server-stop'),
    cmd('blockdev-del', { 'node-name': 'node' }),
    { run: ['sh', '-c', "qemu-img info -U --output=json '$DIR/image' | grep -v actual-size"] },
  ];
}

function transcripts(corruption: Corruption): Transcript[] {
  const { name, base = 'plain', changes } = corruption;
  let content: Buffer | null = null;
  const image = (): Buffer => {
    content ??= damaged(makeBases(new Set([base])).get(base)!, changes);
    return content;
  };
  return (corruption.writableOnly ? [false] : [false, true]).map((readOnly) => ({
    name: `${name}${readOnly ? ', read-only' : ''}`,
    files: { image },
    steps: steps(corruption, readOnly),
  }));
}

const USE = ['read 0 64k', 'write 0 64k', 'write 64k 64k', 'read 0 64k'];

const corruptions: readonly Corruption[] = [
  { name: 'L1 entry unaligned', changes: [u64(L1, COPIED | 0x40200n)], io: USE },
  {
    name: 'L1 entry unaligned, write first',
    changes: [u64(L1, COPIED | 0x40200n)],
    io: ['write 0 4k', 'read 0 4k'],
  },
  {
    name: 'L1 entry unaligned, discard',
    changes: [u64(L1, COPIED | 0x40200n)],
    io: ['discard 0 64k', 'read 0 4k'],
  },
  {
    name: 'L1 entry unaligned, zeroes',
    changes: [u64(L1, COPIED | 0x40200n)],
    io: ['write -z 0 64k', 'read 0 4k'],
  },
  { name: 'L1 entry behind the file', changes: [u64(L1, COPIED | 0x7f0000n)], io: USE },
  {
    name: 'L1 entry on the header',
    changes: [u64(L1, COPIED | 0x10000n)],
    io: ['read 0 64k', 'write 4M 64k', 'read 0 64k'],
    options: { 'l2-cache-entry-size': 65536 },
  },
  { name: 'L2 entry unaligned', changes: [u64(L2, COPIED | (DATA + 0x200n))], io: USE },
  {
    name: 'L2 entry unaligned, write in a cluster',
    changes: [u64(L2, COPIED | (DATA + 0x200n))],
    io: ['write 512 4k'],
  },
  {
    name: 'L2 entry shared and unaligned, write',
    changes: [u64(L2, DATA + 0x200n)],
    io: ['write 0 4k', 'write 0 64k'],
  },
  {
    name: 'zero cluster unaligned, write',
    changes: [u64(L2, COPIED | (DATA + 0x201n))],
    io: ['write 0 64k', 'read 64k 4k'],
  },
  {
    name: 'zero cluster unaligned, discard',
    changes: [u64(L2, COPIED | (DATA + 0x201n))],
    io: ['discard 0 64k', 'read 64k 4k'],
  },
  {
    name: 'L2 entry unaligned, write',
    changes: [u64(L2, COPIED | (DATA + 0x200n))],
    io: ['write 0 4k', 'read 0 4k'],
  },
  {
    name: 'L2 entry unaligned, discard',
    changes: [u64(L2, COPIED | (DATA + 0x200n))],
    io: ['discard 0 64k', 'read 0 4k'],
  },
  {
    name: 'L2 entry unaligned, zeroes',
    changes: [u64(L2, COPIED | (DATA + 0x200n))],
    io: ['write -z -u 0 64k', 'read 0 4k'],
  },
  {
    name: 'zero cluster unaligned',
    changes: [u64(L2, COPIED | (DATA + 0x201n))],
    io: ['read 0 4k', 'write 0 4k', 'read 64k 4k'],
  },
  { name: 'data in the header', changes: [u64(L2, COPIED)], io: ['write 0 4k', 'read 0 4k'] },
  {
    name: 'data in the refcount table',
    changes: [u64(L2, COPIED | 0x10000n)],
    io: ['write 0 4k', 'read 0 4k', 'read 64k 4k'],
  },
  {
    name: 'data in a refcount block',
    changes: [u64(L2, COPIED | 0x20000n)],
    io: ['write 512 4k', 'read 0 4k'],
  },
  { name: 'data in the L1 table', changes: [u64(L2, COPIED | 0x30000n)], io: ['write 0 4k', 'read 0 4k'] },
  {
    name: 'data behind the L1 table in its cluster',
    changes: [u64(L2, COPIED | 0x30000n)],
    io: ['write 4k 4k', 'read 0 4k'],
  },
  { name: 'data in an L2 table', changes: [u64(L2, COPIED | 0x40000n)], io: ['write 0 64k', 'read 0 4k'] },
  {
    name: 'data in an L2 table, checks off',
    changes: [u64(L2, COPIED | 0x70000n)],
    io: ['write 0 64k', 'read 0 4k'],
    options: { 'overlap-check': 'none' },
  },
  {
    name: 'data in the L1 table, constant checks',
    changes: [u64(L2, COPIED | 0x30000n)],
    io: ['write 0 64k', 'read 0 4k'],
    options: { 'overlap-check': 'constant' },
  },
  {
    base: 'written snapshot',
    name: "data in a snapshot's L2 table",
    changes: [u64(0x80000, COPIED | 0x40000n)],
    io: ['write 0 64k', 'read 0 4k'],
    options: { 'overlap-check': 'all' },
  },
  {
    base: 'written snapshot',
    name: "an active L2 table that is a snapshot's too",
    changes: [u64(0x30000, COPIED | 0x40000n)],
    io: ['write 64k 64k', 'read 64k 4k'],
    options: { 'overlap-check': { template: 'none', 'inactive-l2': true }, 'l2-cache-entry-size': 4096 },
  },
  {
    writableOnly: true,
    name: 'refcount table entry unaligned',
    changes: [u64(REFTABLE, 0x20200n)],
    io: ['write 1M 4k', 'read 0 4k'],
  },
  {
    name: 'refcount table entry on the L1 table',
    changes: [u64(REFTABLE, 0x30000n)],
    io: ['write 1M 4k', 'read 0 4k'],
  },
  {
    name: 'refcounts all 0',
    changes: [
      { at: REFBLOCK, u64: 0 },
      { at: REFBLOCK + 8, u64: 0 },
    ],
    io: ['write 1M 4k', 'read 0 4k'],
  },
  {
    name: 'refcount of the refcount table 0',
    changes: [{ at: REFBLOCK, u64: 0x0001000000010001n }],
    io: ['write 1M 4k', 'read 0 4k'],
  },
  {
    name: 'refcount of the L2 table 0',
    changes: [{ at: REFBLOCK + 8, u64: 0x0000000100010000n }],
    io: ['write 1M 4k', 'read 0 4k'],
  },
  {
    name: 'refcount of data 0, discard',
    changes: [{ at: REFBLOCK + 8, u64: 0x0001000000010000n }],
    io: ['discard 0 64k', 'read 0 4k'],
  },
  {
    name: 'compressed, of garbage',
    changes: [u64(L2, COMPRESSED | DATA)],
    io: ['read 0 4k', 'write 0 4k', 'read 0 4k'],
  },
  {
    name: 'compressed, behind the file',
    changes: [u64(L2, COMPRESSED | 0x7f0000n)],
    io: ['read 0 4k', 'read 64k 4k'],
  },
  {
    name: 'compressed, far behind',
    changes: [u64(L2, COMPRESSED | (2n ** 53n))],
    io: ['read 0 4k', 'read 64k 4k'],
  },
  {
    name: 'compressed and zero',
    changes: [u64(L2, COMPRESSED | COPIED | DATA | 1n)],
    io: ['read 0 4k', 'read 64k 4k'],
  },
  {
    name: 'data behind the file',
    changes: [u64(L2, COPIED | 0x7f0000n)],
    io: ['read 0 4k', 'write 0 4k', 'read 0 4k'],
  },
  {
    name: 'zero flag in version 2',
    base: 'v2',
    changes: [u64(L2, COPIED | DATA | 1n)],
    io: ['read 0 4k', 'write 0 4k', 'read 64k 4k'],
  },
  {
    name: 'subcluster allocated and zero',
    base: 'extended',
    changes: [u64(L2 + 8, 0x0000000100000001n)],
    io: ['read 0 4k', 'write 0 4k', 'read 64k 4k'],
  },
  {
    name: 'subcluster allocated without cluster',
    base: 'extended',
    changes: [u64(L2, 0n)],
    io: ['read 0 4k', 'write 0 4k', 'read 0 4k'],
  },
];

export const corruptionTranscripts: readonly Transcript[] = corruptions.flatMap(transcripts);
