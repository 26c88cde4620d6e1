/** The chunks of a disk image of macOS: read out of block tables, checked, in order; and how to find one. */

import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';

const SECTOR_BYTES = 512;
const TABLE_MAGIC = 0x6d697368;
const TABLE_BYTES = 204;
const CHUNK_BYTES = 40;
/** Bounds of compressed chunks, on both sides, as the original's. */
const MAX_CHUNK_BYTES = 64 * 1024 * 1024;

export const ChunkType = {
  zero: 0,
  raw: 1,
  /** Nothing was there: reads as zeroes. */
  ignore: 2,
  adc: 0x80000004,
  zlib: 0x80000005,
  bzip2: 0x80000006,
  lzfse: 0x80000007,
  lzma: 0x80000008,
  comment: 0x7ffffffe,
  end: 0xffffffff,
} as const;

const PACKED: readonly number[] = [
  ...[ChunkType.adc, ChunkType.zlib, ChunkType.bzip2, ChunkType.lzfse, ChunkType.lzma],
];

export interface Chunk {
  readonly type: number;
  /** Of the disk. */
  readonly start: number;
  readonly bytes: number;
  /** In the file. */
  readonly host: number;
  readonly hostBytes: number;
}

function invalid(message: string): BlockError {
  return new BlockError(`Invalid dmg image: ${message}`, { errno: E.EINVAL });
}

export function isPacked({ type }: Chunk): boolean {
  return PACKED.includes(type);
}

function u64(bytes: Buffer, at: number): number {
  return Number(bytes.readBigUInt64BE(at));
}

/** All chunks of the tables by their place on the disk. `dataOffset` is the trailer's. */
export function readChunks(tables: readonly Buffer[], dataOffset: number, fileBytes: number): Chunk[] {
  const chunks = tables.flatMap((table) => chunksOf(table, dataOffset, fileBytes));
  if (chunks.length === 0) throw invalid('no chunks');
  chunks.sort((one, other) => one.start - other.start);
  for (let i = 1; i < chunks.length; i++) {
    const before = chunks[i - 1]!;
    if (before.start + before.bytes > chunks[i]!.start)
      throw invalid(`two chunks at sector ${chunks[i]!.start / SECTOR_BYTES}`);
  }
  return chunks;
}

function chunksOf(table: Buffer, dataOffset: number, fileBytes: number): Chunk[] {
  // Other resources may lie beside the tables.
  if (table.length < TABLE_BYTES || table.readUInt32BE(0) !== TABLE_MAGIC) return [];
  const first = u64(table, 8);
  const offset = dataOffset + u64(table, 24);
  const count = table.readUInt32BE(200);
  if (TABLE_BYTES + count * CHUNK_BYTES > table.length)
    throw invalid(`${count} chunks in a table too short for them`);
  const chunks: Chunk[] = [];
  for (let i = 0; i < count; i++) {
    const at = TABLE_BYTES + i * CHUNK_BYTES;
    const type = table.readUInt32BE(at);
    if (type === ChunkType.end) break;
    if (type === ChunkType.comment) continue;
    const chunk = {
      type,
      start: (first + u64(table, at + 8)) * SECTOR_BYTES,
      bytes: u64(table, at + 16) * SECTOR_BYTES,
      host: offset + u64(table, at + 24),
      hostBytes: u64(table, at + 32),
    };
    if (chunk.bytes === 0) continue;
    checkChunk(chunk, fileBytes);
    chunks.push(chunk);
  }
  return chunks;
}

function checkChunk(chunk: Chunk, fileBytes: number): void {
  const sector = chunk.start / SECTOR_BYTES;
  if (!Number.isSafeInteger(chunk.start + chunk.bytes))
    throw invalid(`chunk at sector ${sector} is too long`);
  if (chunk.type === ChunkType.zero || chunk.type === ChunkType.ignore) return;
  if (chunk.type === ChunkType.raw && chunk.hostBytes < chunk.bytes)
    throw invalid(`chunk at sector ${sector} has less data than it is long`);
  if (isPacked(chunk) && (chunk.bytes > MAX_CHUNK_BYTES || chunk.hostBytes > MAX_CHUNK_BYTES))
    throw invalid(`chunk at sector ${sector} is larger than ${MAX_CHUNK_BYTES} bytes`);
  if (chunk.host + chunk.hostBytes > fileBytes)
    throw invalid(`chunk at sector ${sector} is not inside the file`);
}

/** The number of the chunk that holds `offset`; null: none does. */
export function findChunk(chunks: readonly Chunk[], offset: number): number | null {
  let low = 0;
  let high = chunks.length - 1;
  while (low <= high) {
    const middle = (low + high) >> 1;
    const { start, bytes } = chunks[middle]!;
    if (offset < start) high = middle - 1;
    else if (offset >= start + bytes) low = middle + 1;
    else return middle;
  }
  return null;
}
