/**
 * blklogwrites: passes requests on to `file` and logs what changes it to `log`, for replay after simulated crashes.
 *
 * The log is that of the kernel's dm-log-writes target, in little-endian, in sectors of `log-sector-size`:
 *
 *   | sector  | content                                                                                       |
 *   |---------|-----------------------------------------------------------------------------------------------|
 *   | 0       | magic 0x6a736677736872, version 1, number of entries (64 bits each), sector size (32 bits)     |
 *   | 1 ...   | entries: first sector and number of sectors in `file`, flags, length of data (64 bits each),   |
 *   |         | in one sector; then the data, unless the entry is a flush or a discard                        |
 *
 * Flags: 1 flush, 4 discard (2, FUA, is not used: such a write is logged as a write and a flush). A request is logged when it has been done. The number of entries is brought up to
 * date with every flush, and after `log-super-update-interval` entries.
 * Source of the facts: kernel documentation, "dm-log-writes"; QMP reference, BlockdevOptionsBlklogwrites.
 */

import { allocateIoMemory, concatVectors, type IoVector, vectorOf } from '../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../block/contract/guard.ts';
import { Req, Role, Status } from '../../block/contract/request.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { formatChildPermissions } from '../../block/graph/permissions.ts';
import { co } from '../../block/io/callbacks.ts';
import { CoMutex } from '../../coroutine/co-mutex.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, errnoError, errnoOf } from '../../errors/error.ts';

/** "rhswfsj" in the file. */
const MAGIC = 0x6a736677736872n;
const VERSION = 1n;
const SUPER_BYTES = 28;
const ENTRY_BYTES = 32;
const DEFAULT_SECTOR_BYTES = 512;
const MIN_SECTOR_BYTES = 32;
const MAX_SECTOR_BYTES = 2 ** 23;
const DEFAULT_INTERVAL = 4096;
const MAX_UINT32 = 2 ** 32 - 1;

const Flag = { flush: 1, discard: 4 } as const;

interface LogState {
  readonly sectorBytes: number;
  /** Entries between two updates of the superblock. */
  readonly interval: number;
  /** Where the next entry goes, in sectors of the log. */
  nextSector: number;
  entries: number;
  readonly superblock: CoMutex;
}

interface Entry {
  readonly sector: number;
  readonly sectors: number;
  readonly flags: number;
  /** 'zero': sectors of zeroes. */
  readonly data: IoVector | 'zero' | null;
}

async function open(node: BlockNode<LogState>, context: OpenContext): Promise<LogState> {
  const { options } = context;
  await context.openChild('file', Role.filtered | Role.primary, true);
  const log = (await context.openChild('log', Role.metadata, true))!.node;
  const append = options['log-append'] === true;
  const given = options['log-sector-size'];
  if (append && given !== undefined)
    throw new BlockError('log-append and log-sector-size are mutually exclusive');
  const interval = Number(options['log-super-update-interval'] ?? DEFAULT_INTERVAL);
  const start = append
    ? await node.layer.graphLock.withRead((guard) => readLog(log, guard))
    : { sectorBytes: sectorSize(Number(given ?? DEFAULT_SECTOR_BYTES)), entries: 0, nextSector: 1 };
  if (interval === 0) throw new BlockError('Invalid log superblock update interval 0');
  return { ...start, interval: interval < 0 ? MAX_UINT32 : interval, superblock: new CoMutex() };
}

function sectorSize(bytes: number): number {
  if (bytes < 0 || bytes > MAX_UINT32) throw new BlockError("Parameter 'log-sector-size' expects uint32_t");
  if (!isSectorSize(bytes)) throw new BlockError(`Invalid log sector size ${bytes}`);
  return bytes;
}

function isSectorSize(bytes: number): boolean {
  return Number.isInteger(Math.log2(bytes)) && bytes >= MIN_SECTOR_BYTES && bytes <= MAX_SECTOR_BYTES;
}

