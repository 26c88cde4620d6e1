/**
 * Disks inside OVA packages and beside OVF descriptors: which file is meant, and where it is.
 *
 * An OVA is a tar with an OVF descriptor (XML) and the disks; they are read where they lie. A name "x.ova" means the one
 * disk of the package; of several one is picked by "x.ova#NAME" or "x.ova#NUMBER", counted from 1 in the order of the
 * descriptor. A disk may be cut into chunks, "NAME.000000000" and so on. Everything in a package is hostile: names in it are only ever looked up in the package, or in the folder
 * of the descriptor.
 *
 * Source of the facts: DMTF DSP0243 (OVF 1.1, 2.1); POSIX ustar and pax headers.
 */

import {
  closeSync,
  existsSync,
  fstatSync,
  openSync,
  readFileSync,
  readSync,
  realpathSync,
  statSync,
} from 'node:fs';
import path from 'node:path';
import type { DriverOptions } from '../../block/contract/image.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import type { BlockLayer } from '../../block/layer.ts';
import { protocolPrefix } from '../../block/open/image-name.ts';
import { percentDecoded } from '../../drivers/net/percent.ts';
import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import { type PieceOfFile, piecesOptions } from './pieces.ts';

const TAR_BLOCK_BYTES = 512;
const MAX_TAR_ENTRIES = 10_000;
const MAX_DESCRIPTOR_BYTES = 4 * 1024 * 1024;
const MAX_NAME_BYTES = 64 * 1024;
const PROBE_BYTES = 2048;
/** As many as an archive has files. */
const MAX_CHUNKS = MAX_TAR_ENTRIES;

/** Bytes of a file. */
interface Piece extends PieceOfFile {
  readonly name: string;
}

/** A disk: the pieces that it is, one where it has not been cut. */
interface Disk {
  readonly name: string;
  readonly pieces: readonly Piece[];
}

/** A file with a disk, as the descriptor has it. */
export interface DiskFile {
  readonly name: string;
  /** Bytes of each chunk that it was cut into; null: it is whole. */
  readonly chunkBytes: number | null;
  /** Bytes of the whole; null: the descriptor does not say. */
  readonly bytes: number | null;
}

