/** Opening the parts of a VMDK image: extents by their headers, in the image's own file or in files of their own. */

import path from 'node:path';
import type { OpenContext } from '../../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import { Role } from '../../../block/contract/request.ts';
import type { BlockChild } from '../../../block/graph/node.ts';
import { protocolPrefix } from '../../../block/open/image-name.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { HOLE, ZERO } from '../shared/flat-table.ts';
import { TableCache } from '../shared/table-cache.ts';
import { readBytes, viewOf } from '../shared/table-io.ts';
import type { ExtentLine } from './descriptor.ts';
import { MAX_PACKED_GRAIN_BYTES } from './grain-read.ts';
import { checkVolatileHeader, parseSeHeader, SE_ENTRY_BYTES, seDirectory, seEntry } from './se-sparse.ts';
import {
  GTE_ZEROED,
  isCowd,
  isDirectoryAtEnd,
  isHosted,
  parseCowd,
  parseHosted,
  SECTOR_BYTES,
  type SparseHeader,
} from './sparse-header.ts';
import type { Extent, SparsePart } from './state.ts';
import { createStream } from './stream-write.ts';

/** Memory for grain tables, all extents together. */
const TABLES_BYTES = 16 * 1024 * 1024;
const MIN_TABLES = 64;

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

/** What an extent is before its place on the disk is known. */
type Part = Omit<Extent, 'start' | 'type'>;

/** Reads the header of a hosted sparse extent, and the footer where that counts. */
export async function readHosted(
  child: BlockChild,
  guard: GraphReadGuard,
  start: Buffer,
): Promise<SparseHeader> {
  if (!isDirectoryAtEnd(start)) return parseHosted(start, null);
  const end = child.node.totalBytes - 2 * SECTOR_BYTES;
  if (end < SECTOR_BYTES) throw invalid('Invalid footer');
  return parseHosted(start, await readBytes(child, guard, end, SECTOR_BYTES));
}

/** The offsets in a directory, in bytes. */
async function readDirectory(
  child: BlockChild,
  guard: GraphReadGuard,
  offset: number,
  entries: number,
): Promise<Float64Array> {
  if (offset + entries * 4 > child.node.totalBytes)
    throw invalid(`The grain directory reaches behind the end of the file`);
  const view = viewOf(await readBytes(child, guard, offset, entries * 4));
  return Float64Array.from({ length: entries }, (_, i) => view.getUint32(i * 4, true) * SECTOR_BYTES);
}

function tableCache(tableBytes: number, share: number): TableCache {
  return new TableCache(tableBytes, Math.max(MIN_TABLES, Math.floor(TABLES_BYTES / share / tableBytes)));
}

/** An extent of a hosted or COWD header. `share`: by how many the memory is shared. */
export async function openSparse(
  child: BlockChild,
  guard: GraphReadGuard,
  header: SparseHeader,
  mayWrite: boolean,
  share: number,
): Promise<Part> {
  const { grainBytes, entriesPerTable, directoryEntries: entries, compressed } = header;
  if (compressed && (grainBytes > MAX_PACKED_GRAIN_BYTES || !header.markers))
    throw invalid(`Unsupported compressed grains of ${grainBytes} bytes`);
  const directory = await readDirectory(child, guard, header.directoryOffset, entries);
  const redundant =
    header.redundantOffset === null || header.redundantOffset + entries * 4 > child.node.totalBytes
      ? null
      : await readDirectory(child, guard, header.redundantOffset, entries);
  const fileBytes = child.node.totalBytes;
  if (header.overheadBytes > fileBytes) {
    throw invalid(`File truncated, expecting at least ${header.overheadBytes} bytes`);
  }
  const isEmpty = directory.every((offset) => offset === 0);
  // A stream that is complete stays as it is: what follows its end mark nobody would read.
  const writable = mayWrite && (!header.atEnd || isEmpty);
  const part: SparsePart = {
    grainBytes,
    entriesPerTable,
    entryBytes: 4,
    directory,
    directoryOffset: header.directoryOffset,
    redundant,
    redundantOffset: header.redundantOffset ?? 0,
    tables: { child, cache: tableCache(entriesPerTable * 4, share), endBytes: Number.POSITIVE_INFINITY },
    decode(view, at) {
      const entry = view.getUint32(at, true);
      if (entry === 0) return HOLE;
      if (entry === GTE_ZEROED && header.zeroedGrains) return ZERO;
      const host = entry * SECTOR_BYTES;
      // The rest of the image is missing.
      if (host >= fileBytes && host < part.ownFrom) throw ioError(E.EIO);
      return host;
    },
    zeroedGrains: header.zeroedGrains,
    compressed,
    writable,
    space: null,
    ownFrom: Number.POSITIVE_INFINITY,
    changed: new Set(),
    inRound: [],
    tableNumbers: null,
    stream:
      writable && header.atEnd
        ? createStream({
            capacitySectors: header.capacitySectors,
            overheadBytes: header.overheadBytes,
            hasDescriptor: header.descriptorOffset !== 0,
          })
        : null,
    lastGrain: Promise.resolve(),
  };
  return { bytes: header.capacitySectors * SECTOR_BYTES, child, offset: 0, sparse: part, grains: new Map() };
}