async function readBytes(
  log: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<Buffer> {
  const mem = allocateIoMemory(bytes);
  await co.preadv(log, guard, offset, bytes, vectorOf(mem, 0, bytes), 0);
  return mem.buf.subarray(0, bytes);
}

/** Finds the end of a log that is to be continued: entry by entry, each says how long it is. */
async function readLog(
  log: BlockNode,
  guard: GraphReadGuard,
): Promise<Pick<LogState, 'sectorBytes' | 'entries' | 'nextSector'>> {
  if (log.totalBytes === 0) return { sectorBytes: DEFAULT_SECTOR_BYTES, entries: 0, nextSector: 1 };
  let start: Buffer;
  try {
    start = await readBytes(log, guard, 0, SUPER_BYTES);
  } catch (error) {
    throw errnoError('Could not read log superblock', errnoOf(error));
  }
  if (start.readBigUInt64LE(0) !== MAGIC) throw new BlockError('Invalid log superblock magic');
  const version = start.readBigUInt64LE(8);
  if (version !== VERSION) throw new BlockError(`Unsupported log version ${version}`);
  const sectorBytes = start.readUInt32LE(24);
  if (!isSectorSize(sectorBytes)) throw new BlockError(`Invalid log sector size ${sectorBytes}`);
  const entries = start.readBigUInt64LE(16);
  let nextSector = 1;
  for (let at = 0n; at < entries; at++) {
    const offset = nextSector * sectorBytes;
    if (offset + ENTRY_BYTES > log.totalBytes) {
      // Behind the end are zeroes: entries without data, as many as there are said to be.
      nextSector += Number(entries - at);
      break;
    }
    const entry = await readBytes(log, guard, offset, ENTRY_BYTES);
    const flags = entry.readBigUInt64LE(16);
    const sectors = (flags & BigInt(Flag.discard)) !== 0n ? 0 : Number(entry.readBigUInt64LE(8));
    nextSector += sectors + 1;
  }
  if (nextSector * sectorBytes > Number.MAX_SAFE_INTEGER)
    throw errnoError('Failed to read log entry', E.EFBIG);
  return { sectorBytes, entries: Number(entries), nextSector };
}

function fileOf(node: BlockNode<LogState>): BlockNode {
  return node.child('file')!.node;
}

function logOf(node: BlockNode<LogState>): BlockNode {
  return node.child('log')!.node;
}

function sectorsOf(
  { state: { sectorBytes } }: BlockNode<LogState>,
  offset: number,
  bytes: number,
): { readonly sector: number; readonly sectors: number } {
  return { sector: offset / sectorBytes, sectors: bytes / sectorBytes };
}

/** Adds an entry. Its place is taken before anything waits, so entries never overlap. */
async function addEntry(node: BlockNode<LogState>, guard: GraphReadGuard, entry: Entry): Promise<void> {
  const s = node.state;
  const { sectorBytes } = s;
  const header = allocateIoMemory(sectorBytes);
  header.buf.fill(0, 0, sectorBytes);
  header.buf.writeBigUInt64LE(BigInt(entry.sector), 0);
  header.buf.writeBigUInt64LE(BigInt(entry.sectors), 8);
  header.buf.writeBigUInt64LE(BigInt(entry.flags), 16);
  header.buf.writeBigUInt64LE(0n, 24);
  const { data } = entry;
  const at = s.nextSector * sectorBytes;
  s.nextSector += 1 + (data === null ? 0 : entry.sectors);
  s.entries++;
  const isDue = (entry.flags & Flag.flush) !== 0 || s.entries % s.interval === 0;
  const head = vectorOf(header, 0, sectorBytes);
  const whole = data === null || data === 'zero' ? head : concatVectors(head, data);
  await co.pwritev(logOf(node), guard, at, whole.bytes, whole, 0);
  if (data === 'zero')
    await co.pwriteZeroes(logOf(node), guard, at + sectorBytes, entry.sectors * sectorBytes, 0);
  if (isDue) await writeSuperblock(node, guard);
}

/** One at a time: an older count must not replace a newer one. */
function writeSuperblock(node: BlockNode<LogState>, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  return s.superblock.with('superblock of a log', async () => {
    const mem = allocateIoMemory(s.sectorBytes);
    mem.buf.fill(0, 0, s.sectorBytes);
    mem.buf.writeBigUInt64LE(MAGIC, 0);
    mem.buf.writeBigUInt64LE(VERSION, 8);
    mem.buf.writeBigUInt64LE(BigInt(s.entries), 16);
    if (s.sectorBytes >= SUPER_BYTES) mem.buf.writeUInt32LE(s.sectorBytes, 24);
    await co.pwritev(logOf(node), guard, 0, s.sectorBytes, vectorOf(mem, 0, s.sectorBytes), 0);
    await co.flush(logOf(node), guard);
  });
}

export const blklogwrites: BlockDriver<LogState> = {
  name: 'blklogwrites',
  kind: 'filter',
  // A write with FUA becomes a write and a flush, each with its entry.
  supportedWriteFlags: Req.writeUnchanged,
  supportedZeroFlags: Req.mayUnmap | Req.writeUnchanged,
  strongOptions: ['log-sector-size', 'log-append'],
  open,
  exactFilename: () => null,
  childPermissions: (node, roles, wanted) =>
    (roles & Role.metadata) !== 0 ? formatChildPermissions(node, roles, wanted) : wanted,
  refreshLimits({ state }, limits) {
    limits.requestAlignment = Math.max(limits.requestAlignment, state.sectorBytes);
  },
  preadv: (node, guard, offset, bytes, vec, flags) =>
    co.preadv(fileOf(node), guard, offset, bytes, vec, flags),
  async pwritev(node, guard, offset, bytes, vec, flags) {
    await co.pwritev(fileOf(node), guard, offset, bytes, vec, flags);
    await addEntry(node, guard, { ...sectorsOf(node, offset, bytes), flags: 0, data: vec });
  },
  async pwriteZeroes(node, guard, offset, bytes, flags) {
    await co.pwriteZeroes(fileOf(node), guard, offset, bytes, flags);
    await addEntry(node, guard, { ...sectorsOf(node, offset, bytes), flags: 0, data: 'zero' });
  },
  async pdiscard(node, guard, offset, bytes) {
    await co.pdiscard(fileOf(node), guard, offset, bytes);
    await addEntry(node, guard, { ...sectorsOf(node, offset, bytes), flags: Flag.discard, data: null });
  },
  async flush(node, guard) {
    if (node.flushedGeneration >= node.writeGeneration) return;
    await co.flush(fileOf(node), guard);
    await addEntry(node, guard, { sector: 0, sectors: 0, flags: Flag.flush, data: null });
  },
  async blockStatus(node, _guard, _wantZero, offset, bytes) {
    return {
      bytes,
      flags: Status.offsetValid | Status.recurse,
      map: offset,
      file: fileOf(node),
    };
  },
  truncate: (node, guard, length, exact, prealloc, zeroFill) =>
    co.truncate(fileOf(node), guard, length, exact, prealloc, zeroFill),
};
