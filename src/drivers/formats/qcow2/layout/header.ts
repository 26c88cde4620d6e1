/**
 * The image header and its extensions: parsing with every check that needs no other part of the image, and encoding.
 *
 * | bytes   | field                               | bytes   | field (version 3)         |
 * |---------|-------------------------------------|---------|---------------------------|
 * | 0-3     | magic "QFI\xfb"                     | 72-79   | incompatible features     |
 * | 4-7     | version, 2 or 3                     | 80-87   | compatible features       |
 * | 8-19    | backing file name: offset, length   | 88-95   | autoclear features        |
 * | 20-23   | cluster bits                        | 96-99   | refcount order            |
 * | 24-31   | virtual size in bytes               | 100-103 | header length             |
 * | 32-35   | encryption method                   | 104     | compression type          |
 * | 36-47   | L1 table: entries, offset           |         |                           |
 * | 48-59   | refcount table: offset, clusters    | then    | header extensions, end    |
 * | 60-71   | snapshots: count, table offset      |         | marker, backing file name |
 *
 * Unknown extensions and header fields are kept as they are. Source: qcow2 specification, "Header".
 */

import { bytesOfText, textOfBytes } from '../../../../aio/host/names.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError } from '../../../../errors/error.ts';
import {
  Autoclear,
  Compat,
  Crypt,
  Extension,
  INCOMPAT_KNOWN,
  Incompat,
  MAX_BITMAP_DIRECTORY_BYTES,
  MAX_BITMAPS,
  MAX_CLUSTER_BITS,
  MIN_CLUSTER_BITS,
  readU64,
  viewOf,
  writeU64,
} from './layout.ts';
import { QCOW_MAGIC } from './magic.ts';

const V2_HEADER_BYTES = 72;
const V3_HEADER_BYTES = 104;
/** With the compression type and its padding. */
const FULL_HEADER_BYTES = 112;

export interface HeaderExtension {
  readonly type: number;
  readonly data: Buffer;
}

/** The header as a record; owned by the node's state, changed under the metadata lock, then written whole. */
export interface Header {
  version: number;
  backingFile: string | null;
  backingFormat: string | null;
  readonly clusterBits: number;
  /** Virtual size in bytes. */
  size: number;
  cryptMethod: number;
  l1Entries: number;
  l1Offset: number;
  refcountTableOffset: number;
  refcountTableClusters: number;
  snapshotCount: number;
  snapshotsOffset: number;
  /** Low halves of the feature words: where the known bits are. */
  incompatible: number;
  compatible: number;
  autoclear: number;
  /** High halves of the incompatible, compatible and autoclear words. */
  highFeatures: readonly [number, number, number];
  refcountOrder: number;
  headerBytes: number;
  /** 0 zlib, 1 zstd. */
  compressionType: number;
  /** External data file name, as stored. */
  dataFile: string | null;
  /** Full disk encryption header: where the LUKS header lies. */
  encryption: { offset: number; bytes: number } | null;
  /** Bitmaps extension; null when absent. */
  bitmaps: { count: number; directoryBytes: number; directoryOffset: number } | null;
  /** Why the bitmaps extension that is there does not count: the version, or somebody did not keep it up to date. */
  bitmapsDropped: 'v2' | 'modified' | null;
  /** Feature name table as found (kept and, when absent, written anew for version 3). */
  featureNames: Buffer | null;
  /** Extensions of types this driver does not know, kept. */
  unknownExtensions: readonly HeaderExtension[];
  /** Header bytes behind the fields this driver knows, kept. */
  unknownFields: Buffer;
}

function invalid(message: string, errno: number = E.EINVAL): BlockError {
  return new BlockError(message, { errno });
}

/** Text up to the first NUL: what the original, written in C, takes a name for. */
function text(data: Buffer): string {
  const end = data.indexOf(0);
  return textOfBytes(data.subarray(0, end < 0 ? data.length : end));
}

/** Size of the header with extensions that has to be read: the first cluster. Throws what the original says. */
export function headerClusterBits(start: Buffer): number {
  if (start.length < V2_HEADER_BYTES || start.readUInt32BE(0) !== QCOW_MAGIC)
    throw invalid('Image is not in qcow2 format');
  const version = start.readUInt32BE(4);
  if (version < 2 || version > 3) throw invalid(`Unsupported qcow2 version ${version}`, E.ENOTSUP);
  const bits = start.readUInt32BE(20);
  if (bits < MIN_CLUSTER_BITS || bits > MAX_CLUSTER_BITS)
    throw invalid(`Unsupported cluster size: 2^${bits}`);
  return bits;
}