/** An SEsparse extent. `share`: by how many the memory is shared. */
export async function openSeSparse(child: BlockChild, guard: GraphReadGuard, share: number): Promise<Part> {
  const header = parseSeHeader(await readBytes(child, guard, 0, SECTOR_BYTES));
  checkVolatileHeader(await readBytes(child, guard, header.volatileOffset, SECTOR_BYTES));
  const { directoryOffset, directoryEntries, tableBytes, grainBytes } = header;
  if (directoryOffset + directoryEntries * SE_ENTRY_BYTES > child.node.totalBytes)
    throw invalid('The grain directory reaches behind the end of the file');
  const bytes = await readBytes(child, guard, directoryOffset, directoryEntries * SE_ENTRY_BYTES);
  const fileBytes = child.node.totalBytes;
  const part: SparsePart = {
    grainBytes,
    entriesPerTable: tableBytes / SE_ENTRY_BYTES,
    entryBytes: SE_ENTRY_BYTES,
    directory: seDirectory(header, bytes),
    directoryOffset,
    redundant: null,
    redundantOffset: 0,
    tables: { child, cache: tableCache(tableBytes, share), endBytes: Number.POSITIVE_INFINITY },
    decode(view, at) {
      const host = seEntry(header, view, at);
      if (host >= fileBytes) throw ioError(E.EIO);
      return host;
    },
    zeroedGrains: false,
    compressed: false,
    writable: false,
    space: null,
    ownFrom: Number.POSITIVE_INFINITY,
    changed: new Set(),
    inRound: [],
    tableNumbers: null,
    stream: null,
    lastGrain: Promise.resolve(),
  };
  return { bytes: header.capacitySectors * SECTOR_BYTES, child, offset: 0, sparse: part, grains: new Map() };
}

/**
 * The file that an extent line names: a path, relative to the descriptor, and nothing else. The descriptor came with
 * the image, so whatever looks like a protocol in it is part of a file name.
 */
export function extentPath(descriptorPlace: string, filename: string): string {
  if (path.isAbsolute(filename)) return filename;
  const prefix = protocolPrefix(descriptorPlace);
  const folder = descriptorPlace.slice(
    0,
    Math.max(descriptorPlace.lastIndexOf('/'), prefix === null ? -1 : prefix.length) + 1,
  );
  const name = folder + filename;
  // "a:b.vmdk" beside a descriptor in the working directory.
  return prefix === null && protocolPrefix(name) !== null ? `./${name}` : name;
}

/** Opens what a line of the descriptor names. */
export async function openExtent(
  context: OpenContext,
  withRead: <T>(read: (guard: GraphReadGuard) => Promise<T>) => Promise<T>,
  line: ExtentLine,
  at: { readonly place: string; readonly index: number; readonly share: number },
): Promise<Part> {
  const bytes = line.sectors * SECTOR_BYTES;
  if (line.type === 'ZERO') return { bytes, child: null, offset: 0, sparse: null, grains: new Map() };
  const isFlat = line.type === 'FLAT' || line.type === 'VMFS';
  const roles = isFlat ? Role.data : Role.data | Role.metadata;
  const filename = extentPath(at.place, line.filename);
  const child = await context.openNamedChild(`extents.${at.index}`, roles, filename);
  if (isFlat) {
    const offset = line.offsetSectors * SECTOR_BYTES;
    if (offset + bytes > child.node.totalBytes)
      throw invalid(`The extent in '${line.filename}' is shorter than its descriptor says`);
    return { bytes, child, offset, sparse: null, grains: new Map() };
  }
  return withRead(async (guard) => {
    if (line.type === 'SESPARSE') return openSeSparse(child, guard, at.share);
    const start = await readBytes(child, guard, 0, SECTOR_BYTES);
    const isWanted = line.type === 'SPARSE' ? isHosted(start) : isCowd(start);
    if (!isWanted) throw invalid('Image not in VMDK format');
    const header = isHosted(start) ? await readHosted(child, guard, start) : parseCowd(start);
    return openSparse(child, guard, header, line.access !== 'RDONLY', at.share);
  });
}
