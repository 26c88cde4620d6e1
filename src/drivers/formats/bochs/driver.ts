/**
 * bochs: growing images of the Bochs emulator, read only.
 *
 * | offset | bytes | field (little-endian) |
 * |---|---|---|
 * | 0 | 32 + 16 + 16 | "Bochs Virtual HD Image", "Redolog", "Growing" |
 * | 64 | 4 | version: 0x10000 or 0x20000 |
 * | 68 | 4 | bytes of the header; the catalog follows |
 * | 72 | 4 | entries of the catalog |
 * | 76 | 4 | bytes of the bitmap of an extent |
 * | 80 | 4 | bytes of an extent |
 * | 84 or 88 | 8 | size of the disk in bytes, in version 1 and 2 |
 *
 * An entry of the catalog is the number of the extent in the file, all ones: none. An extent in the file is its bitmap,
 * in whole sectors, and its data. A bit, low ones first, says that the sector has been written.
 * No options of its own. Source of the facts: Bochs' documentation, "Development Guide", disk image formats; texts of
 * errors are the original's.
 */

import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import { Role } from '../../../block/contract/request.ts';
import type { BlockChild, BlockNode } from '../../../block/graph/node.ts';
import { formatChildPermissions } from '../../../block/graph/permissions.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { readingCallbacks } from '../shared/mapped-driver.ts';
import {
  type BlockMap,
  createFound,
  type MappedState,
  Place,
  type TableFile,
} from '../shared/mapped-image.ts';
import { requireReadOnly } from '../shared/read-only.ts';
import { TableCache } from '../shared/table-cache.ts';
import { readBytes } from '../shared/table-io.ts';
import { createWriteBack } from '../shared/write-back.ts';
import { probeBochs } from './probe.ts';

interface BochsState extends MappedState {
  readonly file: BlockChild;
  readonly diskBytes: number;
  readonly extentBytes: number;
  /** Of an extent's bitmap in the file. */
  readonly bitmapBytes: number;
  readonly dataOffset: number;
  readonly catalog: Buffer;
  readonly bitmaps: TableFile;
}

type BochsNode = BlockNode<BochsState>;

const SECTOR_BYTES = 512;
const HEADER_BYTES = 512;
const NO_EXTENT = 0xffffffff;
const MAX_CATALOG = 0x100000;
const MAX_EXTENT_BYTES = 0x800000;
const CACHE_BYTES = 4 * 1024 * 1024;

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

function wholeSectors(bytes: number): number {
  return Math.ceil(bytes / SECTOR_BYTES) * SECTOR_BYTES;
}

async function open(node: BochsNode, context: OpenContext): Promise<BochsState> {
  requireReadOnly(node, context);
  const file = (await context.openChild('file', Role.data | Role.metadata | Role.primary, true))!;
  const { graphLock } = node.layer;
  const header = await graphLock.withRead((guard) => readBytes(file, guard, 0, HEADER_BYTES));
  if (probeBochs(header) === 0) throw invalid('Image not in Bochs format');
  const headerBytes = header.readUInt32LE(68);
  const entries = header.readUInt32LE(72);
  const bitmapBytes = wholeSectors(header.readUInt32LE(76));
  const extentBytes = header.readUInt32LE(80);
  const diskBytes = Number(header.readBigUInt64LE(header.readUInt32LE(64) === 0x10000 ? 84 : 88));
  if (entries > MAX_CATALOG) throw new BlockError('Catalog size is too large', { errno: E.EFBIG });
  if (extentBytes < SECTOR_BYTES) throw invalid(`Extent size must be at least ${SECTOR_BYTES}`);
  if (!Number.isInteger(Math.log2(extentBytes)))
    throw invalid(`Extent size ${extentBytes} is not a power of two`);
  if (extentBytes > MAX_EXTENT_BYTES) throw invalid(`Extent size ${extentBytes} is too large`);
  // The original counts a disk of no whole number of sectors down.
  const usable = diskBytes - (diskBytes % SECTOR_BYTES);
  if (!Number.isSafeInteger(diskBytes) || entries < Math.ceil(usable / extentBytes))
    throw invalid('Catalog size is too small for this disk size');
  if (bitmapBytes * 8 < extentBytes / SECTOR_BYTES || bitmapBytes > MAX_EXTENT_BYTES)
    throw invalid(`Bitmap size ${bitmapBytes} does not fit extents of ${extentBytes} bytes`);
  const dataOffset = headerBytes + entries * 4;
  if (headerBytes < HEADER_BYTES || dataOffset > file.node.totalBytes)
    throw invalid('Catalog is not inside the file');
  return {
    file,
    diskBytes: usable,
    extentBytes,
    bitmapBytes,
    dataOffset,
    catalog: await graphLock.withRead((guard) => readBytes(file, guard, headerBytes, entries * 4)),
    bitmaps: {
      child: file,
      cache: new TableCache(bitmapBytes, Math.max(1, Math.floor(CACHE_BYTES / bitmapBytes))),
      endBytes: Number.MAX_SAFE_INTEGER,
    },
    found: createFound(),
    allocations: [],
    writeBack: createWriteBack(),
  };
}

const map: BlockMap<BochsState> = {
  lookup({ state }, offset, bytes) {
    const { extentBytes, bitmapBytes, bitmaps, found, file } = state;
    const number = state.catalog.readUInt32LE(Math.floor(offset / extentBytes) * 4);
    const within = offset % extentBytes;
    const most = Math.min(bytes, extentBytes - within);
    found.child = file;
    found.host = 0;
    if (number === NO_EXTENT) {
      found.kind = Place.hole;
      found.bytes = most;
      return null;
    }
    const place = state.dataOffset + number * (extentBytes + bitmapBytes);
    if (place + bitmapBytes > file.node.totalBytes) throw ioError(E.EIO);
    const page = bitmaps.cache.get(place);
    if (page === undefined) return { tables: bitmaps, offset: place };
    const isWritten = (sector: number): boolean => (page.mem.buf[sector >> 3]! & (1 << (sector & 7))) !== 0;
    const first = Math.floor(within / SECTOR_BYTES);
    const written = isWritten(first);
    let end = first + 1;
    while (end * SECTOR_BYTES < within + most && isWritten(end) === written) end++;
    found.kind = written ? Place.data : Place.hole;
    found.bytes = Math.min(most, end * SECTOR_BYTES - within);
    if (written) found.host = place + bitmapBytes + within;
    return null;
  },
};

export const bochs: BlockDriver<BochsState> = {
  name: 'bochs',
  ...readingCallbacks(map),
  // What was never written reads as zeroes.
  supportsBacking: true,
  probe: probeBochs,
  open,
  reopenCommit: () => undefined,
  childPermissions: formatChildPermissions,
  getLength: async ({ state }) => state.diskBytes,
  async getInfo() {
    throw ioError(E.ENOTSUP);
  },
};