/** Parses the whole header of an image that has been opened before: fields, extensions, backing file name. */
export function parseHeader(start: Buffer): Header {
  const header = parseFields(start);
  readExtensions(header, start);
  readBackingName(header, start);
  return header;
}

/**
 * Parses the fields of the header. `start` is the first cluster of the image. What lies behind them is read later
 * (readExtensions, readBackingName): the original makes other checks between. Throws BlockError with its texts.
 */
export function parseFields(start: Buffer): Header {
  const clusterBits = headerClusterBits(start);
  const clusterBytes = 2 ** clusterBits;
  const view = viewOf(start);
  const version = view.getUint32(4);
  let headerBytes = V2_HEADER_BYTES;
  if (version >= 3) {
    if (start.length < V3_HEADER_BYTES) throw invalid('qcow2 header too short');
    headerBytes = view.getUint32(100);
    if (headerBytes < V3_HEADER_BYTES) throw invalid('qcow2 header too short');
  }
  if (headerBytes > clusterBytes) throw invalid('qcow2 header exceeds cluster size');
  if (headerBytes > start.length) throw invalid('qcow2 header too short');
  const half = (at: number): number => (version >= 3 ? view.getUint32(at) : 0);
  const refcountOrder = version >= 3 ? view.getUint32(96) : 4;
  const header: Header = {
    version,
    backingFile: null,
    backingFormat: null,
    clusterBits,
    size: readU64(view, 24),
    cryptMethod: view.getUint32(32),
    l1Entries: view.getUint32(36),
    l1Offset: readU64(view, 40),
    refcountTableOffset: readU64(view, 48),
    refcountTableClusters: view.getUint32(56),
    snapshotCount: view.getUint32(60),
    snapshotsOffset: readU64(view, 64),
    incompatible: half(76),
    compatible: half(84),
    autoclear: half(92),
    highFeatures: [half(72), half(80), half(88)],
    refcountOrder,
    headerBytes,
    compressionType: headerBytes > V3_HEADER_BYTES ? start[104]! : 0,
    dataFile: null,
    encryption: null,
    bitmaps: null,
    bitmapsDropped: null,
    featureNames: null,
    unknownExtensions: [],
    unknownFields: start.subarray(Math.min(headerBytes, FULL_HEADER_BYTES), headerBytes),
  };
  if (readU64(view, 8) > clusterBytes) throw invalid('Invalid backing file offset');
  checkCompressionType(header);
  return header;
}

function checkCompressionType({ compressionType: type, incompatible }: Header): void {
  if (type > 1) throw invalid(`qcow2: unknown compression type: ${type}`, E.ENOTSUP);
  const typed = (incompatible & Incompat.compressionType) !== 0;
  if (typed === (type !== 0)) return;
  throw invalid(
    typed
      ? 'qcow2: Compression type incompatible feature bit must not be set'
      : 'qcow2: Compression type incompatible feature bit must be set',
  );
}

/** Where the extensions end: at the backing file name, or with the cluster. */
function extensionsEnd(start: Buffer): number {
  const backingOffset = readU64(viewOf(start), 8);
  return backingOffset !== 0 ? Math.min(backingOffset, start.length) : start.length;
}

/** Takes the extensions into `header`; `start` as for parseFields. */
export function readExtensions(header: Header, start: Buffer): void {
  const unknown: HeaderExtension[] = [];
  for (const { type, data } of extensions(header, start)) {
    if (!takeExtension(header, type, data)) unknown.push({ type, data: Buffer.from(data) });
  }
  header.unknownExtensions = unknown;
}

function* extensions(header: Header, start: Buffer): Generator<HeaderExtension> {
  const end = extensionsEnd(start);
  for (let at = header.headerBytes; at + 8 <= end; ) {
    const type = start.readUInt32BE(at);
    const length = start.readUInt32BE(at + 4);
    if (length > end - at - 8) throw invalid('Header extension too large');
    if (type === Extension.end) return;
    yield { type, data: start.subarray(at + 8, at + 8 + length) };
    at += 8 + Math.ceil(length / 8) * 8;
  }
}

/** Takes the name of the backing file into `header`; `start` as for parseFields. */
export function readBackingName(header: Header, start: Buffer): void {
  const view = viewOf(start);
  const offset = readU64(view, 8);
  if (offset === 0) return;
  const bytes = view.getUint32(16);
  if (bytes > Math.min(1023, 2 ** header.clusterBits - offset)) throw invalid('Backing file name too long');
  const name = text(start.subarray(offset, offset + bytes));
  if (name !== '') header.backingFile = name;
}

