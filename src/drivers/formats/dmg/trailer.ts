/**
 * The trailer of a disk image of macOS (UDIF), 512 bytes at the end of the file, big-endian:
 *
 * | offset | bytes | field |
 * |---|---|---|
 * | 0 | 4 | magic "koly" |
 * | 8 | 4 | length of the trailer, 512 |
 * | 24 | 8 + 8 | offset and length of the data |
 * | 40 | 8 + 8 | offset and length of the resource fork, in old images |
 * | 56 | 4 + 4 | number of this segment, number of segments |
 * | 216 | 8 + 8 | offset and length of the property list (XML) |
 * | 492 | 8 | sectors of the disk |
 *
 * Property list or resource fork hold block tables ("mish", one for each partition): at 8 the first sector and at 16 the
 * number of sectors, at 24 the offset of the data, at 200 the number of chunks, then 40 bytes for each: type, comment,
 * first sector (in the table), sectors, offset and length of the data.
 * Source of the facts: "Demystifying the DMG File Format", Jonathan Levin; the resource fork: Inside Macintosh,
 * "Resource Manager".
 */

import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BlockChild } from '../../../block/graph/node.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { readBytes } from '../shared/table-io.ts';

const TRAILER_BYTES = 512;
/** How far from the end of the file the trailer is looked for: some files have been padded. */
const TAIL_BYTES = 8 * TRAILER_BYTES;
const MAGIC = 'koly';
/** Property lists and resource forks of images of many GB are a few MiB long. */
const MAX_TABLES_BYTES = 64 * 1024 * 1024;
const ENCRYPTED_START = 'encrcdsa';
const ENCRYPTED_END = 'cdsaencr';

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

export interface Trailer {
  readonly dataOffset: number;
  readonly forkOffset: number;
  readonly forkBytes: number;
  readonly listOffset: number;
  readonly listBytes: number;
}

function u64(bytes: Buffer, at: number): number {
  return Number(bytes.readBigUInt64BE(at));
}

/** Whether a trailer begins at `at`: the magic, and its own length at 8. */
function isTrailer(bytes: Buffer, at: number): boolean {
  return bytes.toString('latin1', at, at + 4) === MAGIC && bytes.readUInt32BE(at + 8) === TRAILER_BYTES;
}

/** Finds and reads the trailer. */
export async function readTrailer(file: BlockChild, guard: GraphReadGuard): Promise<Trailer> {
  const fileBytes = file.node.totalBytes;
  const start = await readBytes(file, guard, 0, TRAILER_BYTES);
  const missing = invalid('Could not locate UDIF trailer in dmg file');
  if (start.toString('latin1', 0, 8) === ENCRYPTED_START)
    throw new BlockError('Encrypted disk images of macOS are not supported', { errno: E.ENOTSUP });
  if (fileBytes < TRAILER_BYTES) throw missing;
  // The length of the file is rounded up to sectors here, so the trailer may begin anywhere.
  const tailAt = Math.max(0, fileBytes - TAIL_BYTES);
  const tail = await readBytes(file, guard, tailAt, fileBytes - tailAt);
  let bytes: Buffer | null = null;
  for (let at = tail.length - TRAILER_BYTES; at >= 0 && bytes === null; at--) {
    if (isTrailer(tail, at)) bytes = tail.subarray(at, at + TRAILER_BYTES);
  }
  // Some images have it in front.
  if (bytes === null && isTrailer(start, 0)) bytes = start;
  if (bytes === null) {
    if (tail.includes(ENCRYPTED_END, 0, 'latin1'))
      throw new BlockError('Encrypted disk images of macOS are not supported', { errno: E.ENOTSUP });
    throw missing;
  }
  if (bytes.readUInt32BE(60) > 1)
    throw new BlockError('Disk images of macOS in several segments are not supported', { errno: E.ENOTSUP });
  return {
    dataOffset: u64(bytes, 24),
    forkOffset: u64(bytes, 40),
    forkBytes: u64(bytes, 48),
    listOffset: u64(bytes, 216),
    listBytes: u64(bytes, 224),
  };
}

/** The block tables, from wherever the trailer says they are. */
export async function readTables(
  file: BlockChild,
  guard: GraphReadGuard,
  trailer: Trailer,
): Promise<Buffer[]> {
  const read = (offset: number, bytes: number, what: string): Promise<Buffer> => {
    if (bytes > MAX_TABLES_BYTES || offset + bytes > file.node.totalBytes)
      throw invalid(`${what} of the dmg image is not inside the file, or too long`);
    return readBytes(file, guard, offset, bytes);
  };
  // The resource fork counts where both have tables, as in the original; it may hold nothing but a licence.
  if (trailer.forkBytes !== 0) {
    const tables = tablesOfFork(await read(trailer.forkOffset, trailer.forkBytes, 'Resource fork'));
    if (tables.length > 0 || trailer.listBytes === 0) return tables;
  }
  if (trailer.listBytes !== 0)
    return tablesOfList(
      (await read(trailer.listOffset, trailer.listBytes, 'Property list')).toString('utf8'),
    );
  throw invalid('The dmg image has neither a property list nor a resource fork');
}

function withoutComments(xml: string): string {
  let text = '';
  let at = 0;
  for (;;) {
    const start = xml.indexOf('<!--', at);
    const end = start < 0 ? -1 : xml.indexOf('-->', start + 4);
    if (end < 0) return text + xml.slice(at);
    text += xml.slice(at, start);
    at = end + 3;
  }
}

/** The base64 data inside the array that follows the key "blkx". White space may be wherever XML allows it. */
function tablesOfList(text: string): Buffer[] {
  const list = withoutComments(text);
  const key = /<key\s*>\s*blkx\s*<\/key\s*>/.exec(list)?.index ?? -1;
  if (key < 0) throw invalid('No block tables in the property list of the dmg image');
  const end = list.indexOf('</array', key);
  const tables: Buffer[] = [];
  for (
    let at = list.indexOf('<data', key);
    at >= 0 && (end < 0 || at < end);
    at = list.indexOf('<data', at + 1)
  ) {
    const from = list.indexOf('>', at) + 1;
    const stop = list.indexOf('</data', at);
    if (stop < 0 || from === 0) throw invalid('The property list of the dmg image is cut off');
    tables.push(Buffer.from(list.slice(from, stop), 'base64'));
  }
  return tables;
}

/** The resources of type "blkx". */
function tablesOfFork(fork: Buffer): Buffer[] {
  const wrong = invalid('The resource fork of the dmg image is damaged');
  try {
    const dataAt = fork.readUInt32BE(0);
    const mapAt = fork.readUInt32BE(4);
    const typesAt = mapAt + fork.readUInt16BE(mapAt + 24);
    const types = fork.readInt16BE(typesAt) + 1;
    const tables: Buffer[] = [];
    for (let i = 0; i < types; i++) {
      const type = typesAt + 2 + 8 * i;
      if (fork.toString('latin1', type, type + 4) !== 'blkx') continue;
      const count = fork.readUInt16BE(type + 4) + 1;
      const references = typesAt + fork.readUInt16BE(type + 6);
      for (let k = 0; k < count; k++) {
        const data = dataAt + (fork.readUInt32BE(references + 12 * k + 4) & 0xffffff);
        const bytes = fork.readUInt32BE(data);
        if (data + 4 + bytes > fork.length) throw wrong;
        tables.push(fork.subarray(data + 4, data + 4 + bytes));
      }
    }
    return tables;
  } catch {
    throw wrong;
  }
}
