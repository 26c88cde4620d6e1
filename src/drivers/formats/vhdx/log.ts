/**
 * The log: metadata goes there before it goes to its place, so that a crash leaves the old or the new.
 *
 * An entry is whole sectors of 4 KiB: "loge", checksum, its length, the offset of the oldest entry that counts (tail),
 * sequence number, number of descriptors, the log's GUID, lengths of the file; then descriptors of 32 bytes ("desc":
 * a sector of data, whose first 8 and last 4 bytes are in the descriptor; "zero": zeroes); then data sectors ("data").
 * The log is a ring. The entries that count are those from a tail to a head with one sequence number after the other;
 * of several such runs the one with the highest number at its head.
 *
 * Source of the facts: [MS-VHDX], "Log".
 */

import { checksumWithout } from './crc32c.ts';
import { invalid, MAX_SEQUENCE } from './layout.ts';

export const LOG_SECTOR_BYTES = 4096;
const ENTRY_HEADER_BYTES = 64;
const DESCRIPTOR_BYTES = 32;
/** Sectors of metadata in one entry of ours. */
export const MAX_LOGGED_SECTORS = 128;

/** What the log says the file should hold. */
export interface LoggedWrite {
  readonly offset: number;
  /** Null: zeroes. */
  readonly data: Buffer | null;
  readonly bytes: number;
}

interface Entry {
  readonly at: number;
  readonly bytes: number;
  readonly tail: number;
  readonly sequence: bigint;
  readonly lastFileOffset: number;
  readonly content: Buffer;
}

/** Bytes [at, at+bytes) of a ring. */
function inRing(log: Buffer, at: number, bytes: number): Buffer {
  if (at + bytes <= log.length) return log.subarray(at, at + bytes);
  return Buffer.concat([log.subarray(at), log.subarray(0, at + bytes - log.length)]);
}

/** The entry at an offset of the ring; null when there is no valid one. */
function entryAt(log: Buffer, at: number, logGuid: Buffer): Entry | null {
  const start = log.subarray(at, at + ENTRY_HEADER_BYTES);
  if (start.toString('latin1', 0, 4) !== 'loge' || !start.subarray(32, 48).equals(logGuid)) return null;
  const bytes = start.readUInt32LE(8);
  const tail = start.readUInt32LE(12);
  const sequence = start.readBigUInt64LE(16);
  if (bytes === 0 || bytes % LOG_SECTOR_BYTES !== 0 || bytes > log.length) return null;
  if (tail % LOG_SECTOR_BYTES !== 0 || tail >= log.length || sequence === 0n || sequence >= MAX_SEQUENCE)
    return null;
  const content = inRing(log, at, bytes);
  if (content.readUInt32LE(4) !== checksumWithout(content, 4)) return null;
  const lastFileOffset = Number(content.readBigUInt64LE(56));
  return { at, bytes, tail, sequence, lastFileOffset, content };
}

export interface Replay {
  /** In the order in which they must be made. */
  readonly writes: readonly LoggedWrite[];
  /** The file must be this long at least. */
  readonly fileBytes: number;
  readonly sequence: bigint;
}

/**
 * What has to be replayed. `log` is the whole ring. Without a valid run of entries that is nothing, as with the original:
 * the power went before the first entry was whole, so no table has been touched (the specification calls such an image
 * corrupt).
 */
export function readLog(log: Buffer, logGuid: Buffer): Replay {
  const heads: Entry[] = [];
  let checkedBytes = 0;
  for (let at = 0; at < log.length; at += LOG_SECTOR_BYTES) {
    if (log[at] !== 0x6c || log.toString('latin1', at, at + 4) !== 'loge') continue;
    checkedBytes += Math.min(log.length, log.readUInt32LE(at + 8));
    if (checkedBytes > 8 * log.length) throw invalid('The log of the image is damaged');
    const entry = entryAt(log, at, logGuid);
    if (entry !== null) heads.push(entry);
  }
  heads.sort((a, b) => (a.sequence < b.sequence ? 1 : a.sequence > b.sequence ? -1 : 0));
  const byPlace = new Map(heads.map((entry) => [entry.at, entry]));
  for (const head of heads) {
    const run = runTo(head, byPlace, log.length);
    if (run !== null) {
      return {
        writes: run.flatMap(decodeEntry),
        fileBytes: head.lastFileOffset,
        sequence: head.sequence,
      };
    }
  }
  return { writes: [], fileBytes: 0, sequence: 0n };
}