/** False for a type this driver does not know. */
function takeExtension(header: Header, type: number, data: Buffer): boolean {
  const view = viewOf(data);
  switch (type) {
    case Extension.backingFormat:
      if (data.length > 15) throw invalid(`ERROR: ext_backing_format: len=${data.length} too large (>=16)`);
      header.backingFormat = text(data) || null;
      return true;
    case Extension.featureNames:
      header.featureNames = Buffer.from(data);
      return true;
    case Extension.dataFile:
      header.dataFile = text(data);
      return true;
    case Extension.encryption:
      if (header.cryptMethod !== Crypt.luks)
        throw invalid('CRYPTO header extension only expected with LUKS encryption method');
      if (data.length !== 16)
        throw invalid(`CRYPTO header extension size ${data.length}, but expected size 16`);
      header.encryption = { offset: readU64(view, 0), bytes: readU64(view, 8) };
      if (header.encryption.offset % 2 ** header.clusterBits !== 0) {
        throw invalid(
          `Encryption header offset '${header.encryption.offset}' is not a multiple of cluster size '${2 ** header.clusterBits}'`,
        );
      }
      return true;
    case Extension.bitmaps:
      if (data.length !== 24) throw invalid(`bitmaps_ext: Invalid extension length`);
      takeBitmaps(header, view);
      return true;
    default:
      return false;
  }
}

function takeBitmaps(header: Header, view: DataView): void {
  if (header.version < 3 || (header.autoclear & Autoclear.bitmaps) === 0) {
    header.bitmapsDropped = header.version < 3 ? 'v2' : 'modified';
    return;
  }
  const count = view.getUint32(0);
  const bytes = view.getBigUint64(8);
  const directoryOffset = readU64(view, 16);
  if (view.getUint32(4) !== 0) throw invalid('bitmaps_ext: Reserved field is not zero');
  if (count > MAX_BITMAPS) {
    throw invalid(
      `bitmaps_ext: Image has ${count} bitmaps, exceeding the QEMU supported maximum of ${MAX_BITMAPS}`,
    );
  }
  if (count === 0) throw invalid('found bitmaps extension with zero bitmaps');
  if (directoryOffset % 2 ** header.clusterBits !== 0)
    throw invalid('bitmaps_ext: invalid bitmap directory offset');
  if (bytes > BigInt(MAX_BITMAP_DIRECTORY_BYTES)) {
    throw invalid(
      `bitmaps_ext: bitmap directory size (${bytes}) exceeds the maximum supported size (${MAX_BITMAP_DIRECTORY_BYTES})`,
    );
  }
  header.bitmaps = { count, directoryBytes: Number(bytes), directoryOffset };
}

/** Names of the feature bits, for the feature name table and for errors about unknown bits. */
const FEATURES: readonly (readonly [kind: number, bit: number, name: string])[] = [
  [0, 0, 'dirty bit'],
  [0, 1, 'corrupt bit'],
  [0, 2, 'external data file'],
  [0, 3, 'compression type'],
  [0, 4, 'extended L2 entries'],
  [1, 0, 'lazy refcounts'],
  [2, 0, 'bitmaps'],
  [2, 1, 'raw external data'],
];

const FEATURE_ENTRY_BYTES = 48;

function featureNameTable(): Buffer {
  const table = Buffer.alloc(FEATURES.length * FEATURE_ENTRY_BYTES);
  FEATURES.forEach(([kind, bit, name], index) => {
    const at = index * FEATURE_ENTRY_BYTES;
    table[at] = kind;
    table[at + 1] = bit;
    table.write(name, at + 2, 46, 'latin1');
  });
  return table;
}

/** The error for incompatible feature bits nobody here knows, named by the image's own table; null without such. */
export function unknownFeatures(header: Header, start: Buffer): string | null {
  let left = (BigInt(header.highFeatures[0]) << 32n) | BigInt(header.incompatible);
  left &= ~BigInt(INCOMPAT_KNOWN);
  if (left === 0n) return null;
  const names: string[] = [];
  const table = featureNamesOf(header, start);
  for (let at = 0; at + FEATURE_ENTRY_BYTES <= table.length; at += FEATURE_ENTRY_BYTES) {
    const value = 1n << BigInt(table[at + 1]!);
    if (table[at] !== 0 || (left & value) === 0n) continue;
    names.push(text(table.subarray(at + 2, at + FEATURE_ENTRY_BYTES)));
    left &= ~value;
  }
  if (left !== 0n) names.push(`Unknown incompatible feature: ${left.toString(16)}`);
  return `Unsupported qcow2 feature(s): ${names.join(', ')}`;
}