function refuse(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

/** Options of the node for a disk of the package that `name` means; null: it means no package. */
export async function packagedDisk(layer: BlockLayer, name: string): Promise<DriverOptions | null> {
  if (protocolPrefix(name) !== null) return null;
  const [file, pick] = splitName(name);
  const extension = path.extname(file).toLowerCase();
  if ((extension !== '.ova' && extension !== '.ovf') || !existsSync(file)) return null;
  const disks = extension === '.ova' ? disksOfOva(file) : disksOfOvf(file);
  if (disks === null) return null;
  const disk = pickDisk(disks, pick);
  const below = belowOf(disk, extension === '.ovf');
  const driver = await formatOf(layer, disk);
  // Nothing in a package may lead out of it: no image below, nothing that only the image names, and see checkPackaged.
  return {
    driver,
    untrusted: true,
    file: below,
    ...(layer.drivers[driver]?.supportsBacking === true && { backing: null }),
  };
}

/** Options of the node that has the bytes of the disk. `whole`: pieces are files, and not places in the archive. */
function belowOf({ pieces }: Disk, whole: boolean): DriverOptions {
  if (pieces.length > 1) return piecesOptions(pieces);
  const { file: filename, offset, bytes } = pieces[0]!;
  if (whole) return { driver: 'file', filename };
  // A window is whole sectors; what an archive fills a file up with belongs to nobody.
  const size = Math.ceil(bytes / 512) * 512;
  return { driver: 'raw', offset, size, file: { driver: 'file', filename } };
}

/** Throws when the image needs another one, which is not in the package. */
export function checkPackaged(node: BlockNode): void {
  const needed = node.driver.backingName?.(node) ?? null;
  if (needed !== null) throw refuse(`The disk in the package needs another image: ${needed.filename}`);
}

/** "x.ova#2" -> the file and what is picked; a file that is called so comes first. */
function splitName(name: string): readonly [string, string | null] {
  const at = name.lastIndexOf('#');
  if (at < 0 || existsSync(name)) return [name, null];
  return [name.slice(0, at), name.slice(at + 1)];
}

function pickDisk(disks: readonly Disk[], pick: string | null): Disk {
  const list = disks.map(({ name }, i) => `${i + 1}: ${name}`).join(', ');
  if (disks.length === 0) throw refuse('The package has no disk');
  if (pick === null) {
    if (disks.length === 1) return disks[0]!;
    throw refuse(`The package has several disks; add #NAME or #NUMBER to its name to pick one (${list})`);
  }
  const byNumber = /^[1-9]\d{0,4}$/.test(pick) ? disks[Number(pick) - 1] : undefined;
  const found = disks.find(({ name }) => name === pick) ?? byNumber;
  if (found === undefined) throw refuse(`The package has no disk '${pick}' (${list})`);
  return found;
}

/** The format by the first bytes of the disk. */
async function formatOf(layer: BlockLayer, disk: Disk): Promise<string> {
  const start = Buffer.alloc(PROBE_BYTES);
  readPiece(disk.pieces[0]!, start);
  const isPacked = start.readUInt16BE(0) === 0x1f8b;
  if (isPacked)
    throw refuse(`The disk '${disk.name}' is compressed as a whole, which cannot be read in place`);
  let best = 'raw';
  let bestScore = 0;
  for (const driver of Object.values(layer.drivers)) {
    const score = driver.probe?.(start) ?? 0;
    if (score > bestScore) [best, bestScore] = [driver.name, score];
  }
  const isDescriptor = best === 'vmdk' && !['KDMV', 'COWD'].includes(start.toString('latin1', 0, 4));
  if (isDescriptor) throw refuse(`The disk '${disk.name}' may name files outside the package`);
  return best;
}

function readPiece({ file, offset, bytes }: Piece, into: Buffer): void {
  const fd = openSync(file, 'r');
  try {
    readSync(fd, into, 0, Math.min(into.length, bytes), offset);
  } finally {
    closeSync(fd);
  }
}

// ---- the descriptor ------------------------------------------------------------------------------------------

function attribute(element: string, name: string): string | null {
  const match = new RegExp(`\\s(?:[\\w.-]+:)?${name}\\s*=\\s*(?:"([^"]*)"|'([^']*)')`).exec(element);
  if (match === null) return null;
  const text = match[1] ?? match[2]!;
  return text
    .replace(/&lt;/g, '<')
    .replace(/&gt;/g, '>')
    .replace(/&quot;/g, '"')
    .replace(/&apos;/g, "'")
    .replace(/&amp;/g, '&');
}

/** The tags of a descriptor with what is in them, comments left out. One pass: the text may be made to be slow. */
function* tagsOf(xml: string): Generator<string> {
  for (let at = xml.indexOf('<'); at >= 0; at = xml.indexOf('<', at)) {
    const isComment = xml.startsWith('<!--', at);
    const end = isComment ? xml.indexOf('-->', at + 4) : xml.indexOf('>', at);
    if (end < 0) return;
    if (!isComment) yield xml.slice(at, end + 1);
    at = end + 1;
  }
}

function numberAttribute(element: string, name: string): number | null {
  const value = attribute(element, name);
  return value !== null && /^\d{1,15}$/.test(value) ? Number(value) : null;
}

/** The files with disks, in the order of the descriptor's disks. */
export function diskFiles(xml: string): readonly DiskFile[] {
  const tags = [...tagsOf(xml)].filter((tag) => /^<(?:[\w.-]{1,64}:)?(?:File|Disk)\s/.test(tag));
  const elements = (name: string): readonly string[] =>
    tags.filter((tag) => new RegExp(`^<(?:[\\w.-]{1,64}:)?${name}\\s`).test(tag));
  const files = new Map<string, DiskFile>();
  for (const element of elements('File')) {
    const id = attribute(element, 'id');
    const href = attribute(element, 'href');
    if (id === null || href === null) continue;
    const chunkBytes = numberAttribute(element, 'chunkSize');
    files.set(id, { name: percentDecoded(href), chunkBytes, bytes: numberAttribute(element, 'size') });
  }
  const found: DiskFile[] = [];
  for (const element of elements('Disk')) {
    const reference = attribute(element, 'fileRef');
    // An empty disk has no file.
    if (reference === null) continue;
    const file = files.get(reference);
    if (file === undefined)
      throw refuse(`The descriptor names a disk in a file that is not there: ${reference}`);
    if (!found.some(({ name }) => name === file.name)) found.push(file);
  }
  return found;
}

/**
 * The disk in `file`: `find` gives a file of the package by its name, null where there is none. Chunks are called by the
 * name of the whole with a number of nine digits, and all but the last are as long as the descriptor says.
 */
function diskOf({ name, chunkBytes, bytes }: DiskFile, find: (name: string) => Piece | null): Disk {
  if (chunkBytes === null) {
    const piece = find(name);
    if (piece === null) throw refuse(`The package has no file '${name}', which its descriptor names`);
    return { name, pieces: [piece] };
  }
  const pieces: Piece[] = [];
  for (let i = 0; i < MAX_CHUNKS; i++) {
    const piece = find(`${name}.${String(i).padStart(9, '0')}`);
    if (piece === null) break;
    if (piece.bytes !== chunkBytes && find(`${name}.${String(i + 1).padStart(9, '0')}`) !== null)
      throw refuse(`Chunk ${i} of the disk '${name}' is not as long as its descriptor says`);
    pieces.push(piece);
  }
  const total = pieces.reduce((sum, piece) => sum + piece.bytes, 0);
  if (pieces.length === 0 || (bytes !== null && total !== bytes))
    throw refuse(`Chunks of the disk '${name}' are missing`);
  return { name, pieces };
}

function disksOfOvf(file: string): readonly Disk[] | null {
  const state = statSync(file);
  if (!state.isFile()) return null;
  if (state.size > MAX_DESCRIPTOR_BYTES) throw refuse('The OVF descriptor is too large');
  const text = readFileSync(file).toString('utf8');
  if (!/<(?:[\w.-]+:)?Envelope[\s>]/.test(text)) return null;
  return diskFiles(text).map((disk) => {
    const { name } = disk;
    // A file beside the descriptor, and nowhere else.
    if (name === '' || name === '..' || name.includes('/') || name.includes('\0'))
      throw refuse(`The descriptor names a disk outside its folder: ${name}`);
    return diskOf(disk, (each) => fileBeside(file, each));
  });
}

/** The file of that name beside the descriptor; null: there is none. */
function fileBeside(descriptor: string, name: string): Piece | null {
  const full = path.join(path.dirname(descriptor), name);
  if (!existsSync(full)) return null;
  const real = realpathSync(full);
  // Whoever unpacked the package made its links as well.
  if (path.dirname(real) !== realpathSync(path.dirname(descriptor)))
    throw refuse(`The descriptor names a disk outside its folder: ${name}`);
  const state = statSync(real);
  if (!state.isFile()) throw refuse(`The disk '${name}' is no plain file`);
  return { name, file: real, offset: 0, bytes: state.size };
}

// ---- the archive ---------------------------------------------------------------------------------------------

function disksOfOva(file: string): readonly Disk[] | null {
  const entries = tarEntries(file);
  if (entries === null) return null;
  const descriptor = entries.find(({ name }) => name.toLowerCase().endsWith('.ovf'));
  if (descriptor === undefined)
    return entries
      .filter(({ name }) => name.toLowerCase().endsWith('.vmdk'))
      .map((piece) => ({ name: piece.name, pieces: [piece] }));
  if (descriptor.bytes > MAX_DESCRIPTOR_BYTES) throw refuse('The OVF descriptor is too large');
  const xml = Buffer.alloc(descriptor.bytes);
  readPiece(descriptor, xml);
  // Of files of the same name the first counts, a whole name before that of a file in a folder.
  const byName = new Map<string, Piece>();
  for (const key of [(name: string) => name, path.posix.basename])
    for (const entry of entries) if (!byName.has(key(entry.name))) byName.set(key(entry.name), entry);
  return diskFiles(xml.toString('utf8')).map((disk) => diskOf(disk, (name) => byName.get(name) ?? null));
}

/** A number of a tar header: octal digits, or with the high bit set a binary one. */
function tarNumber(field: Buffer): number {
  if ((field[0]! & 0x80) !== 0) {
    let value = field[0]! & 0x7f;
    for (const byte of field.subarray(1)) value = value * 256 + byte;
    return value;
  }
  const digits = field
    .toString('latin1')
    .replace(/[\0 ].*$/s, '')
    .trim();
  return /^[0-7]+$/.test(digits) ? Number.parseInt(digits, 8) : 0;
}

function tarText(field: Buffer): string {
  const end = field.indexOf(0);
  return field.toString('utf8', 0, end < 0 ? field.length : end);
}

function isTarHeader(header: Buffer): boolean {
  const sum = tarNumber(header.subarray(148, 156));
  let actual = 8 * 0x20;
  for (let i = 0; i < TAR_BLOCK_BYTES; i++) if (i < 148 || i >= 156) actual += header[i]!;
  return sum === actual;
}

/** Plain files of a tar; null when it is none. */
function tarEntries(file: string): readonly Piece[] | null {
  if (!statSync(file).isFile()) return null;
  const fd = openSync(file, 'r');
  try {
    const total = fstatSync(fd).size;
    const entries: Piece[] = [];
    const header = Buffer.alloc(TAR_BLOCK_BYTES);
    let nextName: string | null = null;
    let nextBytes: number | null = null;
    let headers = 0;
    for (let at = 0; at + TAR_BLOCK_BYTES <= total; ) {
      if (++headers > MAX_TAR_ENTRIES) throw refuse('The package has too many files');
      readSync(fd, header, 0, TAR_BLOCK_BYTES, at);
      if (header.every((byte) => byte === 0)) break;
      if (!isTarHeader(header)) {
        if (at === 0) return null;
        throw refuse('The package is damaged');
      }
      const offset = at + TAR_BLOCK_BYTES;
      const type = String.fromCharCode(header[156]!);
      const isName = type === 'L' || type === 'x';
      const bytes = isName
        ? tarNumber(header.subarray(124, 136))
        : (nextBytes ?? tarNumber(header.subarray(124, 136)));
      if (offset + bytes > total) throw refuse('The package has been cut off');
      if (isName) {
        if (bytes > MAX_NAME_BYTES) throw refuse('The package is damaged');
        const data = Buffer.alloc(bytes);
        readSync(fd, data, 0, bytes, offset);
        if (type === 'L') nextName = tarText(data);
        else ({ name: nextName = nextName, bytes: nextBytes = nextBytes } = paxFields(data));
      } else {
        const prefix =
          header.toString('latin1', 257, 262) === 'ustar' ? tarText(header.subarray(345, 500)) : '';
        const short = tarText(header.subarray(0, 100));
        const name: string = nextName ?? (prefix === '' ? short : `${prefix}/${short}`);
        if (type === '0' || type === '\0' || type === '7') entries.push({ name, file, offset, bytes });
        nextName = null;
        nextBytes = null;
      }
      at = offset + Math.ceil(bytes / TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES;
    }
    return entries;
  } finally {
    closeSync(fd);
  }
}

/** "LENGTH KEY=VALUE\n" records: path and size. */
function paxFields(data: Buffer): { name?: string; bytes?: number } {
  const fields: { name?: string; bytes?: number } = {};
  for (const line of data.toString('utf8').split('\n')) {
    const match = /^\d+ (path|size)=(.*)$/.exec(line);
    if (match?.[1] === 'path') fields.name = match[2]!;
    else if (match !== null && /^\d{1,15}$/.test(match[2]!)) fields.bytes = Number(match[2]);
  }
  return fields;
}