/** The entries from the tail of `head` to itself; null when they are not all there. */
function runTo(head: Entry, byPlace: ReadonlyMap<number, Entry>, logBytes: number): Entry[] | null {
  const run: Entry[] = [];
  let at = head.tail;
  for (let steps = 0; steps <= byPlace.size; steps++) {
    const entry = byPlace.get(at);
    const before = run.at(-1);
    if (entry === undefined || (before !== undefined && entry.sequence !== before.sequence + 1n)) return null;
    run.push(entry);
    if (entry === head) return run;
    at = (at + entry.bytes) % logBytes;
  }
  return null;
}

function decodeEntry({ content, sequence }: Entry): LoggedWrite[] {
  const count = content.readUInt32LE(24);
  const headerSectors = Math.ceil((ENTRY_HEADER_BYTES + count * DESCRIPTOR_BYTES) / LOG_SECTOR_BYTES);
  let dataAt = headerSectors * LOG_SECTOR_BYTES;
  if (dataAt > content.length) throw invalid('An entry of the log is damaged');
  const writes: LoggedWrite[] = [];
  for (let i = 0; i < count; i++) {
    const at = ENTRY_HEADER_BYTES + i * DESCRIPTOR_BYTES;
    const kind = content.toString('latin1', at, at + 4);
    const offset = Number(content.readBigUInt64LE(at + 16));
    if (offset % LOG_SECTOR_BYTES !== 0 || offset > 2 ** 52 || content.readBigUInt64LE(at + 24) !== sequence)
      throw invalid('An entry of the log is damaged');
    if (kind === 'zero') {
      const bytes = Number(content.readBigUInt64LE(at + 8));
      if (bytes % LOG_SECTOR_BYTES !== 0 || bytes > 2 ** 52) throw invalid('An entry of the log is damaged');
      writes.push({ offset, data: null, bytes });
      continue;
    }
    const sector = content.subarray(dataAt, dataAt + LOG_SECTOR_BYTES);
    const isWhole =
      kind === 'desc' &&
      sector.length === LOG_SECTOR_BYTES &&
      sector.toString('latin1', 0, 4) === 'data' &&
      sector.readUInt32LE(4) === Number(sequence >> 32n) &&
      sector.readUInt32LE(LOG_SECTOR_BYTES - 4) === Number(sequence & 0xffffffffn);
    if (!isWhole) throw invalid('An entry of the log is damaged');
    dataAt += LOG_SECTOR_BYTES;
    const data = Buffer.from(sector);
    content.copy(data, 0, at + 8, at + 16);
    content.copy(data, LOG_SECTOR_BYTES - 4, at + 4, at + 8);
    writes.push({ offset, data, bytes: LOG_SECTOR_BYTES });
  }
  return writes;
}

/** An entry that is the whole of what counts. `sectors`: 4 KiB each at file offsets of whole 4 KiB. */
export function encodeEntry(
  sectors: readonly { readonly offset: number; readonly data: Buffer }[],
  entry: {
    readonly at: number;
    readonly sequence: bigint;
    readonly logGuid: Buffer;
    readonly fileBytes: number;
  },
): Buffer {
  const { at: tail, sequence, logGuid, fileBytes } = entry;
  const headerSectors = Math.ceil(
    (ENTRY_HEADER_BYTES + sectors.length * DESCRIPTOR_BYTES) / LOG_SECTOR_BYTES,
  );
  const bytes = Buffer.alloc((headerSectors + sectors.length) * LOG_SECTOR_BYTES);
  bytes.write('loge', 0, 'latin1');
  bytes.writeUInt32LE(bytes.length, 8);
  bytes.writeUInt32LE(tail, 12);
  bytes.writeBigUInt64LE(sequence, 16);
  bytes.writeUInt32LE(sectors.length, 24);
  logGuid.copy(bytes, 32);
  bytes.writeBigUInt64LE(BigInt(fileBytes), 48);
  bytes.writeBigUInt64LE(BigInt(fileBytes), 56);
  for (const [i, { offset, data }] of sectors.entries()) {
    const at = ENTRY_HEADER_BYTES + i * DESCRIPTOR_BYTES;
    bytes.write('desc', at, 'latin1');
    data.copy(bytes, at + 4, LOG_SECTOR_BYTES - 4);
    data.copy(bytes, at + 8, 0, 8);
    bytes.writeBigUInt64LE(BigInt(offset), at + 16);
    bytes.writeBigUInt64LE(sequence, at + 24);
    const dataAt = (headerSectors + i) * LOG_SECTOR_BYTES;
    bytes.write('data', dataAt, 'latin1');
    bytes.writeUInt32LE(Number(sequence >> 32n), dataAt + 4);
    data.copy(bytes, dataAt + 8, 8, LOG_SECTOR_BYTES - 4);
    bytes.writeUInt32LE(Number(sequence & 0xffffffffn), dataAt + LOG_SECTOR_BYTES - 4);
  }
  bytes.writeUInt32LE(checksumWithout(bytes, 4), 4);
  return bytes;
}