/** The image's feature name table; empty when there is none, or none that can be found. */
function featureNamesOf(header: Header, start: Buffer): Buffer {
  try {
    for (const { type, data } of extensions(header, start)) if (type === Extension.featureNames) return data;
  } catch {
    // What is wrong with the extensions is not what is reported here.
  }
  return Buffer.alloc(0);
}

function extension(type: number, data: Buffer): Buffer {
  const out = Buffer.alloc(8 + Math.ceil(data.length / 8) * 8);
  out.writeUInt32BE(type, 0);
  out.writeUInt32BE(data.length, 4);
  data.copy(out, 8);
  return out;
}

/**
 * The first cluster's worth of header: fields, extensions, backing file name, in the order the original writes them.
 * The rest of the cluster is zero. Throws ENOSPC when it does not fit in a cluster.
 */
export function encodeHeader(header: Header): Buffer {
  const clusterBytes = 2 ** header.clusterBits;
  const headerBytes = header.version >= 3 ? FULL_HEADER_BYTES + header.unknownFields.length : V2_HEADER_BYTES;
  const fixed = Buffer.alloc(headerBytes);
  const view = viewOf(fixed);
  view.setUint32(0, QCOW_MAGIC);
  view.setUint32(4, header.version);
  view.setUint32(20, header.clusterBits);
  writeU64(view, 24, header.size);
  view.setUint32(32, header.cryptMethod);
  view.setUint32(36, header.l1Entries);
  writeU64(view, 40, header.l1Offset);
  writeU64(view, 48, header.refcountTableOffset);
  view.setUint32(56, header.refcountTableClusters);
  view.setUint32(60, header.snapshotCount);
  writeU64(view, 64, header.snapshotsOffset);
  if (header.version >= 3) {
    const low = [header.incompatible, header.compatible, header.autoclear];
    for (const [index, high] of header.highFeatures.entries()) {
      view.setUint32(72 + index * 8, high);
      view.setUint32(76 + index * 8, low[index]!);
    }
    view.setUint32(96, header.refcountOrder);
    view.setUint32(100, headerBytes);
    fixed[104] = header.compressionType;
    header.unknownFields.copy(fixed, FULL_HEADER_BYTES);
  }
  const parts = [fixed, ...encodeExtensions(header), extension(Extension.end, Buffer.alloc(0))];
  const name = bytesOfText(header.backingFile ?? '');
  if (header.backingFile !== null) {
    const offset = parts.reduce((sum, part) => sum + part.length, 0);
    writeU64(view, 8, offset);
    view.setUint32(16, name.length);
    parts.push(name);
  }
  const used = Buffer.concat(parts);
  if (used.length > clusterBytes) throw invalid('The header does not fit into a cluster', E.ENOSPC);
  const cluster = Buffer.alloc(clusterBytes);
  used.copy(cluster);
  return cluster;
}

function encodeExtensions(header: Header): Buffer[] {
  const parts: Buffer[] = [];
  if (header.backingFormat !== null)
    parts.push(extension(Extension.backingFormat, bytesOfText(header.backingFormat)));
  if (header.dataFile !== null && (header.incompatible & Incompat.dataFile) !== 0)
    parts.push(extension(Extension.dataFile, bytesOfText(header.dataFile)));
  if (header.encryption !== null) {
    const data = Buffer.alloc(16);
    writeU64(viewOf(data), 0, header.encryption.offset);
    writeU64(viewOf(data), 8, header.encryption.bytes);
    parts.push(extension(Extension.encryption, data));
  }
  // Small clusters have no room to spare for names.
  if (header.version >= 3 && header.clusterBits > 12)
    parts.push(extension(Extension.featureNames, featureNameTable()));
  if (header.bitmaps !== null && header.bitmaps.count > 0) {
    const data = Buffer.alloc(24);
    viewOf(data).setUint32(0, header.bitmaps.count);
    writeU64(viewOf(data), 8, header.bitmaps.directoryBytes);
    writeU64(viewOf(data), 16, header.bitmaps.directoryOffset);
    parts.push(extension(Extension.bitmaps, data));
  }
  for (const { type, data } of header.unknownExtensions) parts.push(extension(type, data));
  return parts;
}

/** Whether refcounts may be late on disk: the image says so and its version can express it. */
export function hasLazyRefcounts(header: Header): boolean {
  return (header.compatible & Compat.lazyRefcounts) !== 0;
}
